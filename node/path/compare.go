package path

import (
	"fmt"
	"net/netip"
	"time"
)

// The path in use is compared with the other ways now and then, the relay too, in rounds of pings:
//
//	adopt, direct for the first time ──▶ young: all addresses, winsNeeded rounds ─────────────┐
//	compare later, or as it gets worse ▶ all once, then those that did better ── none ──▶ over ├─▶ the next after compare
//	                                          └── the relay did: a trial of trialRounds ──────┘
//
// The first address to answer need not be the best: that is what the young rounds are for.
const (
	trialRounds = 8               // in which the relay is set beside the path in use before it is taken
	settling    = 3 * time.Second // after a path became direct, in which the best address is still sought
)

// comparison is one of the path in use with the others. It ends with that path.
type comparison struct {
	next  time.Time // its next round, or the first of the next comparison
	round int       // so many have been; 0 while there is none
	young bool      // it is the first since the path became direct
	wins  int       // answers by which the relay was clearly better,
	trial []time.Duration
}

// compareAgain is what follows a comparison.
func compareAgain(now time.Time) comparison { return comparison{next: now.Add(compare)} }

// compareYoung is what follows the choice of the first direct path.
func compareYoung(now time.Time) comparison {
	return comparison{next: now.Add(seekWaits[0]), young: true}
}

// on reports whether rounds are under way.
func (c *comparison) on() bool { return c.round > 0 || c.young }

// due reports whether the next round is to be waited for. A comparison that lies ahead waits for us to be awake.
func (c *comparison) due(now time.Time) bool { return c.on() || !c.next.After(now) }

// trying reports whether the relay is on trial.
func (c *comparison) trying() bool { return c.round > 0 && !c.young && c.wins > 0 }

// all reports whether the round is for all ways, not only for those that did better.
func (c *comparison) all() bool { return c.round == 0 || c.young }

// most is how many rounds there are.
func (c *comparison) most() int {
	if c.young {
		return winsNeeded
	}
	return trialRounds
}

// done takes note of a round and sets the time of the next, after the slower of two round trips; false if that was the last.
func (c *comparison) done(now time.Time, asked bool, relay, best time.Duration) bool {
	if c.round++; !asked || c.young && c.round == c.most() {
		return false
	}
	wait := seekWaits[min(c.round, 2)]
	if !c.young {
		wait = min(max(seekWaits[2], relay*5/4, best*5/4), pongMost)
	}
	c.next = now.Add(wait)
	return true
}

// lookForBetter is one round, if it is time: all other ways once, and then those that proved better.
func (pr *peer) lookForBetter(now time.Time) {
	c := &pr.compare
	if pr.best == nil || pr.doubt || c.next.After(now) {
		return
	}
	asked := c.round < c.most() && (c.young || c.trying() || pr.best.score(now) > goodEnough) && pr.askOthers(now)
	if !c.done(now, asked, pr.relay.rtt, pr.best.rtt) {
		pr.endCompare(now)
	}
}

// compareDue is when that is.
func (pr *peer) compareDue(now time.Time) (time.Time, bool) {
	return pr.compare.next, pr.best != nil && !pr.doubt && pr.compare.due(now)
}

// endCompare draws the conclusion.
func (pr *peer) endCompare(now time.Time) {
	over := pr.compare
	pr.compare = compareAgain(now)
	switch {
	case over.trying():
		pr.weighRelay(now, over.wins, over.trial)
	case over.young:
		pr.weigh(now, pr.best)
	}
}

// askOthers pings all other ways, or those that were better than the path in use the last time, and it beside them.
func (pr *peer) askOthers(now time.Time) (asked bool) {
	all, trying := pr.compare.all(), pr.compare.trying()
	for _, c := range pr.candidates {
		if all && !recent(now, c.shunned.at, compare) {
			c.shunned.lift()
		}
		if c != pr.best && !c.shunned.on() && pr.wants(c) && (all || c.wins > 0) && !recent(now, c.pinged, pingLeast) {
			pr.reach(now, c)
			asked = true
		}
	}
	if pr.compare.young {
		return asked
	}
	if all && !pr.pings.asked(Relay) || trying {
		pr.ping(now, Relay, 0, true)
		asked = true
	}
	if trying || asked && !pr.pings.asked(pr.best.addr) {
		pr.ping(now, pr.best.addr, 0, true)
	}
	return asked
}

// weighRelay judges a trial when it is over: rounds in which the path in use and the relay were asked side by side. What
// happened before does not count, and medians are taken, for a machine that was busy for a moment sees late answers that
// say nothing of the path.
func (pr *peer) weighRelay(now time.Time, wins int, trial []time.Duration) {
	c := pr.best
	if len(trial) < winsNeeded {
		return
	}
	c.rtt, c.rttvar = medians(trial)
	if wins >= winsNeeded && pr.comparable(now) && clearly(pr.relayScore(now), c.rtt+4*c.rttvar) {
		pr.shun(now, slowStreak, fmt.Sprintf("%s takes %v and the relay %v", c, short(c.rtt+4*c.rttvar), short(pr.relay.score(now))))
	}
}

// weigh takes an answer as a sample: of the path in use, whether it got worse, and of another, whether it is better.
func (pr *peer) weigh(now time.Time, c *candidate) {
	switch b := pr.best; {
	case c == b:
		if !pr.compare.on() && pr.comparable(now) && clearly(pr.relayScore(now), b.score(now)) {
			pr.compare.next = now
		}
	case c.shunned.on() || !pr.betters(now, c):
		c.wins = 0
	default:
		if c.wins++; c.wins >= winsNeeded && (pr.settling(now) || pr.shuns.fickle(now)) {
			pr.adopt(now, c, fmt.Sprintf("%s is better than %s", c, b))
		}
	}
}

// betters reports whether an address is better than the one in use. At first both sides also agree on one of some that are
// as good, or each would hear by another than it sends by, and have to ask whether that works all the time.
func (pr *peer) betters(now time.Time, c *candidate) bool {
	b := pr.best
	if c.hop != nil && b.hop == nil {
		return false
	}
	return clearly(c.score(now), b.score(now)) ||
		pr.settling(now) && liking(c.addr.Addr()) > liking(b.addr.Addr()) && !clearly(b.score(now), c.score(now))
}

// settling reports whether there was no direct path until a moment ago.
func (pr *peer) settling(now time.Time) bool { return recent(now, pr.went, settling) }

// liking is an order of addresses that both ends of a path see alike.
func liking(a netip.Addr) int {
	switch {
	case ByHop(netip.AddrPortFrom(a, 1)):
		return 0
	case a.Is6():
		return 1
	case !public(a):
		return 2
	}
	return 0
}

// comparable reports whether latencies mean anything: our own traffic may be all there is to the latency of its path.
func (pr *peer) comparable(now time.Time) bool {
	return !pr.hearing.flowing(now, bulk+1, 0)
}
