package bind

import (
	"net/netip"
	"testing"

	"github.com/hedge-mesh/hedge/node/key"
)

// A handshake may be under way before the coordinator has told us the peer's disco key, or a new one: its packets must
// still be known.
func TestSessionsOutliveADiscoKey(t *testing.T) {
	k := newBook()
	at := netip.MustParseAddrPort("192.0.2.1:1")
	before, after := &peer{key: key.ExchangePublic(key.NewNode())}, &peer{disco: key.ExchangePublic(key.NewDisco())}
	k.learn(7, before)
	k.setAddrs(before, []netip.AddrPort{at})
	k.drop(before, after)
	if p, ok := k.index(7); !ok || p != after {
		t.Errorf("the session is of %p, %v; want %p", p, ok, after)
	}
	if k.addr(at) != nil {
		t.Error("the address is still proven")
	}
	k.drop(after, nil)
	if _, ok := k.index(7); ok || len(k.byPeer) > 0 {
		t.Error("the session of a peer that is gone is still known")
	}
}
