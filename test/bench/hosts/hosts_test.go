package hosts

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What iperf3 3.12 printed: of streams with a second of warming up, of the same backwards, and of datagrams.
func TestParseIperf(t *testing.T) {
	for _, tt := range []struct {
		file                       string
		gbit, bytes, arrived, lost float64
	}{
		{file: "tcp.json", gbit: 8.3295, bytes: 1355284480 + 1044643840},
		{file: "back.json", gbit: 15.207, bytes: 1517813760 + 1900675072},
		{file: "udp.json", bytes: 2762240, arrived: (43160 - 14878) / 1.006888, lost: 34.4717},
	} {
		t.Run(tt.file, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join("testdata", tt.file))
			if err != nil {
				t.Fatal(err)
			}
			r, err := parseIperf(append([]byte("[proxychains] says something\n"), b...))
			if err != nil {
				t.Fatal(err)
			}
			if r.bytes() != tt.bytes {
				t.Errorf("%.0f bytes, want %.0f", r.bytes(), tt.bytes)
			}
			if tt.gbit > 0 {
				if got, err := r.gbit(); err != nil || math.Abs(got-tt.gbit) > 0.001 {
					t.Errorf("%v Gbit/s, %v; want %v", got, err, tt.gbit)
				}
				return
			}
			arrived, lost, err := r.datagrams()
			if err != nil || math.Abs(arrived-tt.arrived) > 1 || math.Abs(lost-tt.lost) > 0.001 {
				t.Errorf("%v a second, %v %% lost, %v; want %v and %v", arrived, lost, err, tt.arrived, tt.lost)
			}
		})
	}
}

func TestParseIperfErrors(t *testing.T) {
	for _, tt := range []struct{ out, want string }{
		{"", "no JSON"},
		{"iperf3: not found", "no JSON"},
		{`{"end": `, "JSON"},
		{`{"end": {}, "error": "unable to connect to server: Connection refused"}`, "Connection refused"},
	} {
		if _, err := parseIperf([]byte(tt.out)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.out, err, tt.want)
		}
	}
	if _, err := parseIperf([]byte(`{"error": "error - the server is busy running a test. try again later"}`)); !errors.Is(err, errBusy) {
		t.Errorf("a busy server: %v", err)
	}
	if r, err := parseIperf([]byte(`{"end": {}}`)); err != nil {
		t.Error(err)
	} else if _, err := r.gbit(); err == nil {
		t.Error("nothing received is no error")
	} else if _, _, err := r.datagrams(); err == nil {
		t.Error("no datagrams are no error")
	}
}

func TestParseBaselines(t *testing.T) {
	for _, tt := range []struct {
		file, err string
		want      []Baseline
	}{
		{file: `[{"name": "x", "up": "true", "address": "10.0.0.2"}]`, want: []Baseline{{"x", "true", "", "10.0.0.2"}}},
		{file: "// with a comment\n[{\"name\": \"x\", \"up\": \"a\", \"down\": \"b\", \"address\": \"$c\",},]", want: []Baseline{{"x", "a", "b", "$c"}}},
		{file: `[]`, want: []Baseline{}},
		{file: `[{"name": "x", "up": "true"}]`, err: "entry 1 needs a name, up and address"},
		{file: `[{"name": "veth", "up": "true", "address": "a"}]`, err: `"veth" is taken`},
		{file: `[{"name": "x", "up": "true", "address": "a"}, {"name": "x", "up": "true", "address": "a"}]`, err: `entry 2: the name "x" is taken`},
		{file: `{}`, err: "cannot unmarshal"},
		{file: `[{]`, err: "line 1"},
	} {
		got, err := parseBaselines([]byte(tt.file))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %q", tt.file, err, tt.err)
			}
		} else if d := cmp.Diff(tt.want, got); err != nil || d != "" {
			t.Errorf("%s: %v %s", tt.file, err, d)
		}
	}
	if _, err := ReadBaselines("nowhere.hujson"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestCost(t *testing.T) {
	few := Options{Worlds: []string{Veth}, Rounds: 1, Each: time.Second, Few: true}
	all := few
	all.Few = false
	twice := all
	twice.Rounds = 2
	if a, b, c := few.Cost(), all.Cost(), twice.Cost(); a <= 0 || b <= a || c <= b {
		t.Errorf("few %v, all %v, twice %v", a, b, c)
	}
	for d, want := range map[time.Duration]int{time.Millisecond: 1, time.Second: 1, 1500 * time.Millisecond: 2, 3 * time.Second: 3} {
		if got := (Options{Each: d}).seconds(); got != want {
			t.Errorf("%v are %d seconds, want %d", d, got, want)
		}
	}
}
