package coordinator

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
)

func TestJoinSeeAndLeave(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	ctx := t.Context()
	laptop := r.node("Laptop.local", r.key(CreateKeyRequest{User: alice})).join()
	if got := laptop.self(); got.Name != "laptop" || got.User != alice || len(got.Addrs) != 2 || got.Domain != "hedge.internal" ||
		time.Until(got.Expires) < 179*24*time.Hour {
		t.Errorf("joined as %+v", got)
	}
	phone := r.node("phone", r.key(CreateKeyRequest{User: alice})).join()
	other := r.node("phone", r.key(CreateKeyRequest{User: bob})).join()
	laptop.sees("phone")
	phone.sees("laptop")
	other.sees()
	if got := other.name(); got != "phone-2" {
		t.Errorf("the second phone is %q", got)
	}

	laptop.until("a ticket", func() bool { return len(laptop.m.Ticket.Signed) > 0 })
	ticket, err := derp.OpenTicket(laptop.now().Ticket.Signed, []key.ControlPublic{key.PublicOf(controlKey)}, time.Now())
	if err != nil || ticket.Node != laptop.hello.Node || ticket.Machine != key.PublicOf(laptop.machine) {
		t.Errorf("the ticket is %+v, %v", ticket, err)
	}

	phone.conn.Send(wire.Here{Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:7"), netip.MustParseAddrPort("0.0.0.0:9")}, Relay: 3,
		Lacks: []uint16{2, 4}})
	laptop.until("the phone's endpoint", func() bool {
		p := laptop.m.Presence[phone.id()]
		return p.Online && len(p.Endpoints) == 1 && p.Relay == 3 && slices.Equal(p.Lacks, []uint16{2, 4}) && p.Disco == phone.hello.Disco
	})
	phone.close()
	laptop.until("the phone's absence", func() bool { p := laptop.m.Presence[phone.id()]; return !p.Online && !p.LastSeen.IsZero() })

	r.settled()
	if _, err := r.admin.Remove(ctx, "phone"); err != nil {
		t.Fatal(err)
	}
	laptop.sees()
	phone.connect()
	phone.wantRefused(wire.RefusedRemoved, "join-key create")

	laptop.conn.Send(wire.Logout{})
	laptop.wantRefused(wire.RefusedRemoved, "")
	laptop.connect()
	laptop.wantRefused(wire.RefusedUnknown, "to join")
	if !r.kicked.has(phone.hello.Node) || !r.kicked.has(laptop.hello.Node) {
		t.Error("the relay was not told of the nodes that left")
	}
}

func TestRevocationIsFast(t *testing.T) {
	r := newRig(t, openPolicy, nil)
	k := r.key(CreateKeyRequest{User: alice, Reusable: true})
	victim := r.node("victim", k).join()
	var peers []*testNode
	for i := range 20 {
		peers = append(peers, r.node(fmt.Sprintf("peer%d", i), k).join())
	}
	for _, p := range peers {
		p.until("the victim", func() bool { _, ok := p.m.Peer(victim.id()); return ok })
	}
	start := time.Now()
	if _, err := r.admin.Remove(t.Context(), "victim"); err != nil {
		t.Fatal(err)
	}
	victim.wantRefused(wire.RefusedRemoved, "an admin removed this node")
	for _, p := range peers {
		p.until("the victim's end", func() bool { _, ok := p.m.Peer(victim.id()); return !ok })
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("it took %v until all peers knew", d)
	}
}

func TestExpire(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	a := r.node("a", r.key(CreateKeyRequest{User: alice})).join()
	b := r.node("b", r.key(CreateKeyRequest{User: alice})).join()
	a.sees("b")
	was := b.self()
	if _, err := r.admin.Expire(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	b.wantRefused(wire.RefusedExpired, "join-key create")
	a.sees()
	b.connect()
	b.wantRefused(wire.RefusedExpired, "keep its name and address")
	b.hello.Enrol = r.key(CreateKeyRequest{User: bob})
	b.connect()
	b.wantRefused(wire.RefusedOwner, "log out first")
	b.hello.Enrol = r.key(CreateKeyRequest{User: alice})
	b.connect()
	a.sees("b")
	if is := b.self(); is.Name != was.Name || is.Addrs[0] != was.Addrs[0] || is.ID != was.ID {
		t.Errorf("it came back as %+v, want %+v", is, was)
	}
}

// A key's end is noticed by the clock, without anyone's doing.
func TestKeyEndsByItself(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	a := r.node("a", r.key(CreateKeyRequest{User: alice})).join()
	r.node("b", r.key(CreateKeyRequest{User: alice})).join()
	a.sees("b")
	if w, e := r.world.Load(), r.state.Load().byName.get("a").Expires; w.expiryDue(e.Add(-1)) || !w.expiryDue(e) {
		t.Errorf("it is not due at %v", e)
	}
	st := r.state.Load()
	w, expired := st.inventory(st.byName.get("b").Expires)
	if len(w.Nodes) != 0 || len(expired) != 2 {
		t.Errorf("at the end of their keys, %d nodes are left", len(w.Nodes))
	}
}

func TestReplaced(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	a := r.node("a", r.key(CreateKeyRequest{User: alice})).join()
	clone := r.node("a", "")
	clone.machine, clone.hello = a.machine, a.hello
	clone.join()
	a.wantRefused(wire.RefusedReplaced, "copied")
	if n := len(r.sessionIDs()); n != 1 {
		t.Errorf("there are %d sessions", n)
	}
}

func (r *rig) sessionIDs() (ids []uint64) {
	r.sessions.each(func(x *session) { ids = append(ids, uint64(x.id)) })
	return ids
}

func TestTagChangesWhoSeesWhom(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	ctx := t.Context()
	db := r.node("db", r.key(CreateKeyRequest{Tags: []string{"tag:db"}})).join()
	box := r.node("box", r.key(CreateKeyRequest{User: alice})).join()
	laptop := r.node("laptop", r.key(CreateKeyRequest{User: alice})).join()
	box.sees("laptop")
	db.sees()
	if _, err := r.admin.Tag(ctx, "box", []string{"tag:web"}); err != nil {
		t.Fatal(err)
	}
	db.sees("box")
	box.sees("db")
	laptop.sees()
	for _, c := range []struct {
		node string
		tags []string
		want string
	}{{"box", []string{"tag:wbe"}, "does not declare"}, {"box", []string{"web"}, "not a tag"}, {"db", nil, "needs a user"}} {
		if _, err := r.admin.Tag(ctx, c.node, c.tags); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("tags %v: %v, want %q", c.tags, err, c.want)
		}
	}
	if _, err := r.admin.Tag(ctx, "box", nil); err != nil { // its user's again
		t.Fatal(err)
	}
	box.sees("laptop")
}

func TestPolicyFile(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	ctx := t.Context()
	a := r.node("a", r.key(CreateKeyRequest{User: alice})).join()
	b := r.node("b", r.key(CreateKeyRequest{User: bob})).join()
	a.sees()
	file := filepath.Join(r.dir, "acl.hujson")
	save := func(s string) { // as editors do
		t.Helper()
		if err := os.WriteFile(file+"~", []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+"~", file); err != nil {
			t.Fatal(err)
		}
	}
	save(openPolicy)
	a.sees("b")
	b.sees("a")
	good, err := r.admin.ACL(ctx)
	if err != nil || good.Rejected != nil || good.Source != openPolicy || good.Hash != hashOf([]byte(openPolicy)) {
		t.Fatalf("%+v, %v", good, err)
	}

	bad := strings.Replace(openPolicy, `["*"]`, `["tag:nobody"]`, 1)
	save(bad)
	if err := r.Reload(); err == nil {
		t.Error("a bad file was taken")
	}
	now, err := r.admin.ACL(ctx)
	if err != nil || now.Hash != good.Hash || now.Revision != good.Revision {
		t.Errorf("a bad file replaced a good one: %+v, %v", now, err)
	}
	if now.Rejected == nil || len(now.Rejected.Errors) == 0 || !strings.Contains(now.Rejected.Rendered, "acl.hujson:3:") {
		t.Errorf("the file's errors are not told: %+v", now.Rejected)
	}
	for _, s := range []string{"", "{"} {
		save(s)
		if err := r.Reload(); err == nil {
			t.Errorf("%q was taken for a policy", s)
		}
	}
	os.Remove(file)
	if err := r.Reload(); err == nil {
		t.Error("no file was taken for a policy")
	}

	// A restart with the bad file keeps the policy that stood.
	save(bad)
	r.stop()
	r.start(nil)
	a.url, b.url = r.front.URL, r.front.URL
	<-a.done
	a.connect()
	a.sees("b")
	if got := a.now().Revision; got < good.Revision {
		t.Errorf("revision %d after the restart, before it %d", got, good.Revision)
	}
	save(testPolicy)
	a.sees()
}

func TestNoPolicyAllowsNothing(t *testing.T) {
	r := newRig(t, "", nil)
	k := r.key(CreateKeyRequest{User: alice, Reusable: true})
	a, b := r.node("a", k).join(), r.node("b", k).join()
	a.sees()
	b.sees()
	if len(a.now().Rules) != 0 {
		t.Errorf("rules without a policy: %v", a.now().Rules)
	}
}

// A node that comes back and lacks nothing is told nothing but the revision.
func TestReconnectCostsLittle(t *testing.T) {
	r := newRig(t, openPolicy, nil)
	k := r.key(CreateKeyRequest{User: alice, Reusable: true})
	a := r.node("a", k).join()
	r.node("b", k).join()
	a.sees("b")
	r.settled()
	a.close()
	before := a.count()
	a.connect()
	a.until("the first word", func() bool { return len(a.got) > before })
	heard := a.heard()[before]
	if d, ok := heard.(*wire.Delta); !ok || !d.Empty() {
		t.Errorf("it was told %+v", heard)
	}
}

// Who is not concerned by a change hears nothing of it, and yet counts as enforcing it.
func TestUnconcernedHearNothing(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	b := r.node("b", r.key(CreateKeyRequest{User: bob})).join()
	b.until("a ticket", func() bool { return len(b.m.Ticket.Signed) > 0 })
	r.settled()
	before := b.count()
	var last *testNode
	for i := range 5 {
		last = r.node(fmt.Sprintf("a%d", i), r.key(CreateKeyRequest{User: alice})).join()
	}
	last.sees("a0", "a1", "a2", "a3")
	r.settled()
	if n := b.count(); n != before {
		t.Errorf("another user's node heard %d messages: %+v", n-before, b.heard()[before:])
	}
	st, err := r.admin.Status(t.Context())
	if err != nil || st.Enforced != 6 || st.Online != 6 || st.Nodes != 6 {
		t.Errorf("%+v, %v", st, err)
	}
	info, err := r.admin.Node(t.Context(), "b")
	if err != nil || info.Enforced != st.Revision || !info.Online {
		t.Errorf("%+v, %v", info, err)
	}
}

// A node that does not say that it enforces is shown as behind.
func TestBehind(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	a := r.node("a", r.key(CreateKeyRequest{User: alice}))
	a.mute = true
	a.join()
	st, err := r.admin.Status(t.Context())
	if err != nil || st.Enforced != 0 || len(st.Behind) != 1 || st.Behind[0] != "a" {
		t.Errorf("%+v, %v", st, err)
	}
}

// One node that does not read costs the others nothing.
func TestStalledReader(t *testing.T) {
	r := newRig(t, openPolicy, nil)
	k := r.key(CreateKeyRequest{User: alice, Reusable: true})
	stalled := r.node("stalled", k)
	conn, err := stalled.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Send(stalled.hello); err != nil {
		t.Fatal(err)
	}
	a := r.node("a", k).join()
	a.sees("stalled")
	for i := range 30 {
		b := r.node(fmt.Sprintf("b%d", i), k).join()
		a.until("b", func() bool { _, ok := a.m.Peer(b.id()); return ok })
	}
}

func TestEphemeral(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	e := r.node("job", r.key(CreateKeyRequest{User: alice, Ephemeral: true})).join()
	a := r.node("a", r.key(CreateKeyRequest{User: alice})).join()
	a.sees("job")
	r.tick(time.Now().Add(time.Hour))
	a.sees("job") // it is there
	a.until("the job's presence", func() bool { return a.m.Presence[e.id()].Online })
	e.close()
	a.until("the job's absence", func() bool { return !a.m.Presence[e.id()].Online })
	r.tick(time.Now())
	if r.state.Load().byName.get("job") == nil {
		t.Error("it was removed at once")
	}
	r.tick(time.Now().Add(11 * time.Minute))
	a.sees()
}

func TestRestartKeepsTheMesh(t *testing.T) {
	r := newRig(t, testPolicy, nil)
	a := r.node("a", r.key(CreateKeyRequest{User: alice})).join()
	b := r.node("b", r.key(CreateKeyRequest{User: alice})).join()
	a.sees("b")
	was := a.self()
	r.stop()
	<-a.done
	<-b.done
	r.start(nil)
	a.url, b.url = r.front.URL, r.front.URL
	a.connect()
	b.connect()
	a.until("b online", func() bool { return a.m.Presence[b.id()].Online })
	if is := a.self(); is.Addrs[0] != was.Addrs[0] || is.Name != was.Name {
		t.Errorf("after the restart %+v, before it %+v", is, was)
	}
}

// Relays are configured in any order, and nodes get them in that of their numbers, without which they refuse a Map.
func TestRelaysInAnyOrder(t *testing.T) {
	k := key.PublicOf(key.NewRelay())
	list := []wire.Relay{{ID: 9, Key: k, URLs: []string{"https://a"}}, {ID: 2, Key: k, URLs: []string{"https://b"}}}
	r := newRig(t, testPolicy, func(c *Config) { c.Relays = list })
	a := r.node("a", r.key(CreateKeyRequest{User: alice})).join()
	b := r.node("b", r.key(CreateKeyRequest{User: alice})).join() // the first change after a's map
	a.sees("b")
	b.sees("a")
	if got := a.m.Relays; len(got) != 2 || got[0].ID != 2 || got[1].ID != 9 {
		t.Errorf("relays %+v", got)
	}
	if c := (&Config{Store: r.store, Control: controlKey, PolicyFile: "x", URLs: []string{"http://x"}, Relays: append(list, list[0])}); c.check() == nil {
		t.Error("two relays of one number were taken")
	}
}
