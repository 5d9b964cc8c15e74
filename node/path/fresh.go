package path

import (
	"net/netip"
	"slices"
	"time"
)

// Two NATs, each with one port for all far ends, may fail to meet: a packet that came too early, from a NAT that forgot
// or a machine that moved, has spoilt a port for the other (see early), and both go on with ports that are no use. A
// socket with a port of its own, which neither NAT has seen, begins anew: one side opens it, asks how it looks from
// outside, opens its own NAT by it and says so by relay; who hears that pings there in earnest.
//
//	a: another socket ─ asks ─▶ STUN     a2 is its outside
//	a2 ─ opener ─┤                       dies before b's NAT
//	a ──── Here, with a2, by relay ────▶ b
//	a2 ◀──────────── ping ────────────── b, by its usual socket
//
// The end with the lesser key does so first, the other if that was in vain.
const (
	freshLost  = 3                       // rounds of the search, where there was a direct path
	freshCold  = tryRound                // and where there was none yet
	freshLater = 1500 * time.Millisecond // of the search, until the end with the greater key does it too
	freshAsk   = time.Second             // for STUN to answer
	freshAgain = 8 * time.Second         // between two, doubling
	freshMost  = 10 * time.Minute
)

// freshWaits are the times between pings by the fresh socket, and then to the end of the attempt.
var freshWaits = [...]time.Duration{openFor, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, time.Second}

// refresh begins an attempt with a fresh socket if the search has been in vain for some rounds.
func (pr *peer) refresh(now time.Time) {
	rounds := freshCold
	if !pr.went.IsZero() {
		rounds = freshLost
	}
	if pr.direct() || pr.try != nil || pr.round < rounds || pr.freshAt.After(now) || !pr.meetable() {
		return
	}
	if pr.p.cfg.Later(pr.key) && now.Sub(pr.began) < freshLater {
		return
	}
	pr.freshAt = now.Add(min(freshAgain<<min(pr.freshes, 16), freshMost))
	pr.freshes++
	pr.try = &try{fresh: true, start: now, next: now.Add(freshAsk)}
	pr.p.do(Sockets{pr.key, 1, true})
}

// meetable reports whether both NATs are of the kind that a fresh port helps with, and there is need: a path that was left
// for its quality has not been lost.
func (pr *peer) meetable() bool {
	return !slices.ContainsFunc(pr.candidates, func(c *candidate) bool { return !c.shunned.IsZero() }) && pr.p.self.NAT.Kind == Easy && !pr.nat.hard() && pr.nat.Kind != Blocked && pr.public().IsValid()
}

// gotOutside takes the outside address of the fresh socket: our NAT is opened, and the peer told.
func (pr *peer) gotOutside(now time.Time, a netip.AddrPort) {
	t := pr.try
	if t == nil || !t.fresh || t.outside.IsValid() || !a.IsValid() || pr.direct() {
		return
	}
	t.outside = a
	if !pr.p.cfg.Plain {
		pr.bySocket(now, openTTL)
	}
	pr.call(now, 0)
	t.next = now.Add(freshWaits[0])
}

// bySocket sends pings by the fresh socket to the outside of the peer's NAT.
func (pr *peer) bySocket(now time.Time, ttl int) {
	for _, c := range pr.candidates {
		if c.by&(told|called) == 0 || !public(c.addr.Addr()) || !pr.probes.take(now, probeRate, probeBurst) {
			continue
		}
		g := ping{tx: pr.p.cfg.Tx(), to: c.addr, sent: now, due: now.Add(pongMost)}
		if c.opened = now; ttl == 0 && len(pr.pings) < maxPings {
			pr.pings = append(pr.pings, g)
		}
		pr.p.do(Send{Peer: pr.key, To: c.addr, Msg: Ping{Tx: g.tx}, Socket: 1, TTL: ttl})
	}
}

// freshOn goes on with the attempt, or ends it.
func (pr *peer) freshOn(now time.Time) {
	t := pr.try
	if t.sent++; pr.direct() || !t.outside.IsValid() || t.sent == len(freshWaits) {
		pr.endTry()
		return
	}
	pr.bySocket(now, 0)
	t.next = now.Add(freshWaits[t.sent])
}

// here is where the peer may reach us.
func (pr *peer) here() Here {
	h := pr.p.self
	if t := pr.try; t != nil && t.outside.IsValid() {
		h.Endpoints = slices.Concat([]netip.AddrPort{t.outside}, h.Endpoints)
		h.Endpoints = h.Endpoints[:min(len(h.Endpoints), MaxHere)]
	}
	return h
}
