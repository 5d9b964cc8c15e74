package bind

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
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
