package node

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/hedge-mesh/hedge/coordinator"
	"github.com/hedge-mesh/hedge/coordinator/store"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
)

// mesh is a real coordinator and a real relay on loopback, for real nodes.
type mesh struct {
	t       *testing.T
	dir     string
	addr    string // of the listener, "127.0.0.1:port": stays the same when the coordinator restarts
	control key.ControlPrivate
	relay   key.RelayPrivate
	policy  string // its file
	logs    *logBuffer
	admin   *coordinator.AdminClient

	stop func() // the coordinator, and the relay
}

// logBuffer keeps all that everybody logs, at every level, to look for secrets in.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) logger(who string) zerolog.Logger {
	return zerolog.New(l).Level(zerolog.TraceLevel).With().Timestamp().Str("who", who).Logger()
}

const meshPolicy = `{
	"tagOwners": {"tag:web": [], "tag:db": [], "tag:lone": []},
	"acls": [
		{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432,80"]},
		{"action": "accept", "src": ["tag:db"], "dst": ["tag:web:8080"]},
	],
}`

// meshPolicyLess is meshPolicy without web's way to db's port 80.
const meshPolicyLess = `{
	"tagOwners": {"tag:web": [], "tag:db": [], "tag:lone": []},
	"acls": [
		{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]},
		{"action": "accept", "src": ["tag:db"], "dst": ["tag:web:8080"]},
	],
}`

func newMesh(t *testing.T) *mesh {
	t.Helper()
	dir := socketDir(t)
	m := &mesh{
		t: t, dir: dir, addr: "127.0.0.1:0", control: key.NewControl(), relay: key.NewRelay(),
		policy: filepath.Join(dir, "acl.hujson"), logs: new(logBuffer),
	}
	if err := os.WriteFile(m.policy, []byte(meshPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if m.stop != nil {
			m.stop()
		}
		if t.Failed() || os.Getenv("HEDGE_LOGS") != "" {
			t.Log(tail(m.logs.String(), 60000))
		}
		m.noSecrets(m.control.Secret(), m.relay.Secret())
	})
	m.start()
	return m
}

// tail is the end of a log, without WireGuard's chatter.
func tail(s string, n int) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if !strings.Contains(line, `"level":"trace"`) || os.Getenv("HEDGE_LOGS") != "" {
			b.WriteString(line)
		}
	}
	return b.String()[max(0, b.Len()-n):]
}

// start runs the coordinator and the relay; m.stop ends them, as a crash of their machine would.
func (m *mesh) start() {
	m.t.Helper()
	must := func(err error) {
		m.t.Helper()
		if err != nil {
			m.t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", m.addr)
	must(err)
	m.addr = l.Addr().String()
	pc, err := net.ListenPacket("udp", m.addr)
	must(err)
	st, err := store.OpenSQLite(filepath.Join(m.dir, "coordinator.db"))
	must(err)
	rel := derp.NewServer(derp.ServerConfig{Key: m.relay, Trust: []key.ControlPublic{key.PublicOf(m.control)}, UDP: true, Log: m.logs.logger("relay")})
	srv, err := coordinator.New(coordinator.Config{
		Store: st, Control: m.control, PolicyFile: m.policy, URLs: []string{"http://" + m.addr},
		Relays: []wire.Relay{{ID: 1, Key: key.PublicOf(m.relay), URLs: []string{"http://" + m.addr}, STUN: []string{m.addr}}},
		Kick:   rel.Kick, Log: m.logs.logger("coordinator"),
	})
	must(err)
	sock := filepath.Join(m.dir, "admin")
	al, err := coordinator.ListenAdmin(sock)
	must(err)
	mux := http.NewServeMux()
	mux.Handle("/", srv.Handler())
	mux.Handle("/relay", rel)
	web := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	var wg sync.WaitGroup
	wg.Go(func() { _ = web.Serve(l) })
	wg.Go(func() { _ = rel.ServeUDP(pc) })
	wg.Go(func() { _ = srv.ServeAdmin(al) })
	m.admin = coordinator.NewAdminClient(sock)
	m.stop = func() {
		web.Close()
		pc.Close()
		srv.Close()
		al.Close()
		rel.Close()
		wg.Wait()
		st.Close()
		m.stop = nil
	}
}

// key makes a join string for a tag.
func (m *mesh) key(tag string) string {
	m.t.Helper()
	k, err := m.admin.CreateKey(m.t.Context(), coordinator.CreateKeyRequest{Tags: []string{tag}})
	if err != nil {
		m.t.Fatal(err)
	}
	return k.Join
}

func (m *mesh) config(name, join string) Config {
	return Config{
		StateDir: filepath.Join(m.dir, "state", name), Join: join, Name: name, LoopbackOnly: true, Version: "test",
		Log: m.logs.logger(name),
	}
}

// run starts a node; it is closed at the end of the test if not before.
func (m *mesh) run(c Config) *Node {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 20*time.Second)
	defer cancel()
	n, err := Start(ctx, c)
	if err != nil {
		m.t.Fatalf("start %s: %v", c.Name, err)
	}
	m.t.Cleanup(func() {
		n.Close()
		m.noSecrets(n.control.id.machine.Secret(), n.control.id.node.Secret(), key.WireGuardHex(n.control.id.node), c.Join)
	})
	return n
}

func (m *mesh) join(name, tag string) *Node { m.t.Helper(); return m.run(m.config(name, m.key(tag))) }

// noSecrets fails if a secret, or its digits, stands in any log.
func (m *mesh) noSecrets(secrets ...string) {
	m.t.Helper()
	logs := m.logs.String()
	for _, s := range secrets {
		if i := strings.LastIndexByte(s, ':'); i >= 0 {
			s = s[i+1:]
		}
		if s != "" && strings.Contains(logs, s) {
			m.t.Error("a secret is in the log")
		}
	}
}

// acl puts a policy in force and waits until every node that is connected enforces it.
func (m *mesh) acl(src string) {
	m.t.Helper()
	if _, err := m.admin.SetACL(m.t.Context(), []byte(src)); err != nil {
		m.t.Fatal(err)
	}
}

// until waits until a node's Status is as it should be.
func until(t *testing.T, n *Node, what string, ok func(Status) bool) Status {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		next := n.news.next()
		s := n.Status()
		if ok(s) {
			return s
		}
		select {
		case <-next:
		case <-timeout:
			t.Fatalf("%s is not %s: %+v", n.cfg.Name, what, s)
		}
	}
}

func sees(name string) func(Status) bool {
	return func(s Status) bool {
		for _, p := range s.Peers {
			if p.Name == name {
				return true
			}
		}
		return false
	}
}

// echo answers on a port of the mesh with what it is sent.
func echo(t *testing.T, n *Node, port int) {
	t.Helper()
	l, err := n.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { n.Close(); l.Close(); wg.Wait() })
}

// say dials and has one word echoed.
func say(t *testing.T, n *Node, to string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := n.DialContext(ctx, "tcp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return exchange(c)
}

func exchange(c net.Conn) error {
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != "hello" {
		return fmt.Errorf("answered %q", b)
	}
	return nil
}
