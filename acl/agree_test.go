package acl_test

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/acl/filter"
)

// The compiler and the filters agree: a flow that Check admits passes the sender's egress and the receiver's
// ingress, each built from its own view alone; one that it does not admit is stopped by both. Why says the same.
func TestFiltersAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := acl.Drafts.Draw(t, "policy")
		p, err := acl.Parse("acl.hujson", []byte(text), acl.Options{})
		if err != nil {
			t.Fatal(err)
		}
		inv := acl.Mesh()
		c, err := acl.Compile(p, inv)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		byID := map[acl.NodeID]acl.Node{}
		for _, n := range inv.Nodes {
			byID[n.ID] = n
		}
		filters := map[acl.NodeID]*filter.Filter{}
		for _, n := range inv.Nodes {
			v := c.View(n.ID)
			conf := &filter.Config{Self: n, View: v, Revision: 1}
			for _, id := range v.Peers {
				conf.Peers = append(conf.Peers, byID[id])
			}
			f := filter.New(filter.Options{})
			f.Set(conf, now)
			filters[n.ID] = f
		}
		for _, a := range inv.Nodes {
			for _, b := range inv.Nodes {
				dsts := b.Addrs
				switch b.Name {
				case "router":
					dsts = append(dsts[:2:2], netip.MustParseAddr("10.33.1.1"))
				case "exit":
					dsts = append(dsts[:2:2], netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("2001:4860::8"), netip.MustParseAddr("10.44.1.1"), netip.MustParseAddr("fd00::1"))
				}
				if a.ID == b.ID {
					continue
				}
				for _, dst := range dsts {
					src := a.Addrs[0]
					if dst.Is6() {
						src = a.Addrs[1]
					}
					for _, k := range []struct {
						proto uint8
						port  uint16
					}{{6, 22}, {6, 443}, {6, 40000}, {17, 80}, {17, 22}, {1, 0}, {47, 0}} {
						if k.proto == 1 && dst.Is6() {
							k.proto = 58
						}
						rule, want := c.Check(a.ID, dst, k.port, k.proto)
						if w, err := c.Why(a.ID, dst, k.port, k.proto, now); err != nil || w.Allow != want {
							t.Fatalf("%s to %s (%s) port %d proto %d: check %v, why %v, %v\n%s", a.Name, b.Name, dst, k.port, k.proto, want, w, err, text)
						}
						from, to := netip.AddrPortFrom(src, 33333), netip.AddrPortFrom(dst, k.port)
						out, in := filters[a.ID].Check(from, to, k.proto, now), filters[b.ID].Check(from, to, k.proto, now)
						// What is no peer's own might be an exit's to carry: that is not between these two.
						sent, got := out.Allow && out.Peer == b.ID, in.Allow && in.Peer == a.ID
						if sent != want || got != want {
							t.Fatalf("%s to %s (%s) port %d proto %d: check %v by %v, egress %v, ingress %v\n%s", a.Name, b.Name, dst, k.port, k.proto, want, rule, out, in, text)
						}
					}
				}
			}
		}
	})
}
