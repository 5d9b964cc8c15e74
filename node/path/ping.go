package path

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ping is one in flight.
type ping struct {
	tx    TxID
	to    Route
	sent  time.Time
	due   time.Time
	late  bool   // it was given up; an answer still tells how long it took
	probe uint64 // ID of the Probe it is for, 0 if none
	size  int    // of the IP packet, if it is to learn whether that passes
}

// pings are those to a peer: what is in flight, and how many there may be.
//
//	sent ──┬── pong ──▶ took
//	       ├── due ───▶ late: counted as missed, and kept for lateMost ── pong ──▶ took
//	       └── room wanted ──▶ gone, the oldest first
type pings struct {
	flight   []ping // at most maxPings
	rate     bucket // of all, but those that judge the path in use: time rations them
	unproven ration // of those to addresses that have not answered
}

func (p *pings) full() bool { return len(p.flight) >= maxPings }

// add takes one that is sent, in place of the oldest where there is no room.
func (p *pings) add(g ping) {
	if p.full() {
		p.flight = slices.Delete(p.flight, 0, 1)
	}
	p.flight = append(p.flight, g)
}

// take returns the ping that a pong answers.
func (p *pings) take(tx TxID, from Route) (g ping, ok bool) {
	i := slices.IndexFunc(p.flight, func(g ping) bool { return g.tx == tx && g.to == from })
	if i < 0 {
		return g, false
	}
	g = p.flight[i]
	p.flight = slices.Delete(p.flight, i, i+1)
	return g, true
}

// awaited reports whether a ping to a route is in flight that was sent so long before the one that was answered.
func (p *pings) awaited(answered ping, before time.Duration) bool {
	return slices.ContainsFunc(p.flight, func(g ping) bool { return g.to == answered.to && !g.late && answered.sent.Sub(g.sent) > before })
}

// asked reports whether a ping to a route is in flight.
func (p *pings) asked(to Route) bool {
	return slices.ContainsFunc(p.flight, func(g ping) bool { return g.to == to && !g.late })
}

// expire gives up those that are due, each once, and drops those that are too late for anything.
func (p *pings) expire(now time.Time, missed func(*ping)) {
	for i := range p.flight {
		if g := &p.flight[i]; !g.late && !g.due.After(now) {
			g.late, g.due = true, g.sent.Add(lateMost)
			missed(g)
		}
	}
	p.flight = slices.DeleteFunc(p.flight, func(g ping) bool { return !g.due.After(now) })
}

// forget drops pings to a route that were sent by then, but those the user asked for.
func (p *pings) forget(to Route, then time.Time) {
	p.flight = slices.DeleteFunc(p.flight, func(g ping) bool { return g.to == to && g.probe == 0 && g.size == 0 && !g.sent.After(then) })
}

// probe takes one of the pings there may be.
func (p *pings) probe(now time.Time) bool { return p.rate.take(now, probeRate, probeBurst) }

// answers are our pongs to a peer: not too many, and one for each ping, though copies of it come.
type answers struct {
	rate  bucket
	heard [32]TxID // the last pings
	at    int      // in it, the oldest
}

// owed reports whether a ping is to be answered, and takes note of it.
func (a *answers) owed(now time.Time, tx TxID) bool {
	if slices.Contains(a.heard[:], tx) || !a.rate.take(now, pongRate, pongBurst) {
		return false
	}
	a.heard[a.at] = tx
	a.at = (a.at + 1) % len(a.heard)
	return true
}

// ping sends one. One that must be sent is not rationed.
func (pr *peer) ping(now time.Time, to Route, id uint64, must bool) {
	c := pr.find(to)
	if !must && (!pr.rationed(now, c) || !pr.pings.probe(now)) {
		return
	}
	wait := pongMost
	if c != nil {
		c.pinged = now
		if c == pr.best && c.rtt > 0 {
			wait = min(max(3*c.rtt+4*c.rttvar, pongLeast), pongMost)
		}
	}
	g := ping{tx: pr.p.cfg.Tx(), to: to, sent: now, due: now.Add(wait), probe: id}
	pr.pings.add(g)
	pr.p.do(Send{Peer: pr.key, To: to, Msg: Ping{Tx: g.tx}, Wide: !to.IsValid() && pr.mute()})
}

// rationed reports whether a candidate may be pinged as far as nothing is known of it but by hearsay. One that the peer's packets
// came from may, but not for ever in vain: if both ends' pongs come from elsewhere than was asked, for there is a NAT on the way
// that has a port for each direction, each ping makes the other end ping back.
func (pr *peer) rationed(now time.Time, c *candidate) bool {
	return c == nil || c.proven || c.by&seen != 0 && c.missed < seenMost || c.hop != nil || pr.pings.unproven.take(now, c.addr)
}

func (pr *peer) gotPing(now time.Time, from Route, m Ping) {
	if !pr.answers.owed(now, m.Tx) {
		return
	}
	at := from
	if ByHop(from) { // is of no use to the peer
		at = Route{}
	}
	pr.p.do(Send{Peer: pr.key, To: from, Msg: Pong{m.Tx, at}})
	if !from.IsValid() {
		return
	}
	if !ByHop(from) {
		pr.search.clear = now
	}
	c := pr.find(from)
	pr.pingBack(now, from, pingLeast)
	if (c == nil || !c.proven && c.hop == nil) && pr.best != nil && !recent(now, latest(pr.best.pong, pr.traffic.Heard), hereLeast) {
		pr.askBest(now) // it may have moved there, or have begun anew
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
	if !pr.pings.asked(pr.best.addr) && !recent(now, pr.best.pinged, hereLeast) {
		pr.ping(now, pr.best.addr, 0, true)
	}
}

func (pr *peer) gotPong(now time.Time, from Route, m Pong, at Order) {
	g, ok := pr.pings.take(m.Tx, from)
	if !ok {
		return
	}
	pr.order.answer(at)
	c := pr.find(from) // nil by relay, and where it made room for another meanwhile
	if c != nil && c.shunned.on() && pr.pings.awaited(g, c.rtt/2) {
		c.shunned.streak = 0 // one before it is missing, by more than networks let packets overtake each other
	}
	if g.size > 0 {
		pr.p.do(Alive{pr.key, from})
		pr.gotMTU(now, c, g.size)
		return
	}
	pr.pings.forget(from, g.sent)                 // their answers would be no news
	rtt := max(now.Sub(g.sent), time.Microsecond) // 0 means not known
	if g.probe != 0 {
		pr.p.do(Probed{pr.key, g.probe, from, rtt})
	}
	if !from.IsValid() {
		pr.relayAnswered(now, rtt)
		return
	}
	pr.p.do(Alive{pr.key, from})
	if c != nil {
		pr.answered(now, c, g, rtt)
	}
}

// relayAnswered takes a round trip by relay.
func (pr *peer) relayAnswered(now time.Time, rtt time.Duration) {
	if pr.relay.missed > 1 {
		pr.relay.rtt, pr.relay.rttvar = 0, 0
	}
	pr.relay.answered(now, rtt)
	if b := pr.best; b != nil && pr.compare.round > 0 && clearly(pr.relayScore(now), b.score(now)) {
		pr.compare.wins++
	}
}

// answered takes a round trip by a candidate, and draws the conclusion: it may be the path from now on.
func (pr *peer) answered(now time.Time, c *candidate, g ping, rtt time.Duration) {
	if c.missed > 0 && c != pr.best {
		c.rtt, c.rttvar = 0, 0
	}
	c.answered(now, rtt)
	survived := c == pr.best && pr.lull.lapse.endedBy(g.sent)
	if survived {
		pr.lull.lapse.over = true
	}
	if c.proven = true; c == pr.best && pr.compare.trying() && len(pr.compare.trial) < trialRounds {
		pr.compare.trial = append(pr.compare.trial, rtt)
	}
	switch {
	case (pr.best == nil || pr.best.hop != nil && c.hop == nil) && !pr.again(now, c):
	case pr.best == nil && !pr.worth(now, c, rtt):
	case pr.best == nil, pr.best.hop != nil && c.hop == nil:
		pr.adopt(now, c, fmt.Sprintf("%s answered", c))
	case survived:
		pr.doubt = false
	case pr.best == c && pr.doubt:
		pr.doubt, pr.also = false, also{Relay, now.Add(bothFor)}
	case pr.best != c && pr.doubt && (c.hop == nil || !pr.direct()):
		pr.adopt(now, c, fmt.Sprintf("%s answers and %s does not", c, pr.best))
	default:
		pr.weigh(now, c)
	}
}
