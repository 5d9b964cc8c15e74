package node

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

func startNode(t *testing.T, c Config) *Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// onTheWay says that a node's only peer can be reached in some way.
func onTheWay(s Status) bool { return len(s.Peers) == 1 && s.Peers[0].Path.Kind != "none" }

func receive[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// Two nodes, and the least a coordinator can be: they find each other and the rule holds.
func TestNodesReachEachOther(t *testing.T) {
	d := newDesk(t)
	keys := make(map[acl.NodeID]key.NodePublic)
	machines := make(map[acl.NodeID]key.MachinePublic)
	discos := make(map[acl.NodeID]key.DiscoPublic)
	d.hello = func(d *desk, m key.MachinePublic, h *wire.Hello) []any {
		id := map[string]acl.NodeID{"web": 1, "db": 2}[h.Name]
		if h.Enrol != "secret" && keys[id] != h.Node {
			return []any{&wire.Refused{Code: wire.RefusedUnknown, Message: "who?"}}
		}
		keys[id], machines[id], discos[id] = h.Node, m, h.Disco
		return []any{d.ticket(m, h.Node), wire.Diff(nil, d.deskMap(1, id, map[acl.NodeID]key.NodePublic{id: h.Node}))}
	}
	web := startNode(t, d.config("web", "secret"))
	db := startNode(t, d.config("db", "secret"))
	echo(t, db, 5432)
	until(t, web, "at home", func(s Status) bool { return s.Relay.ID == 1 })
	until(t, db, "at home", func(s Status) bool { return s.Relay.ID == 1 })
	var unknown *UnknownNameError
	if err := say(t, web, "db:5432"); !errors.As(err, &unknown) {
		t.Errorf("before they know of each other: %v", err)
	}
	for id := acl.NodeID(1); id <= 2; id++ {
		other := 3 - id
		old := d.deskMap(1, id, map[acl.NodeID]key.NodePublic{id: keys[id]})
		d.send(machines[id], wire.Diff(old, d.deskMap(2, id, keys)),
			&wire.Where{Peers: []wire.Presence{{ID: other, Online: true, Disco: discos[other], Relay: 1}}})
	}
	until(t, web, "on the way to db", onTheWay)
	until(t, db, "on the way to web", onTheWay)
	begin := time.Now()
	if err := say(t, web, "db:5432"); err != nil {
		t.Fatalf("web to db: %v\nweb %+v\ndb %+v", err, web.Status(), db.Status())
	}
	t.Logf("answered after %v", time.Since(begin))
	var denied *DeniedError
	if err := say(t, web, "db:22"); !errors.As(err, &denied) {
		t.Errorf("web to db:22: %v, want a DeniedError", err)
	}
	var unreachable *UnreachableError
	if p, err := web.Ping(t.Context(), "db"); err != nil || p.Path.Kind == "none" {
		t.Errorf("ping: %+v, %v", p, err)
	}
	if _, err := web.Ping(t.Context(), "web"); !errors.As(err, &unreachable) {
		t.Errorf("ping of itself: %v", err)
	}
}

// A node acknowledges what it enforces and nothing else, and asks for everything when a change does not fit.
func TestControlResync(t *testing.T) {
	d := newDesk(t)
	hellos := make(chan wire.Hello, 4)
	d.hello = func(d *desk, m key.MachinePublic, h *wire.Hello) []any {
		hellos <- *h
		if h.Revision != 0 {
			return []any{d.ticket(m, h.Node)}
		}
		return []any{wire.Diff(nil, d.deskMap(5, 1, map[acl.NodeID]key.NodePublic{1: h.Node}))}
	}
	n := startNode(t, d.config("web", "secret"))
	if h := receive(t, hellos, "hello"); h.Enrol != "secret" || h.Name != "web" || h.Revision != 0 || h.Disco.IsZero() {
		t.Errorf("first hello: %+v", h)
	}
	if a := receive(t, d.acks, "ack"); a != 5 {
		t.Errorf("acknowledged %d, want 5", a)
	}
	d.send(n.machine, &wire.Delta{From: 77, Revision: 78}) // does not fit
	if h := receive(t, hellos, "second hello"); h.Enrol != "" || h.Revision != 0 {
		t.Errorf("hello after a change that does not fit: %+v", h)
	}
	if a := receive(t, d.acks, "ack"); a != 5 {
		t.Errorf("acknowledged %d, want 5", a)
	}
	d.hangUp()
	if h := receive(t, hellos, "third hello"); h.Revision != 5 || len(h.Have) == 0 {
		t.Errorf("hello after a lost session: %+v", h)
	}
	until(t, n, "connected", func(s Status) bool { return s.Control.Connected })

	// A Map for another key of this node cannot be enforced, and is not acknowledged.
	other := d.deskMap(6, 1, map[acl.NodeID]key.NodePublic{1: key.ExchangePublic(key.NewNode())})
	d.send(n.machine, &wire.Delta{From: 5, Revision: 6, Self: &other.Self})
	if h := receive(t, hellos, "fourth hello"); h.Revision != 5 {
		t.Errorf("hello after a map that is not ours: %+v", h)
	}
	if s := n.Status(); s.Policy.Revision != 5 || s.Problem == "" {
		t.Errorf("status: %+v", s)
	}
	select {
	case a := <-d.acks:
		t.Errorf("acknowledged %d", a)
	default:
	}
}

func TestControlRefusals(t *testing.T) {
	for _, c := range []struct {
		code    wire.RefusalCode
		started bool // the refusal ends what runs
		kept    bool // and forgets the map
	}{
		{wire.RefusedRemoved, true, false},
		{wire.RefusedExpired, true, false},
		{wire.RefusedUnknown, true, false},
		{wire.RefusedVersion, false, true},
		{wire.RefusedReplaced, false, true},
	} {
		t.Run(string(c.code), func(t *testing.T) {
			d := newDesk(t)
			d.hello = func(d *desk, m key.MachinePublic, h *wire.Hello) []any {
				return []any{&wire.Refused{Code: c.code, Message: "no, and here is what to do"}}
			}
			cfg := d.config("web", "secret")
			var refused *wire.Refused
			if _, err := Start(t.Context(), cfg); !errors.As(err, &refused) || refused.Code != c.code {
				t.Fatalf("start: %v, want the refusal", err)
			}
			hello := d.hello
			d.mu.Lock()
			d.hello = func(d *desk, m key.MachinePublic, h *wire.Hello) []any {
				return []any{wire.Diff(nil, d.deskMap(5, 1, map[acl.NodeID]key.NodePublic{1: h.Node}))}
			}
			d.mu.Unlock()
			n := startNode(t, cfg)
			cfg.Join = ""
			d.mu.Lock()
			d.hello = hello
			d.mu.Unlock()
			d.send(n.machine, &wire.Refused{Code: c.code, Message: "no, and here is what to do"})
			until(t, n, "as it should be", func(s Status) bool {
				_, err := os.Stat(n.state.path(mapFile))
				return s.Problem == "no, and here is what to do" && (s.State == StateRefused) == c.started && (err == nil) == c.kept
			})
			if _, err := os.Stat(n.state.path(identityFile)); err != nil {
				t.Error("the identity is gone")
			}
		})
	}
}

// Whoever answers at the coordinator's address without its key learns nothing, and a node goes on without.
func TestControlImpostor(t *testing.T) {
	d := newDesk(t)
	d.hello = func(d *desk, m key.MachinePublic, h *wire.Hello) []any {
		return []any{wire.Diff(nil, d.deskMap(5, 1, map[acl.NodeID]key.NodePublic{1: h.Node}))}
	}
	cfg := d.config("web", "secret")
	n := startNode(t, cfg)
	n.Close()
	d.mu.Lock()
	d.control = key.NewControl()
	d.hello = func(d *desk, m key.MachinePublic, h *wire.Hello) []any {
		t.Error("the impostor was spoken to")
		return nil
	}
	d.mu.Unlock()
	n = startNode(t, cfg)
	s := until(t, n, "suspicious", func(s Status) bool { return s.Control.LastError != "" })
	if s.State != StateOffline || s.Policy.Revision != 5 || s.Control.Connected {
		t.Errorf("status: %+v", s)
	}
	cfg.StateDir = t.TempDir()
	cfg.Join = wire.Join{URLs: []string{d.url}, Pin: n.control.id.pin, Key: "secret"}.String()
	var pin *wire.PinError
	if _, err := Start(t.Context(), cfg); !errors.As(err, &pin) {
		t.Errorf("joining by an impostor: %v, want a PinError", err)
	}
}

// Keys end when they say, coordinator or not.
func TestControlExpiry(t *testing.T) {
	d := newDesk(t)
	peer := key.ExchangePublic(key.NewNode())
	soon := time.Now().Truncate(time.Second).Add(3 * time.Second) // the wire has whole seconds
	d.hello = func(d *desk, m key.MachinePublic, h *wire.Hello) []any {
		mp := d.deskMap(5, 1, map[acl.NodeID]key.NodePublic{1: h.Node, 2: peer})
		mp.Peers[0].Expires = soon
		mp.Self.Expires = soon.Add(time.Second)
		return []any{wire.Diff(nil, mp)}
	}
	n := startNode(t, d.config("web", "secret"))
	if w, err := n.Why(WhyQuery{Dst: "db", Port: 5432}); (err != nil || !w.Allow) && time.Now().Before(soon) {
		t.Fatalf("before: %+v, %v", w, err)
	}
	until(t, n, "rid of db", func(s Status) bool { return len(s.Peers) == 1 && s.Peers[0].Expired && s.Peers[0].Path.Kind == "none" })
	if w, err := n.Why(WhyQuery{Dst: "db", Port: 5432}); err != nil || w.Allow {
		t.Errorf("after: %+v, %v", w, err)
	}
	until(t, n, "refused", func(s Status) bool { return s.State == StateRefused })
}
