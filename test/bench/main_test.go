package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/test/bench/hosts"
	"github.com/hedge-mesh/hedge/test/bench/report"
)

// TestMain makes this test's binary the bench itself, for those that run it whole.
func TestMain(m *testing.M) {
	if os.Getenv("HEDGE_TEST_BENCH") != "" || os.Getenv("HEDGE_BENCH_KID") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		args, only, wire string
		rounds           int
		err              string
	}{
		{args: "", only: strings.Join(sections, ","), wire: "1500,9000", rounds: 4},
		{args: "-quick", only: "netstack,hosts,relay", wire: "1500", rounds: 2},
		{args: "-quick -rounds 7 -only scale -wire 1500,1600", only: "scale", wire: "1500,1600", rounds: 7},
		{args: "-against main", only: "netstack,hosts", wire: "1500", rounds: 6},
		{args: "-against main -wire 9000 -only hosts", only: "hosts", wire: "9000", rounds: 6},
		{args: "-against ./x -worlds hedge-user,against-user -quick", only: "hosts", wire: "1500", rounds: 2},
		{args: "-only moon", err: `"moon"`},
		{args: "-wire 1200", err: "1200"},
		{args: "-scale 1,x", err: `"x"`},
		{args: "-rounds 0", err: "at least 1"},
		{args: "quick", err: "not a flag"},
		{args: "-quik", err: "not defined"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			old := os.Stderr
			os.Stderr, _ = os.Open(os.DevNull) // usage of a wrong flag
			o, err := parse(strings.Fields(tt.args))
			os.Stderr = old
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%v, want %q", err, tt.err)
				}
				return
			}
			if err != nil || strings.Join(o.only, ",") != tt.only || strings.Join(o.wire, ",") != tt.wire || o.rounds != tt.rounds {
				t.Errorf("%v; only %q, wire %q, rounds %d", err, o.only, o.wire, o.rounds)
			}
		})
	}
	if _, err := parse([]string{"-help"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-help: %v", err)
	}
}

// What cannot be measured here is left out, and the report says so.
func TestPlan(t *testing.T) {
	o, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	rep := new(report.Report)
	if steps, err := plan(rep, o, builds{}, t.Logf); err != nil || len(steps) != 3 {
		t.Errorf("without a binary of hedge: %d steps, %v; want netstack, scale and known", len(steps), err)
	}
	steps, err := plan(rep, o, builds{hedge: "x"}, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if hosts.Missing() != nil {
		if len(steps) != 4 || len(rep.LeftOut) != 1 || !strings.HasPrefix(rep.LeftOut[0], "hosts and relayed: needs ") {
			t.Errorf("%d steps, left out %q", len(steps), rep.LeftOut)
		}
		return
	}
	if len(steps) != 7 {
		t.Errorf("%d steps, want netstack, scale, known, two wires, relayed and relay", len(steps))
	}
	for _, why := range rep.LeftOut {
		if !strings.Contains(why, "needs") {
			t.Errorf("%q does not say what is needed", why)
		}
	}
}

func bench(args ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), "HEDGE_TEST_BENCH=1")
	return c
}

// Where nothing can be measured it says why.
func TestNothing(t *testing.T) {
	c := bench("-only", "relay", "-quick")
	c.Dir = t.TempDir() // where there is no module to build hedge of
	var said bytes.Buffer
	c.Stderr = &said
	if out, err := c.Output(); err == nil || !strings.Contains(said.String(), "nothing of it can be measured here: hosts, relayed and relay: build") {
		t.Errorf("%v\n%s%s", err, out, &said)
	}
}

// A tiny run from flags to figures.
func TestRun(t *testing.T) {
	if testing.Short() {
		t.Skip("starts whole nodes")
	}
	file := filepath.Join(t.TempDir(), "bench.json")
	c := bench("-only", "netstack", "-quick", "-rounds", "1", "-time", "20ms", "-rules", "5", "-markdown", "-json", file)
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &said)
	}
	for _, want := range []string{"### Netstack", "| tcp, 8 streams | Gbit/s |", "× wireguard-go"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rep report.Report
	if err := json.Unmarshal(b, &rep); err != nil || len(rep.Sections) != 1 || rep.Sections[0].Find("hedge", "tcp, 1 stream") == nil {
		t.Errorf("%v: %s", err, b)
	}
}

// Ctrl-C ends a run soon, with the figures that there are, and leaves nothing behind.
func TestInterrupt(t *testing.T) {
	if testing.Short() {
		t.Skip("starts whole nodes")
	}
	c := bench("-only", "netstack", "-rounds", "1000", "-time", "20ms")
	c.Env = append(c.Env, "TMPDIR="+t.TempDir())
	tmp := c.Env[len(c.Env)-1][len("TMPDIR="):]
	errs, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c.Stdout = &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(time.Minute, func() { _ = c.Process.Kill() }).Stop()
	var seen []byte
	for buf := make([]byte, 256); !bytes.Contains(seen, []byte("round")); {
		n, err := errs.Read(buf)
		if seen = append(seen, buf[:n]...); err != nil {
			t.Fatalf("it ended with %v:\n%s", err, seen)
		}
	}
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(errs)
	var x *exec.ExitError
	if err := c.Wait(); !errors.As(err, &x) || x.ExitCode() != 1 {
		t.Errorf("it ended with %v:\n%s", err, rest)
	}
	if !strings.Contains(out.String(), "left out: what was not done") {
		t.Errorf("it printed\n%s", &out)
	}
	left, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(left, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "hedge") }); i >= 0 {
		t.Errorf("%s is left", left[i].Name())
	}
}
