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

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
)

func prefixes(s string) (out []netip.Prefix) {
	for _, p := range strings.Fields(s) {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

const routePolicy = `{
	"tagOwners": {"tag:web": ["alice@example.com"], "tag:db": []},
	"autoApprovers": {"routes": {"10.0.0.0/8": ["tag:web", "alice@example.com"], "0.0.0.0/0": ["tag:db"], "192.168.0.0/16": ["autogroup:admin"]}, "exitNode": ["tag:web"]},
	"acls": [
		{"action": "accept", "src": ["alice@example.com"], "dst": ["10.33.0.0/16:80", "tag:web:80"]},
		{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:web:80", "autogroup:internet:*"]},
	],
}`

// Who may carry what: by the policy, by an admin, and never by an admin's word against it.
func TestApproval(t *testing.T) {
	web, aliceOwn, db := &node{Tags: []string{"tag:web"}}, &node{User: alice}, &node{Tags: []string{"tag:db"}}
	st := newState()
	p, err := acl.Parse("acl.hujson", []byte(routePolicy), acl.Options{})
	if err != nil {
		t.Fatal(err)
	}
	st.users = map[string]*user{alice: {Login: alice, Roles: []string{"admin"}}}
	for _, c := range []struct {
		node              *node
		approved, revoked string
		route             string
		want              bool
		by                string
	}{
		{web, "", "", "10.33.0.0/16", true, byPolicy},
		{web, "", "", "10.0.0.0/8", true, byPolicy},
		{web, "", "", "8.0.0.0/6", false, ""},
		{web, "", "", "11.0.0.0/16", false, ""},
		{web, "", "", "0.0.0.0/0", true, byPolicy},
		{db, "", "", "0.0.0.0/0", false, ""}, // routes approve no exit
		{db, "", "", "10.0.0.0/8", true, byPolicy},
		{db, "", "", "fd00:33::/48", false, ""},
		{aliceOwn, "", "", "10.33.0.0/16", true, byPolicy},
		{aliceOwn, "", "", "192.168.3.0/24", true, byPolicy},
		{&node{User: bob}, "", "", "10.33.0.0/16", false, ""},

		{db, "fd00:33::/48 ::/0", "", "fd00:33::/48", true, byAdmin},
		{db, "fd00:33::/48 ::/0", "", "::/0", true, byAdmin},
		{db, "fd00:33::/48", "", "fd00:33::/56", false, ""}, // an admin approves one route, not what is in it
		{web, "", "10.33.0.0/16", "10.33.0.0/16", false, byAdmin},
		{web, "", "10.33.0.0/16", "10.33.128.0/17", false, byAdmin}, // halves do not get around it,
		{web, "", "10.33.0.0/16", "10.0.0.0/8", false, byAdmin},     // nor does a wider one
		{web, "", "10.33.0.0/16", "10.34.0.0/16", true, byPolicy},
		{web, "10.33.1.0/24", "10.33.0.0/16", "10.33.1.0/24", true, byAdmin},
		{web, "", "0.0.0.0/0", "10.33.0.0/16", true, byPolicy}, // to be no exit is not to be no router
		{web, "", "0.0.0.0/0", "0.0.0.0/0", false, byAdmin},
		{web, "", "0.0.0.0/0", "::/0", true, byPolicy},
		{web, "", "10.33.0.0/16", "0.0.0.0/0", true, byPolicy},
	} {
		st.policy = &policyRecord{parsed: p}
		n := *c.node
		n.Approved, n.Revoked = prefixes(c.approved), prefixes(c.revoked)
		ok, by := st.approval(&n, netip.MustParsePrefix(c.route))
		if ok != c.want || by != c.by {
			t.Errorf("%s approved %q revoked %q: %s is %v by %q, want %v by %q", c.node.owner(), c.approved, c.revoked, c.route, ok, by, c.want, c.by)
		}
		st.policy = nil
		if ok, by := st.approval(&n, netip.MustParsePrefix(c.route)); ok && by != byAdmin {
			t.Errorf("%s approves %s without a policy", by, c.route)
		}
	}
}

func TestDecide(t *testing.T) {
	for _, c := range []struct{ approved, revoked, approve, revoke, wantApproved, wantRevoked string }{
		{"", "", "10.1.0.0/16", "", "10.1.0.0/16", ""},
		{"10.1.0.0/16", "", "10.1.0.0/16", "", "10.1.0.0/16", ""},
		{"10.1.0.0/16 10.1.2.0/24 10.2.0.0/16", "", "", "10.1.0.0/16", "10.2.0.0/16", "10.1.0.0/16"},
		{"10.1.0.0/16", "", "", "0.0.0.0/0", "10.1.0.0/16", "0.0.0.0/0"},
		{"", "10.1.0.0/16", "10.1.0.0/16", "", "10.1.0.0/16", ""},
		{"", "10.1.0.0/16", "10.1.2.0/24", "", "10.1.2.0/24", "10.1.0.0/16"},
		{"10.1.2.0/24", "", "10.1.3.0/24", "10.1.0.0/16", "10.1.3.0/24", "10.1.0.0/16"},
	} {
		n := &node{Approved: prefixes(c.approved), Revoked: prefixes(c.revoked)}
		n.decide(prefixes(c.approve), prefixes(c.revoke))
		if !slices.Equal(n.Approved, prefixes(c.wantApproved)) || !slices.Equal(n.Revoked, prefixes(c.wantRevoked)) {
			t.Errorf("%+v: approved %v, revoked %v", c, n.Approved, n.Revoked)
		}
	}
}

// R-allowedips-owner: whatever a node says it carries, what is not a proper route is not even stored.
func TestAdvertiseTakesOnlyRoutes(t *testing.T) {
	st := newState()
	st.setNode(7, &node{ID: 7, Name: "evil", Addrs: []netip.Addr{netip.MustParseAddr("100.64.0.7")}})
	offered := prefixes("10.33.0.0/16 100.64.0.0/10 100.64.0.1/32 64.0.0.0/2 fd68:6564:6765::/64 fd00:33::/48 127.0.0.0/8 169.254.169.254/32 224.0.0.0/4 10.33.0.0/16 ::/0 10.1.2.3/8")
	c := st.advertise(testMesh, 7, offered)
	if got := fmt.Sprint(c.nodes[7].Advertised); got != "[10.33.0.0/16 ::/0 fd00:33::/48]" {
		t.Errorf("stored %s", got)
	}
	var many []netip.Prefix
	for i := range 4 * wire.MaxRoutes {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	c = st.advertise(testMesh, 7, many)
	if n := len(c.nodes[7].Advertised); n != wire.MaxRoutes {
		t.Errorf("%d routes stored", n)
	}
	if st.advertise(testMesh, 8, many) != nil {
		t.Error("a node that is not there advertises")
	}
}

func TestOrder(t *testing.T) {
	for _, c := range []struct {
		was, now, dead []acl.NodeID
		want           []acl.NodeID
	}{
		{nil, []acl.NodeID{5, 3}, nil, []acl.NodeID{3, 5}},
		{nil, []acl.NodeID{3, 5}, []acl.NodeID{3}, []acl.NodeID{5, 3}},
		{[]acl.NodeID{5, 3}, []acl.NodeID{3, 5}, nil, []acl.NodeID{5, 3}}, // who was first and comes back is second
		{[]acl.NodeID{5, 3}, []acl.NodeID{3, 5}, []acl.NodeID{5}, []acl.NodeID{3, 5}},
		{[]acl.NodeID{5, 3}, []acl.NodeID{3, 5}, []acl.NodeID{3, 5}, []acl.NodeID{5, 3}}, // nobody: as it was
		{[]acl.NodeID{5, 3}, []acl.NodeID{3, 4}, nil, []acl.NodeID{3, 4}},
		{[]acl.NodeID{5}, []acl.NodeID{1, 5}, nil, []acl.NodeID{5, 1}}, // a newcomer does not push in
		{[]acl.NodeID{5, 4, 3}, []acl.NodeID{3, 4, 5}, []acl.NodeID{5, 4}, []acl.NodeID{3, 5, 4}},
	} {
		got := order(c.was, c.now, func(id acl.NodeID) bool { return !slices.Contains(c.dead, id) })
		if !slices.Equal(got, c.want) {
			t.Errorf("was %v, now %v, dead %v: %v, want %v", c.was, c.now, c.dead, got, c.want)
		}
	}
}

// routesOf is what a node is told that a peer carries.
func (n *testNode) routesOf(peer string) string {
	for _, p := range n.m.Peers {
		if p.Name == peer {
			return fmt.Sprint(p.Routes)
		}
	}
	return "no such peer"
}

func (n *testNode) hears(peer, routes string) {
	n.t.Helper()
	n.until(peer+" with "+routes, func() bool { return n.routesOf(peer) == routes })
}

func TestRoutesReachWhoMayUseThem(t *testing.T) {
	r := newRig(t, routePolicy, nil)
	web := r.node("web", r.key(CreateKeyRequest{Tags: []string{"tag:web"}}))
	web.hello.Routes = prefixes("10.33.0.0/16 172.16.0.0/16 100.64.0.0/16")
	web.join()
	a := r.node("a", r.key(CreateKeyRequest{User: alice})).join()
	b := r.node("b", r.key(CreateKeyRequest{User: bob})).join()
	a.hears("web", "[10.33.0.0/16]")
	b.hears("web", "[]")
	if got := fmt.Sprint(web.self().Routes); got != "[10.33.0.0/16]" {
		t.Errorf("web carries %s", got)
	}

	web.conn.Send(wire.Advertise{Routes: prefixes("10.33.0.0/16 0.0.0.0/0 ::/0 172.16.0.0/16")})
	b.hears("web", "[0.0.0.0/0 ::/0]")
	a.hears("web", "[10.33.0.0/16]") // nothing about the exit: no rule lets alice use it

	info, err := r.admin.Routes(t.Context(), "web", RoutesRequest{Revoke: prefixes("10.33.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	if i := info.Routes[1]; i.Route.String() != "10.33.0.0/16" || i.Approved || i.By != byAdmin || i.Primary {
		t.Errorf("after it was revoked: %+v", i)
	}
	if i := info.Routes[2]; i.Route.String() != "172.16.0.0/16" || i.Approved || i.By != "" {
		t.Errorf("nobody has approved: %+v", i)
	}
	a.hears("web", "[]")
	if _, err = r.admin.Routes(t.Context(), "web", RoutesRequest{Approve: prefixes("10.33.0.0/16")}); err != nil {
		t.Fatal(err)
	}
	a.hears("web", "[10.33.0.0/16]")
	for _, bad := range []RoutesRequest{{Approve: prefixes("100.64.0.0/16")}, {Revoke: prefixes("10.1.2.3/8")}, {Approve: prefixes("10.1.0.0/16"), Revoke: prefixes("10.1.0.0/16")}} {
		if _, err := r.admin.Routes(t.Context(), "web", bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}

	// A policy that approves no more takes back at once; what an admin has approved stays.
	web.conn.Send(wire.Advertise{Routes: prefixes("10.33.0.0/16 10.33.4.0/24")})
	a.hears("web", "[10.33.0.0/16 10.33.4.0/24]")
	without := strings.Replace(routePolicy, `"10.0.0.0/8": ["tag:web", "alice@example.com"], `, "", 1)
	if err := os.WriteFile(filepath.Join(r.dir, "acl.hujson"), []byte(without), 0o600); err != nil {
		t.Fatal(err)
	}
	a.hears("web", "[10.33.0.0/16]")

	// A node that comes back without them offers nothing any more.
	web.close()
	web.hello.Routes = nil
	web.connect()
	a.hears("web", "[]")
}

// Of two that carry a route one is used. When it is gone the other takes over, and stays when the first is back.
func TestStandby(t *testing.T) {
	r := newRig(t, routePolicy, nil)
	join := func(name string) *testNode {
		n := r.node(name, r.key(CreateKeyRequest{Tags: []string{"tag:web"}}))
		n.hello.Routes = prefixes("10.33.0.0/16")
		return n.join()
	}
	one := join("one")
	a := r.node("a", r.key(CreateKeyRequest{User: alice})).join()
	a.hears("one", "[10.33.0.0/16]")
	two := join("two")
	a.sees("one", "two")
	a.hears("two", "[]")
	if got := fmt.Sprint(two.self().Routes); got != "[10.33.0.0/16]" {
		t.Errorf("the stand-by carries %s: it must be ready", got)
	}
	info, err := r.admin.Node(t.Context(), "two")
	if err != nil || info.Routes[0].StandbyFor != "one" || info.Routes[0].Primary {
		t.Errorf("%+v, %v", info, err)
	}

	gone := time.Now()
	one.close()
	a.hears("two", "[10.33.0.0/16]")
	a.hears("one", "[]")
	if d := time.Since(gone); d < failover || d > failover+8*time.Second {
		t.Errorf("taken over after %v", d)
	}
	one.connect()
	r.settled()
	a.hears("two", "[10.33.0.0/16]")

	// Nor does it change when the coordinator starts again, whoever comes first.
	r.stop()
	r.start(nil)
	one.close()
	two.close()
	a.close()
	for _, n := range []*testNode{one, a, two} {
		n.url = r.front.URL
		n.connect()
	}
	r.settled()
	a.hears("two", "[10.33.0.0/16]")

	// The one in use stops to offer it: the other need not wait.
	two.conn.Send(wire.Advertise{})
	a.hears("one", "[10.33.0.0/16]")
	a.hears("two", "[]")
	r.settled()
	if n := len(r.state.Load().carriers); n != 0 {
		t.Errorf("%d routes are still said to be shared", n)
	}
}
