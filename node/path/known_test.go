package path

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// Of many peers only those that something happens with are more than known, and of all it is told where a handshake goes.
func TestKnown(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p := New(Config{})
	var set []Peer
	outside := netip.MustParseAddrPort("192.0.2.1:1")
	for i := range 100 {
		set = append(set, Peer{Key: peerKey(fmt.Sprint(i)), Candidates: []netip.AddrPort{outside, netip.MustParseAddrPort("10.0.0.1:1")}})
	}
	uses := func(out []Action, first int) (n int) {
		for _, a := range out {
			if u, ok := a.(Use); ok && len(u.First) == first {
				n++
			}
		}
		return n
	}
	check := func(peers, known int) {
		t.Helper()
		if len(p.peers) != peers || len(p.known) != known {
			t.Fatalf("%d peers and %d that are known, want %d and %d", len(p.peers), len(p.known), peers, known)
		}
	}
	if n := uses(p.Step(now, Peers{set}), 1); n != 100 { // the other address is to be opened first
		t.Fatalf("%d uses, want 100", n)
	}
	check(0, 100)
	if out := p.Step(now, Peers{slices.Clone(set)}); len(out) > 0 {
		t.Errorf("the same set again: %v", out)
	}
	set[0].Candidates = []netip.AddrPort{outside, netip.MustParseAddrPort("10.0.0.1:2"), netip.MustParseAddrPort("10.0.0.1:3")}
	if out := p.Step(now, Peers{set}); len(out) != 1 || uses(out, 2) != 1 {
		t.Errorf("another address: %v", out)
	}
	if n := uses(p.Step(now, Self{Here{NAT: NAT{Kind: Random}}}), 2); n != 99 { // nothing is to be opened from there
		t.Errorf("behind a hard NAT %d uses, want 99 of two addresses", n)
	}
	check(0, 100)
	if a, ok := p.Account(now, set[5].Key); !ok || len(a.Candidates) != 2 {
		t.Errorf("account of one that is known: %+v, %v", a, ok)
	}
	check(0, 100)
	p.Step(now, Tick{Peer: set[5].Key, Traffic: Traffic{Sent: now}})
	check(1, 99)
	p.Step(now, Peers{set[:5]})
	check(0, 5)
	if _, ok := p.Account(now, set[5].Key); ok {
		t.Error("account of one that is gone")
	}
}
