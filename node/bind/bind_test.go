package bind

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

var (
	hostA = netip.MustParseAddr("192.0.2.1")
	hostB = netip.MustParseAddr("192.0.2.2")
)

// pair is two sides on one fabric with one relay, in fake time: 20 ms one way directly, 40 by relay.
type pair struct {
	t    *testing.T
	a, b *side
	net  *fabric
	rel  *doubles
	n    uint64

	back bool // talk counts what b sends
}

func newPair(t *testing.T) *pair {
	p := &pair{t: t, net: newFabric(20 * time.Millisecond), rel: newDoubles(40 * time.Millisecond)}
	mk := func(ip netip.Addr) *side {
		return newSide(t, Config{Listen: p.net.host(ip), DialRelay: p.rel.dial,
			Interfaces: func() ([]netip.Addr, error) { return []netip.Addr{ip}, nil }})
	}
	p.a, p.b = mk(hostA), mk(hostB)
	for _, s := range []*side{p.a, p.b} {
		s.SetRelays([]Relay{{ID: 1, URLs: []string{"http://relay"}}})
		s.attach()
	}
	p.a.SetPeers([]Peer{p.b.peer(1)})
	p.b.SetPeers([]Peer{p.a.peer(1)})
	synctest.Wait()
	t.Cleanup(func() { p.a.stop(); p.b.stop(); synctest.Wait() })
	return p
}

// shake lets both sides learn the sessions' indexes: a's is 1, b's is 2.
func (p *pair) shake() {
	p.t.Helper()
	p.a.to(p.b, wg(initiation, 1, 0, 0))
	if (<-p.b.got).b[0] != initiation {
		p.t.Fatal("no initiation")
	}
	p.b.to(p.a, wg(response, 2, 1, 0))
	if (<-p.a.got).b[0] != response {
		p.t.Fatal("no response")
	}
}

// talk exchanges one packet each way every 10 ms, and returns by number when each came to b first.
func (p *pair) talk(d time.Duration) (sent, got map[uint64]time.Time) {
	sent, got = map[uint64]time.Time{}, map[uint64]time.Time{}
	from, to := p.a, p.b
	if p.back {
		from, to = to, from
	}
	take := func() {
		for {
			select {
			case m := <-to.got:
				if _, twice := got[number(m.b)]; m.b[0] == transport && !twice {
					got[number(m.b)] = m.at
				}
			case <-from.got:
			default:
				return
			}
		}
	}
	for end := time.Now().Add(d); time.Now().Before(end); {
		p.n++
		sent[p.n] = time.Now()
		p.a.to(p.b, wg(transport, 2, 0, p.n))
		p.b.to(p.a, wg(transport, 1, 0, p.n))
		<-time.After(10 * time.Millisecond)
		take()
	}
	<-time.After(200 * time.Millisecond)
	take()
	return sent, got
}

// lost is the longest time in which nothing of what was sent arrived.
func lost(sent, got map[uint64]time.Time) (n int, gap time.Duration) {
	var first time.Time
	for i := range uint64(1e6) {
		at, ok := sent[i]
		if !ok {
			continue
		}
		if _, ok := got[i]; !ok {
			n++
			if first.IsZero() {
				first = at
			}
			gap = max(gap, at.Sub(first)+10*time.Millisecond)
		} else {
			first = time.Time{}
		}
	}
	return n, gap
}

func (p *pair) path(s, to *side) PathInfo {
	i, ok := s.Path(to.cfg.Node)
	if !ok {
		p.t.Fatal("no such peer")
	}
	return i
}

// Knowing nothing of each other but the relay, they talk at once, and directly soon after, without losing a packet.
func TestUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		start := time.Now()
		p.shake()
		if p.path(p.a, p.b).Direct {
			t.Error("direct before anything was said")
		}
		if d := time.Since(start); d > 90*time.Millisecond {
			t.Errorf("the handshake by relay took %v", d)
		}
		sent, got := p.talk(2 * time.Second)
		if n, gap := lost(sent, got); n > 0 {
			t.Errorf("%d packets lost, for %v", n, gap)
		}
		for _, s := range []*side{p.a, p.b} {
			i, _ := s.Path(map[*side]*side{p.a: p.b, p.b: p.a}[s].cfg.Node)
			if !i.Direct || i.RTT != 40*time.Millisecond || i.Since.Sub(start) > 150*time.Millisecond {
				t.Errorf("path %+v, %v after the start, want direct within 150 ms", i, i.Since.Sub(start))
			}
			t.Logf("direct after %v", i.Since.Sub(start))
		}
	})
}

// The direct path becomes a black hole: the relay takes over, and gives back when it heals.
func TestBlackhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.shake()
		p.talk(time.Second)
		p.net.setDrop(func(_, _ netip.AddrPort) bool { return true })
		sent, got := p.talk(3 * time.Second)
		n, gap := lost(sent, got)
		t.Logf("%d packets lost, for %v", n, gap)
		if gap > 600*time.Millisecond {
			t.Errorf("nothing arrived for %v, want 300 ms of silence and one missed answer at most", gap)
		}
		if i := p.path(p.a, p.b); i.Direct {
			t.Errorf("still direct: %+v", i)
		}
		p.net.setDrop(nil)
		sent, got = p.talk(10 * time.Second)
		if n, _ := lost(sent, got); n > 0 {
			t.Errorf("%d packets lost on the way back", n)
		}
		if i := p.path(p.a, p.b); !i.Direct {
			t.Errorf("not direct again: %+v", i)
		}
	})
}

// One direction dies: both sides leave the path.
func TestOneWayBlackhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.shake()
		p.talk(time.Second)
		p.net.setDrop(func(from, _ netip.AddrPort) bool { return from.Addr() == hostA })
		sent, got := p.talk(4 * time.Second)
		n, gap := lost(sent, got)
		t.Logf("%d packets lost, for %v", n, gap)
		if gap > 1200*time.Millisecond {
			t.Errorf("nothing arrived for %v", gap)
		}
	})
}

// A's address changes without its noticing, as a NAT's does: b learns it from a's packets.
func TestSilentMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		move := func(ip string) {
			p.net.mu.Lock()
			defer p.net.mu.Unlock()
			p.net.public = map[netip.Addr]netip.Addr{hostA: netip.MustParseAddr(ip)}
		}
		move("203.0.113.1")
		p.shake()
		p.talk(time.Second)
		if i := p.path(p.b, p.a); i.Addr.Addr() != netip.MustParseAddr("203.0.113.1") {
			t.Fatalf("path %+v", i)
		}
		p.back = true
		move("203.0.113.2")
		start := time.Now()
		sent, got := p.talk(2 * time.Second)
		n, gap := lost(sent, got)
		i := p.path(p.b, p.a)
		t.Logf("%d packets lost, for %v; direct again after %v: %s", n, gap, i.Since.Sub(start), i.Why)
		if gap > 300*time.Millisecond || i.Addr.Addr() != netip.MustParseAddr("203.0.113.2") {
			t.Errorf("%d packets lost, for %v, then %+v", n, gap, i)
		}
	})
}

// The relay dies under a direct path: nothing happens.
func TestRelayDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.shake()
		p.talk(time.Second)
		p.rel.setDown(1, true)
		sent, got := p.talk(3 * time.Second)
		if n, gap := lost(sent, got); n > 0 {
			t.Errorf("%d packets lost, for %v", n, gap)
		}
		<-time.After(time.Minute) // and after a rest, when the path has to prove itself
		sent, got = p.talk(time.Second)
		if n, gap := lost(sent, got); n > 0 {
			t.Errorf("%d packets lost after a rest, for %v", n, gap)
		}
	})
}

// The relay is late: what was said into the void is said again.
func TestLateRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.rel.setDown(1, true)
		time.AfterFunc(700*time.Millisecond, func() { p.rel.setDown(1, false) })
		start := time.Now()
		p.shake()
		p.talk(2 * time.Second)
		i := p.path(p.a, p.b)
		if !i.Direct || i.Since.Sub(start) > 2*time.Second {
			t.Errorf("after 700 ms without relay: %+v", i)
		}
		t.Logf("direct after %v", i.Since.Sub(start))
	})
}

// At rest nothing is sent at all, with a direct path or without.
func TestRest(t *testing.T) {
	for _, blocked := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t)
			p.net.setDrop(func(_, _ netip.AddrPort) bool { return blocked })
			p.shake()
			p.talk(5 * time.Second)
			<-time.After(15 * time.Second)
			p.net.mu.Lock()
			p.net.tapped = func(from, to netip.AddrPort, pkt []byte) { t.Errorf("%v sent %d bytes to %v", from, len(pkt), to) }
			p.net.mu.Unlock()
			before := p.rel.sends.Load()
			<-time.After(10 * time.Minute)
			if n := p.rel.sends.Load() - before; n > 0 {
				t.Errorf("%d packets by relay at rest", n)
			}
		})
	}
}

// The device closes and opens the bind as it likes: paths and sockets stay.
func TestCloseOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.shake()
		p.talk(time.Second)
		port := p.a.Port()
		for range 20 {
			p.a.detach()
			p.a.attach()
		}
		if p.a.Port() != port {
			t.Errorf("port %d became %d", port, p.a.Port())
		}
		sent, got := p.talk(time.Second)
		if n, _ := lost(sent, got); n > 0 {
			t.Errorf("%d packets lost after it", n)
		}
		if !p.path(p.a, p.b).Direct {
			t.Error("the direct path was lost")
		}
		// Another port, as listen_port asks for: new sockets, and the peer finds us again.
		p.a.detach()
		if _, got, err := p.a.Open(5555); err != nil || got != 5555 || p.a.Port() != 5555 {
			t.Fatalf("port %d, %v, want 5555", got, err)
		}
		p.a.Close()
		p.a.attach()
		p.talk(2 * time.Second)
		if i := p.path(p.b, p.a); i.Addr != netip.AddrPortFrom(hostA, 5555) {
			t.Errorf("the peer did not find the new port: %+v", i)
		}
	})
}

func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		rtt, i, err := p.a.Probe(t.Context(), p.b.cfg.Node)
		if err != nil || rtt != 80*time.Millisecond || i.Direct {
			t.Errorf("first: %v, %+v, %v, want 80 ms by relay", rtt, i, err)
		}
		<-time.After(time.Second)
		rtt, i, err = p.a.Probe(t.Context(), p.b.cfg.Node)
		if err != nil || rtt != 40*time.Millisecond || !i.Direct {
			t.Errorf("then: %v, %+v, %v, want 40 ms direct", rtt, i, err)
		}
		if _, _, err := p.a.Probe(t.Context(), key.ExchangePublic(key.NewNode())); err == nil {
			t.Error("probed a stranger")
		}
	})
}

// A peer that starts anew has another disco key: the old path is dropped at once.
func TestPeerRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.shake()
		p.talk(time.Second)
		again := p.b.peer(1)
		again.Disco = key.ExchangePublic(key.NewDisco())
		p.a.SetPeers([]Peer{again})
		synctest.Wait()
		if i := p.path(p.a, p.b); i.Direct {
			t.Errorf("still %+v", i)
		}
		p.a.SetPeers(nil)
		if err := p.a.to(p.b, wg(transport, 2, 0, 1)); err == nil {
			t.Error("sent to a peer that was removed")
		}
	})
}

// A handshake that is lost is sent again long before WireGuard would, and no more once it is answered.
func TestHandshakeRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.net.setDrop(func(_, _ netip.AddrPort) bool { return true })
		p.rel.setDown(1, true)
		start := time.Now()
		if err := p.a.to(p.b, wg(initiation, 1, 0, 0)); err != nil {
			t.Error(err) // it will be repeated, so it is not lost
		}
		<-time.After(200 * time.Millisecond)
		p.rel.setDown(1, false)
		<-p.b.got
		if d := time.Since(start); d > 300*time.Millisecond {
			t.Errorf("arrived after %v", d)
		}
		p.rel.setDown(1, true)
		p.b.to(p.a, wg(response, 2, 1, 0))
		<-time.After(200 * time.Millisecond)
		p.rel.setDown(1, false)
		<-p.a.got
		p.a.to(p.b, wg(transport, 2, 0, 1)) // the keepalive that follows
		<-time.After(time.Second)
		for len(p.a.got)+len(p.b.got) > 0 {
			select {
			case <-p.a.got:
			case <-p.b.got:
			}
		}
		<-time.After(10 * time.Second)
		if n := len(p.a.got) + len(p.b.got); n > 0 {
			t.Errorf("%d copies after the answer", n)
		}
	})
}
