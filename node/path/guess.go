package path

import (
	"slices"
	"time"
)

// Ports are guessed by both ends at once or in vain: one opens, the other probes. So whoever finds that it is time says so by
// relay (a Guess), and the other does its part at that, whatever it was waiting for itself.
//
//	a: the search is in vain                   b: on the relay, or with a path that a has lost
//	a ─── Here: its NAT, its addresses ─────▶
//	a ─── Guess ────────────────────────────▶  asks that path, and leaves it; begins
//	a ◀──────────────── openers, probes ────────────────▶ b
//
// After an attempt in vain both wait, at first shortly and then long; after one that met, not at all. The wait is over when
// the network of either end is another one, for then the reason is gone. What flapping networks and peers may cost is
// bounded all the same: attempts with one peer, with all of them together, and at a time.
const (
	guessAfter = 200 * time.Millisecond // of the ordinary search, or two and a half round trips by relay
	guessSoon  = 20 * time.Second       // a second attempt after one that failed, by bad luck perhaps
	guessStale = time.Second            // an attempt so old begins anew when the peer says that it begins
	saidFor    = time.Minute            // what a peer said of itself is good for so long
	bidFor     = 3 * time.Second        // as is its Guess

	guessBurst = 6  // attempts with one peer at once, and then one every Budget.Every
	guessAll   = 60 // the same with all peers, and then so many an hour
	guessMost  = 4  // at a time
	guessRoom  = 500 * time.Millisecond
	guessRest  = time.Minute // before the bounds are asked again
)

// consider begins an attempt if the ordinary search was in vain and there is hope.
func (pr *peer) consider(now time.Time) {
	bid := recent(now, pr.bid, bidFor)
	if !pr.mayGuess(now) || now.Before(pr.guessHold) || !bid && (now.Before(pr.guessAt()) || now.Before(pr.tried.Add(pr.tryWait))) {
		return
	}
	b := pr.p.budget
	t, why := pr.plan(b)
	if why != "" && pr.best == nil {
		pr.why = why
	}
	if t == nil || !pr.afford(now) {
		return
	}
	pr.p.guessing++
	if pr.bid, pr.tried, pr.tryWait = (time.Time{}), now, b.Every; !pr.unlucky {
		pr.unlucky, pr.tryWait = true, min(guessSoon, b.Every)
	}
	t.start = now
	if t.short == 0 {
		t.start = now.Add(guessLater)
	}
	t.next = t.start
	pr.try = t
	if !bid {
		pr.call(now, hereLeast)
		pr.p.do(Send{Peer: pr.key, To: Relay, Msg: Guess{}})
	}
	if t.socks > 0 {
		pr.p.do(Sockets{pr.key, t.socks, false})
	}
}

// afford reports whether one more attempt is within the bounds, and counts it.
func (pr *peer) afford(now time.Time) bool {
	if pr.p.guessing >= guessMost {
		pr.guessHold = now.Add(guessRoom)
		return false
	}
	rate := 1 / pr.p.budget.Every.Seconds()
	if !pr.guesses.take(now, rate, guessBurst) {
		pr.guessHold = now.Add(guessRest)
		return false
	}
	if !pr.p.guesses.take(now, guessAll/time.Hour.Seconds(), guessAll) {
		pr.guesses.tokens++
		pr.guessHold = now.Add(guessRest)
		return false
	}
	return true
}

// mayGuess reports whether ports could be guessed, as far as that does not depend on the time since the search began. The
// peer must have said where it is: a coordinator may tell, and a disk remember, where it was before it was started again.
// A path that was left for its quality answers, and may be in use the other way: other sockets would only undo it.
func (pr *peer) mayGuess(now time.Time) bool {
	return pr.search.round > 0 && !pr.direct() && pr.try == nil && pr.p.budget.Sockets >= 0 && recent(now, pr.word.at, saidFor) && (pr.wanted(now) || recent(now, pr.bid, bidFor)) &&
		!slices.ContainsFunc(pr.candidates, func(c *candidate) bool { return c.shunned.on() && recent(now, c.pong, Trust) })
}

// wanted reports whether somebody here wants to reach the peer. If nobody does at either end there is no need to guess: not when
// one has moved, and the other is told.
func (pr *peer) wanted(now time.Time) bool {
	return recent(now, latest(pr.traffic.Sent, pr.sought), awake)
}

// guessAt is when the search has had its time.
func (pr *peer) guessAt() time.Time { return pr.search.began.Add(max(guessAfter, pr.relay.rtt*5/2)) }

// guessDue is when an attempt may begin, false if that is not a matter of time.
func (pr *peer) guessDue(now time.Time) (time.Time, bool) {
	if !pr.mayGuess(now) || !pr.word.nat.hard() && !pr.p.self.NAT.hard() && !pr.pools() {
		return time.Time{}, false
	}
	at := latest(pr.guessAt(), pr.guessHold)
	if !pr.tried.IsZero() {
		at = latest(at, pr.tried.Add(pr.tryWait)) // both ends, at the same time
	}
	return at, at.After(now)
}

// gotGuess takes the peer's word that it guesses: it has no direct path, whatever ours may be.
func (pr *peer) gotGuess(now time.Time) {
	if !pr.calls.heed(now) {
		return
	}
	pr.called, pr.bid = now, now
	switch {
	case pr.direct():
		pr.suspect(now)
	case pr.try != nil && (pr.try.fresh || now.Sub(pr.try.start) > guessStale):
		pr.endTry()
	case pr.try != nil:
		pr.bid = time.Time{} // we have just begun
	}
	pr.consider(now)
}

// renew ends the wait after an attempt in vain: the network of one end is another.
func (pr *peer) renew() { pr.tryWait, pr.unlucky = 0, false }
