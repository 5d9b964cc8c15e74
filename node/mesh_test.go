package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

func TestMesh(t *testing.T) {
	m := newMesh(t)
	db, web := m.join("db", "tag:db"), m.join("web", "tag:web")
	lone := m.join("lone", "tag:lone")
	echo(t, db, 5432)
	until(t, web, "seeing db", sees("db"))
	until(t, db, "seeing web", sees("web"))

	for _, to := range []string{"db:5432", "DB.hedge.internal.:5432", db.Addrs()[0].String() + ":5432", net.JoinHostPort(db.Addrs()[1].String(), "5432")} {
		if err := say(t, web, to); err != nil {
			t.Errorf("web to %s: %v", to, err)
		}
	}

	begin := time.Now()
	var denied *DeniedError
	if err := say(t, web, "db:22"); !errors.As(err, &denied) {
		t.Errorf("web to db:22: %v, want a DeniedError", err)
	} else if denied.Why.Direction != "egress" || denied.Why.Src != "web" || denied.Why.Dst != "db" || !strings.Contains(err.Error(), "no rule lets web reach db") {
		t.Errorf("the denial says %q (%+v)", err, denied.Why)
	}
	if took := time.Since(begin); took > 5*time.Second { // no answer is waited for, which there would not be
		t.Errorf("the denial took %v", took)
	}
	var unknown *UnknownNameError
	if err := say(t, lone, "db:5432"); !errors.As(err, &unknown) {
		t.Errorf("lone to db: %v, want an UnknownNameError", err)
	}
	if err := say(t, web, "dbb:5432"); !errors.As(err, &unknown) || unknown.Near != "db" {
		t.Errorf("web to dbb: %v, want an UnknownNameError near db", err)
	}
	var unreachable *UnreachableError
	if err := say(t, web, "db:80"); !errors.As(err, &unreachable) || !unreachable.Refused {
		t.Errorf("web to db:80, where nobody listens: %v, want it refused", err)
	}
	if s := lone.Status(); len(s.Peers) != 0 || s.Policy.Rules != 0 {
		t.Errorf("lone knows of %d peers and %d rules", len(s.Peers), s.Policy.Rules)
	}

	w, err := web.Why(WhyQuery{Dst: "db", Port: 5432})
	if err != nil || !w.Allow || w.Rule == nil || w.Rule.Pos.Line != 4 {
		t.Errorf("why web to db:5432: %+v, %v; want the rule of line 4", w, err)
	}
	w, err = db.Why(WhyQuery{Src: "web", Port: 5432})
	if err != nil || !w.Allow || w.Direction != "ingress" {
		t.Errorf("why db from web:5432: %+v, %v", w, err)
	}
	if w, err = db.Why(WhyQuery{Src: "web", Port: 23}); err != nil || w.Allow {
		t.Errorf("why db from web:23: %+v, %v", w, err)
	}

	p, err := web.Ping(t.Context(), "db")
	if err != nil || p.RTT <= 0 || p.Peer != "db" || p.Path.Kind == "none" {
		t.Errorf("ping: %+v, %v", p, err)
	}
	s := until(t, web, "complete", func(s Status) bool { return s.State == StateRunning && s.Relay.ID == 1 })
	if s.Problem != "" || s.FullName != "web.hedge.internal" || len(s.Peers) != 1 || s.Peers[0].RxBytes == 0 || s.Peers[0].Handshake.IsZero() || s.Traffic.RxPackets == 0 {
		t.Errorf("status: %+v", s)
	}
}

// A download that is under way ends when its rule does, at both ends, and connections whose rules stay do not.
func TestMeshPolicyEditCutsFlows(t *testing.T) {
	m := newMesh(t)
	db, web := m.join("db", "tag:db"), m.join("web", "tag:web")
	echo(t, db, 5432)
	l, err := db.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			ended <- err
			return
		}
		defer c.Close()
		b := make([]byte, 16<<10)
		for {
			if _, err := c.Write(b); err != nil {
				ended <- err
				return
			}
		}
	}()
	until(t, web, "seeing db", sees("db"))
	until(t, db, "seeing web", sees("web"))
	stays, err := web.DialContext(t.Context(), "tcp", "db:5432")
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	c, err := web.DialContext(t.Context(), "tcp", "db:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.CopyN(io.Discard, c, 1<<20); err != nil {
		t.Fatalf("the download does not run: %v", err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	begin, was := time.Now(), web.Status().Policy.Revision
	m.acl(meshPolicyLess)
	n, err := io.Copy(io.Discard, c)
	took := time.Since(begin)
	if ne, ok := err.(net.Error); err == nil || ok && ne.Timeout() {
		t.Errorf("the download was not cut: %v after %v and %d bytes more", err, took, n)
	}
	select {
	case err := <-ended:
		t.Logf("cut after %v: web %v", took, err)
	case <-time.After(5 * time.Second):
		t.Error("db still sends")
	}
	// The one that enforces it first ends the flow for both, and the other's own filter says why only when it has it too.
	until(t, web, "enforcing the edit", func(s Status) bool { return s.Policy.Revision > was })
	var denied *DeniedError
	if err := say(t, web, "db:80"); !errors.As(err, &denied) {
		t.Errorf("after the edit: %v, want a DeniedError", err)
	}
	_ = stays.SetDeadline(time.Now().Add(10 * time.Second))
	if err := exchange(stays); err != nil {
		t.Errorf("a connection whose rule stays: %v", err)
	}
}

// Without its coordinator and relay a mesh goes on, and a node that starts then does too.
func TestMeshWithoutCoordinator(t *testing.T) {
	m := newMesh(t)
	db, web := m.join("db", "tag:db"), m.join("web", "tag:web")
	echo(t, db, 5432)
	until(t, web, "seeing db", sees("db"))
	until(t, db, "seeing web", sees("web"))
	direct := func(s Status) bool { return len(s.Peers) == 1 && s.Peers[0].Path.Kind == "direct" }
	if err := say(t, web, "db:5432"); err != nil {
		t.Fatal(err)
	}
	until(t, web, "direct", direct)
	until(t, db, "direct", direct)
	m.stop()
	until(t, web, "offline", func(s Status) bool { return s.State == StateOffline })
	if err := say(t, web, "db:5432"); err != nil {
		t.Errorf("without the coordinator: %v\nweb %+v\ndb %+v", err, web.Status(), db.Status())
	}
	web.Close()
	begin := time.Now()
	web = m.run(m.config("web", ""))
	t.Logf("restarted in %v", time.Since(begin))
	if s := web.Status(); s.State != StateOffline || !s.Policy.FromDisk || s.Policy.Revision == 0 {
		t.Errorf("restarted without the coordinator: %+v", s)
	}
	if err := say(t, web, "db:5432"); err != nil {
		t.Errorf("restarted without the coordinator: %v", err)
	}
	t.Logf("answered %v after the restart", time.Since(begin))
	var denied *DeniedError
	if err := say(t, web, "db:22"); !errors.As(err, &denied) {
		t.Errorf("restarted, denied: %v, want a DeniedError", err)
	}
	m.start()
	until(t, web, "back", func(s Status) bool { return s.State == StateRunning && !s.Policy.FromDisk })
	if err := say(t, web, "db:5432"); err != nil {
		t.Errorf("with the coordinator back: %v", err)
	}
}

// A node that was started again with the join string it had used, and is removed then, stops as any other, though the
// coordinator may tell it in the end only that the key has been used.
func TestMeshRemovedNodeWithUsedKey(t *testing.T) {
	m := newMesh(t)
	key := m.key("tag:web")
	db, web := m.join("db", "tag:db"), m.run(m.config("web", key))
	echo(t, db, 5432)
	until(t, web, "seeing db", sees("db"))
	web.Close()
	web = m.run(m.config("web", key))
	if err := say(t, web, "db:5432"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.admin.Remove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	until(t, web, "refused", func(s Status) bool { return s.State == StateRefused })
	web.Close()
	var refused *wire.Refused
	if _, err := Start(t.Context(), m.config("web", key)); !errors.As(err, &refused) {
		t.Errorf("restart with the used key: %v, want a refusal", err)
	}
}

// A node that is removed is cut off at once, by its peers and by itself, and does not come back from its disk.
func TestMeshRemovedNode(t *testing.T) {
	m := newMesh(t)
	db, web := m.join("db", "tag:db"), m.join("web", "tag:web")
	echo(t, db, 5432)
	until(t, web, "seeing db", sees("db"))
	until(t, db, "seeing web", sees("web"))
	c, err := web.DialContext(t.Context(), "tcp", "db:5432")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := exchange(c); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := m.admin.Remove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	until(t, db, "rid of web", func(s Status) bool { return len(s.Peers) == 0 })
	t.Logf("its peer dropped it after %v", time.Since(begin))
	s := until(t, web, "refused", func(s Status) bool { return s.State == StateRefused })
	if s.Problem == "" {
		t.Error("the removed node does not say what to do")
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if err := exchange(c); err == nil {
		t.Error("a connection of the removed node still works")
	}
	var refused *wire.Refused
	if err := say(t, web, "db:5432"); !errors.As(err, &refused) {
		t.Errorf("dial of the removed node: %v, want its refusal", err)
	}
	web.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := Start(ctx, m.config("web", "")); !errors.As(err, &refused) {
		t.Errorf("restart of the removed node: %v, want its refusal", err)
	}
	web = m.run(m.config("web", m.key("tag:web"))) // a new key lets it in again, as a new node
	until(t, web, "seeing db", sees("db"))
	if err := say(t, web, "db:5432"); err != nil {
		t.Errorf("joined anew: %v", err)
	}
}

func TestMeshJoinErrors(t *testing.T) {
	m := newMesh(t)
	start := func(name, join string) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		n, err := Start(ctx, m.config(name, join))
		if err == nil {
			t.Cleanup(func() { n.Close() })
		}
		return err
	}
	refusal := func(err error) wire.RefusalCode {
		var r *wire.Refused
		if errors.As(err, &r) {
			return r.Code
		}
		return ""
	}
	once := m.key("tag:web")
	if err := start("first", once); err != nil {
		t.Fatal(err)
	}
	if err := start("second", once); refusal(err) != wire.RefusedKeyUsed {
		t.Errorf("used key: %v", err)
	}
	good, err := wire.ParseJoin(m.key("tag:web"))
	if err != nil {
		t.Fatal(err)
	}
	wrong := good
	wrong.Key = strings.Repeat("a", len(good.Key))
	if err := start("third", wrong.String()); refusal(err) != wire.RefusedKeyWrong {
		t.Errorf("wrong key: %v", err)
	}
	if err := start("third", good.String()); err != nil { // the state of the failed attempt is no obstacle
		t.Errorf("the right key after the wrong one: %v", err)
	}
	if err := start("first-again", m.key("tag:web")); err != nil {
		t.Errorf("another node: %v", err)
	}
	twin := m.config("twin", m.key("tag:web"))
	twin.Name = "third"
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if n, err := Start(ctx, twin); refusal(err) != wire.RefusedName {
		t.Errorf("a name that is taken: %v", err)
		if err == nil {
			n.Close()
		}
	}
	var je *JoinError
	if err := start("fourth", "hedge1-nonsense"); !errors.As(err, &je) {
		t.Errorf("a typo: %v, want a JoinError", err)
	}
	if err := start("fifth", ""); !errors.Is(err, ErrNotJoined) {
		t.Errorf("no join string: %v, want ErrNotJoined", err)
	}
	var pin *wire.PinError
	impostor := good
	impostor.Pin = key.PublicOf(key.NewControl())
	if err := start("sixth", impostor.String()); !errors.As(err, &pin) {
		t.Errorf("impostor: %v, want a PinError", err)
	}
	var unreachable *wire.UnreachableError
	nowhere := good
	nowhere.URLs = []string{"http://127.0.0.1:1"}
	ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := Start(ctx, m.config("seventh", nowhere.String())); !errors.As(err, &unreachable) {
		t.Errorf("nobody there: %v, want an UnreachableError", err)
	}
}

// Inbound connections reach the same port of this machine, if they are let in at all.
func TestMeshInbound(t *testing.T) {
	m := newMesh(t)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "local service") })}
	l, err := net.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		t.Skipf("port 8080 is taken: %v", err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	defer func() { srv.Close(); <-done }()

	db := m.join("db", "tag:db")
	cfg := m.config("web", m.key("tag:web"))
	cfg.Inbound, cfg.Proxy = Loopback, "127.0.0.1:0"
	web := m.run(cfg)
	until(t, db, "seeing web", sees("web"))
	until(t, web, "seeing db", sees("db"))
	tr := &http.Transport{DialContext: db.DialContext, DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("http://web:8080/")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if string(b) != "local service" {
		t.Errorf("got %q", b)
	}
	if s := web.Status(); s.Inbound != "loopback" || s.Proxy == "" || strings.HasSuffix(s.Proxy, ":0") {
		t.Errorf("status says inbound %q, proxy %q", s.Inbound, s.Proxy)
	}
	web.Close()
	cfg.Inbound, cfg.Join = Inbound{}, ""
	web = m.run(cfg)
	until(t, web, "running", func(s Status) bool { return s.State == StateRunning })
	var unreachable *UnreachableError
	if err := say(t, db, "web:8080"); !errors.As(err, &unreachable) || !unreachable.Refused {
		t.Errorf("inbound off: %v, want it refused", err)
	}
}

// The local API of a running node, and Down.
func TestMeshLocalAPI(t *testing.T) {
	m := newMesh(t)
	cfg := m.config("web", m.key("tag:web"))
	cfg.Socket = filepath.Join(m.dir, "run", "node.sock")
	web := m.run(cfg)
	c := NewLocalClient(cfg.Socket)
	s, err := c.WaitRunning(t.Context())
	if err != nil || s.Name != "web" || s.PID != os.Getpid() {
		t.Fatalf("%+v, %v", s, err)
	}
	if a, err := c.IP(t.Context(), ""); err != nil || len(a) != 2 || !a[0].Is4() {
		t.Errorf("ip: %v, %v", a, err)
	}
	var unknown *UnknownNameError
	if _, err := c.Ping(t.Context(), "nobody"); !errors.As(err, &unknown) {
		t.Errorf("ping: %v, want an UnknownNameError", err)
	}
	watched := make(chan error, 1)
	seen := make(chan Status, 16)
	go func() { watched <- c.Watch(context.Background(), func(s Status) bool { seen <- s; return true }) }()
	if s := <-seen; s.Name != "web" {
		t.Errorf("watch: %+v", s)
	}
	var locked *LockedError
	if _, err := Start(t.Context(), m.config("web", "")); !errors.As(err, &locked) {
		t.Errorf("a second node on one state: %v, want a LockedError", err)
	}
	closed := make(chan error, 1)
	go func() { <-web.Done(); closed <- web.Close() }()
	if err := c.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	web2 := m.run(Config{StateDir: cfg.StateDir, Log: cfg.Log, Socket: cfg.Socket}) // at once: the state is free
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := <-watched; err != nil {
		t.Errorf("watch ended with %v", err)
	}
	go func() { <-web2.Done(); closed <- web2.Close() }()
	if err := c.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-closed
	if _, err := Start(t.Context(), m.config("web", "")); !errors.Is(err, ErrNotJoined) {
		t.Errorf("after logout: %v, want ErrNotJoined", err)
	}
	nodes, err := m.admin.Nodes(t.Context())
	if err != nil || len(nodes) != 0 {
		t.Errorf("the coordinator still has %d nodes (%v)", len(nodes), err)
	}
}

// Programs reach the mesh by the proxy, in both of its languages, and are told why they do not.
func TestMeshProxy(t *testing.T) {
	m := newMesh(t)
	db := m.join("db", "tag:db")
	cfg := m.config("web", m.key("tag:web"))
	cfg.Proxy = "127.0.0.1:0"
	web := m.run(cfg)
	l, err := db.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _ := netip.ParseAddrPort(r.RemoteAddr)
		who, _ := db.WhoIs(from.Addr())
		fmt.Fprintf(w, "hello %s", who.Name)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	defer func() { srv.Close(); <-done }()
	until(t, web, "on the way to db", onTheWay)
	until(t, db, "on the way to web", onTheWay)
	get := func(scheme, to string) (int, string, error) {
		u, err := url.Parse(scheme + "://" + web.Status().Proxy)
		if err != nil {
			t.Fatal(err)
		}
		c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Proxy: http.ProxyURL(u), DisableKeepAlives: true}}
		res, err := c.Get(to)
		if err != nil {
			return 0, "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return res.StatusCode, string(b), err
	}
	for _, scheme := range []string{"http", "socks5"} {
		if code, body, err := get(scheme, "http://db.hedge.internal/"); err != nil || code != 200 || body != "hello web" {
			t.Errorf("%s proxy: %d %q %v", scheme, code, body, err)
		}
	}
	if code, body, err := get("http", "http://db:22/"); err != nil || code != 403 || !strings.Contains(body, "no rule lets web reach db") {
		t.Errorf("denied by the HTTP proxy: %d %q %v", code, body, err)
	}
	if _, _, err := get("socks5", "http://db:22/"); err == nil || !strings.Contains(err.Error(), "not allowed by ruleset") {
		t.Errorf("denied by the SOCKS proxy: %v", err)
	}
	if code, _, err := get("http", "http://127.0.0.1:1/"); err != nil || code == 200 {
		t.Errorf("the proxy leads to this machine: %d %v", code, err)
	}
}
