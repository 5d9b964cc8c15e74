package bind

import (
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
