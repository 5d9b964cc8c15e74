package path

import (
	"fmt"
	"hash/crc32"
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
	mtu mtu
	hop *hop // nil for an address

	shunned time.Time // when it was left for its quality; zero if it may be used
	streak  int       // answers running since then,
	need    int       // and how many it takes
}

func (pr *peer) find(a netip.AddrPort) *candidate {
	for _, c := range pr.candidates {
		if c.addr == a {
			return c
		}
	}
	return nil
}

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

func (pr *peer) gotPing(now time.Time, from Route, m Ping) {
	if slices.Contains(pr.heardTx[:], m.Tx) || !pr.pongs.take(now, pongRate, pongBurst) {
		return
	}
	pr.heardTx[pr.heardAt] = m.Tx
	pr.heardAt = (pr.heardAt + 1) % len(pr.heardTx)
	at := from
	if ByHop(from) { // is of no use to the peer
		at = Route{}
	}
	pr.p.do(Send{Peer: pr.key, To: from, Msg: Pong{m.Tx, at}})
	if from.IsValid() {
		if !ByHop(from) {
			pr.clear = now
		}
		c := pr.find(from)
		pr.pingBack(now, from, pingLeast)
		if (c == nil || !c.proven && c.hop == nil) && pr.best != nil && !recent(now, latest(pr.best.pong, pr.traffic.Heard), hereLeast) {
			pr.askBest(now) // it may have moved there, or have begun anew
		}
	}
}

// pingBack asks an address that sent us something, unless it is known to work. This is what opens a pair of NATs in
// one and a half round trips: our own ping died at theirs, theirs came through, and now ours will.
func (pr *peer) pingBack(now time.Time, from netip.AddrPort, least time.Duration) {
	c, _ := pr.add(now, from, seen)
	if c != nil && !recent(now, c.pong, fresh) && !recent(now, c.pinged, least) && (c.hop == nil || c.hop.refuse == "") {
		pr.ping(now, from, 0, false)
	}
}

// strayed takes a packet of the peer's from an address that is not known as the peer's: perhaps its NAT forgot us.
func (pr *peer) strayed(now time.Time, from netip.AddrPort) {
	pr.pingBack(now, from, hereLeast)
	if pr.best != nil {
		pr.askBest(now)
	}
}

// askBest asks the path in use, for there is a sign that it may be none any more.
func (pr *peer) askBest(now time.Time) {
	if !pr.asked(pr.best.addr) && !recent(now, pr.best.pinged, hereLeast) {
		pr.ping(now, pr.best.addr, 0, true)
	}
}

func (pr *peer) gotPong(now time.Time, from Route, m Pong, at Order) {
	i := slices.IndexFunc(pr.pings, func(g ping) bool { return g.tx == m.Tx && g.to == from })
	if i < 0 {
		return
	}
	pr.order.answer(at)
	g := pr.pings[i]
	if c := pr.find(from); c != nil && !c.shunned.IsZero() &&
		slices.ContainsFunc(pr.pings, func(o ping) bool { return o.to == from && !o.late && g.sent.Sub(o.sent) > c.rtt/2 }) {
		c.streak = 0 // one before it is missing, by more than networks let packets overtake each other
	}
	pr.pings = slices.Delete(pr.pings, i, i+1)
	if g.size > 0 {
		pr.p.do(Alive{pr.key, from})
		pr.gotMTU(now, pr.find(from), g.size)
		return
	}
	pr.forget(from, g.sent)                       // their answers would be no news
	rtt := max(now.Sub(g.sent), time.Microsecond) // 0 means not known
	if g.probe != 0 {
		pr.p.do(Probed{pr.key, g.probe, from, rtt})
	}
	if !from.IsValid() {
		if pr.relay.missed > 1 {
			pr.relay.rtt, pr.relay.rttvar = 0, 0
		}
		pr.relay.answered(now, rtt)
		if b := pr.best; b != nil && pr.compared > 0 && clearly(pr.relayScore(now), b.score(now)) {
			pr.relay.wins++
		}
		return
	}
	pr.p.do(Alive{pr.key, from})
	c := pr.find(from)
	if c == nil {
		return // it made room for another meanwhile
	}
	if c.missed > 0 && c != pr.best {
		c.rtt, c.rttvar = 0, 0
	}
	c.answered(now, rtt)
	survived := c == pr.best && pr.lapse.asked(g.sent)
	if survived {
		pr.lapse.over = true
	}
	if c.proven = true; c == pr.best && pr.trying() && len(pr.trial) < trialRounds {
		pr.trial = append(pr.trial, rtt)
	}
	switch {
	case (pr.best == nil || pr.best.hop != nil && c.hop == nil) && !pr.again(now, c):
	case pr.best == nil && !pr.worth(now, c, rtt):
	case pr.best == nil, pr.best.hop != nil && c.hop == nil:
		pr.adopt(now, c, fmt.Sprintf("%s answered", c))
	case survived:
		pr.doubt = false
	case pr.best == c && pr.doubt:
		pr.doubt, pr.other, pr.until = false, Relay, now.Add(bothFor)
	case pr.best != c && pr.doubt && (c.hop == nil || !pr.direct()):
		pr.adopt(now, c, fmt.Sprintf("%s answers and %s does not", c, pr.best))
	default:
		pr.weigh(now, c)
	}
}

// gotHere takes the peer's own account of where it is: it wants to be reached, or it moved.
func (pr *peer) gotHere(now time.Time, m Here) {
	if !pr.heres.take(now, hereRate, hereBurst) {
		return
	}
	// A search goes on at the peer's call, or each would begin anew at the other's, for ever.
	searching := pr.busy(now) && pr.round > 1 && m.NAT.Kind == pr.nat.Kind && !pr.said.IsZero()
	least := hereEvery
	if pr.said.IsZero() {
		least = hereNews // it has just come up, and what we said before that is lost
	}
	was := pr.outside
	pr.called, pr.nat, pr.said = now, m.NAT, now
	fresh := pr.setCandidates(now, m.Endpoints, called)
	if pr.outside = outsideOf(m.NAT, m.Endpoints); !m.Fresh && pr.outside != was {
		if pr.renew(); pr.try != nil && !pr.try.fresh {
			pr.endTry() // it is for where the peer was
		}
		pr.pardon(func(c *candidate) bool { return c.by&called == 0 }) // that is not where the peer is now
	}
	switch {
	case m.Opened == sum(pr.here().Endpoints):
		pr.clear = now
	case fresh: // what was open before is not what leads there
		pr.clear = time.Time{}
	}
	if pr.best != nil {
		if fresh {
			pr.stir(now)
			pr.began, least = now, hereNews // it waits to hear that we have opened our side
		}
		pr.gotFresh(now, m)
		for _, c := range pr.candidates {
			if (fresh && c.by&called != 0 || !pr.direct()) && c != pr.best && pr.wants(c) && !pr.isFresh(c.addr) {
				pr.reach(now, c)
			}
		}
		pr.call(now, least)
		pr.other, pr.until = Relay, now.Add(bothCalled)
		if !pr.asked(pr.best.addr) {
			pr.ping(now, pr.best.addr, 0, true)
		}
		return
	}
	if pr.try == nil && (fresh || !searching) {
		pr.restart(now)
	}
	pr.round = max(pr.round, 1) // the call is answered here
	pr.gotFresh(now, m)
	pr.seek(now)
	if fresh { // perhaps begun anew, and what we said before that is lost
		least = hereNews
	}
	pr.call(now, least)
}

// openTTL lets a packet through our own NAT and no further: at least one router stands between that and the peer's.
const (
	openTTL   = 2
	openFor   = 150 * time.Millisecond // by then the peer has had the time to open its side,
	openBlind = 350 * time.Millisecond // and by then if we have yet to connect to its relay
	clearFor  = 10 * time.Second
	openedFor = 20 * time.Second
)

// reach pings a candidate, or just opens our NAT for it while it is early to do more.
func (pr *peer) reach(now time.Time, c *candidate) {
	if c.hop != nil {
		pr.reachHop(now, c)
		return
	}
	if !pr.early(now, c) {
		pr.ping(now, c.addr, 0, false)
	} else if pr.probes.take(now, probeRate, probeBurst) {
		c.opened = now
		pr.p.do(Send{Peer: pr.key, To: c.addr, Msg: Ping{Tx: pr.p.cfg.Tx()}, TTL: openTTL})
	}
}

// early reports whether a packet to a candidate would come before the peer has opened its NAT for us. Some NATs, Linux
// without a firewall of its own, take such a packet for their own, and never use that port towards us after it: then
// the pair could not meet. So at first we open our side only, and say so by relay; who hears that pings in earnest.
// A NAT of ours with a port for each far end gains nothing by it, and behind addresses that are not public is no NAT.
func (pr *peer) early(now time.Time, c *candidate) bool {
	switch {
	case pr.p.cfg.Plain, !c.pong.IsZero(), !public(c.addr.Addr()), pr.p.self.NAT.hard():
		return false
	case pr.nat.spoilt() && pooled(pr.p.self.Endpoints) != nil: // it does not know all addresses that we may come from (see planPool)
		return true
	case recent(now, pr.clear, clearFor):
		return false
	}
	wait := max(openFor, pr.relay.rtt/2+openFor/3)
	if pr.relay.rtt == 0 {
		wait = openBlind
	}
	return pr.round == 0 || now.Sub(pr.began) < wait
}

// public reports whether an address may be a NAT's outside, and is IPv4, for which NATs are made.
func public(ip netip.Addr) bool {
	return ip.Is4() && !ip.IsPrivate() && !ip.IsLoopback() && !shared.Contains(ip)
}

var shared = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

// sum is a checksum of a set of addresses in any order, of those that may be a NAT's outside.
func sum(set []netip.AddrPort) (s uint32) {
	for _, a := range set {
		if public(a.Addr()) {
			b, _ := a.MarshalBinary()
			s += crc32.ChecksumIEEE(b)
		}
	}
	return s
}

// openedSum is the sum of those addresses of the peer's that we sent to of late: of those that it said itself, as soon as
// it has.
func (pr *peer) openedSum(now time.Time) uint32 {
	var set []netip.AddrPort
	by := told
	if slices.ContainsFunc(pr.candidates, func(c *candidate) bool { return c.by&called != 0 }) {
		by = called
	}
	for _, c := range pr.candidates {
		if c.by&by != 0 && recent(now, latest(c.pinged, c.opened), openedFor) {
			set = append(set, c.addr)
		}
	}
	return sum(set)
}
