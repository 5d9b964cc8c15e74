package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBaselines(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{`[{"name": "x", "up": "true", "address": "10.0.0.2"}]`, ""},
		{`[{"name": "x", "up": "true"}]`, "entry 1 needs a name, up and address"},
		{`{}`, "cannot unmarshal"},
	} {
		path := filepath.Join(t.TempDir(), "baselines.json")
		if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
			t.Fatal(err)
		}
		worlds, err := readBaselines(path)
		if tt.want == "" && (err != nil || len(worlds) != 1 || worlds[0].name != "x") || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.file, err, tt.want)
		}
	}
}

// A baseline of the file's is brought up between two hosts, measured, and taken down.
func TestBaselineRuns(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	p, err := newPair(99, 1500)
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "baselines.json")
	file := `[{"name": "bare", "up": "ip -n $NS_A addr && touch $DIR/up", "down": "touch $DIR/down", "address": "$echo $ADDR_B"}]`
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	worlds, err := readBaselines(path)
	if err != nil {
		t.Fatal(err)
	}
	w := worlds[0]
	w.pair, w.dir = p, dir
	if err := w.start(w); err != nil {
		w.close()
		t.Fatal(err)
	}
	if w.address != addrB {
		t.Errorf("its address is %q", w.address)
	}
	w.close()
	for _, f := range []string{"up", "down"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Error(err)
		}
	}
}

func TestCompare(t *testing.T) {
	r := &report{Worlds: []string{"ours", "theirs"}}
	for _, v := range [][2]float64{{2, 1}, {9, 3}, {8, 2}} {
		r.put("ours", "speed", "Gbit/s", v[0])
		r.put("theirs", "speed", "Gbit/s", v[1])
	}
	r.put("ours", "only ours", "MB", 1)
	r.compare()
	if len(r.Ratios) != 1 || r.Ratios[0] != (ratio{"speed", "theirs", 2, 3, 4}) {
		t.Errorf("ratios %+v", r.Ratios)
	}
	var b strings.Builder
	r.print(&b)
	for _, want := range []string{"8 [2 9]", "3 [2 4]", "only ours"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}
