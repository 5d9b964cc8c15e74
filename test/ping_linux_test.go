package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// running is a verb that runs until it is interrupted, and what it has said so far.
type running struct {
	cmd  *exec.Cmd
	done chan struct{} // it has said all

	mu    sync.Mutex
	lines []string
}

func (m *mesh) run(h *lab.Host, args ...string) *running {
	m.t.Helper()
	r := &running{cmd: m.command(context.Background(), h, m.bin, args...), done: make(chan struct{})}
	out, err := r.cmd.StdoutPipe()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		m.t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		for s := bufio.NewScanner(out); s.Scan(); {
			r.mu.Lock()
			r.lines = append(r.lines, s.Text())
			r.mu.Unlock()
		}
	}()
	m.t.Cleanup(func() { r.cmd.Process.Kill(); <-r.done; r.cmd.Wait() })
	return r
}

func (r *running) said() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.lines...)
}

// interrupt ends it as Ctrl-C does.
func (r *running) interrupt() error {
	r.cmd.Process.Signal(os.Interrupt)
	<-r.done
	return r.cmd.Wait()
}

// changes are the kinds of path that hedge ping told of as it changed, in order, from text or from lines of JSON.
func changes(lines []string) (kinds []string) {
	for _, l := range lines {
		if _, text, ok := strings.Cut(l, ": the path is now "); ok {
			kinds = append(kinds, strings.Fields(text)[0])
			continue
		}
		var e struct {
			Event  string
			Change struct{ Was, Now struct{ Kind, Why string } }
		}
		if json.Unmarshal([]byte(l), &e) == nil && e.Event == "change" && e.Change.Was != e.Change.Now && e.Change.Now.Why != "" {
			kinds = append(kinds, e.Change.Now.Kind)
		}
	}
	return kinds
}

// TestPingTellsOfPaths: while hedge ping runs, UDP between the two is blocked and let through again, and each change of
// the path is told while it is so.
func TestPingTellsOfPaths(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary")
	}
	m := newRelayMesh(t)
	m.join(m.alice, "--user", "alice@lab")
	m.alice.Firewall(m.strangers())
	m.pathIs("relay", m.alice, "web")
	text := m.run(m.alice, "ping", "web", "--count", "0", "--interval", "100ms", "--timeout", "1s")
	lines := m.run(m.alice, "ping", "web", "--count", "0", "--interval", "100ms", "--timeout", "1s", "--json")
	report := m.run(m.alice, "ping", "web", "--count", "20", "--interval", "200ms", "--json")
	all := []*running{text, lines}
	m.eventually(10*time.Second, "answers come by relay", func() error {
		for _, r := range all {
			if s := strings.Join(r.said(), "\n"); !strings.Contains(s, "): relay ") && !strings.Contains(s, `"kind":"relay"`) {
				return fmt.Errorf("said %q", s)
			}
		}
		return nil
	})
	var want []string
	for _, step := range []struct {
		rules, kind string
	}{{"", "direct"}, {"meta l4proto udp drop", "relay"}, {"", "direct"}} {
		m.alice.Firewall(step.rules)
		start := time.Now()
		want = append(want, step.kind)
		m.eventually(40*time.Second, "both tell of "+step.kind, func() error {
			for _, r := range all {
				if got := changes(r.said()); !lastIs(got, step.kind) {
					return fmt.Errorf("told of %q", got)
				}
			}
			return nil
		})
		t.Logf("%s was told after %v", step.kind, time.Since(start).Round(time.Millisecond))
	}
	for _, r := range all {
		if err := r.interrupt(); err != nil {
			t.Errorf("interrupted: %v", err)
		}
		got := changes(r.said())
		if fmt.Sprint(kindsOnly(got)) != fmt.Sprint(want) {
			t.Errorf("told of %q, want %q\n%s", got, want, strings.Join(r.said(), "\n"))
		}
	}
	<-report.done
	var rep struct {
		Sent, Received int
		Changes        []struct{ Now struct{ Kind string } }
	}
	if err := errors.Join(json.Unmarshal([]byte(strings.Join(report.said(), "\n")), &rep), report.cmd.Wait()); err != nil || rep.Sent != 20 || rep.Received == 0 || len(rep.Changes) == 0 || rep.Changes[0].Now.Kind != "direct" {
		t.Errorf("the report: %v, %+v", err, rep)
	}
}

func lastIs(kinds []string, kind string) bool { return len(kinds) > 0 && kinds[len(kinds)-1] == kind }

// kindsOnly leaves out changes from one address to another.
func kindsOnly(kinds []string) (out []string) {
	for _, k := range kinds {
		if !lastIs(out, k) {
			out = append(out, k)
		}
	}
	return out
}
