package bind

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// An account of a peer has every address that was tried, and what became of each; the network around has the relay.
func TestAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		nobody := netip.MustParseAddrPort("192.0.2.99:9")
		p.a.SetPeers([]Peer{p.b.peer(1, nobody)})
		if a, err := p.a.Account(t.Context(), p.b.cfg.Node); err != nil || len(a.Candidates) != 1 || !a.Candidates[0].Pinged.IsZero() {
			t.Fatalf("at rest: %+v, %v", a, err)
		}
		p.shake()
		p.talk(2 * time.Second)
		a, err := p.a.Account(t.Context(), p.b.cfg.Node)
		if err != nil || len(a.Candidates) != 2 || a.RelayRTT == 0 {
			t.Fatalf("%+v, %v", a, err)
		}
		used, silent := a.Candidates[0], a.Candidates[1]
		if !used.InUse || used.Addr.Addr() != hostB || used.RTT == 0 || !slices.Contains(used.From, "peer") {
			t.Errorf("in use: %+v", used)
		}
		if silent.Addr != nobody || !silent.Pong.IsZero() || silent.Missed == 0 || !slices.Equal(silent.From, []string{"coordinator"}) {
			t.Errorf("silent: %+v", silent)
		}
		w := p.a.Network()
		if len(w.Relays) != 1 || !w.Relays[0].Home || !w.Relays[0].Connected || len(w.Local) != 1 || w.Local[0].Addr() != hostA {
			t.Errorf("network: %+v", w)
		}
		p.a.stop()
		if _, err := p.a.Account(t.Context(), p.b.cfg.Node); err == nil {
			t.Error("an account after the end")
		}
	})
}

// TestNetwork: a relay that answers no more has no latency, whatever it had.
func TestNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rel := newFabric(10*time.Millisecond), newDoubles(10*time.Millisecond)
		var list []Relay
		var stop [2]func()
		for i, at := range []string{"192.0.2.101:3478", "192.0.2.102:3478"} {
			list = append(list, Relay{ID: uint16(i + 1), STUN: []string{at}})
			stop[i] = stunHost(t, f, netip.MustParseAddrPort(at), func() netip.AddrPort { return netip.AddrPortFrom(hostA, 7000) })
		}
		defer stop[0]()
		s := newSide(t, Config{Listen: f.host(hostA), DialRelay: rel.dial, Interfaces: func() ([]netip.Addr, error) { return []netip.Addr{hostA}, nil }})
		defer s.stop()
		s.attach()
		s.SetRelays(list)
		<-time.After(time.Minute)
		if r := s.Network().Relays; r[0].Latency == 0 || r[1].Latency == 0 {
			t.Errorf("%+v, want both to have answered", r)
		}
		stop[1]()
		for range 6 { // at any time of a round
			<-time.After(30 * time.Second)
			if r := s.Network().Relays; r[0].Latency == 0 || r[1].Latency != 0 {
				t.Errorf("%+v, want an answer of the first only", r)
			}
		}
	})
}

// TestCounts: each packet counts once, whatever way its copies come and however late.
func TestCounts(t *testing.T) {
	var x rx
	var pkt [32]byte
	count := func(session uint32, ns ...uint64) {
		for _, n := range ns {
			binary.LittleEndian.PutUint64(pkt[8:], n)
			x.count(session, pkt[:])
		}
	}
	want := func(what string, got, top uint64) {
		t.Helper()
		if x.got.Load() != got || x.top.Load() != top {
			t.Errorf("%s: %d counted up to %d, want %d up to %d", what, x.got.Load(), x.top.Load(), got, top)
		}
	}
	count(1, 0, 1, 2, 0, 1, 2)
	want("copies", 3, 2)
	count(1, 10, 4, 3, 4)
	want("overtaken", 6, 10)
	count(1, 1000, 11, 11, 1000)
	want("far behind", 8, 1000)
	count(1, 100000, 11, 90000, 99000, 99000)
	want("too old to tell", 10, 100000)
	for n := range uint64(10000) {
		count(1, 100001+n, 100001+n, 100001+n-min(n, 500))
	}
	want("many with copies", 10010, 110000)
	count(2, 0, 1, 1, 0, 2)
	want("another session", 10013, 2)
}
