package path

import (
	"net/netip"
	"slices"
	"time"
)

// Two NATs, each with one port for all far ends, may fail to meet: a packet that came too early, when a NAT forgot or a
// machine moved, has spoilt a port for the other (see early), and both go on with ports that are no use. Sockets with
// ports of their own, which neither NAT has seen, begin anew: each side opens one, asks how it looks from outside and says
// so by relay, opens its own NAT by it for the other's, says that too, and only then pings.
//
//	a: another socket ─ STUN     a2                     b2    STUN ─ another socket :b
//	a ──── Here, fresh a2 ────▶                  ◀─── Here, fresh b2 ──── b
//	a2 ─ opener ─┤                                     ├─ opener ─ b2
//	a ──── Here, opened b2 ───▶                  ◀─── Here, opened a2 ─── b
//	a2 ◀──────────────────────── ping, pong ─────────────────────────▶ b2
//
// A peer that cannot, or need not, pings the fresh address by its usual socket. One that still thinks that its path works is
// told otherwise by this, and opens a fresh socket as well: a machine that moved was ahead of itself if its last packets left
// by the new network before it knew, and its first opener to where they came from made it take another port for all that follow.
const (
	freshLost  = 3               // rounds of the search, where there was a direct path
	freshCold  = tryRound        // and where there was none yet
	freshAsk   = time.Second     // for STUN to answer
	freshAgain = 2 * time.Second // between two, doubling
	freshMost  = 10 * time.Minute
	freshBurst = 4               // times that the peer may have us do it, and then
	freshEvery = 8 * time.Second // so often
	freshShift = 100 * time.Millisecond
)

// freshWaits are the times between pings by the fresh socket, and then to the end of the attempt.
var freshWaits = [...]time.Duration{openFor, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, time.Second}

// refresh begins an attempt with a fresh socket if the search has been in vain for some rounds.
func (pr *peer) refresh(now time.Time) {
	rounds := freshCold
	if !pr.went.IsZero() {
		rounds = freshLost
	}
	if pr.search.round < rounds || pr.freshAt.After(now) || pr.direct() || !pr.meetable() {
		return
	}
	pr.freshAt = now.Add(min(freshAgain<<min(pr.freshes, 16), freshMost))
	pr.freshes++
	pr.openFresh(now)
}

func (pr *peer) openFresh(now time.Time) {
	pr.try = &try{fresh: true, start: now, next: now.Add(freshAsk)}
	pr.p.do(Sockets{pr.key, 1, true})
}

// unsure reports whether there is no direct path, or none that surely works.
func (pr *peer) unsure() bool { return !pr.direct() || pr.doubt }

// meetable reports whether both NATs are of the kind that a fresh port helps with, and there is need: a path that was left
// for its quality has not been lost, unless the peer is elsewhere by now.
func (pr *peer) meetable() bool {
	return pr.unsure() && pr.try == nil && pr.p.self.NAT.Kind == Easy && !pr.word.nat.hard() && pr.word.nat.Kind != Blocked &&
		pr.public().IsValid() && slices.ContainsFunc(pr.p.self.Endpoints, func(a netip.AddrPort) bool { return a.Addr().Is4() }) && !slices.ContainsFunc(pr.candidates, func(c *candidate) bool { return c.shunned.on() && c.by&called != 0 })
}

// gotOutside takes the outside address of the fresh socket: our NAT is opened, and the peer told.
func (pr *peer) gotOutside(now time.Time, a netip.AddrPort) {
	t := pr.try
	if t == nil || !t.fresh || t.outside.IsValid() || !a.IsValid() || !pr.unsure() {
		return
	}
	t.outside = a
	pr.sayFresh(now)
}

// sayFresh opens our NAT by the fresh socket, and says where that is.
func (pr *peer) sayFresh(now time.Time) {
	if !pr.p.cfg.Plain {
		pr.bySocket(now, openTTL+pr.digs%2)
	}
	pr.call(now, 0)
	pr.try.next = now.Add(max(freshWaits[0], pr.relay.rtt/2+openFor/3))
}

// gotFresh takes a Here as far as it concerns fresh sockets, the peer's and ours.
func (pr *peer) gotFresh(now time.Time, m Here) {
	old := pr.fresh
	if pr.fresh = (netip.AddrPort{}); m.Fresh {
		pr.fresh = m.Endpoints[0]
	}
	if m.Fresh && pr.fresh != old && pr.direct() && pr.fresh != pr.best.addr {
		pr.doubt = true // the peer has none, or would have no need of that
		pr.search.restart(now.Add(pongLeast))
	}
	t := pr.try
	if t != nil {
		t.heard = true
	}
	ours := t != nil && t.fresh && t.outside.IsValid()
	switch {
	case !m.Fresh:
	case ours && pr.fresh != old:
		pr.sayFresh(now)
	case ours && t.sent == 0 && m.Opened == sum(pr.here().Endpoints):
		if pr.digs > 1 && pr.p.rand(2) == 0 {
			// In vain so far, though the openers of the second time came one router further. It may be that they die before a
			// third NAT, or spoil the peer's, so that one of us must be the first to ping.
			t.next = now.Add(freshShift)
			return
		}
		pr.bySocket(now, 0)
	case pr.meetable() && pr.freshened.take(now, 1/freshEvery.Seconds(), freshBurst):
		pr.openFresh(now)
	}
}

// bySocket sends pings by the fresh socket: to the peer's, or to the outside of its NAT if it has none.
func (pr *peer) bySocket(now time.Time, ttl int) {
	for _, c := range pr.candidates {
		switch {
		case pr.fresh.IsValid() && c.addr != pr.fresh, c.by&(told|called) == 0, !public(c.addr.Addr()):
			continue
		case ttl == 0 && !pr.rationed(now, c) || !pr.pings.probe(now):
			continue
		}
		g := ping{tx: pr.p.cfg.Tx(), to: c.addr, sent: now, due: now.Add(pongMost)}
		if c.opened = now; ttl == 0 && !pr.pings.full() {
			pr.pings.add(g)
		}
		pr.p.do(Send{Peer: pr.key, To: c.addr, Msg: Ping{Tx: g.tx}, Socket: 1, TTL: ttl})
	}
}

// freshOn goes on with the attempt, or ends it.
func (pr *peer) freshOn(now time.Time) {
	t := pr.try
	if t.sent++; !pr.unsure() || !t.outside.IsValid() || t.sent == len(freshWaits) {
		if t.heard { // while nothing comes of the peer, no way of meeting it has been tried
			pr.digs++
		}
		pr.endTry()
		return
	}
	pr.bySocket(now, 0)
	t.next = now.Add(freshWaits[t.sent])
}

// isFresh reports whether an address is for the fresh socket alone.
func (pr *peer) isFresh(a netip.AddrPort) bool { return a == pr.fresh && pr.try != nil && pr.try.fresh }
