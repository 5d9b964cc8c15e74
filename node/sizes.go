package node

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// sizes decides what the host is told of how long packets to peers may be, where that is not 1280 bytes. What gets less
// counts at once; what gets more only when it has not got less for a while, so that a path that loses packets does not
// have the host's routes changed all the time.
//
//	bind: a path carries something else ── mark ──▶ sizes ── take ──▶ ostun.SetPaths, for each of the peer's addresses
type sizes struct {
	mu    sync.Mutex
	dirty map[key.NodePublic]struct{}
	all   bool          // who has which addresses may have changed
	wake  chan struct{} // capacity 1

	// of the one goroutine that takes
	told map[key.NodePublic]size
}

// size is what the host was told of one peer.
type size struct {
	mtu  int
	less time.Time // when it last got less; zero if long ago
}

const (
	usualSize = 1280 // of packets to peers of whom nothing is told
	maxSizes  = 1024 // peers of whom something is
	sizeRest  = 10 * time.Second
)

func newSizes() *sizes {
	return &sizes{dirty: make(map[key.NodePublic]struct{}), told: make(map[key.NodePublic]size), wake: make(chan struct{}, 1)}
}

// mark notes that what the path of a peer carries has changed. It never blocks.
func (s *sizes) mark(k key.NodePublic) {
	s.mu.Lock()
	if len(s.dirty) < maxSizes {
		s.dirty[k] = struct{}{}
	} else {
		s.all = true // at least of those who were told
	}
	s.mu.Unlock()
	s.kick()
}

// markAll notes that peers may have come, gone, or other addresses.
func (s *sizes) markAll() {
	s.mu.Lock()
	s.all = true
	s.mu.Unlock()
	s.kick()
}

func (s *sizes) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take looks at those that were marked, whose path now carries what mtu says. It reports whether there is anything new to
// tell, and when to take again, zero for not before the next mark.
func (s *sizes) take(now time.Time, mtu func(key.NodePublic) int) (changed bool, next time.Time) {
	s.mu.Lock()
	dirty, all := s.dirty, s.all
	s.dirty, s.all = make(map[key.NodePublic]struct{}), false
	s.mu.Unlock()
	for k, z := range s.told {
		if all || !z.less.IsZero() {
			dirty[k] = struct{}{}
		}
	}
	changed = all
	for k := range dirty {
		z, known := s.told[k]
		if !known {
			z.mtu = usualSize
		}
		if !now.Before(z.less.Add(sizeRest)) {
			z.less = time.Time{}
		}
		switch n := mtu(k); {
		case n < z.mtu:
			z.mtu, z.less, changed = n, now, true
		case n > z.mtu && (n <= usualSize || z.less.IsZero()):
			z.mtu, changed = n, true
		}
		if at := z.less.Add(sizeRest); !z.less.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
		if z.mtu == usualSize && z.less.IsZero() {
			delete(s.told, k)
		} else if known || len(s.told) < maxSizes {
			s.told[k] = z
		}
	}
	return changed, next
}

// paths are the sizes by address. They have room for one of each family of all peers in addrs.
func (s *sizes) paths(addrs map[key.NodePublic][]netip.Prefix, owner map[netip.Addr]key.NodePublic) map[netip.Addr]int {
	out := make(map[netip.Addr]int, 2*len(s.told))
	for k, z := range s.told {
		if z.mtu == usualSize {
			continue
		}
		for _, p := range addrs[k] {
			if p.IsSingleIP() && owner[p.Addr()] == k {
				out[p.Addr()] = z.mtu
			}
		}
	}
	return out
}

// tellSizes has the host know what the paths of peers carry, until done.
func (n *Node) tellSizes(done <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-done:
			return
		case <-n.sizes.wake:
		case <-timer.C:
		}
		now := time.Now()
		changed, next := n.sizes.take(now, n.bind.MTU)
		if cur := n.enforce.cur.Load(); changed && cur.m != nil {
			if err := n.host.SetPaths(n.sizes.paths(cur.addrs, cur.owner)); err != nil && !n.ended() {
				n.log.Debug().Err(err).Msg("the host was not told what paths carry")
			}
		}
		if !next.IsZero() {
			timer.Reset(next.Sub(now))
		}
	}
}
