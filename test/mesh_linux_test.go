package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/proxy"

	"github.com/hedge-mesh/hedge/test/lab"
)

// mesh is a coordinator, a relay and some nodes, each the real binary on a host of its own.
//
//	hub    hedge coordinator --no-relay
//	relay  hedge relay
//	alice  hedge up, of user alice@lab
//	web    hedge up, of tag:web, with services on 127.0.0.1:80 and :8080
//	db     hedge up, of tag:db, with a service on 127.0.0.1:5432
type mesh struct {
	t   testing.TB   // the part that is running
	end func(func()) // Cleanup of the whole test, which servers live as long as
	lab *lab.Lab
	bin string // the built binary
	dir string // a folder per host, and the policy

	hub, relay, alice, web, db *lab.Host

	coordinator *exec.Cmd
	relayAt     string        // URL#key
	env         []string      // more for the hosts' environment
	joins       []string      // every join string made, none of which may be seen in a log
	up          time.Duration // alice's `hedge up` to the first HTTP answer
}

// marker is in every answer of the services: wherever it is seen on a wire, something is not encrypted.
const marker = "THE-QUICK-BROWN-FOX-IN-THE-CLEAR"

const policyWeb80 = `{
	// alice may use the website, and nothing else.
	"tagOwners": {"tag:web": [], "tag:db": []},
	"acls": [
		{"action": "accept", "src": ["alice@lab"], "dst": ["tag:web:80"]},
	],
}`

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// built is the binary, once there is one.
var built struct {
	sync.Once
	dir string
	err error
}

// build compiles the binary once for all tests.
func build(t testing.TB) string {
	t.Helper()
	built.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "hedge-test"); built.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", built.dir, "./cmd/hedge")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "hedge")
}

// bare is the binary and a network without hosts.
func bare(t testing.TB) *mesh {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("needs curl")
	}
	m := &mesh{t: t, end: t.Cleanup, lab: lab.New(t), bin: build(t)}
	dir, err := os.MkdirTemp("", "hedge-mesh") // short: a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	m.dir = dir
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("state and logs are kept in %s", dir)
			return
		}
		os.RemoveAll(dir)
	})
	return m
}

// newMesh brings all of it up with the given policy.
func newMesh(t *testing.T, policy string) *mesh {
	t.Helper()
	m := bare(t)
	m.hub, m.relay = m.lab.Host("hub"), m.lab.Host("relay")
	m.alice, m.web, m.db = m.lab.Host("alice"), m.lab.Host("web"), m.lab.Host("db")
	m.writePolicy(policy)
	m.startServers()

	m.must(m.hub, "admin", "user", "create", "alice@lab")
	m.serve(m.web, 80)
	m.serve(m.web, 8080)
	m.serve(m.db, 5432)
	m.join(m.web, "--tag", "tag:web")
	m.join(m.db, "--tag", "tag:db")
	start := time.Now()
	m.join(m.alice, "--user", "alice@lab")
	if out, err := m.curl(m.alice, "http://web.hedge.internal/"); err != nil {
		t.Fatalf("alice's first request: %v\n%s", err, out)
	}
	m.up = time.Since(start)
	return m
}

// startServers starts the relay, and a coordinator that knows it. The relay speaks plain HTTP, so that its wire shows
// what it is given to carry.
func (m *mesh) startServers() {
	m.t.Helper()
	control := strings.TrimSpace(m.must(m.hub, "coordinator", "--print-key"))
	m.start(m.relay, "relay", "--insecure-http", "--listen", m.relay.Addr.String()+":7443", "--coordinator-key", control)
	m.relayAt = m.await(m.relay, "relay", "#relay:")
	m.startCoordinator()
}

func (m *mesh) startCoordinator() {
	m.t.Helper()
	m.coordinator = m.start(m.hub, append(m.coordinatorArgs(), "--relay", m.relayAt)...)
	m.adminStatus()
}

func (m *mesh) coordinatorArgs() []string {
	return []string{"coordinator", "--no-relay", "--listen", ":7443", "--url", "https://" + m.hub.Addr.String() + ":7443"}
}

type adminStatus struct {
	Control  string `json:"control"`
	Revision uint64 `json:"revision"`
	Nodes    int    `json:"nodes"`
	Online   int    `json:"online"`
	Enforced int    `json:"enforced"`
}

// adminStatus asks the coordinator until it answers.
func (m *mesh) adminStatus() (s adminStatus) {
	m.t.Helper()
	m.eventually(10*time.Second, "the coordinator answers", func() error {
		out, _, err := m.hedge(m.hub, "admin", "status", "--json")
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(out), &s)
	})
	return s
}

func (m *mesh) state(h *lab.Host) string { return filepath.Join(m.dir, h.Name) }

func (m *mesh) writePolicy(text string) {
	m.t.Helper()
	file := filepath.Join(m.state(m.hub), "acl.hujson")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		m.t.Fatal(err)
	}
	tmp := file + ".new" // as editors do: never half a file
	if err := errors.Join(os.WriteFile(tmp, []byte(text), 0o600), os.Rename(tmp, file)); err != nil {
		m.t.Fatal(err)
	}
}

// start runs a server verb until it is stopped or the test ends; what it says goes to a log of its own.
func (m *mesh) start(h *lab.Host, args ...string) *exec.Cmd {
	m.t.Helper()
	if err := os.MkdirAll(m.state(h), 0o700); err != nil {
		m.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(m.state(h), args[0]+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd := h.Command(context.Background(), m.bin, args...)
	cmd.Env = append(os.Environ(), "HEDGE_STATE_DIR="+m.state(h), "HEDGE_LOG_LEVEL=debug")
	cmd.Env = append(cmd.Env, m.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.end(func() { m.stop(cmd) })
	return cmd
}

func (m *mesh) stop(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		cmd.Process.Signal(os.Interrupt) // ip netns exec has become the command itself
		cmd.Wait()
	}
}

// await waits until the log of a server verb has a word that contains what, and returns the word.
func (m *mesh) await(h *lab.Host, verb, what string) (word string) {
	m.t.Helper()
	m.eventually(10*time.Second, verb+" says "+what, func() error {
		b, err := os.ReadFile(filepath.Join(m.state(h), verb+".log"))
		if err != nil {
			return err
		}
		for _, w := range strings.FieldsFunc(string(b), func(r rune) bool { return strings.ContainsRune(" \t\n\",", r) }) {
			if strings.Contains(w, what) {
				word = w
				return nil
			}
		}
		return fmt.Errorf("it says %q", b)
	})
	return word
}

// hedge runs a verb on a host, as a user would, and returns what it printed and its exit code.
func (m *mesh) hedge(h *lab.Host, args ...string) (out string, code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := m.command(ctx, h, m.bin, args...)
	cmd.Env = append(cmd.Env, m.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("hedge %s: %w\n%s%s", strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String(), cmd.ProcessState.ExitCode(), err
}

// command is a program on a host that uses the host's state.
func (m *mesh) command(ctx context.Context, h *lab.Host, name string, args ...string) *exec.Cmd {
	cmd := h.Command(ctx, name, args...)
	cmd.Env = append(os.Environ(), "HEDGE_STATE_DIR="+m.state(h), "HEDGE_LOG_LEVEL=debug")
	cmd.WaitDelay = time.Second // a daemon that it leaves behind must not hold our pipes
	return cmd
}

func (m *mesh) must(h *lab.Host, args ...string) string {
	m.t.Helper()
	out, _, err := m.hedge(h, args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// join makes a join key and brings the host's node up with it.
func (m *mesh) join(h *lab.Host, owner ...string) {
	m.t.Helper()
	m.joinWith(h, nil, owner...)
}

// joinWith is join with more arguments for hedge up.
func (m *mesh) joinWith(h *lab.Host, more []string, owner ...string) {
	m.t.Helper()
	var key struct {
		Join string `json:"join"`
	}
	out := m.must(m.hub, append([]string{"admin", "join-key", "create", "--json"}, owner...)...)
	if err := json.Unmarshal([]byte(out), &key); err != nil || key.Join == "" {
		m.t.Fatalf("join-key create: %v\n%s", err, out)
	}
	m.joins = append(m.joins, key.Join)
	m.must(h, append([]string{"up", key.Join, "--name", h.Name}, more...)...)
}

// serve answers HTTP on 127.0.0.1:port of the host: / with the marker, /stream with it for ever.
func (m *mesh) serve(h *lab.Host, port int) {
	m.t.Helper()
	m.serveOn(h, "127.0.0.1", port)
}

// serveOn is serve on another address of the host, on all of them for none.
func (m *mesh) serveOn(h *lab.Host, addr string, port int) {
	m.t.Helper()
	var ln net.Listener
	if err := h.Do(func() (err error) {
		ln, err = net.Listen("tcp", fmt.Sprintf("%s:%d", addr, port))
		return err
	}); err != nil {
		m.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, h.Name, "says", marker) })
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.Repeat(marker, 1<<15)) })
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := io.WriteString(w, strings.Repeat(marker, 64)); err != nil {
				return
			}
		}
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(ln)
	m.t.Cleanup(func() { srv.Close() })
}

// curl asks for url through the host's own node.
func (m *mesh) curl(h *lab.Host, url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := h.Command(ctx, "curl", "-sS", "--max-time", "10", "--socks5-hostname", "127.0.0.1:1055", url).CombinedOutput()
	return string(out), err
}

// dial is a connection through the host's own node.
func (m *mesh) dial(h *lab.Host, addr string) net.Conn {
	m.t.Helper()
	d, err := proxy.SOCKS5("tcp", "127.0.0.1:1055", nil, inside{h})
	if err != nil {
		m.t.Fatal(err)
	}
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { conn.Close() })
	return conn
}

// inside dials in the host's namespace.
type inside struct{ h *lab.Host }

func (i inside) Dial(network, addr string) (conn net.Conn, err error) {
	err = i.h.Do(func() error {
		conn, err = net.DialTimeout(network, addr, 5*time.Second)
		return err
	})
	return conn, err
}

// eventually tries f until it succeeds or the time is over.
func (m *mesh) eventually(limit time.Duration, what string, f func() error) {
	m.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("after %v: not so that %s: %v", limit, what, err)
		}
		<-tick.C
	}
}
