package path

import "time"

// A path that answers, but is worse than the relay, is left for it and shunned: asked all the time, and taken back after so many
// answers in a row, and after twice as many each time it fails again.
//
//	used ── worse than the relay, at most every fickleEvery ──▶ shunned ── asked every pace ── need answers running ──▶ used
//	     ── stopped answering again, or while it was lossy ───▶    │                    └── one missing: from the start
//	                                                               └── the network of one end is another ──▶ pardoned
const (
	shunStreak = 200              // answers in a row by which a path that lost too much is taken back
	slowStreak = 20               // the same of one that was only slow,
	stopStreak = 10               // and of one that stops answering all the time
	stopEvery  = 20 * time.Second // which it may do that often
	stopBurst  = 2
	shunWarm   = 4                       // the first of them, which are asked for
	shunSlowly = 250 * time.Millisecond  // at this pace,
	shunWithin = 7500 * time.Millisecond // and the others within that,
	shunEvery  = 100 * time.Millisecond  // but not more slowly than that

	fickleEvery = 30 * time.Second // between switches for quality in the long run,
	fickleBurst = 2                // which allows there and back again
)

// shunned is what stands between a candidate and its being used again.
type shunned struct {
	at     time.Time // when it was left; zero if it may be used
	streak int       // answers running since then,
	need   int       // and how many it takes; known also of the last time
}

func (s *shunned) on() bool { return !s.at.IsZero() }

// begin shuns a path until so many answers, or more if it is not the first time.
func (s *shunned) begin(now time.Time, need int) {
	*s = shunned{at: now, need: min(max(2*s.need, need), 4*shunStreak)}
}

func (s *shunned) lift() { s.at = time.Time{} }

// answered counts an answer. A late one is not all in vain: it makes some samples bad, and is perhaps our own doing.
func (s *shunned) answered(late bool) {
	if s.streak++; late {
		s.streak = max(s.streak-3, 0)
	}
}

// pace is the time between pings to a shunned path: it is slow while they get lost, and such that the path is taken back
// some seconds after it is good, however many answers that takes.
func (s *shunned) pace() time.Duration {
	if s.streak < shunWarm {
		return shunSlowly
	}
	return min(shunEvery, shunWithin/time.Duration(s.need-shunWarm))
}

// shuns are how often the paths of a peer may be left and taken back, and when those are asked that were.
type shuns struct {
	moods bucket    // of switches for quality
	stops bucket    // of paths that stopped answering, and may be taken back as soon as they do again
	next  time.Time // ping to those that are shunned; zero if none is
}

// fill begins anew: what paths are like has to be learnt.
func (s *shuns) fill(now time.Time) {
	s.moods.fill(now, fickleBurst)
	s.stops.fill(now, stopBurst)
}

// fickle takes one of the switches for quality there may be.
func (s *shuns) fickle(now time.Time) bool {
	return s.moods.take(now, 1/fickleEvery.Seconds(), fickleBurst)
}

// stop takes one of the times that a path may stop answering.
func (s *shuns) stop(now time.Time) bool {
	return s.stops.take(now, 1/stopEvery.Seconds(), stopBurst)
}

// sooner sets the next ping.
func (s *shuns) sooner(at time.Time) {
	if s.next.IsZero() || at.Before(s.next) {
		s.next = at
	}
}

// shun leaves the direct path, which answers, for the relay, until it is good again.
func (pr *peer) shun(now time.Time, need int, why string) {
	if !pr.shuns.fickle(now) {
		return
	}
	c := pr.best
	pr.leave(now, why)
	c.pong = now // it answers, and stays
	pr.doubtful(now, c, need)
	pr.search.restart(now.Add(seekWaits[4]))
}

// doubtful takes back a path only after so many answers in a row.
func (pr *peer) doubtful(now time.Time, c *candidate, need int) {
	c.lost.worse = 0
	c.shunned.begin(now, need)
	pr.shuns.next = now.Add(shunSlowly)
}

// pardon lets paths be used again: the network of one end is another, and what they were worth in the old one says nothing.
func (pr *peer) pardon(which func(*candidate) bool) {
	for _, c := range pr.candidates {
		if which(c) {
			c.shunned = shunned{}
		}
	}
}

// retry pings the paths that are shunned, to see whether they are good again.
func (pr *peer) retry(now time.Time) {
	if at, ok := pr.retryDue(now); !ok || at.After(now) {
		return
	}
	pr.shuns.next = time.Time{}
	for _, c := range pr.candidates {
		if c.shunned.on() {
			pr.ping(now, c.addr, 0, true)
			pr.shuns.sooner(now.Add(c.shunned.pace()))
		}
	}
	if !pr.shuns.next.IsZero() && !pr.pings.asked(Relay) && !recent(now, pr.relay.pong, time.Second) {
		pr.ping(now, Relay, 0, true)
	}
}

// retryDue is when they are.
func (pr *peer) retryDue(time.Time) (time.Time, bool) {
	return pr.shuns.next, !pr.direct() && !pr.shuns.next.IsZero()
}

// again reports whether a path may be taken back, of which an answer just came.
func (pr *peer) again(now time.Time, c *candidate) bool {
	if !c.shunned.on() {
		return true
	}
	c.shunned.answered(c.rtt+4*c.rttvar > pr.relayScore(now))
	relayGone := pr.relay.missed >= 2 && !recent(now, pr.relay.pong, 3*time.Second)
	if !relayGone && (c.shunned.streak < c.shunned.need || !pr.shuns.fickle(now)) {
		return false
	}
	c.shunned.lift()
	c.lost = reports{}
	return true
}
