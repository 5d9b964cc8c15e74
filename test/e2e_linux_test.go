package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/test/lab"
)

// One mesh on real kernels, and what its people would try on it, in order: each part leaves it as it found it.
func TestMesh(t *testing.T) {
	if testing.Short() {
		t.Skip("a whole mesh takes half a minute")
	}
	m := newMesh(t, policyWeb80)
	t.Logf("hedge up to the first HTTP answer: %v", m.up.Round(time.Millisecond))
	for _, part := range []struct {
		name string
		f    func(*testing.T, *mesh)
	}{
		{"AllowedAnswers", allowedAnswers},
		{"DeniedNamesWhy", deniedNamesWhy},
		{"EditCutsDownload", editCutsDownload},
		{"BrokenEditChangesNothing", brokenEditChangesNothing},
		{"RelayIsBlind", relayIsBlind},
		{"CoordinatorDown", coordinatorDown},
		{"CopiedConfigOtherKey", copiedConfigOtherKey},
		{"NoSecretInProcesses", noSecretInProcesses},
		{"RemovedNodeIsCut", removedNodeIsCut},
		{"NoSecretInLogs", noSecretInLogs},
	} {
		if !t.Run(part.name, func(t *testing.T) { sub := *m; sub.t = t; part.f(t, &sub); m.coordinator = sub.coordinator }) {
			break // what follows would only say the same again
		}
	}
}

func allowedAnswers(t *testing.T, m *mesh) {
	out, err := m.curl(m.alice, "http://web.hedge.internal/")
	if err != nil || !strings.Contains(out, "web says "+marker) {
		t.Errorf("allowed, and: %v\n%s", err, out)
	}
	m.pathIs("direct", m.alice, "web") // on one switch it must get there
}

func deniedNamesWhy(t *testing.T, m *mesh) {
	for _, url := range []string{"http://web.hedge.internal:8080/", "http://db.hedge.internal:5432/"} {
		if out, err := m.curl(m.alice, url); err == nil {
			t.Errorf("%s is not allowed, and answers\n%s", url, out)
		}
	}
	out, code, err := m.hedge(m.alice, "why", "web:80")
	if err != nil || !strings.Contains(out, "acl.hujson:5") {
		t.Errorf("why web:80 does not name the rule: exit %d, %v\n%s", code, err, out)
	}
	out, code, err = m.hedge(m.alice, "why", "web:8080")
	if code != 4 || !strings.Contains(out+fmt.Sprint(err), "no rule") {
		t.Errorf("why web:8080 does not name the absence: exit %d, %v\n%s", code, err, out)
	}
}

const policyNothing = `{"tagOwners": {"tag:web": [], "tag:db": []}, "acls": []}`

func editCutsDownload(t *testing.T, m *mesh) {
	conn := m.dial(m.alice, "web.hedge.internal:80")
	fmt.Fprint(conn, "GET /stream HTTP/1.1\r\nHost: web\r\n\r\n")
	if _, err := io.CopyN(io.Discard, conn, 1<<20); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	m.writePolicy(policyNothing)
	conn.SetReadDeadline(start.Add(5 * time.Second))
	_, err := io.Copy(io.Discard, conn)
	took := time.Since(start)
	t.Logf("the edit cut the download after %v (%v)", took.Round(time.Millisecond), err)
	if took > time.Second {
		t.Errorf("the download went on for %v after the rule was gone, over 1 s", took)
	}
	if _, err := m.curl(m.alice, "http://web.hedge.internal/"); err == nil {
		t.Error("no rule allows it, and it answers")
	}
	m.writePolicy(policyWeb80)
	m.answers(m.alice, "http://web.hedge.internal/")
}

func brokenEditChangesNothing(t *testing.T, m *mesh) {
	before := m.adminStatus().Revision
	m.writePolicy("{\"acls\": [\n  {\"action\": \"accept\", \"src\": [\"tag:wbe\"], \"dst\": [\"*:*\"]},\n]}")
	m.eventually(5*time.Second, "the coordinator says what is wrong with the file", func() error {
		out, _, _ := m.hedge(m.hub, "admin", "acl", "get", "--json")
		if !strings.Contains(out, "acl.hujson:2:") {
			return fmt.Errorf("it says %s", out)
		}
		return nil
	})
	if out, err := m.curl(m.alice, "http://web.hedge.internal/"); err != nil {
		t.Errorf("a broken file took a permission away: %v\n%s", err, out)
	}
	if after := m.adminStatus().Revision; after != before {
		t.Errorf("a broken file made revision %d of %d", after, before)
	}
	m.writePolicy(policyWeb80)
}

// With no UDP between them, alice and web talk through the relay, which sees no plaintext.
func relayIsBlind(t *testing.T, m *mesh) {
	c := m.relay.Capture(marker)
	w := m.web.Capture(marker)
	m.alice.Firewall("meta l4proto udp drop")
	m.answers(m.alice, "http://web.hedge.internal/")
	m.pathIs("relay", m.alice, "web")
	before := c.Bytes()
	out, err := m.curl(m.alice, "http://web.hedge.internal/big")
	if err != nil || len(out) != len(marker)<<15 {
		t.Fatalf("%d bytes, %v", len(out), err)
	}
	if got := c.Bytes() - before; got < len(out) {
		t.Errorf("%d bytes crossed the relay's wire for %d of content: it did not go that way", got, len(out))
	}
	if c.Found(marker) != 0 || w.Found(marker) != 0 {
		t.Errorf("plaintext on a wire: relay %v, web %v", c, w)
	}
	m.alice.Firewall()
	m.pathIs("direct", m.alice, "web")
}

// The coordinator is killed: traffic goes on, and a node that restarts finds its peers again.
func coordinatorDown(t *testing.T, m *mesh) {
	m.coordinator.Process.Signal(syscall.SIGKILL)
	m.coordinator.Wait()
	m.answers(m.alice, "http://web.hedge.internal/")
	old := m.dial(m.alice, "web.hedge.internal:80")
	m.must(m.web, "down")
	m.must(m.web, "up")
	m.answers(m.alice, "http://web.hedge.internal/")
	start := time.Now()
	fmt.Fprint(old, "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
	old.SetReadDeadline(start.Add(10 * time.Second))
	if n, err := old.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection from before the restart: %d bytes, %v", n, err)
	}
	t.Logf("a connection from before the restart ended after %v", time.Since(start).Round(time.Millisecond))
	m.must(m.alice, "down")
	m.must(m.alice, "up")
	m.answers(m.alice, "http://web.hedge.internal/")
	if _, err := m.curl(m.alice, "http://web.hedge.internal:8080/"); err == nil {
		t.Error("without its coordinator a node allows what it did not allow before")
	}
	m.startCoordinator()
	for _, h := range []*lab.Host{m.alice, m.web, m.db} { // they ask less and less often while nobody answers
		m.eventually(30*time.Second, h.Name+" has its coordinator back", func() error {
			if s := m.status(h); s.State != "running" {
				return errors.New(s.State)
			}
			return nil
		})
	}
}

// Somebody copies alice's state and puts other keys in it: what she may do is not theirs to do.
func copiedConfigOtherKey(t *testing.T, m *mesh) {
	mallory := m.lab.Host("mallory")
	if out, err := exec.Command("cp", "-a", m.state(m.alice), m.state(mallory)).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	changed := 0
	walk(t, m.state(mallory), func(path string, b []byte) {
		swapped := string(b)
		for re, fresh := range map[string]string{
			`machine-private:[0-9a-f]{64}`: key.NewMachine().Secret(), `node-private:[0-9a-f]{64}`: key.NewNode().Secret(),
		} {
			swapped = regexp.MustCompile(re).ReplaceAllString(swapped, fresh)
		}
		if swapped != string(b) {
			changed++
			if err := os.WriteFile(path, []byte(swapped), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	})
	if changed == 0 {
		t.Fatal("no key was found in the copied state")
	}
	out, code, err := m.hedge(mallory, "up")
	t.Logf("up with a copied state: exit %d, %v\n%s", code, err, out)
	for range 3 {
		if out, err := m.curl(mallory, "http://web.hedge.internal/"); err == nil {
			t.Fatalf("another key got an answer\n%s", out)
		}
	}
	m.hedge(mallory, "down")
	m.answers(m.alice, "http://web.hedge.internal/")
}

// A node that an admin removes is cut off within a second, live connections included.
func removedNodeIsCut(t *testing.T, m *mesh) {
	conn := m.dial(m.alice, "web.hedge.internal:80")
	fmt.Fprint(conn, "GET /stream HTTP/1.1\r\nHost: web\r\n\r\n")
	if _, err := io.CopyN(io.Discard, conn, 1<<20); err != nil {
		t.Fatal(err)
	}
	m.must(m.hub, "admin", "node", "remove", "alice", "--yes")
	start := time.Now()
	conn.SetReadDeadline(start.Add(5 * time.Second))
	_, err := io.Copy(io.Discard, conn)
	took := time.Since(start)
	t.Logf("removal cut the download after %v (%v)", took.Round(time.Millisecond), err)
	if took > time.Second {
		t.Errorf("the download went on for %v after its node was removed, over 1 s", took)
	}
	if err == nil {
		t.Error("what was cut looks whole")
	}
	if _, err := m.curl(m.alice, "http://web.hedge.internal/"); err == nil {
		t.Error("a removed node gets answers")
	}
	m.join(m.alice, "--user", "alice@lab") // a new identity under the old name
	m.answers(m.alice, "http://web.hedge.internal/")
}

// R-argv: what any user of the machine may read of processes that run, their arguments, has no secret, and nor has the
// environment, which their own user's other programs may read.
func noSecretInProcesses(t *testing.T, m *mesh) {
	secrets := slices.Clone(m.joins)
	private := regexp.MustCompile(`-private:([0-9a-f]{64})`)
	walk(t, m.dir, func(_ string, b []byte) {
		for _, match := range private.FindAllStringSubmatch(string(b), -1) {
			secrets = append(secrets, match[1])
		}
	})
	m.env = append(m.env, "HEDGE_JOIN="+m.joins[len(m.joins)-1]) // alice's: to the command that starts the daemon, and no further
	m.must(m.alice, "down")
	m.must(m.alice, "up")
	pids := map[string]int{"coordinator": m.coordinator.Process.Pid}
	for _, h := range []*lab.Host{m.alice, m.web, m.db} {
		pids[h.Name] = m.status(h).PID
	}
	for name, pid := range pids {
		for _, file := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
			if err != nil || len(b) == 0 {
				t.Fatalf("%s: %d bytes, %v", name, len(b), err)
			}
			for _, s := range secrets {
				if bytes.Contains(b, []byte(s)) {
					t.Errorf("%s of %s holds a secret that begins %.12s", file, name, s)
				}
			}
		}
	}
	if len(secrets) < 8 {
		t.Errorf("only %d secrets were looked for", len(secrets))
	}
}

// After all of the above at log level debug, no private key and no join string stands in any log.
func noSecretInLogs(t *testing.T, m *mesh) {
	secrets := map[string]bool{}
	for _, j := range m.joins {
		secrets[j] = true
	}
	private := regexp.MustCompile(`-private:([0-9a-f]{64})`)
	logs := map[string]string{}
	walk(t, m.dir, func(path string, b []byte) {
		if strings.HasSuffix(path, ".log") {
			logs[path] = string(b)
			return
		}
		for _, match := range private.FindAllStringSubmatch(string(b), -1) {
			secrets[match[1]] = true
		}
	})
	if len(secrets) < 8 || len(logs) < 5 {
		t.Fatalf("only %d secrets and %d logs: this test looks in the wrong places", len(secrets), len(logs))
	}
	for path, text := range logs {
		for s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("%s holds a secret that begins %.12s", path, s)
			}
		}
	}
}

func walk(t *testing.T, dir string, f func(path string, b []byte)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		f(path, b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// answers waits until url answers: a policy or a path that has just changed takes a moment to be everywhere.
func (m *mesh) answers(h *lab.Host, url string) {
	m.t.Helper()
	m.eventually(30*time.Second, url+" answers "+h.Name, func() error {
		if out, err := m.curl(h, url); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// pathIs waits until the node says it reaches the peer directly, or by relay.
func (m *mesh) pathIs(want string, h *lab.Host, peer string) {
	m.t.Helper()
	// What has been in vain for long is tried every half a minute (path.seekWaits).
	m.eventually(40*time.Second, h.Name+" reaches "+peer+" by "+want, func() error {
		out, _, err := m.hedge(h, "ping", peer, "-c", "1", "--json")
		if err != nil {
			return err
		}
		var p struct {
			Path string `json:"path"`
		}
		if err := json.Unmarshal([]byte(out), &p); err != nil || p.Path != want {
			why, _, _ := m.hedge(h, "status", "--why", peer)
			return fmt.Errorf("%v: %s\n%s", err, out, why)
		}
		return nil
	})
}

// The README's two commands on two hosts: init here, the line it prints there, and a request across.
func TestTwoMachines(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary")
	}
	m := bare(t)
	first, second := m.lab.Host("first"), m.lab.Host("second")
	m.serve(first, 80)
	var line string
	for l := range strings.Lines(m.must(first, "init", "--user", "me@lab", "--name", "first")) {
		if l = strings.TrimSpace(l); strings.HasPrefix(l, "hedge up hedge1-") {
			line = l
		}
	}
	if line == "" {
		t.Fatal("hedge init prints no line for the next machine")
	}
	m.end(func() { m.hedge(first, "down", "--all") })
	args := append(strings.Fields(line)[1:], "--name", "second")
	start := time.Now()
	m.must(second, args...)
	out, err := m.curl(second, "http://first.hedge.internal/")
	if err != nil || !strings.Contains(out, "first says") {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("hedge up to the first HTTP answer: %v", time.Since(start).Round(time.Millisecond))
	m.pathIs("direct", second, "first")
	if out, code, _ := m.hedge(second, append(args, "--state-dir", filepath.Join(m.dir, "third"))...); code == 0 {
		t.Errorf("the line was good twice: %s", out)
	}
	m.must(second, "logout")
	if out, err := m.curl(second, "http://first.hedge.internal/"); err == nil {
		t.Errorf("after logout it still answers: %s", out)
	}
}
