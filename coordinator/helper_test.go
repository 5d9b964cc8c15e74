package coordinator

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/store"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	alice = "alice@example.com"
	bob   = "bob@example.com"

	testPolicy = `{
	"tagOwners": {"tag:web": ["alice@example.com"], "tag:db": ["alice@example.com"]},
	"acls": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
		{"action": "accept", "src": ["tag:web"], "proto": "tcp", "dst": ["tag:db:5432"]},
	],
}`
	openPolicy = `{
	"tagOwners": {"tag:web": ["alice@example.com"], "tag:db": ["alice@example.com"]},
	"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
}`
)

// rig is a coordinator on loopback with its admin socket, over SQLite.
type rig struct {
	*Server
	t      *testing.T
	admin  *AdminClient
	front  *httptest.Server
	store  store.Store
	dir    string
	kicked kicks
	log    *lockedBuffer
	served chan error
}

type kicks struct {
	mu   sync.Mutex
	keys []key.NodePublic
}

func (k *kicks) has(n key.NodePublic) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.keys, n)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newRig(t *testing.T, policy string, edit func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), log: &lockedBuffer{}}
	if policy != "" {
		if err := os.WriteFile(filepath.Join(r.dir, "acl.hujson"), []byte(policy), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.start(edit)
	t.Cleanup(r.stop)
	ctx := t.Context()
	for _, login := range []string{alice, bob} {
		if _, err := r.admin.CreateUser(ctx, CreateUserRequest{Login: login}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

var controlKey = key.NewControl()

func (r *rig) start(edit func(*Config)) {
	r.t.Helper()
	var err error
	if r.store, err = store.OpenSQLite(filepath.Join(r.dir, "state.db")); err != nil {
		r.t.Fatal(err)
	}
	cfg := Config{Store: r.store, Control: controlKey, PolicyFile: filepath.Join(r.dir, "acl.hujson"), URLs: []string{"http://127.0.0.1:1"},
		Log: zerolog.New(r.log).Level(zerolog.InfoLevel),
		Kick: func(k key.NodePublic) {
			r.kicked.mu.Lock()
			defer r.kicked.mu.Unlock()
			r.kicked.keys = append(r.kicked.keys, k)
		}}
	if edit != nil {
		edit(&cfg)
	}
	if r.Server, err = New(cfg); err != nil {
		r.t.Fatal(err)
	}
	r.front = httptest.NewServer(r.Handler())
	l, err := ListenAdmin(filepath.Join(r.dir, "admin.sock"))
	if err != nil {
		r.t.Fatal(err)
	}
	served := make(chan error, 1)
	r.served = served
	srv := r.Server
	go func() { served <- srv.ServeAdmin(l) }()
	r.admin = NewAdminClient(filepath.Join(r.dir, "admin.sock"))
}

func (r *rig) stop() {
	r.Close()
	r.front.Close()
	r.store.Close()
	if err := <-r.served; err != nil {
		r.t.Error(err)
	}
}

// key makes an enrolment key, and returns the secret that a join string carries.
func (r *rig) key(req CreateKeyRequest) string {
	r.t.Helper()
	k, err := r.admin.CreateKey(context.Background(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	j, err := wire.ParseJoin(k.Join)
	if err != nil {
		r.t.Fatal(err)
	}
	return j.Key
}

// testNode is the node's half of the protocol, and nothing else.
type testNode struct {
	t       *testing.T
	url     string
	machine key.MachinePrivate
	hello   wire.Hello
	mute    bool // sends no Ack

	conn *wire.Conn
	done chan struct{}
	mu   sync.Mutex
	m    *wire.Map
	got  []any // in order
	err  error
	news chan struct{} // closed and made anew upon each message
}

func (r *rig) node(name, enrol string) *testNode {
	return &testNode{t: r.t, url: r.front.URL, machine: key.NewMachine(), news: make(chan struct{}), hello: wire.Hello{Version: wire.Version,
		Node: key.ExchangePublic(key.NewNode()), Disco: key.ExchangePublic(key.NewDisco()), Name: name, Enrol: enrol, OS: "linux", Software: "test"}}
}

func (n *testNode) dial() (*wire.Conn, error) {
	return wire.Dial(context.Background(), wire.DialConfig{URLs: []string{n.url}, Pin: key.PublicOf(controlKey), Machine: n.machine})
}

// connect opens a session, and keeps the map until it ends.
func (n *testNode) connect() *testNode {
	n.t.Helper()
	conn, err := n.dial()
	if err != nil {
		n.t.Fatal(err)
	}
	n.conn, n.done, n.err = conn, make(chan struct{}), nil
	h := n.hello
	if n.m != nil {
		h.Revision = n.m.Revision
		if h.Have, err = n.m.Hashes(); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := conn.Send(h); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(n.close)
	go n.run(conn, n.done)
	return n
}

// join connects for the first time, and waits for the map.
func (n *testNode) join() *testNode {
	n.t.Helper()
	n.connect()
	n.until("a map", func() bool { return n.m != nil })
	n.hello.Enrol = ""
	return n
}

func (n *testNode) close() {
	if n.conn != nil {
		n.conn.Close()
		<-n.done
	}
}

func (n *testNode) run(conn *wire.Conn, done chan struct{}) {
	defer close(done)
	defer conn.Close()
	for {
		msg, err := conn.Recv()
		n.mu.Lock()
		if err == nil {
			n.got = append(n.got, msg)
			switch m := msg.(type) {
			case *wire.Delta:
				if n.m, err = n.m.Apply(m); err != nil {
					n.t.Errorf("%s: the delta does not apply: %v", n.hello.Name, err)
				} else if !n.mute {
					conn.Send(wire.Ack{Revision: m.Revision})
				}
			case *wire.Where:
				n.m = n.m.See(m)
			case *wire.Ticket:
				t := *n.m
				t.Ticket = *m
				n.m = &t
			case *wire.Refused:
				err = m
			}
		}
		if err != nil && n.err == nil {
			n.err = err
		}
		close(n.news)
		n.news = make(chan struct{})
		n.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// until waits for the condition, which is looked at whenever something comes.
func (n *testNode) until(what string, cond func() bool) {
	n.t.Helper()
	late := time.After(10 * time.Second)
	for {
		n.mu.Lock()
		ok, news, err := cond(), n.news, n.err
		n.mu.Unlock()
		if ok {
			return
		}
		if err != nil {
			n.t.Fatalf("%s: waiting for %s: %v", n.hello.Name, what, err)
		}
		select {
		case <-news:
		case <-late:
			n.t.Fatalf("%s: no %s", n.hello.Name, what)
		}
	}
}

func (n *testNode) sees(names ...string) {
	n.t.Helper()
	slices.Sort(names)
	n.until("sight of exactly "+strings.Join(names, " "), func() bool { return slices.Equal(n.peers(), names) })
}

func (n *testNode) peers() []string {
	var out []string
	if n.m != nil {
		for _, p := range n.m.Peers {
			out = append(out, p.Name)
		}
	}
	slices.Sort(out)
	return out
}

// refused waits for the session's end, and returns why.
func (n *testNode) refused() *wire.Refused {
	n.t.Helper()
	select {
	case <-n.done:
	case <-time.After(10 * time.Second):
		n.t.Fatalf("%s: was let in, and should have been refused", n.hello.Name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var no *wire.Refused
	if !errors.As(n.err, &no) {
		n.t.Fatalf("%s: ended with %v, want a refusal", n.hello.Name, n.err)
	}
	return no
}

func (n *testNode) wantRefused(code wire.RefusalCode, says string) {
	n.t.Helper()
	if no := n.refused(); no.Code != code || !strings.Contains(no.Message, says) {
		n.t.Errorf("%s: refused with %s %q, want %s %q", n.hello.Name, no.Code, no.Message, code, says)
	}
}

func (n *testNode) name() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.m.Self.Name
}

func (n *testNode) self() wire.Self {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.m.Self
}

func (n *testNode) now() *wire.Map {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.m
}

func (n *testNode) id() acl.NodeID { return n.now().Self.ID }

func (n *testNode) heard() []any {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.got)
}

func (n *testNode) count() int { return len(n.heard()) }

// settled waits until every connected node enforces the world as it is.
func (r *rig) settled() {
	r.t.Helper()
	late := time.After(10 * time.Second)
	for {
		st, err := r.admin.Status(context.Background())
		if err != nil {
			r.t.Fatal(err)
		}
		if st.Revision >= r.state.Load().revs.get(store.Key{Kind: kindPolicy, ID: "active"}) && st.Enforced == st.Online {
			return
		}
		select {
		case <-late:
			r.t.Fatalf("still behind: %v", st.Behind)
		default:
		}
	}
}
