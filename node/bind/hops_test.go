package bind

import (
	"bytes"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/path"
	"github.com/hedge-mesh/hedge/test/lab"
)

// trio is a meeting of two and a third machine in a place of its own, which may be their peer relay. The way by it is as
// long as that by the relay, and its round trip a little shorter.
type trio struct {
	*meeting
	r *side
}

func meetBy(t *testing.T, a, b, r string) *trio {
	m := &trio{meeting: meet(t, 1, a, b)}
	host := m.net.Machine()
	if r != "none" {
		_, host, _, _ = m.net.Pair("none", r)
	}
	m.r = m.side(host)
	<-time.After(time.Second)
	m.grant(true)
	return m
}

// grant tells all three who they are, and whether the policy lets the two use the third.
func (m *trio) grant(yes bool) {
	m.tell(yes)
	m.r.SetPeers([]Peer{m.a.peer(1, m.a.Endpoints()...), m.b.peer(1, m.b.Endpoints()...)})
	m.r.SetPeerRelay(true, nil)
	if yes {
		m.r.SetPeerRelay(true, []key.NodePublic{m.a.cfg.Node, m.b.cfg.Node})
	}
}

// tell tells the two only.
func (m *trio) tell(yes bool) {
	pa, pb, pr := m.a.peer(1, m.a.Endpoints()...), m.b.peer(1, m.b.Endpoints()...), m.r.peer(1, m.r.Endpoints()...)
	if yes {
		hop := []Hop{{m.r.cfg.Node, "r"}}
		pa.Hops, pb.Hops = hop, hop
	}
	m.a.SetPeers([]Peer{pb, pr})
	m.b.SetPeers([]Peer{pa, pr})
}

// by is whether both send by the peer relay, and by whether either does.
func (m *trio) by() (both, either bool) {
	pa, _ := m.a.Path(m.b.cfg.Node)
	pb, _ := m.b.Path(m.a.cfg.Node)
	x, y := pa.Hop == m.r.cfg.Node, pb.Hop == m.r.cfg.Node
	if x && pa.Direct || y && pb.Direct {
		m.t.Error("a path by a peer relay is said to be direct")
	}
	return x && y, x || y
}

func (m *trio) end() {
	m.meeting.end()
	m.r.stop()
	synctest.Wait()
}

// until talks until the two are by the peer relay, or are not, and says how long it took.
func (m *trio) until(t *testing.T, by bool, most time.Duration) fate {
	t.Helper()
	from := time.Now()
	is := func() bool {
		both, either := m.by()
		return by && both || !by && !either
	}
	f := m.talk(most, is)
	if !is() {
		pa, _ := m.a.Path(m.b.cfg.Node)
		t.Fatalf("after %v: by the peer relay is not %v: %+v", time.Since(from), by, pa)
	}
	return f
}

func TestPeerRelay(t *testing.T) {
	for _, place := range []string{"none", "fullcone", "addrrestr", "easy"} {
		t.Run(place, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := meetBy(t, "hard", "hard", place)
				defer m.end()
				m.shake()
				begin := time.Now()
				most := 5 * time.Second
				if place == "easy" { // the ways to it are by sockets of their own, whose ports had to be guessed
					most = 40 * time.Second
				}
				if f := m.until(t, true, most); f.lost > 0 {
					t.Errorf("%d packets lost on the way there", f.lost)
				}
				t.Logf("by the peer relay after %v", time.Since(begin))
				if place == "none" && time.Since(begin) > 2*time.Second {
					t.Errorf("by the peer relay after %v", time.Since(begin))
				}
				<-time.After(time.Second) // packets go both ways around a switch
				sent := m.a.hops.forward.Stats(time.Now()).Packets
				was := m.r.PeerRelayStats()
				f := m.talk(2*time.Second, nil)
				is := m.r.PeerRelayStats()
				if n := is.Packets - was.Packets; f.lost > 0 || int(n) < f.sent || sent > 0 {
					t.Errorf("%d packets sent, %d lost, %d went by the peer relay", f.sent, f.lost, n)
				}
				select {
				case p := <-m.r.got:
					if p.b[0] == transport {
						t.Error("the peer relay's own device got a packet of theirs")
					}
				default:
				}
			})
		})
	}
}

// TestPeerRelayOneGranted: it is enough that one of the two may use it.
func TestPeerRelayOneGranted(t *testing.T) {
	for name, who := range map[string]func(*trio) *side{
		"who talks":        func(m *trio) *side { return m.a },
		"whom it talks to": func(m *trio) *side { return m.b },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := meetBy(t, "hard", "hard", "none")
				defer m.end()
				m.r.SetPeerRelay(true, []key.NodePublic{who(m).cfg.Node})
				m.shake()
				if f := m.talk(8*time.Second, func() bool { both, _ := m.by(); return both }); f.lost > 0 {
					t.Errorf("%d packets lost", f.lost)
				}
				if both, _ := m.by(); !both || m.r.PeerRelayStats().Packets == 0 {
					t.Error("it is not used")
				}
			})
		})
	}
}

func TestPeerRelayNotGranted(t *testing.T) {
	for name, set := range map[string]func(*trio){
		"to nobody":              func(m *trio) { m.grant(false) },
		"not by the relay's map": func(m *trio) { m.r.SetPeerRelay(true, nil) },
		"not switched on":        func(m *trio) { m.r.SetPeerRelay(false, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := meetBy(t, "hard", "hard", "none")
				defer m.end()
				set(m)
				m.shake()
				if f := m.talk(8*time.Second, func() bool { _, either := m.by(); return either }); f.lost > 0 {
					t.Errorf("%d packets lost", f.lost)
				}
				if _, either := m.by(); either || m.r.PeerRelayStats().Packets > 0 {
					t.Error("it is used all the same")
				}
			})
		})
	}
}

// TestPeerRelayRevoked: without the right nothing goes by it any more, whoever is told first, and little is lost.
func TestPeerRelayRevoked(t *testing.T) {
	for name, c := range map[string]struct {
		revoke func(*trio)
		lost   int // packets that are on their way, or go into the void until that is noticed
	}{
		"all are told":       {func(m *trio) { m.grant(false) }, 8},
		"the two are told":   {func(m *trio) { m.tell(false) }, 0},
		"the relay is told":  {func(m *trio) { m.r.SetPeerRelay(true, nil) }, 12},
		"it is switched off": {func(m *trio) { m.r.SetPeerRelay(false, []key.NodePublic{m.a.cfg.Node, m.b.cfg.Node}) }, 0},
		"the relay ends": {func(m *trio) {
			m.r.EndPeerRelay()
			time.AfterFunc(250*time.Millisecond, m.r.stop)
		}, 0},
		"the relay is killed":  {func(m *trio) { m.r.stop() }, 160},
		"the relay goes a way": {func(m *trio) { m.r.SetPeers(nil) }, 160},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := meetBy(t, "hard", "hard", "none")
				defer m.end()
				m.shake()
				m.until(t, true, 5*time.Second)
				m.talk(time.Second, nil)
				c.revoke(m)
				begin := time.Now()
				f := m.until(t, false, 2*time.Second)
				took := time.Since(begin)
				g := m.talk(2*time.Second, nil)
				if f.lost+g.lost > c.lost || g.gap > time.Second || took > 1300*time.Millisecond {
					t.Errorf("left after %v, %d packets lost, then %d", took, f.lost, g.lost)
				}
				t.Logf("left after %v, %d packets lost, then %d", took, f.lost, g.lost)
			})
		})
	}
}

// TestPeerRelayRoams: the relay follows a node's address.
func TestPeerRelayRoams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := meetBy(t, "hard", "hard", "none")
		defer m.end()
		m.shake()
		m.until(t, true, 5*time.Second)
		m.talk(time.Second, nil)
		readdress(m.meeting)
		f := m.talk(3*time.Second, nil)
		if f.gap > 200*time.Millisecond {
			t.Errorf("%d lost, silent for %v", f.lost, f.gap)
		}
		m.until(t, true, 5*time.Second)
		m.ra.Rebind() // nobody here sees that
		f = m.talk(4*time.Second, nil)
		if f.gap > time.Second {
			t.Errorf("silent WAN: %d lost, silent for %v", f.lost, f.gap)
		}
		m.until(t, true, 5*time.Second)
	})
}

// TestPeerRelayThenDirect: a direct path is taken as soon as there is one.
func TestPeerRelayThenDirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := meetBy(t, "hard", "hard", "none")
		defer m.end()
		m.shake()
		m.until(t, true, 5*time.Second)
		m.mb.Move(m.net.Router(lab.Home("fullcone"))) // where anybody can reach it
		m.moved(m.b)
		m.talk(time.Second, nil)
		m.grant(true) // the coordinator tells its new address
		f := m.talk(40*time.Second, func() bool {
			pa, _ := m.a.Path(m.b.cfg.Node)
			pb, _ := m.b.Path(m.a.cfg.Node)
			return pa.Direct && pb.Direct
		})
		pa, _ := m.a.Path(m.b.cfg.Node)
		if !pa.Direct || f.lost > 0 {
			t.Errorf("%d lost, and %+v", f.lost, pa)
		}
	})
}

// TestPeerRelayFloods: whoever may use a relay cannot have it send to an address that is not its own, nor be answered for
// what is not genuine.
func TestPeerRelayFloods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := meetBy(t, "none", "none", "none")
		defer m.end()
		victim := netip.MustParseAddrPort("192.0.2.99:99")
		synctest.Wait() // or the loop may put back the addresses that are set here
		f, now := m.r.hops.forward, time.Now()
		give := func(from, to *side) *derp.Hop {
			o, no := f.Ask(now, from.cfg.Node, to.cfg.Node, path.NewTx())
			if no != 0 {
				t.Fatal(no)
			}
			return derp.NewHop(o)
		}
		ha, hb := give(m.a, m.b), give(m.b, m.a)
		on := onward{h: &m.r.hops}
		pass := func(b []byte, from netip.AddrPort) int {
			m.r.hops.pass(b, from, m.r.now(), &on)
			n := len(on.all)
			on.all = on.all[:0]
			return n
		}
		pass(ha.Wrap(nil, []byte("x")), victim)
		if n := pass(hb.Wrap(nil, []byte("x")), netip.MustParseAddrPort("192.0.2.98:98")); n > 0 {
			t.Fatal("what a's pair sends goes to an address that a pretends is its own")
		}
		p := m.r.table.Load().byNode[m.a.cfg.Node]
		m.r.book.setAddrs(p, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")})
		pass(ha.Wrap(nil, []byte("x")), netip.MustParseAddrPort("192.0.2.1:1"))
		if n := pass(hb.Wrap(nil, []byte("x")), victim); n != 1 || on.to != netip.MustParseAddrPort("192.0.2.1:1") {
			t.Fatalf("%d packets go to %v, want one to the address that is a's", n, on.to)
		}
		pass(ha.Wrap(nil, []byte("x")), victim)
		if pass(hb.Wrap(nil, []byte("x")), victim); on.to == victim {
			t.Fatal("a's address is moved to one that is not proven")
		}
		forged := bytes.Repeat([]byte{0xed}, 100)
		copy(forged, "\xedR\x01\x03")
		if pass(forged, victim) != 0 {
			t.Fatal("what is not genuine goes on")
		}
	})
}
