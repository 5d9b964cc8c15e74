package bind

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// Both ends of a pair without a common home choose the same relay to meet at, whatever they lack.
func TestCommonRelay(t *testing.T) {
	for _, c := range []struct {
		home, other uint16
		a, b        []uint16
		want        uint16
	}{
		{1, 2, []uint16{2}, nil, 1},
		{1, 2, []uint16{2}, []uint16{1}, 3},
		{1, 2, []uint16{2, 3}, []uint16{1}, 4},
		{1, 2, []uint16{2, 3}, []uint16{1, 4}, 0},
		{0, 2, []uint16{2}, nil, 1},
	} {
		order := []uint16{1, 2, 3, 4}
		if got, back := common(order, c.home, c.other, c.a, c.b), common(order, c.home, c.other, c.b, c.a); got != c.want || back != c.want {
			t.Errorf("%+v: %d and %d", c, got, back)
		}
	}
}

// Two nodes of which one cannot reach the home relay of the other talk by one that both reach, and are there only as long as
// they do.
func TestNoCommonHome(t *testing.T) {
	for _, c := range []struct {
		name         string
		a, b         []Relay
		cutA, cutB   uint16
		homeA, homeB uint16
		meet         uint16
	}{
		{"each at one that the other lacks", []Relay{{ID: 1}, {ID: 2}, {ID: 3}}, []Relay{{ID: 1}, {ID: 2}, {ID: 3}}, 2, 1, 1, 2, 3},
		{"one at one that the other lacks", []Relay{{ID: 1}, {ID: 2}}, []Relay{{ID: 2}, {ID: 1}}, 2, 0, 1, 2, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, rel := newFabric(20*time.Millisecond), newDoubles(40*time.Millisecond)
				f.setDrop(func(_, _ netip.AddrPort) bool { return true })
				var a, b *side
				tell := func() { // as the coordinator does
					pa, pb := a.peer(c.homeA), b.peer(c.homeB)
					pa.Lacks, pb.Lacks = a.Lacks(), b.Lacks()
					a.SetPeers([]Peer{pb})
					b.SetPeers([]Peer{pa})
				}
				mk := func(ip netip.Addr) *side {
					return newSide(t, Config{Listen: f.host(ip), DialRelay: rel.dial, Lacks: func() { time.AfterFunc(50*time.Millisecond, tell) },
						Interfaces: func() ([]netip.Addr, error) { return []netip.Addr{ip}, nil }})
				}
				a, b = mk(hostA), mk(hostB)
				rel.cut[c.cutA], rel.cut[c.cutB] = a.cfg.Node, b.cfg.Node
				defer func() { a.stop(); b.stop(); synctest.Wait() }()
				a.attach()
				b.attach()
				a.SetRelays(c.a)
				b.SetRelays(c.b)
				<-time.After(4 * relayIdle) // what was tried at first is forgotten
				tell()
				if a.Home() != c.homeA || b.Home() != c.homeB {
					t.Fatalf("homes %d and %d", a.Home(), b.Home())
				}
				at := func(s *side) *relayConn { return (*s.relays.conns.Load())[c.meet] }
				start := time.Now()
				met := false
				for n := uint64(0); !met && time.Since(start) < 20*time.Second; n++ {
					a.to(b, wg(initiation, 1, 0, n))
					select {
					case <-b.got:
						met = true
					case <-time.After(100 * time.Millisecond):
					}
				}
				took := time.Since(start)
				if t.Logf("met after %v", took); !met || took > 6*time.Second {
					t.Fatalf("met %v, after %v", met, took)
				}
				b.to(a, wg(response, 2, 1, 0))
				<-a.got
				for n := range uint64(1000) {
					a.to(b, wg(transport, 2, 0, n))
					b.to(a, wg(transport, 1, 0, n))
					<-time.After(10 * time.Millisecond)
				}
				<-time.After(time.Second)
				came := [2]int{}
				for i, s := range []*side{a, b} {
					for len(s.got) > 0 {
						if p := <-s.got; p.b[0] == transport {
							came[i]++
						}
					}
				}
				if came != [2]int{1000, 1000} {
					t.Errorf("of 1000 packets each way came %v", came)
				}
				if at(a) == nil || at(b) == nil {
					t.Fatal("they are not where they meet")
				}
				<-time.After(3 * relayIdle)
				if len(a.Lacks())+len(b.Lacks()) > 0 || c.meet != c.homeA && at(a) != nil || at(b) != nil {
					t.Errorf("they stay, though nobody talks: lacking %v and %v", a.Lacks(), b.Lacks())
				}
			})
		})
	}
}
