package bind

import (
	"net/netip"
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
