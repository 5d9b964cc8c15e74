package path

import (
	"fmt"
	"time"
)

// A direct path that loses much is worse than a relay that does not. Loss is seen without a packet more: WireGuard's
// counters have gaps where packets are missing, so the receiver knows, and tells the sender when it is much.
const (
	lossEvery  = time.Second
	lossLeast  = 20                    // packets, to say anything about them
	lossTell   = 20                    // per mille
	lossCost   = 40 * time.Millisecond // that a hundredth lost is worth
	shunStreak = 70                    // answers in a row by which a path is taken back; twice as many each time it fails again
	shunEvery  = 100 * time.Millisecond
	shunMost   = 4 * shunStreak
	lossyTwice = 2 // reports running that decide
)

// Counts is what arrived of a peer's packets, by any route.
type Counts struct {
	Session uint32 // which the counter is of
	Got     uint64 // packets
	Top     uint64 // the highest counter
}

// hearLoss tells the peer how much of what it sends is missing, once a second while it is much.
func (pr *peer) hearLoss(now time.Time, c Counts) {
	if c.Session != pr.counts.Session || pr.countsAt.IsZero() {
		pr.counts, pr.countsAt = c, now
		return
	}
	span, got := c.Top-pr.counts.Top, c.Got-pr.counts.Got
	if now.Sub(pr.countsAt) < lossEvery || span < lossLeast {
		return
	}
	pr.counts, pr.countsAt = c, now
	if got < span {
		if lost := (span - got) * 1000 / span; lost >= lossTell {
			pr.p.do(Send{Peer: pr.key, To: Relay, Msg: Loss{uint16(lost)}})
		}
	}
}

// cost is what a path is worth, the less the better.
func (c *candidate) cost() time.Duration {
	return c.rtt + 4*c.rttvar + time.Duration(c.loss)*lossCost/10
}

// gotLoss weighs the direct path against the relay.
func (pr *peer) gotLoss(now time.Time, m Loss) {
	c := pr.best
	if c == nil || pr.doubt || m.PerMille > 1000 {
		return
	}
	if !recent(now, c.lostAt, 3*lossEvery) { // it was clean meanwhile
		c.loss, c.lossy = int(m.PerMille), 0
	}
	c.loss, c.lostAt = (c.loss+int(m.PerMille))/2, now
	if !pr.asked(Relay) && !recent(now, pr.relayPong, 5*time.Second) {
		pr.ping(now, Relay, 0, true) // it must be there to be better
	}
	if c.cost() < relayCost(pr.relayRTT)*11/10+goodEnough {
		c.lossy = 0
		return
	}
	if c.lossy++; c.lossy < lossyTwice || !recent(now, pr.relayPong, 10*time.Second) {
		return
	}
	c.lossy, c.shunned, c.streak = 0, now, 0
	c.need = min(max(2*c.need, shunStreak), shunMost)
	pr.leave(now, fmt.Sprintf("%s loses %d of 1000 packets", c.addr, c.loss))
	c.pong = now // it answers, and stays
	pr.shunAt = now.Add(shunEvery)
	pr.restart(now.Add(seekWaits[4]))
}

// relayCost puts the relay behind a direct path that is as good.
func relayCost(rtt time.Duration) time.Duration { return rtt*5/4 + 2*goodEnough }

// retry pings a path that was left for its loss, to see whether it is clean again.
func (pr *peer) retry(now time.Time) {
	if pr.best != nil || pr.shunAt.IsZero() || pr.shunAt.After(now) {
		return
	}
	pr.shunAt = time.Time{}
	for _, c := range pr.candidates {
		if !c.shunned.IsZero() {
			pr.ping(now, c.addr, 0, true)
			pr.shunAt = now.Add(shunEvery)
		}
	}
	if !pr.shunAt.IsZero() && !pr.asked(Relay) && !recent(now, pr.relayPong, time.Second) {
		pr.ping(now, Relay, 0, true)
	}
}

// again reports whether a shunned path may be taken back, of which an answer just came.
func (pr *peer) again(now time.Time, c *candidate) bool {
	if c.shunned.IsZero() {
		return true
	}
	c.streak++
	if c.streak < c.need && (pr.relayMissed < 2 || recent(now, pr.relayPong, 3*time.Second)) {
		return false
	}
	c.shunned, c.loss = time.Time{}, 0
	return true
}
