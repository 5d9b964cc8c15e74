package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

func prefixes(s string) (out []netip.Prefix) {
	for _, p := range strings.Fields(s) {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// routers is a Map with two routers and two exits:
//
//	r1 10.33.0.0/16, 192.0.2.0/24   r2 10.33.0.0/16, 10.33.7.0/24   x1 both /0   x2 IPv4's alone
func routers() *wire.Map {
	m := testMap(someKey)
	m.Peers = nil
	for i, r := range []struct{ name, routes string }{
		{"r1", "10.33.0.0/16 192.0.2.0/24"}, {"r2", "10.33.0.0/16 10.33.7.0/24"}, {"x1", "0.0.0.0/0 ::/0"}, {"x2", "0.0.0.0/0"},
	} {
		m.Peers = append(m.Peers, wire.Peer{Node: acl.Node{ID: acl.NodeID(100 + i), Name: r.name,
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 9, byte(i)})}, Routes: prefixes(r.routes)}})
	}
	return m
}

func nobody(*wire.Peer) bool { return false }

func TestRoutesInUse(t *testing.T) {
	m := routers()
	peer := func(name string) *wire.Peer {
		return &m.Peers[slices.IndexFunc(m.Peers, func(p wire.Peer) bool { return p.Name == name })]
	}
	for _, c := range []struct{ exit, to, want string }{
		{"", "10.33.1.1", "r1 10.33.0.0/16"}, // the first of two
		{"", "10.33.7.1", "r2 10.33.7.0/24"}, // the narrowest of two
		{"", "8.8.8.8", ""},                  // an exit that was not chosen
		{"x1", "8.8.8.8", "x1 8.0.0.0/7"},
		{"x2", "8.8.8.8", "x2 8.0.0.0/7"},
		{"x1", "2001:db8::1", "x1 2000::/3"},
		{"x2", "2001:db8::1", ""}, // it carries no IPv6
		{"x1", "192.0.2.7", "r1 192.0.2.0/24"},
		{"x1", "10.1.2.3", ""}, // never a private network
		{"x1", "192.168.1.1", ""},
		{"x1", "169.254.169.254", ""},
		{"x1", "127.0.0.1", ""},
		{"x1", "224.0.0.1", ""},
		{"x1", "fd00::1", ""},
		{"x1", "64:ff9b::a9fe:a9fe", ""}, // the same as IPv6
		{"x1", "100.64.200.1", ""},       // the mesh's own
	} {
		var exit *wire.Peer
		if c.exit != "" {
			exit = peer(c.exit)
		}
		got := ""
		if r, ok := routeTo(routesInUse(m, exit, nobody), netip.MustParseAddr(c.to)); ok {
			got = fmt.Sprint(r.Name, " ", r.Prefix)
		}
		if got != c.want {
			t.Errorf("exit %q: %s goes by %q, want %q", c.exit, c.to, got, c.want)
		}
	}
	if rs := routesInUse(m, nil, func(p *wire.Peer) bool { return p.Name == "r1" }); rs[1].Name != "r2" {
		t.Errorf("%v: an expired router carries", rs)
	}
	// A router that carries public addresses keeps them from the exit's pieces, which may be narrower.
	peer("r1").Routes = prefixes("8.0.0.0/6")
	if r, _ := routeTo(routesInUse(m, peer("x1"), nobody), netip.MustParseAddr("8.8.8.8")); r.Name != "r1" {
		t.Errorf("8.8.8.8 goes by %s", r.Name)
	}
}

func TestExitOf(t *testing.T) {
	m := routers()
	for chosen, want := range map[string]string{
		"": "", "x1": "x1", "X1": "x1", "x1." + m.Self.Domain: "x1", "100.64.9.2": "x1",
		"r1": "no exit that this node may use", "nobody": "knows of no peer nobody", "100.64.9.9": "knows of no peer",
	} {
		p, err := exitOf(m, chosen)
		switch {
		case err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "there are: x1, x2")):
			t.Errorf("%q: %v", chosen, err)
		case err == nil && (p != nil || want != "") && (p == nil || p.Name != want):
			t.Errorf("%q is %v, want %q", chosen, p, want)
		}
	}
}

// The plan gives WireGuard and the filter the same: no exit but the chosen one has any of the internet.
func TestPlanOfRoutes(t *testing.T) {
	m := routers()
	for i := range m.Peers {
		m.Peers[i].Key = key.NodePublicFromRaw([32]byte{byte(i + 1)})
	}
	for _, chosen := range []string{"", "x1", "x2"} {
		exit, _ := exitOf(m, chosen)
		p, err := planFor(m, someKey, exit, someDay, false)
		if err != nil {
			t.Fatal(err)
		}
		for i := range m.Peers {
			peer := &m.Peers[i]
			zero := slices.ContainsFunc(p.filter.Peers[i].Routes, func(r netip.Prefix) bool { return r.Bits() == 0 })
			if zero != (peer.Name == chosen) {
				t.Errorf("exit %q: the filter gives %s %v", chosen, peer.Name, p.filter.Peers[i].Routes)
			}
			eight := slices.ContainsFunc(p.wg[peer.Key], func(r netip.Prefix) bool { return r.Contains(netip.MustParseAddr("8.8.8.8")) })
			if eight != (peer.Name == chosen) {
				t.Errorf("exit %q: WireGuard gives %s %v", chosen, peer.Name, p.wg[peer.Key])
			}
		}
		if n := len(p.wg[m.Peers[1].Key]); m.Peers[1].Name == "r2" && n != 2 {
			t.Errorf("r2 has %v", p.wg[m.Peers[1].Key])
		}
	}
}

// What a router and an exit connect to for others, whatever got past the filter.
func TestCarriable(t *testing.T) {
	mesh := prefixes("100.64.0.0/10 fd68:6564:6765::/48")
	local := func() []netip.Addr {
		return []netip.Addr{netip.MustParseAddr("10.33.0.1"), netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")}
	}
	for _, c := range []struct {
		own, to string
		want    string // part of the refusal
	}{
		{"10.33.0.0/16", "10.33.0.5", ""},
		{"10.33.0.0/16", "10.33.0.1", ""}, // its own address in the network that a rule has named
		{"10.33.0.0/16", "10.34.0.5", "carries no route"},
		{"10.33.0.0/16", "8.8.8.8", "carries no route"},
		{"", "10.33.0.5", "carries no route"},
		{"0.0.0.0/0 ::/0", "8.8.8.8", ""},
		{"0.0.0.0/0 ::/0", "2001:db8::8", ""},
		{"0.0.0.0/0 ::/0", "198.51.100.7", "this machine itself"},
		{"0.0.0.0/0 ::/0", "2001:db8::7", "this machine itself"},
		{"0.0.0.0/0 ::/0", "10.33.0.5", "not of the internet"},
		{"0.0.0.0/0 ::/0", "192.168.1.1", "not of the internet"},
		{"0.0.0.0/0 ::/0", "fd00:33::5", "not of the internet"},
		{"0.0.0.0/0 ::/0", "64:ff9b::a9fe:a9fe", "not of the internet"},
		{"0.0.0.0/0 ::/0", "169.254.169.254", "overlaps 169.254.0.0/16"},
		{"0.0.0.0/0 ::/0", "127.0.0.1", "overlaps 127.0.0.0/8"},
		{"0.0.0.0/0 ::/0", "::1", "overlaps ::/64"},
		{"0.0.0.0/0 ::/0", "::ffff:127.0.0.1", "no prefix"},
		{"0.0.0.0/0 ::/0", "fe80::1", "overlaps fe80::/10"},
		{"0.0.0.0/0 ::/0", "224.0.0.1", "overlaps 224.0.0.0/3"},
		{"0.0.0.0/0 ::/0", "ff02::1", "overlaps ff00::/8"},
		{"0.0.0.0/0 ::/0", "100.64.0.9", "network itself"},
		{"0.0.0.0/0", "2001:db8::8", "carries no route"},
		{"0.0.0.0/0 10.33.0.0/16", "10.33.0.5", ""},
	} {
		err := carriable(prefixes(c.own), mesh, netip.MustParseAddr(c.to), local)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("with %q: %s: %v, want %q", c.own, c.to, err, c.want)
		}
	}
}

func TestRoutingChecks(t *testing.T) {
	m := testMap(someKey)
	for _, c := range []struct {
		routes string
		want   string
	}{
		{"", ""}, {"10.33.0.0/16 fd00:33::/48", ""}, {"0.0.0.0/0", "--advertise-exit"}, {"100.64.0.0/16", "network itself"}, {"127.0.0.0/8", "no node carries"},
	} {
		err := Routing{Routes: prefixes(c.routes)}.check(m)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.routes, err, c.want)
		}
	}
	r := Routing{Routes: prefixes("10.33.0.0/16"), ExitNode: "x"}.with(RoutingChange{Exit: new(true)})
	if got := fmt.Sprint(r.offers(), " ", r.ExitNode); got != "[0.0.0.0/0 10.33.0.0/16 ::/0] x" {
		t.Error(got)
	}
}

func TestNoRoute(t *testing.T) {
	m := routers()
	m.Self.Routes = prefixes("10.50.0.0/16 10.50.7.0/24")
	for _, c := range []struct {
		chosen, to, want string
		err              error
	}{
		{"", "8.8.8.8", "no exit is chosen; hedge set --exit-node NAME uses one of x1, x2", nil},
		{"x3", "8.8.8.8", "nothing leads to 8.8.8.8: gone", errors.New("gone")},
		{"", "10.50.7.1", "behind this node itself, by its route 10.50.7.0/24", nil},
		{"", "10.99.0.1", "no peer has a route to 10.99.0.1 that is approved", nil},
	} {
		if got := noRoute(&enforced{m: m, exitErr: c.err}, c.chosen, netip.MustParseAddr(c.to)); !strings.Contains(got, c.want) {
			t.Errorf("%s by %q: %q, want %q", c.to, c.chosen, got, c.want)
		}
	}
}

// What a node offers is in its Hello, and told anew when it changes; the exit it chooses is in force at once, and is
// given up when the Map takes it away.
func TestSetRouting(t *testing.T) {
	d := newDesk(t)
	offered := make(chan []netip.Prefix, 8)
	exitKey := key.ExchangePublic(key.NewNode())
	d.hello = func(d *desk, m key.MachinePublic, h *wire.Hello) []any {
		offered <- h.Routes
		first := d.deskMap(1, 1, map[acl.NodeID]key.NodePublic{1: h.Node, 2: exitKey})
		first.Peers[0].Routes = prefixes("0.0.0.0/0 10.33.0.0/16")
		return []any{wire.Diff(nil, first)}
	}
	d.advertised = offered
	c := d.config("web", "key")
	c.Routing = Routing{Routes: prefixes("10.50.0.0/16"), ExitNode: "nobody"}
	n := startNode(t, c)
	if got := receive(t, offered, "Hello"); !slices.Equal(got, prefixes("10.50.0.0/16")) {
		t.Errorf("the Hello offers %v", got)
	}
	s := n.Status()
	if s.ExitNode == nil || s.ExitNode.InUse || !strings.Contains(s.ExitNode.Problem, "no peer nobody") {
		t.Errorf("exit %+v", s.ExitNode)
	}
	if len(s.Carries) != 1 || s.Carries[0].Approved || s.Carries[0].Problem != "waits for approval" {
		t.Errorf("carries %+v", s.Carries)
	}
	if _, ok := routeTo(n.Routes(), netip.MustParseAddr("8.8.8.8")); ok {
		t.Error("an exit that was not chosen is used")
	}

	if err := n.SetRouting(RoutingChange{Exit: new(true)}); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, offered, "Advertise"); !slices.Equal(got, prefixes("0.0.0.0/0 10.50.0.0/16 ::/0")) {
		t.Errorf("then it offers %v", got)
	}
	for _, bad := range []RoutingChange{{ExitNode: new("web")}, {ExitNode: new("nobody")}, {Routes: new(prefixes("100.64.0.0/16"))}, {Routes: new(prefixes("0.0.0.0/0"))}} {
		if err := n.SetRouting(bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	if err := n.SetRouting(RoutingChange{ExitNode: new("db")}); err != nil {
		t.Fatal(err)
	}
	if r, ok := routeTo(n.Routes(), netip.MustParseAddr("8.8.8.8")); !ok || r.Name != "db" || !r.Exit {
		t.Errorf("8.8.8.8 goes by %+v", r)
	}
	if e := n.Status().ExitNode; e == nil || !e.InUse {
		t.Errorf("exit %+v", e)
	}

	old := n.enforce.cur.Load().m
	next := *old
	next.Revision, next.Peers = 2, slices.Clone(old.Peers)
	next.Peers[0].Routes = prefixes("10.33.0.0/16")
	d.send(n.machine, wire.Diff(old, &next))
	for receive(t, d.acks, "Ack") != 2 {
	}
	if e := n.Status().ExitNode; e == nil || e.InUse || !strings.Contains(e.Problem, "db is no exit") {
		t.Errorf("exit %+v", e)
	}
	if got := fmt.Sprint(n.Routes()); got != "[{10.33.0.0/16 2 db false}]" {
		t.Errorf("routes %s", got)
	}
}
