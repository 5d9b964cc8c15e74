package path

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"
)

// A path is judged by its latency, its jitter and its loss, the relay's as well; [quality.score] makes one number of them.
// Loss is seen without a packet more: WireGuard's counters have gaps where packets are missing, so the receiver knows,
// and tells the sender how much it was in which time; of times that it says nothing of, nothing was. What counts is the mean
// since that began, in which older reports fade:
//
//	lost   ──60──│──40──│──────│──50──│──│   per mille, in each report
//	mean     60     50     35     40         two reports at least, and worse than the relay: left
//
// Latency and jitter come from pings, of which a path gets few while it is good.
//
// A path is left for its quality at most so often (fickleEvery), and one that was is taken back when it is good again.
const (
	lossEvery  = 700 * time.Millisecond
	lossKeeps  = 3 * time.Second // what was lost so long ago counts a third (1/e); a report is news for so long
	lossLeast  = 20              // packets, to say anything about them
	lossTell   = 10              // per mille
	lossLearn  = 3 * lossEvery   // what is known of less is spread over that
	lossLong   = 20              // the same, to ask whether it is the long ones that are lost
	lossSoon   = 5               // packets missing, to tell of them sooner:
	lossSooner = silence - 10*time.Millisecond
	lossCost   = 40 * time.Millisecond // that a hundredth lost is worth
	lossyTwice = 2                     // reports running that decide
	lossAfter  = 2 * lossEvery         // a move: reports of before then may be of what it cost
	lossFlood  = 20000                 // packets a second; so many overrun a receiver, whatever path they take
	bulk       = 500                   // packets a second, which make a queue of their own and so the latency

	shunStreak = 200              // answers in a row by which a path that lost too much is taken back; twice as many each time it fails again
	slowStreak = 20               // the same of one that was only slow,
	stopStreak = 10               // and of one that stops answering all the time
	stopEvery  = 20 * time.Second // which it may do that often
	stopBurst  = 2
	shunWarm   = 4                       // the first of them, which are asked for
	shunSlowly = 250 * time.Millisecond  // at this pace,
	shunWithin = 7500 * time.Millisecond // and the others within that,
	shunEvery  = 100 * time.Millisecond  // but not more slowly than that

	trialRounds = 8                // in which the relay is set beside the path in use before it is taken
	fickleEvery = 30 * time.Second // between switches for quality in the long run,
	fickleBurst = 2                // which allows there and back again
	settling    = 3 * time.Second  // after a path became direct, in which the best address is still sought
)

// quality is what is known of one way to a peer.
type quality struct {
	pong   time.Time     // last answer; zero if it stopped answering
	rtt    time.Duration // smoothed (RFC 6298: 7/8); 0 if not known
	rttvar time.Duration // (RFC 6298: 3/4)
	missed int           // pings unanswered since the last answer
	loss   float64       // what the peer reported lost, per mille; it fades with lossKeeps
	lostAt time.Time     // when it last did,
	bad    time.Time     // and since when there is anything to report
	lossy  int           // reports running by which another was better
	wins   int           // samples running by which it was clearly better than the path in use
}

// answered takes a round trip.
func (q *quality) answered(now time.Time, rtt time.Duration) {
	if q.rtt > 0 {
		q.rttvar = (3*q.rttvar + (rtt - q.rtt).Abs()) / 4
	}
	q.rtt = smooth(q.rtt, rtt)
	q.pong, q.missed = now, 0
}

func smooth(old, sample time.Duration) time.Duration {
	if old == 0 {
		return sample
	}
	return (7*old + sample) / 8
}

// score is what a path is worth, the less the better.
func (q *quality) score(now time.Time) time.Duration {
	return q.rtt + 4*q.rttvar + time.Duration(q.lossNow(now))*lossCost/10
}

// lossNow is the loss, per mille, since there is any: what nobody complains of is clean.
func (q *quality) lossNow(now time.Time) int {
	if q.loss == 0 {
		return 0
	}
	return int(q.loss * fade(now.Sub(q.lostAt)) / (1 - fade(max(now.Sub(q.bad), lossLearn))))
}

// lost takes a report of loss.
func (q *quality) lost(now time.Time, m Loss) {
	if q.lossNow(now) < lossTell/2 {
		q.loss, q.bad, q.lossy = 0, now.Add(-m.Over), 0
	}
	q.loss, q.lostAt = q.loss*fade(now.Sub(q.lostAt))+float64(m.PerMille)*(1-fade(m.Over)), now
}

// fade is what is left after a while of what was so long ago.
func fade(d time.Duration) float64 { return math.Exp(-float64(d) / float64(lossKeeps)) }

// relayScore puts the relay behind a direct path that is as good: others use it too.
func (pr *peer) relayScore(now time.Time) time.Duration {
	if pr.relay.rtt == 0 {
		return time.Hour // not known to work
	}
	return pr.relay.score(now)*5/4 + 2*goodEnough
}

// clearly reports whether one score is better than another by enough to switch.
func clearly(better, worse time.Duration) bool { return better+max(goodEnough, worse/10) < worse }

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
	span, got, took := c.Top-pr.counts.Top, c.Got-pr.counts.Got, now.Sub(pr.countsAt)
	// The first of some that are missing is told of soon: it may be the long ones, for which the path is too narrow of late.
	soon := took >= lossSooner && got+lossSoon <= span && !recent(now, pr.lossSaid, lossKeeps)
	if took < lossEvery && !soon || span < lossLeast {
		return
	}
	pr.counts, pr.countsAt = c, now
	pr.rate, pr.rateAt = int(float64(span)/took.Seconds()), now
	if got < span && pr.rate < lossFlood {
		if lost := (span - got) * 1000 / span; lost >= lossTell {
			if !recent(now, pr.lossSaid, lossKeeps) {
				pr.lossTold, pr.lossFrom = 0, now
			}
			pr.lossSaid = now
			pr.lossTold++
			pr.p.do(Send{Peer: pr.key, To: Relay, Msg: Loss{uint16(lost), took}})
			if soon && pr.best != nil && !pr.doubt {
				pr.doubtMTU(now, true) // then it is mostly too narrow for ours, too
			}
		}
	}
}

// gotLoss weighs the direct path against the relay.
func (pr *peer) gotLoss(now time.Time, m Loss) {
	if pr.doubt || m.PerMille > 1000 || recent(now, pr.since, lossEvery) || recent(now, pr.stirred, lossAfter) { // then it is of the path before, or of both
		return
	}
	c := pr.best
	if c == nil {
		pr.relay.lost(now, m)
		return
	}
	c.lost(now, m)
	asking := c.mtu.doubted(base(c.addr.Addr()))
	if m.PerMille >= lossLong {
		pr.doubtMTU(now, true)
	}
	if !pr.pings.asked(Relay) && !recent(now, pr.relay.pong, 2*time.Second) {
		pr.ping(now, Relay, 0, true) // it must be there to be better
	}
	// It must be much both of late and on the whole.
	loss := c.lossNow(now)
	if alone := c.score(now) - time.Duration(max(loss-int(m.PerMille), 0))*lossCost/10; pr.relay.rtt > 0 && !clearly(pr.relayScore(now), alone) {
		return // and what is not known yet will be when it comes to decide
	}
	if asking {
		return // whether it is only the long ones that are lost, as will be known in a moment
	}
	if c.lossy == 0 && pr.compared == 0 {
		pr.compareAt = now // another address may do better than both
	}
	if c.lossy++; c.lossy >= lossyTwice && pr.relay.rtt > 0 && recent(now, pr.relay.pong, 10*time.Second) {
		pr.shun(now, shunStreak, fmt.Sprintf("%s loses %d of 1000 packets", c, m.PerMille))
	}
}

// stir says that one side moves: what is lost now says nothing of the path that will be.
func (pr *peer) stir(now time.Time) {
	pr.stirred, pr.countsAt = now, time.Time{}
	if pr.best != nil {
		pr.best.loss, pr.best.lostAt, pr.best.lossy = 0, time.Time{}, 0
	}
}

// weighRelay judges a trial when it is over: rounds in which the path in use and the relay were asked side by side. What
// happened before does not count, and medians are taken, for a machine that was busy for a moment sees late answers that
// say nothing of the path.
func (pr *peer) weighRelay(now time.Time) {
	c := pr.best
	if len(pr.trial) < winsNeeded {
		return
	}
	c.rtt = median(pr.trial)
	for i, d := range pr.trial {
		pr.trial[i] = (d - c.rtt).Abs()
	}
	c.rttvar = median(pr.trial)
	if pr.relay.wins >= winsNeeded && pr.comparable(now) && clearly(pr.relayScore(now), c.rtt+4*c.rttvar) {
		pr.shun(now, slowStreak, fmt.Sprintf("%s takes %v and the relay %v", c, short(c.rtt+4*c.rttvar), short(pr.relay.score(now))))
	}
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

// short rounds for people.
func short(d time.Duration) time.Duration { return d.Round(time.Millisecond / 10) }

// shun leaves the direct path, which answers, for the relay, until it is good again.
func (pr *peer) shun(now time.Time, need int, why string) {
	c := pr.best
	if !pr.fickle(now) {
		return
	}
	pr.relay.wins = 0
	pr.leave(now, why)
	c.pong = now // it answers, and stays
	pr.doubtful(now, c, need)
	pr.search.restart(now.Add(seekWaits[4]))
}

// doubtful takes back a path only after so many answers in a row, and more each time.
func (pr *peer) doubtful(now time.Time, c *candidate, need int) {
	c.lossy, c.shunned, c.streak = 0, now, 0
	c.need = min(max(2*c.need, need), 4*shunStreak)
	pr.shunAt = now.Add(shunSlowly)
}

// pardon lets paths be used again that were left for their quality: the network of one end is another, and what they were worth in
// the old one says nothing.
func (pr *peer) pardon(which func(*candidate) bool) {
	for _, c := range pr.candidates {
		if which(c) {
			c.shunned, c.need = time.Time{}, 0
		}
	}
}

// retry pings the paths that were left for their quality, to see whether they are good again.
func (pr *peer) retry(now time.Time) {
	if pr.direct() || pr.shunAt.IsZero() || pr.shunAt.After(now) {
		return
	}
	pr.shunAt = time.Time{}
	for _, c := range pr.candidates {
		if c.shunned.IsZero() {
			continue
		}
		pr.ping(now, c.addr, 0, true)
		if at := now.Add(c.pace()); pr.shunAt.IsZero() || at.Before(pr.shunAt) {
			pr.shunAt = at
		}
	}
	if !pr.shunAt.IsZero() && !pr.pings.asked(Relay) && !recent(now, pr.relay.pong, time.Second) {
		pr.ping(now, Relay, 0, true)
	}
}

// pace is the time between pings to a shunned path: it is slow while they get lost, and such that the path is taken back
// some seconds after it is good, however many answers that takes.
func (c *candidate) pace() time.Duration {
	if c.streak < shunWarm {
		return shunSlowly
	}
	return min(shunEvery, shunWithin/time.Duration(c.need-shunWarm))
}

// again reports whether a shunned path may be taken back, of which an answer just came.
func (pr *peer) again(now time.Time, c *candidate) bool {
	if c.shunned.IsZero() {
		return true
	}
	gone := pr.relay.missed >= 2 && !recent(now, pr.relay.pong, 3*time.Second)
	if c.streak++; c.rtt+4*c.rttvar > pr.relayScore(now) {
		c.streak = max(c.streak-3, 0) // not all in vain: one late answer makes some samples bad, and is perhaps our own doing
	}
	if !gone && (c.streak < c.need || !pr.fickle(now)) {
		return false
	}
	c.shunned, c.loss, c.lostAt = time.Time{}, 0, time.Time{}
	return true
}

// lookForBetter pings the other ways, the relay too, now and then: all once, and then those that proved better. A path
// that is new is compared with the other addresses at once: the first to answer need not be the best.
func (pr *peer) lookForBetter(now time.Time) {
	if pr.best == nil || pr.doubt || pr.compareAt.After(now) {
		return
	}
	most := trialRounds
	if pr.young {
		most = winsNeeded
	}
	asked := pr.compared < most && (pr.young || pr.trying() || pr.best.score(now) > goodEnough) && pr.askOthers(now)
	if pr.compared++; !asked || pr.young && pr.compared == most {
		pr.endCompare(now)
		return
	}
	wait := seekWaits[min(pr.compared, 2)]
	if !pr.young {
		wait = min(max(seekWaits[2], pr.relay.rtt*5/4, pr.best.rtt*5/4), pongMost)
	}
	pr.compareAt = now.Add(wait)
}

// trying reports whether the relay is on trial.
func (pr *peer) trying() bool {
	return pr.best != nil && pr.compared > 0 && !pr.young && pr.relay.wins > 0
}

// endCompare draws the conclusion.
func (pr *peer) endCompare(now time.Time) {
	tried, young := pr.trying(), pr.young
	pr.compareAt, pr.compared, pr.young = now.Add(compare), 0, false
	switch {
	case tried:
		pr.weighRelay(now)
	case young:
		pr.weigh(now, pr.best)
	}
	pr.relay.wins = 0
}

// askOthers pings all other ways, or those that were better than the path in use the last time, and it beside them.
func (pr *peer) askOthers(now time.Time) (asked bool) {
	all := pr.compared == 0 || pr.young
	for _, c := range pr.candidates {
		if all && !recent(now, c.shunned, compare) {
			c.shunned = time.Time{}
		}
		if c != pr.best && c.shunned.IsZero() && pr.wants(c) && (all || c.wins > 0) && !recent(now, c.pinged, pingLeast) {
			pr.reach(now, c)
			asked = true
		}
	}
	if pr.young {
		return asked
	}
	if all {
		pr.relay.wins, pr.trial = 0, pr.trial[:0]
	}
	if all && !pr.pings.asked(Relay) || pr.trying() {
		pr.ping(now, Relay, 0, true)
		asked = true
	}
	if pr.trying() || asked && !pr.pings.asked(pr.best.addr) {
		pr.ping(now, pr.best.addr, 0, true)
	}
	return asked
}

// weigh takes an answer as a sample: of the path in use, whether it got worse, and of another, whether it is better.
func (pr *peer) weigh(now time.Time, c *candidate) {
	switch b := pr.best; {
	case c == b:
		if !pr.young && pr.compared == 0 && pr.comparable(now) && clearly(pr.relayScore(now), b.score(now)) {
			pr.compareAt = now
		}
	case !c.shunned.IsZero() || !pr.betters(now, c):
		c.wins = 0
	default:
		if c.wins++; c.wins >= winsNeeded && (recent(now, pr.went, settling) || pr.fickle(now)) {
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
		recent(now, pr.went, settling) && liking(c.addr.Addr()) > liking(b.addr.Addr()) && !clearly(b.score(now), c.score(now))
}

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
	return !recent(now, pr.rateAt, 2*lossEvery) || pr.rate <= bulk
}

// fickle takes one of the switches for quality there may be.
func (pr *peer) fickle(now time.Time) bool {
	return pr.moods.take(now, 1/fickleEvery.Seconds(), fickleBurst)
}
