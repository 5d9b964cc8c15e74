package bind

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/node/path"
	"github.com/hedge-mesh/hedge/test/lab"
)

// roaming is what may happen to a on a direct path, or to both, and what that may cost in milliseconds: until packets
// arrive again, and until both sides send directly alone; 0 where they do so all the time.
var roaming = []struct {
	what           string
	a, b           string
	change         func(m *meeting)
	outage, direct time.Duration
}{
	{"own address", "easy", "easy", readdress, 150, 1000},
	{"own address", "easy", "none", readdress, 150, 1000},
	{"own address", "none", "easy", readdress, 150, 1000},
	{"own address", "easyopen", "easyopen", readdress, 150, 1000},
	{"own address", "fullcone", "hard", readdress, 150, 1000},
	{"own address", "dual", "dual", readdress, 150, 1000},
	{"own address", "v6", "v6", readdress, 150, 1000},
	{"uplink", "easy", "easy", uplink, 150, 1000},
	{"uplink", "easy", "none", uplink, 150, 1000},
	{"uplink", "hard", "none", uplink, 150, 1000},
	{"uplink", "cgn", "easy", uplink, 150, 1000},
	{"uplink", "dual", "dual", uplink, 150, 1000},
	{"uplink before we know", "easy", "easyopen", ahead, 150, 600},
	{"uplink before we know", "easyopen", "easyopen", ahead, 150, 600},
	{"uplink before we know", "fullcone", "easyopen", ahead, 150, 600},
	{"wakes up", "easy", "easy", wake, 150, 1000},
	{"wakes up", "easy", "none", wake, 150, 1000},
	{"silent WAN", "easy", "easy", silent, 1000, 2000},
	{"silent WAN", "easy", "none", silent, 1000, 2000},
	{"silent WAN", "easyopen", "easyopen", silent, 1000, 2000},
	{"silent WAN", "fullcone", "easy", silent, 1000, 2000},
	{"silent WAN", "hard", "none", silent, 1000, 2000},
	{"silent WAN", "cgn", "easy", silent, 1000, 2000},
	{"NAT forgets", "easy", "easy", forget, 1000, 2000},
	{"NAT forgets", "hard", "none", forget, 1000, 2000},
	{"NAT forgets", "fullcone", "hard", forget, 1000, 2000},
	{"NAT forgets", "easyopen", "easyopen", forget, 1000, 2000},
	{"both NATs forget", "easy", "easy", forgetBoth, 1000, 2000},
	{"both NATs forget", "easyopen", "easyopen", forgetBoth, 1000, 2000},
	{"both NATs forget", "easyopen", "cgn", forgetBoth, 1000, 2000},
	{"both addresses", "easy", "easy", readdressBoth, 150, 1000},
	{"both addresses", "easyopen", "easyopen", readdressBoth, 150, 1000},
	{"both addresses", "dual", "dual", readdressBoth, 150, 1000},
	{"both WANs silently", "easy", "easy", silentBoth, 1000, 2000},
	{"both WANs silently", "easyopen", "easyopen", silentBoth, 1000, 2000},
	{"both WANs silently", "fullcone", "addrrestr", silentBoth, 1000, 2000},
	{"MTU shrinks", "easy", "easy", shrink(1280), 1500, 3000},
	{"MTU shrinks", "dual", "dual", shrink(1280), 1500, 3000},
	{"MTU shrinks a little", "easy", "none", shrink(1400), 0, 0},
}

func readdress(m *meeting) { m.ma.Readdress(); m.moved(m.a) }
func uplink(m *meeting)    { m.ma.Move(m.net.Router(lab.Home("easy"))); m.moved(m.a) }

// ahead lets a's packets leave by the new network before a knows of it, and spoil the port of b's NAT for that.
func ahead(m *meeting) {
	m.ma.Move(m.net.Router(lab.Home("easy")))
	for range 3 {
		m.n++
		m.a.to(m.b, wgData(2, m.n))
		<-time.After(5 * time.Millisecond)
	}
	m.moved(m.a)
}

// shrink lets a's link swallow longer packets, both ways, without a word.
func shrink(mtu int) func(*meeting) {
	return func(m *meeting) {
		l := lab.Link{Latency: lab.Edge, MTU: mtu}
		m.ra.Links(l, l)
	}
}

// wake lets a's wall clock be ahead by an hour of sleep, in which its NAT has forgotten it and its provider has given it
// another address.
func wake(m *meeting) {
	m.ra.Rebind()
	slept := time.Hour
	m.a.wall.Store(&slept)
	m.moved(m.a) // anything that makes the loop look at the clock
}

func silent(m *meeting) { m.ra.Rebind() }
func forget(m *meeting) { m.ra.Forget() }

func forgetBoth(m *meeting)    { m.ra.Forget(); m.rb.Forget() }
func silentBoth(m *meeting)    { m.ra.Rebind(); m.rb.Rebind() }
func readdressBoth(m *meeting) { m.ma.Readdress(); m.mb.Readdress(); m.moved(m.a); m.moved(m.b) }

// moved is what the system tells a side.
func (m *meeting) moved(s *side) { s.moves <- struct{}{} }

// alone reports whether a side sends directly and not otherwise.
func (s *side) alone() bool {
	for _, p := range s.table.Load().byNode {
		if r := p.routes.Load(); !r.primary.IsValid() || r.both && r.until == 0 {
			return false
		}
	}
	return true
}

func TestRoaming(t *testing.T) {
	for _, c := range roaming {
		for _, one := range []bool{false, true} {
			outage, direct := c.outage*time.Millisecond, c.direct*time.Millisecond
			t.Run(fmt.Sprintf("%s, %s to %s, one way %v", c.what, c.a, c.b, one), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := meet(t, 1, c.a, c.b)
					defer m.end()
					m.shake()
					if m.talk(4*time.Second, nil); m.both() == 0 {
						t.Fatal("not direct")
					}
					m.oneWay, m.long = one, true
					start, back := time.Now(), time.Duration(0)
					c.change(m)
					f := m.talk(4*time.Second, func() bool {
						if !m.a.alone() || !m.b.alone() {
							back = time.Since(start)
						}
						return false
					})
					t.Logf("outage %v, direct again after %v, %d late", f.gap, back, f.late)
					if f.gap > outage || direct > 0 && back > direct {
						t.Errorf("outage %v, direct again after %v; want %v and %v", f.gap, back, outage, direct)
					}
					if direct > 0 && (!m.a.alone() || !m.b.alone()) {
						t.Error("not direct again")
					}
				})
			})
		}
	}
}

// At 10,000 packets a second each way, going direct costs one in ten thousand at most.
func TestSwitchAtSpeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := meet(t, 2, "easy", "easy")
		defer m.end()
		m.every = 100 * time.Microsecond
		m.shake()
		f := m.talk(time.Second, nil)
		if m.both() == 0 || f.lost*10000 > f.sent {
			t.Errorf("direct after %v, %d of %d packets lost", m.both(), f.lost, f.sent)
		}
		t.Logf("%d of %d packets lost, %d late", f.lost, f.sent, f.late)
	})
}

// TestRelaySeesMove: on the relay nothing but the relay's word says that a's NAT is another, perhaps one that a direct path leads
// through. The next round of STUN would be up to 26 s away.
func TestRelaySeesMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := meet(t, 1, "hard", "hard")
		defer m.end()
		m.shake()
		if m.talk(4*time.Second, nil); m.both() != 0 {
			t.Fatal("direct")
		}
		m.ra.Replace(lab.Home("easy"))
		m.ra.Rebind()
		(*m.a.relays.conns.Load())[1].client.(wiredClient).cfg.Outside()
		<-time.After(200 * time.Millisecond)
		if n := m.a.NAT(); n.Kind != path.Easy || !slices.ContainsFunc(m.a.Endpoints(), func(a netip.AddrPort) bool { return a.Addr() == m.ra.Addr() }) {
			t.Errorf("%v at %v; want an easy one at %v", n, m.a.Endpoints(), m.ra.Addr())
		}
	})
}
