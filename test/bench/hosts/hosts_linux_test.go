package hosts

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/test/bench/crowd"
	"github.com/hedge-mesh/hedge/test/bench/kid"
	"github.com/hedge-mesh/hedge/test/bench/report"
)

// TestMain lets this test's binary be its own kids; "run" is a whole run that its parent may kill.
func TestMain(m *testing.M) {
	jobs := map[string]func([]string) error{"crowd": crowd.Jobs["crowd"], "run": func([]string) error {
		site, err := newSite(context.Background())
		if err != nil {
			return err
		}
		o := Options{Wire: 1500, Say: func(string, ...any) {}}
		if _, err := site.open(context.Background(), o, Veth); err != nil {
			return err
		}
		return kid.Serve([]string{site.prefix, site.dir}, func(json.RawMessage) ([]string, error) { return nil, nil })
	}}
	for name, job := range Jobs {
		jobs[name] = job
	}
	kid.Main(jobs)
	os.Exit(m.Run())
}

func needs(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("brings whole tunnels up")
	}
	if err := Missing(); err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command("ip", "netns", "add", "hbtry").CombinedOutput(); err != nil {
		t.Skipf("no namespaces here: %s", out)
	}
	_ = exec.Command("ip", "netns", "del", "hbtry").Run()
}

// left lists what a site has not removed.
func left(prefix, dir string) (list []string) {
	names, _ := filepath.Glob("/var/run/netns/" + prefix + "-*")
	sockets, _ := filepath.Glob("/var/run/wireguard/" + prefix + "*")
	list = append(names, sockets...)
	if _, err := os.Stat(dir); err == nil {
		list = append(list, dir)
	}
	return list
}

// The baselines of the example that the documentation names come up between two hosts, are measured, and are taken down.
func TestBaselines(t *testing.T) {
	needs(t)
	others, err := ReadBaselines("../baselines.hujson")
	if err != nil {
		t.Fatal(err)
	}
	touched := filepath.Join(t.TempDir(), "down")
	others = append(others, Baseline{Name: "marks", Up: "true", Down: "touch " + touched, Address: "$echo $ADDR_B"})
	o := Options{Worlds: []string{Veth, "marks"}, Others: others, Wire: 1500, Rounds: 1, Each: 100 * time.Millisecond, Few: true, Say: t.Logf}
	for _, b := range others[:2] {
		o.Worlds = append(o.Worlds, b.Name)
	}
	if _, err := exec.LookPath("wg"); err != nil {
		t.Log("without the second one: needs wg")
		o.Worlds = slices.DeleteFunc(o.Worlds, func(w string) bool { return w == "wireguard" })
	}
	rep := new(report.Report)
	if err := Measure(t.Context(), rep, o); err != nil {
		t.Fatal(err)
	}
	for _, w := range o.Worlds {
		for _, m := range []string{"tcp, 1 stream", "request, idle, p50"} {
			if x := rep.Sections[0].Find(w, m); x == nil || x.Values[0] <= 0 {
				t.Errorf("%s of %s: %+v", m, w, x)
			}
		}
	}
	if _, err := os.Stat(touched); err != nil || len(rep.Failed) > 0 {
		t.Errorf("down: %v; failed %q", err, rep.Failed)
	}
}

// A world that does not come up is left out, and the others are measured, unless it is the one that they are compared with.
func TestLeftOut(t *testing.T) {
	needs(t)
	bad := Baseline{Name: "bad", Up: "echo it has no keys; exit 3", Address: "10.0.0.1"}
	o := Options{Worlds: []string{Veth, "bad"}, Others: []Baseline{bad}, Wire: 1500, Rounds: 1, Each: 50 * time.Millisecond, Few: true, Say: t.Logf}
	rep := new(report.Report)
	if err := Measure(t.Context(), rep, o); err != nil || len(rep.LeftOut) != 1 || !strings.Contains(rep.LeftOut[0], "it has no keys") {
		t.Errorf("%v, left out %q", err, rep.LeftOut)
	}
	if s := rep.Sections[0]; !slices.Equal(s.Worlds, []string{Veth}) || s.Find(Veth, "tcp, 1 stream") == nil {
		t.Errorf("measured %+v", s)
	}
	slices.Reverse(o.Worlds)
	if err := Measure(t.Context(), new(report.Report), o); err == nil || !strings.Contains(err.Error(), "it has no keys") {
		t.Errorf("without the first one: %v", err)
	}
}

// A tiny run of Hedge and of wireguard-go, in all measures.
func TestMeasure(t *testing.T) {
	needs(t)
	bin := filepath.Join(t.TempDir(), "hedge")
	if err := build(t.Context(), bin, "../../../cmd/hedge"); err != nil {
		t.Fatal(err)
	}
	rep := new(report.Report)
	o := Options{Worlds: []string{HedgeTUN, WireGuard}, Hedge: bin, Rules: 20, Peers: 5, Wire: 1500, Rounds: 1, Each: 200 * time.Millisecond, Say: t.Logf}
	if err := Measure(t.Context(), rep, o); err != nil {
		t.Fatal(err)
	}
	for _, w := range o.Worlds {
		for _, m := range []string{"tcp, 8 streams, back", "tcp, 1 stream, processor", "udp, 64 bytes, arrived", "udp, packets of 1280 bytes, arrived", "request, beside a stream, p99", "memory, idle, both ends"} {
			if x := rep.Sections[0].Find(w, m); x == nil || x.Values[0] <= 0 {
				t.Errorf("%s of %s: %+v", m, w, x)
			}
		}
	}
	if len(rep.Failed) > 0 {
		t.Errorf("failed: %q", rep.Failed)
	}
}

// Nothing is left of a run that is interrupted while it measures, nor of one that is killed.
func TestCleanUp(t *testing.T) {
	needs(t)
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := Options{Worlds: []string{Veth, WireGuard}, Wire: 1500, Rounds: 100, Each: 100 * time.Millisecond, Few: true}
		o.Say = func(format string, _ ...any) {
			if strings.Contains(format, "round") {
				cancel()
			}
		}
		before, _ := filepath.Glob("/var/run/netns/hb*-*")
		if err := Measure(ctx, new(report.Report), o); err != context.Canceled {
			t.Errorf("it ended with %v", err)
		}
		after, _ := filepath.Glob("/var/run/netns/hb*-*")
		for _, ns := range after {
			if strings.Contains(ns, "hb"+strconv.Itoa(os.Getpid())) && !slices.Contains(before, ns) {
				t.Errorf("%s is left", ns)
			}
		}
	})
	t.Run("killed", func(t *testing.T) {
		k, err := kid.Start[json.RawMessage, []string](t.Context(), "run", nil)
		if err != nil {
			t.Fatal(err)
		}
		prefix, dir := k.Ready[0], k.Ready[1]
		if n := len(left(prefix, dir)); n != 3 { // two namespaces and a folder
			t.Errorf("it has made %q", left(prefix, dir))
		}
		p, err := os.FindProcess(k.PID())
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		k.Stop()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for end := time.After(20 * time.Second); len(left(prefix, dir)) > 0; {
			select {
			case <-tick.C:
			case <-end:
				t.Fatalf("of a killed run there is left: %q", left(prefix, dir))
			}
		}
	})
}

func TestManyRules(t *testing.T) {
	for _, tt := range []struct{ rules, peers, want int }{{1, 1, 1}, {1000, 1, 1000}, {1000, 50, 1000}, {10000, 10000, 10000}} {
		if got := strings.Count(manyRules(tt.rules, tt.peers), `"action"`); got != tt.want {
			t.Errorf("%d rules and %d peers: %d rules", tt.rules, tt.peers, got)
		}
	}
}

// What the report says TCP goes by is what the hosts' does.
func TestCongestionControl(t *testing.T) {
	needs(t)
	ns := "hbtry" + strconv.Itoa(os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer remove(ns)
	want, err := in(t.Context(), ns, "cat", "/proc/sys/net/ipv4/tcp_congestion_control").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := CongestionControl(); got == "" || got != strings.TrimSpace(string(want)) {
		t.Errorf("%q, and in a host's namespace %q", got, want)
	}
}
