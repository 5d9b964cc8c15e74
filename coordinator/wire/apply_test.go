package wire

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hedge-mesh/hedge/acl"
)

func TestApplyRefuses(t *testing.T) {
	with := func(f func(*Delta)) *Delta {
		d := &Delta{From: 7, Revision: 8}
		f(d)
		return d
	}
	stranger := func(f func(*Peer)) *Delta {
		p := peer(9)
		f(&p)
		return &Delta{From: 7, Revision: 8, Peers: []Peer{p}}
	}
	for name, c := range map[string]struct {
		d    *Delta
		want string
	}{
		"another revision":        {&Delta{From: 6, Revision: 8}, "does not fit"},
		"an older revision":       {&Delta{From: 7, Revision: 6}, "undo"},
		"a reset without self":    {&Delta{Reset: true, Self: &Self{}}, "own record"},
		"an unknown peer goes":    {with(func(d *Delta) { d.PeersGone = []acl.NodeID{9} }), "not there"},
		"a peer goes and changes": {with(func(d *Delta) { d.PeersGone, d.Peers = []acl.NodeID{2}, []Peer{peer(2)} }), "both"},
		"peers out of order":      {with(func(d *Delta) { d.Peers = []Peer{peer(5), peer(4)} }), "out of order"},
		"a peer twice":            {with(func(d *Delta) { d.Peers = []Peer{peer(5), peer(5)} }), "out of order"},
		"itself as a peer":        {with(func(d *Delta) { d.Peers = []Peer{peer(1)} }), "its own peer"},
		"another's name":          {stranger(func(p *Peer) { p.Name = "n3" }), "same name"},
		"another's key":           {stranger(func(p *Peer) { p.Key = nodeKey(3) }), "same key"},
		"another's address":       {stranger(func(p *Peer) { p.Addrs = peer(3).Addrs }), "same address"},
		"an address elsewhere":    {stranger(func(p *Peer) { p.Addrs = []netip.Addr{netip.MustParseAddr("10.0.0.1")} }), "not of this mesh"},
		"no address":              {stranger(func(p *Peer) { p.Addrs = nil }), "lacks"},
		"a route to a node":       {stranger(func(p *Peer) { p.Routes = []netip.Prefix{netip.MustParsePrefix("100.64.0.3/32")} }), "route"},
		"a route to the mesh":     {stranger(func(p *Peer) { p.Routes = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")} }), "route"},
		"an unmasked route":       {stranger(func(p *Peer) { p.Routes = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")} }), "route"},
		"an unknown set goes":     {with(func(d *Delta) { d.SetsGone = []string{"x"} }), "not there"},
		"a used set goes":         {with(func(d *Delta) { d.SetsGone = []string{"tag:web"} }), "names set"},
		"members of no set":       {with(func(d *Delta) { d.Members = []Membership{{Set: "x", Add: []acl.NodeID{2}}} }), "not there"},
		"a member joins twice":    {with(func(d *Delta) { d.Members = []Membership{{Set: "group:eng", Add: []acl.NodeID{2}}} }), "is in it"},
		"a stranger leaves":       {with(func(d *Delta) { d.Members = []Membership{{Set: "group:eng", Remove: []acl.NodeID{1}}} }), "not in it"},
		"members out of order":    {with(func(d *Delta) { d.Members = []Membership{{Set: "group:eng", Add: []acl.NodeID{9, 8}}} }), "out of order"},
		"a rule without its set":  {with(func(d *Delta) { d.Rules = &[]acl.Rule{{Path: "acls[0]", Src: []string{"nobody"}}} }), "names set"},
	} {
		m, err := exampleMap().Apply(c.d)
		if err == nil {
			t.Errorf("%s: applied, giving %+v", name, m)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	exit := stranger(func(p *Peer) {
		p.Routes = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	})
	if _, err := exampleMap().Apply(exit); err != nil {
		t.Errorf("an exit route is refused: %v", err)
	}
}

func TestSee(t *testing.T) {
	m := exampleMap()
	ends := slices.Repeat([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}, MaxEndpoints+1)
	n := m.See(&Where{Peers: []Presence{{ID: 2, Endpoints: ends}, {ID: 99}, {ID: 1}}})
	if len(n.Presence) != 1 || len(n.Presence[2].Endpoints) != MaxEndpoints {
		t.Errorf("saw %v", n.Presence)
	}
	if m.Presence != nil {
		t.Error("See changed the map it was given")
	}
	gone, err := n.Apply(&Delta{From: 7, Revision: 8, PeersGone: []acl.NodeID{2}, Members: []Membership{{Set: "group:eng", Remove: []acl.NodeID{2}}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(gone.Presence) != 0 {
		t.Error("the presence of a peer outlived it")
	}
}
