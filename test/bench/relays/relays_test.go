package relays

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/test/bench/kid"
	"github.com/hedge-mesh/hedge/test/bench/report"
)

// TestMain lets this test's binary be its own kids.
func TestMain(m *testing.M) {
	kid.Main(Jobs)
	os.Exit(m.Run())
}

// Every measurement is made once and shortly with every relay; with derper if it has been built here before.
func TestMeasure(t *testing.T) {
	if testing.Short() {
		t.Skip("starts relays")
	}
	o := Options{Worlds: []string{TLS, UDP}, Rounds: 1, Each: 50 * time.Millisecond, Idle: 20, Say: t.Logf, Hedge: filepath.Join(t.TempDir(), "hedge")}
	if out, err := exec.Command("go", "build", "-o", o.Hedge, "../../../cmd/hedge").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cache, _ := os.UserCacheDir()
	if bin := filepath.Join(cache, "hedge-bench", "derper-"+derperVersion, "derper"); exec.Command(bin, "-version").Run() == nil {
		o.Worlds, o.Derper = append(o.Worlds, Derper), bin
	}
	rep := new(report.Report)
	if err := Measure(t.Context(), rep, o); err != nil {
		t.Fatal(err)
	}
	s := rep.Sections[0]
	for _, w := range o.Worlds {
		for _, m := range []string{"one pair", "ten pairs", "request, p50", "a pair beside a client that has stalled",
			"request of two others beside a client that has stalled, p99"} {
			if x := s.Find(w, m); x == nil || x.Values[0] <= 0 {
				t.Errorf("%s of %s: %+v", m, w, x)
			}
		}
	}
	if len(rep.Failed) > 0 {
		t.Errorf("failed: %q", rep.Failed)
	}
}

// A relay that does not come up is an error that says what it said.
func TestDoesNotServe(t *testing.T) {
	ctx := t.Context()
	o := Options{Hedge: "/nowhere/hedge"}
	if _, err := start(ctx, o, TLS, filepath.Join(t.TempDir(), "a")); err == nil {
		t.Error("a program that is not there came up")
	}
	if _, err := start(ctx, o, "moon", filepath.Join(t.TempDir(), "b")); err == nil {
		t.Error("a relay that is not known came up")
	}
	echo, err := exec.LookPath("echo")
	if err != nil {
		t.Skip(err)
	}
	o.Hedge = echo
	if _, err := start(ctx, o, TLS, filepath.Join(t.TempDir(), "c")); err == nil || !strings.Contains(err.Error(), "--coordinator-key") {
		t.Errorf("it said nothing of what the program said: %v", err)
	}
}

func TestFrames(t *testing.T) {
	for _, tt := range []struct {
		name, wire string
		kind       byte
		a, b       string
		bad        bool
	}{
		{name: "send", wire: "0400000005" + "aabb" + "010203", kind: frameSend, a: "aabb", b: "010203"},
		{name: "empty", wire: "0600000000", kind: 6},
		{name: "cut short", wire: "0500000004" + "aabb", bad: true},
		{name: "no head", wire: "0500", bad: true},
		{name: "too long", wire: "05ffffffff", bad: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw, err := hex.DecodeString(tt.wire)
			if err != nil {
				t.Fatal(err)
			}
			kind, body, err := readFrame(bufio.NewReader(bytes.NewReader(raw)), nil)
			if tt.bad {
				if err == nil {
					t.Errorf("read %d, %x", kind, body)
				}
				return
			}
			if err != nil || kind != tt.kind || hex.EncodeToString(body) != tt.a+tt.b {
				t.Errorf("read %d, %x, %v", kind, body, err)
			}
			var out bytes.Buffer
			w := bufio.NewWriter(&out)
			a, _ := hex.DecodeString(tt.a)
			b, _ := hex.DecodeString(tt.b)
			if err := writeFrame(w, tt.kind, a, b); err != nil {
				t.Fatal(err)
			}
			w.Flush()
			if !bytes.Equal(out.Bytes(), raw) {
				t.Errorf("wrote %x, want %x", out.Bytes(), raw)
			}
		})
	}
}

func TestLastLine(t *testing.T) {
	for in, want := range map[string]string{"": "", "a": "a", "a\nb\n": "b", "a\n\n": "a"} {
		if got := string(lastLine([]byte(in))); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
