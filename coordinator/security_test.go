package coordinator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/hedge-mesh/hedge/coordinator/store"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

// R-token-race-64: of 64 machines that present one one-time key at once, exactly one becomes a node.
func TestRTokenRace64(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	k := r.key(CreateKeyRequest{User: alice})
	var wg sync.WaitGroup
	codes := make([]wire.RefusalCode, 64)
	nodes := make([]*testNode, 64)
	for i := range nodes {
		nodes[i] = r.node("racer", k)
		wg.Go(func() {
			conn, err := nodes[i].dial()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.Send(nodes[i].hello)
			switch m, err := conn.Recv(); m := m.(type) {
			case *wire.Refused:
				codes[i] = m.Code
			case *wire.Delta:
				codes[i] = "joined"
			default:
				t.Errorf("%T, %v", m, err)
			}
		})
	}
	wg.Wait()
	count := map[wire.RefusalCode]int{}
	for _, c := range codes {
		count[c]++
	}
	if count["joined"] != 1 || count[wire.RefusedKeyUsed] != 63 {
		t.Errorf("got %v", count)
	}
	if n := r.state.Load().nodes.len(); n != 1 {
		t.Errorf("there are %d nodes", n)
	}
	info, err := r.admin.Keys(t.Context())
	if err != nil || info[0].Uses != 1 || info[0].State != "used" {
		t.Errorf("%+v, %v", info, err)
	}
}

// R-token-after-delete: a used key stays used when its node is removed.
func TestRTokenAfterDelete(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	k := r.key(CreateKeyRequest{User: alice})
	a := r.node("a", k).join()
	if _, err := r.admin.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	a.refused()
	a.hello.Enrol = k
	a.connect()
	a.wantRefused(wire.RefusedKeyUsed, "good for one machine")
	b := r.node("b", k).connect()
	b.wantRefused(wire.RefusedKeyUsed, "good for one machine")
}

// R-token-owner: a machine that is one user's node is not taken for another's by the other's key, nor the other way.
func TestRTokenOwner(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	a := r.node("a", r.key(CreateKeyRequest{User: alice})).join()
	a.close()
	k := r.key(CreateKeyRequest{User: bob})
	a.hello.Enrol = k
	a.connect()
	a.wantRefused(wire.RefusedOwner, "log out first")
	if n := r.state.Load().byName.get("a"); n.User != alice {
		t.Errorf("the node is now %s's", n.User)
	}
	r.node("b", k).join() // the key was not consumed by the attempt
}

// A machine whose answer was lost tries again with the same key, and is let in.
func TestLostAnswer(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	a := r.node("a", r.key(CreateKeyRequest{User: alice}))
	conn, err := a.dial()
	if err != nil {
		t.Fatal(err)
	}
	conn.Send(a.hello)
	conn.Recv()
	conn.Close()
	a.join()
	if got := a.name(); got != "a" {
		t.Errorf("it is now %q", got)
	}
}

// R-token-forge: wrong ids and wrong secrets are refused alike.
func TestRTokenForge(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	k := r.key(CreateKeyRequest{User: alice})
	id, secret, _ := strings.Cut(k, ".")
	var said string
	for _, forged := range []string{"x", ".", id, id + ".", id + "." + secret[:31], id + "." + strings.Repeat("a", 32), "aaaaaaaa." + secret, "." + secret} {
		n := r.node("a", forged).connect()
		no := n.refused()
		if no.Code != wire.RefusedKeyWrong {
			t.Errorf("%q: %v", forged, no)
		}
		if said == "" {
			said = no.Message
		}
		if no.Message != said {
			t.Errorf("a forged key is told from another: %q and %q", no.Message, said)
		}
	}
	if _, err := r.admin.RevokeKey(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r.node("a", k).connect().wantRefused(wire.RefusedKeyEnded, "revoked")
}

// R-nodekey-claim: a machine cannot take another's node key, whether it is enrolled or not.
func TestRNodekeyClaim(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	victim := r.node("victim", r.key(CreateKeyRequest{User: alice})).join()
	thief := r.node("thief", r.key(CreateKeyRequest{User: bob})).join()
	thief.close()
	thief.hello.Node = victim.hello.Node
	thief.connect()
	thief.wantRefused(wire.RefusedMalformed, "belongs to another machine")
	stranger := r.node("stranger", r.key(CreateKeyRequest{User: bob}))
	stranger.hello.Node = victim.hello.Node
	stranger.connect()
	stranger.wantRefused(wire.RefusedMalformed, "belongs to another machine")
	if n := r.state.Load().byKey.get(victim.hello.Node); n == nil || n.Name != "victim" {
		t.Errorf("the key is now of %+v", n)
	}
}

// R-map-binding: what a node is told depends on the machine key that it has proven, and on nothing that it says.
func TestRMapBinding(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	victim := r.node("victim", r.key(CreateKeyRequest{User: alice})).join()
	spy := r.node("victim", "") // the victim's name and node key, another machine key
	spy.hello.Node = victim.hello.Node
	spy.hello.Revision = victim.now().Revision
	spy.connect()
	if no := spy.refused(); no.Code != wire.RefusedMalformed {
		t.Error(no)
	}
	spy.hello.Node = key.ExchangePublic(key.NewNode())
	spy.connect()
	spy.wantRefused(wire.RefusedUnknown, "to join")
	if len(spy.heard()) != 2 {
		t.Errorf("the spy heard %v", spy.heard())
	}
}

// A node key that rotates keeps the node, and its peers are told; the old key has no relay any more.
func TestRotate(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	a := r.node("a", r.key(CreateKeyRequest{User: alice})).join()
	b := r.node("b", r.key(CreateKeyRequest{User: alice})).join()
	b.sees("a")
	old := a.hello.Node
	expires := a.self().Expires
	a.close()
	a.hello.Node = key.ExchangePublic(key.NewNode())
	before := a.count()
	a.connect()
	a.until("an answer", func() bool { return len(a.got) > before })
	b.until("the new key", func() bool { p, _ := b.m.Peer(a.id()); return p.Key == a.hello.Node })
	if !r.kicked.has(old) {
		t.Error("the relay still serves the old key")
	}
	if !a.self().Expires.Equal(expires) {
		t.Error("a rotation put off the day on which the node must be admitted anew")
	}
}

// R-allowedips-owner, R-endpoint: a node has no say in its addresses, and its endpoints are held to what is possible.
func TestREndpoints(t *testing.T) {
	var es []netip.AddrPort
	for i := range 100 {
		es = append(es, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 7))
	}
	bad := []netip.AddrPort{{}, netip.MustParseAddrPort("0.0.0.0:1"), netip.MustParseAddrPort("[::]:1"), netip.MustParseAddrPort("224.0.0.1:1"),
		netip.MustParseAddrPort("[ff02::1]:1"), netip.MustParseAddrPort("255.255.255.255:1"), netip.MustParseAddrPort("192.0.2.1:0"),
		netip.MustParseAddrPort("[::ffff:192.0.2.1]:1")}
	if got := usable(bad); len(got) != 0 {
		t.Errorf("kept %v", got)
	}
	if got := usable(append(bad, es...)); len(got) != wire.MaxEndpoints {
		t.Errorf("kept %d", len(got))
	}
	if got := usable([]netip.AddrPort{es[0], es[0]}); len(got) != 1 {
		t.Errorf("kept %v", got)
	}
}

// R-body-bomb, R-prealloc: what a machine sends before it is known is bounded, and costs it its connection.
func TestRBodyBomb(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	a := r.node("a", "")
	for name, msg := range map[string]any{
		"a long hello":   &wire.Hello{Version: wire.Version, Node: a.hello.Node, Name: strings.Repeat("x", wire.MaxRequest)},
		"not a hello":    &wire.Ack{Revision: 1},
		"a coordinator":  &wire.Delta{Revision: 1},
		"a long name":    &wire.Hello{Version: wire.Version, Node: a.hello.Node, Name: strings.Repeat("x", 300)},
		"no key":         &wire.Hello{Version: wire.Version},
		"a new version":  &wire.Hello{Version: 99, Node: a.hello.Node},
		"many endpoints": &wire.Here{Endpoints: make([]netip.AddrPort, 20_000)},
	} {
		conn, err := a.dial()
		if err != nil {
			t.Fatal(err)
		}
		conn.Send(msg)
		if m, err := conn.Recv(); err == nil {
			if _, refused := m.(*wire.Refused); !refused {
				t.Errorf("%s: answered with %T", name, m)
			}
		}
		conn.Close()
	}
	if r.state.Load().nodes.len() != 0 {
		t.Error("one of them was let in")
	}
}

// Handshakes under way are bounded, and those beyond are told to come again.
func TestHandshakesAreBounded(t *testing.T) {
	r := newRig(t, testPolicy, func(c *Config) { c.MaxHandshakes = 2 })
	url := "ws" + strings.TrimPrefix(r.front.URL, "http") + wire.Path
	var held []*websocket.Conn
	for range 2 { // each holds a token: it does not go on
		ws, _, err := websocket.DefaultDialer.Dial(url, nil)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, ws)
	}
	_, resp, err := websocket.DefaultDialer.Dial(url, nil)
	if err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one too many got %v, %v", resp, err)
	}
	for _, ws := range held {
		ws.Close()
	}
	for range cap(r.shaking) { // the tokens come back
		r.shaking <- struct{}{}
	}
	for range cap(r.shaking) {
		<-r.shaking
	}
	r.node("a", r.key(CreateKeyRequest{User: alice})).join()
}

// A node that talks without end is put out.
func TestChatterbox(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	a := r.node("a", r.key(CreateKeyRequest{User: alice})).join()
	for range 10 * talkBurst {
		if a.conn.Send(wire.Ack{}) != nil {
			break
		}
	}
	a.wantRefused(wire.RefusedBusy, "too many messages")
}

// R-route-matrix: every route says who may use it, and nobody else can: not a connection without credentials, not
// another user, not a page that a browser was lured to.
func TestRRouteMatrix(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	for _, route := range adminRoutes {
		if route.access != adminOnly {
			t.Errorf("%s: nobody said who may use it", route.pattern)
		}
		method, path, _ := strings.Cut(route.pattern, " ")
		path = strings.NewReplacer("{name}", "a", "{id}", "a").Replace(path)
		for name, c := range map[string]struct {
			uid    any
			host   string
			header http.Header
		}{
			"no credentials":  {nil, adminHost, nil},
			"another user":    {os.Geteuid() + 1000, adminHost, nil},
			"a rebound name":  {os.Geteuid(), "evil.example", nil},
			"a page's origin": {os.Geteuid(), adminHost, http.Header{"Origin": {"http://hedge"}}},
			"a fetch":         {os.Geteuid(), adminHost, http.Header{"Sec-Fetch-Site": {"cross-site"}}},
		} {
			ctx := t.Context()
			if c.uid != nil {
				ctx = context.WithValue(ctx, uidKey{}, c.uid)
			}
			req, _ := http.NewRequestWithContext(ctx, method, "http://"+c.host+path, strings.NewReader("{}"))
			for k, v := range c.header {
				req.Header[k] = v
			}
			w := &recorder{header: http.Header{}}
			r.Admin().ServeHTTP(w, req)
			if w.code != http.StatusForbidden {
				t.Errorf("%s by %s: %d", route.pattern, name, w.code)
			}
		}
	}
}

type recorder struct {
	bytes.Buffer
	header http.Header
	code   int
}

func (r *recorder) Header() http.Header  { return r.header }
func (r *recorder) WriteHeader(code int) { r.code = code }

func TestAdminSocket(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	path := filepath.Join(r.dir, "admin.sock")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := ListenAdmin(path); err == nil || !strings.Contains(err.Error(), "another coordinator") {
		t.Errorf("a second one: %v", err)
	}
	file := filepath.Join(r.dir, "file")
	os.WriteFile(file, nil, 0o600)
	if _, err := ListenAdmin(file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
	if _, err := NewAdminClient(filepath.Join(r.dir, "none")).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "none is running here") {
		t.Errorf("no socket: %v", err)
	}
	stale := filepath.Join(r.dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := NewAdminClient(stale).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "none is running here") {
		t.Errorf("a dead socket: %v", err)
	}
}

func TestRAdminBodies(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	for name, c := range map[string]struct {
		path, body string
	}{
		"a long body":      {"/users", `{"login": "` + strings.Repeat("x", maxAdminBody) + `"}`},
		"an unknown field": {"/users", `{"login": "a@b", "admin": true}`},
		"not JSON":         {"/join-keys", `<xml/>`},
		"a bad login":      {"/users", `{"login": "a\u001b[31m@b"}`},
		"no domain":        {"/users", `{"login": "alice"}`},
	} {
		_, err := call[UserInfo](t.Context(), r.admin, http.MethodPost, c.path, []byte(c.body))
		var a *AdminError
		if !errors.As(err, &a) || a.Class != "invalid" || a.Status != 400 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.admin.CheckACL(t.Context(), bytes.Repeat([]byte("["), maxPolicy+1)); err == nil {
		t.Error("a policy of more than a MiB was read")
	}
	deep, err := r.admin.CheckACL(t.Context(), bytes.Repeat([]byte("["), maxPolicy))
	if err != nil || deep.OK {
		t.Errorf("a million brackets: %+v, %v", deep, err)
	}
}

// R-no-secret-in-log: the secrets of a run that touches everything are in no line of its log, nor in any answer but the
// one that is there to tell one, nor in the store.
func TestRNoSecretInLog(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	k := r.key(CreateKeyRequest{User: alice})
	_, secret, _ := strings.Cut(k, ".")
	a := r.node("evil\n\x1b[31mname", k).join()
	a.hello.OS = "li\nnux\u202e"
	a.close()
	a.connect()
	r.node("b", k).connect().refused()
	r.node("c", "x."+secret).connect().refused()
	if _, err := r.admin.Remove(t.Context(), a.name()); err != nil {
		t.Fatal(err)
	}
	a.refused()
	keys, err := r.admin.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	snap, err := r.store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	log := r.log.String()
	r.start(nil) // for the cleanup to stop
	for where, s := range map[string]string{"the log": log, "the list of keys": fmt.Sprintf("%+v", keys), "the store": string(records(snap.Records))} {
		for _, x := range []string{secret, strings.TrimPrefix(controlKey.Secret(), "control-private:"), strings.TrimPrefix(a.machine.Secret(), "machine-private:")} {
			if strings.Contains(s, x) {
				t.Errorf("%s has a secret", where)
			}
		}
	}
	for line := range strings.Lines(log) {
		if !strings.HasPrefix(line, `{"level":`) || strings.ContainsAny(line, "\x1b\u202e") {
			t.Errorf("a line of the log is not whole: %q", line)
		}
	}
}

func TestHealth(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	for _, path := range []string{"/healthz", "/readyz"} {
		resp, err := http.Get(r.front.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(b) != "ok\n" {
			t.Errorf("%s: %d %q", path, resp.StatusCode, b)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func records(rs []store.Record) (b []byte) {
	for _, r := range rs {
		b = append(append(b, r.ID...), r.Value...)
	}
	return b
}
