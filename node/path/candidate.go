package path

import (
	"net/netip"
	"slices"
	"time"
)

// source is how we know a candidate.
type source uint8

const (
	told   source = 1 << iota // by the coordinator
	called                    // by the peer, in a Here
	seen                      // as the source of its packets
	hired                     // by the policy: it is a peer relay
)

// candidate is an address of a peer, perhaps.
type candidate struct {
	addr   netip.AddrPort
	by     source
	added  time.Time
	pinged time.Time     // last ping to it
	opened time.Time     // last packet that opens our NAT for it, and goes no further
	proven bool          // a pong came from it, once
	trust  time.Duration // the longest silence that it survived, since the last that it did not
	quality
	mtu     mtu
	hop     *hop // nil for an address
	shunned shunned
}

func (pr *peer) find(a netip.AddrPort) *candidate {
	for _, c := range pr.candidates {
		if c.addr == a {
			return c
		}
	}
	return nil
}

// any reports whether there is such a candidate.
func (pr *peer) any(is func(*candidate) bool) bool { return slices.ContainsFunc(pr.candidates, is) }

// setCandidates replaces the candidates of one source, and reports whether there are new ones. One that works stays.
func (pr *peer) setCandidates(now time.Time, addrs []netip.AddrPort, by source) (fresh bool) {
	addrs = addrs[:min(len(addrs), MaxCandidates)]
	pr.candidates = slices.DeleteFunc(pr.candidates, func(c *candidate) bool {
		if !slices.Contains(addrs, c.addr) {
			c.by &^= by
		}
		return c.by == 0 && c != pr.best && c.pong.IsZero()
	})
	for _, a := range addrs {
		c, isNew := pr.add(now, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), by)
		fresh = fresh || c != nil && isNew
	}
	return fresh
}

// add makes a candidate, or finds it; nil if it is not usable or there is no room.
func (pr *peer) add(now time.Time, a netip.AddrPort, by source) (c *candidate, isNew bool) {
	if c = pr.find(a); c != nil {
		c.by |= by
		return c, false
	}
	if !pr.p.usable(a) {
		return nil, false
	}
	ports := 0
	for _, c := range pr.candidates {
		if c.addr.Addr() == a.Addr() {
			ports++
		}
	}
	if ports >= maxPorts || len(pr.candidates) >= MaxCandidates+min(len(pr.hops), MaxHops) {
		if !pr.evict(now, a, ports >= maxPorts, by) {
			return nil, false
		}
	}
	c = &candidate{addr: a, by: by, added: now}
	pr.candidates = append(pr.candidates, c)
	return c, true
}

// evict makes room by dropping the oldest candidate that has not answered of late, or from where the peer says that it has gone;
// one that was told only for another told.
func (pr *peer) evict(now time.Time, a netip.AddrPort, sameIP bool, by source) bool {
	old := -1
	for i, c := range pr.candidates {
		left := by == called && c.by&called == 0
		if c == pr.best || c.hop != nil || recent(now, c.pong, Trust) && !left || recent(now, c.added, time.Second) ||
			sameIP && c.addr.Addr() != a.Addr() || c.by&told != 0 && by != told {
			continue
		}
		if old < 0 || c.added.Before(pr.candidates[old].added) {
			old = i
		}
	}
	if old < 0 {
		return false
	}
	pr.candidates = slices.Delete(pr.candidates, old, old+1)
	return true
}

// got takes a message of the peer.
func (pr *peer) got(now time.Time, from Route, m Message, at Order) {
	switch m.(type) {
	case Here, Guess, Loss:
		if !pr.order.news(m.kind(), at) {
			pr.askOrder(now, at)
			return
		}
	}
	switch m := m.(type) {
	case Ping:
		pr.gotPing(now, from, m)
	case Pong:
		pr.gotPong(now, from, m, at)
	case Here:
		pr.p.do(Home{pr.key, m.Relay})
		pr.gotHere(now, m)
		pr.consider(now)
	case Guess:
		pr.gotGuess(now)
	case Loss:
		pr.gotLoss(now, m)
	}
}
