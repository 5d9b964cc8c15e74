package bind

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/node/path"
)

// Of a burst of changes the first ones are looked at soon, and the rest not too often.
func TestNetmonBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Bind{cfg: Config{Interfaces: func() ([]netip.Addr, error) { return nil, nil }}}
		b.exclude.Store(&[]netip.Prefix{})
		l := &loop{b: b}
		n := &l.net
		n.every = pollWatched
		n.poll(l)
		for range 2 {
			time.Sleep(10 * time.Second)
			var waits []time.Duration
			for range 7 {
				n.hint(time.Now())
				waits = append(waits, time.Until(n.next))
				time.Sleep(time.Until(n.next))
				n.poll(l)
			}
			ms := time.Millisecond
			if want := []time.Duration{0, 2 * ms, 4 * ms, 8 * ms, 16 * ms, 20 * ms, 20 * ms}; !slices.Equal(waits, want) {
				t.Errorf("looked after %v, want %v", waits, want)
			}
		}
	})
}

// Peers are told of few of many addresses, of those that packets leave by before the others; and never of so many that what
// we say later finds no room.
func TestManyAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all []netip.Addr
		for i := range byte(40) {
			all = append(all, netip.AddrFrom4([4]byte{10, 0, 0, 40 - i}))
		}
		s := newSide(t, Config{Listen: newFabric(0).host(all[0]), DialRelay: newDoubles(0).dial,
			Interfaces: func() ([]netip.Addr, error) { return all, nil }})
		defer s.stop()
		s.attach()
		<-time.After(time.Second)
		if n := len(s.Endpoints()); n != maxOwn || n >= path.MaxCandidates {
			t.Errorf("%d addresses are told, want %d", n, maxOwn)
		}
	})
	a, b, c, d := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("2001:db8::1")
	n := netmon{addrs: []netip.Addr{a, b, c, d}, sources: [2]netip.Addr{b, d}}
	if got, want := n.likely(), []netip.Addr{d, b, a, c}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
