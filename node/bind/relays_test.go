package bind

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/derp"
)

// drain has a relay tell all that are there that it is about to go away.
func (r *doubles) drain(id uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.at[id] {
		c.cfg.Status(true, derp.ErrDraining)
	}
}

// A relay that is going away is left for another without losing a packet: the other is reached before it is home.
func TestDrainingRelayIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.net.setDrop(func(_, _ netip.AddrPort) bool { return true })
		list := []Relay{{ID: 1}, {ID: 2}}
		for _, s := range []*side{p.a, p.b} {
			s.SetRelays(list)
		}
		p.a.SetPeers([]Peer{p.b.peer(1)})
		p.b.SetPeers([]Peer{p.a.peer(1)})
		<-time.After(time.Second)
		if p.a.Home() != 1 || p.b.Home() != 1 {
			t.Fatalf("homes %d and %d, want 1", p.a.Home(), p.b.Home())
		}
		p.shake()
		time.AfterFunc(time.Second, func() { p.rel.drain(1) })
		time.AfterFunc(9*time.Second, func() { p.rel.setDown(1, true) })
		sent, got := p.talk(12 * time.Second)
		if n, _ := lost(sent, got); n > 0 {
			t.Errorf("%d of %d packets lost", n, len(sent))
		}
		for _, s := range []*side{p.a, p.b} {
			if c := *s.relays.conns.Load(); s.Home() != 2 || len(c) != 1 || c[2] == nil {
				t.Errorf("home %d, connections %v; want 2 only", s.Home(), c)
			}
		}
	})
}

// A home relay that is lost is left after two seconds, not at the next look round.
func TestLostHomeIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.a.SetRelays([]Relay{{ID: 1}, {ID: 2}})
		<-time.After(time.Second)
		p.rel.setDown(1, true)
		<-time.After(relayDown + 100*time.Millisecond)
		if p.a.Home() != 2 {
			t.Errorf("home is %d, which is down", p.a.Home())
		}
		p.rel.setDown(1, false)
		<-time.After(time.Minute)
		if p.a.Home() != 2 {
			t.Error("it went back, though 2 is as near")
		}
	})
}

// A relay where nobody listens any more is left at once; one that only does not answer, not yet.
func TestShutHomeIsLeftAtOnce(t *testing.T) {
	refused := fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	for _, c := range []struct {
		name string
		err  error // of a dial
		want uint16
	}{
		{"refused", refused, 2},
		{"no route", syscall.ENETUNREACH, 1},
		{"no answer", context.DeadlineExceeded, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t)
				p.a.SetRelays([]Relay{{ID: 1}, {ID: 2}})
				<-time.After(time.Second)
				p.rel.setDown(1, true)
				p.a.relays.status((*p.a.relays.conns.Load())[1], false, c.err)
				<-time.After(10 * time.Millisecond)
				if p.a.Home() != c.want {
					t.Errorf("home is %d, want %d", p.a.Home(), c.want)
				}
			})
		})
	}
}

// One answer that is held up somewhere does not make a relay far; all of them do.
func TestHomeIsSurelyNearest(t *testing.T) {
	for _, c := range []struct {
		name string
		slow func(answer int) bool // of relay 1, from 0 on
		want uint16                // home after ten rounds
	}{
		{"never", func(int) bool { return false }, 1},
		{"the first", func(i int) bool { return i == 0 }, 1},
		{"the first two", func(i int) bool { return i < 2 }, 1},
		{"now and then", func(i int) bool { return i%3 == 1 }, 1},
		{"always", func(int) bool { return true }, 2},
		{"later", func(i int) bool { return i > 4 }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, rel := newFabric(10*time.Millisecond), newDoubles(10*time.Millisecond)
				var answers atomic.Int32
				var list []Relay
				for id, at := range []string{"192.0.2.101:3478", "192.0.2.102:3478"} {
					list = append(list, Relay{ID: uint16(id + 1), STUN: []string{at}})
					defer stunHost(t, f, netip.MustParseAddrPort(at), func() netip.AddrPort {
						if id == 0 && c.slow(int(answers.Add(1))-1) {
							<-time.After(50 * time.Millisecond)
						}
						return netip.AddrPortFrom(hostA, 7000)
					})()
				}
				var homes []uint16
				var mu sync.Mutex
				s := newSide(t, Config{Listen: f.host(hostA), DialRelay: rel.dial,
					Interfaces: func() ([]netip.Addr, error) { return []netip.Addr{hostA}, nil },
					Home:       func(id uint16) { mu.Lock(); defer mu.Unlock(); homes = append(homes, id) }})
				defer s.stop()
				s.attach()
				s.SetRelays(list)
				<-time.After(stunSettle + time.Millisecond)
				if s.Home() == 0 {
					t.Error("no home yet")
				}
				<-time.After(10 * 26 * time.Second)
				mu.Lock()
				defer mu.Unlock()
				if n := len(homes); s.Home() != c.want || n > 2 || n > 1 && c.name != "later" {
					t.Errorf("homes %v, want %d", homes, c.want)
				}
			})
		})
	}
}

// Two nodes whose home relay is lost while nobody can tell them of each other's new one find each other there, in either
// of two places, if they have no direct path.
func TestBothHomesAreLostUntold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.net.setDrop(func(_, _ netip.AddrPort) bool { return true })
		p.a.SetRelays([]Relay{{ID: 1}, {ID: 2}, {ID: 3}})
		p.b.SetRelays([]Relay{{ID: 1}, {ID: 3}, {ID: 2}}) // so that it prefers another
		p.a.SetPeers([]Peer{p.b.peer(1)})
		p.b.SetPeers([]Peer{p.a.peer(1)})
		<-time.After(time.Second)
		p.shake()
		time.AfterFunc(time.Second, func() { p.rel.setDown(1, true) })
		sent, got := p.talk(10 * time.Second)
		if p.a.Home() != 2 || p.b.Home() != 3 {
			t.Fatalf("homes %d and %d, want 2 and 3", p.a.Home(), p.b.Home())
		}
		n, gap := lost(sent, got)
		t.Logf("%d of %d packets lost, %v without any", n, len(sent), gap)
		if gap > 2*time.Second {
			t.Errorf("nothing came through for %v", gap)
		}
	})
}

// A node that alone loses its relay, and with it the coordinator that would tell its peers, is found at the next one, also by a
// peer that has only one other relay, and does not know it.
func TestOneHomeIsLostUntold(t *testing.T) {
	for _, gone := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t)
			p.rel.gone = gone
			p.net.setDrop(func(_, _ netip.AddrPort) bool { return true })
			for _, s := range []*side{p.a, p.b} {
				s.SetRelays([]Relay{{ID: 1}, {ID: 2}})
			}
			p.a.SetPeers([]Peer{p.b.peer(1)})
			p.b.SetPeers([]Peer{p.a.peer(1)})
			<-time.After(time.Second)
			p.shake()
			time.AfterFunc(2*time.Second, func() { p.rel.setCut(1, p.a.cfg.Node) })
			for _, p.back = range []bool{false, true} {
				sent, got := p.talk(10 * time.Second)
				n, gap := lost(sent, got)
				t.Logf("%d of %d packets lost, %v without any", n, len(sent), gap)
				if gap > 3*time.Second {
					t.Errorf("nothing came through for %v", gap)
				}
			}
			if p.a.Home() != 2 || p.b.Home() != 1 {
				t.Errorf("homes %d and %d, want 2 and 1", p.a.Home(), p.b.Home())
			}
		})
	}
}

// A peer that is not at the relay that we were told of is found at any that we are connected to, when that says so: two that
// change their relay at once may have old news of each other, and no newer may come.
func TestPeerIsNotAtItsRelay(t *testing.T) {
	for _, gone := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t)
			p.rel.gone = gone
			p.net.setDrop(func(_, _ netip.AddrPort) bool { return true })
			for _, s := range []*side{p.a, p.b} {
				s.SetRelays([]Relay{{ID: 2}})
			}
			<-time.After(time.Second)
			p.a.SetRelays([]Relay{{ID: 2}, {ID: 1}})
			p.a.SetPeers([]Peer{p.b.peer(2)})
			p.a.SetPeers([]Peer{p.b.peer(1)}) // it is at 2
			p.b.SetPeers([]Peer{p.a.peer(2)})
			p.a.relays.get(1) // while there is no connection, its own is tried too
			<-time.After(time.Second)
			began, found := time.Now(), false
			for !found && time.Since(began) < 5*time.Second {
				p.a.to(p.b, wg(initiation, 1, 0, 0))
				select {
				case <-p.b.got:
					found = true
				case <-time.After(100 * time.Millisecond):
				}
			}
			if took := time.Since(began); found != gone || gone && took > 500*time.Millisecond {
				t.Errorf("told %v: found %v, after %v", gone, found, took)
			}
		})
	}
}
