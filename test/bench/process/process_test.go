package process

import (
	"context"
	"os"
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

// Every measurement is made once and shortly in every world, so that the bench works when it is wanted.
func TestMeasure(t *testing.T) {
	if testing.Short() {
		t.Skip("starts whole nodes")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rep := new(report.Report)
	o := Options{Worlds: []string{Hedge, WireGuard, Stacks, Against}, Against: self, Rules: 10, Peers: 3, Rounds: 1, Each: 20 * time.Millisecond, Say: t.Logf}
	if err := Measure(t.Context(), rep, o); err != nil {
		t.Fatal(err)
	}
	s := rep.Sections[0]
	for _, w := range o.Worlds {
		for _, m := range []string{"tcp, 1 stream", "tcp, 8 streams, back", "tcp, 8 streams, processor", "request, idle, p99", "request, beside a stream, p50", "udp, 64 bytes, arrived"} {
			if x := s.Find(w, m); x == nil || x.Values[0] <= 0 {
				t.Errorf("%s of %s: %+v", m, w, x)
			}
		}
	}
	if x := s.Find("cipher", "seal 1280 bytes, one core"); x == nil || x.Values[0] <= 0 {
		t.Errorf("the cipher: %+v", x)
	}
	if len(rep.Failed) > 0 || len(s.Ratios) == 0 {
		t.Errorf("failed %q, ratios %v", rep.Failed, s.Ratios)
	}
}

// The nodes of a scale know as many rules and peers as they should; they check it themselves.
func TestScale(t *testing.T) {
	if testing.Short() {
		t.Skip("starts whole nodes")
	}
	rep := new(report.Report)
	o := Options{Rounds: 1, Each: 10 * time.Millisecond, Say: t.Logf}
	if err := Scale(t.Context(), rep, o, []int{20, 1}); err != nil {
		t.Fatal(err)
	}
	if s := rep.Sections[0]; len(rep.Failed) > 0 || s.Find("20", "tcp, 1 stream") == nil || s.Find("1", "tcp, 1 stream") == nil {
		t.Errorf("%q; %+v", rep.Failed, s)
	}
}

// A run that is interrupted keeps what it has.
func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	rep := new(report.Report)
	o := Options{Worlds: []string{Stacks, WireGuard}, Rounds: 1000, Each: time.Millisecond, Say: t.Logf}
	told := 0
	o.Say = func(string, ...any) {
		if told++; told == 6 {
			cancel()
		}
	}
	if err := Measure(ctx, rep, o); err != context.Canceled {
		t.Errorf("it ended with %v", err)
	}
	if s := rep.Sections[0]; s.Find(Stacks, "tcp, 1 stream") == nil || len(s.Ratios) == 0 {
		t.Errorf("it kept %+v", s)
	}
}

func TestNoSuchWorld(t *testing.T) {
	b := new(bench)
	for _, r := range []Request{{Test: "tcp"}, {Test: "open", Place: &Place{Kind: "moon"}}} {
		if _, err := b.do(r); err == nil {
			t.Errorf("%+v was done", r)
		}
	}
}
