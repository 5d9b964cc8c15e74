package path

import "time"

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

// guesses are the attempts at one peer.
//
//	begin ── met ───────────────────────────▶ as if there had been none
//	      └─ in vain ── guessSoon ── begin ── in vain ── Budget.Every ── begin …
//	                └── renew: the network of one end is another ──▶ begin
type guesses struct {
	try     *try          // at work; nil if none is
	last    time.Time     // when the last began, in vain; zero if there is none
	wait    time.Duration // after that, until the next
	unlucky bool          // one has failed since there was a direct path
	bid     time.Time     // when the peer said that it guesses, until we do too
	hold    time.Time     // until then one is more than the bounds allow
	rate    bucket        // of attempts
}

// bidden reports whether the peer waits for us to do our part.
func (g *guesses) bidden(now time.Time) bool { return recent(now, g.bid, bidFor) }

// again is when the wait after an attempt in vain is over.
func (g *guesses) again() time.Time { return g.last.Add(g.wait) }

// begin takes note of one, of which more are to follow in their time if it is in vain.
func (g *guesses) begin(now time.Time, t *try, every time.Duration) {
	g.try, g.bid, g.last, g.wait = t, time.Time{}, now, every
	if !g.unlucky { // bad luck, perhaps
		g.unlucky, g.wait = true, min(guessSoon, every)
	}
}

// met takes note that there is a direct path.
func (g *guesses) met() { g.last, g.wait = time.Time{}, 0 }

// renew ends the wait after an attempt in vain: the network of one end is another.
func (g *guesses) renew() { g.wait, g.unlucky = 0, false }

// consider begins an attempt if the ordinary search was in vain and there is hope.
func (pr *peer) consider(now time.Time) {
	g := &pr.guesses
	if pr.noGuess(now) != "" || now.Before(g.hold) {
		return
	}
	bid := g.bidden(now)
	if !bid && (now.Before(pr.guessAt()) || now.Before(g.again())) {
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
	g.begin(now, t, b.Every)
	if t.start = now; t.short == 0 {
		t.start = now.Add(guessLater)
	}
	t.next = t.start
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
	g := &pr.guesses
	switch {
	case pr.p.guessing >= guessMost:
		g.hold = now.Add(guessRoom)
		return false
	case !g.rate.take(now, 1/pr.p.budget.Every.Seconds(), guessBurst):
		g.hold = now.Add(guessRest)
		return false
	case !pr.p.guesses.take(now, guessAll/time.Hour.Seconds(), guessAll):
		g.rate.tokens++
		g.hold = now.Add(guessRest)
		return false
	}
	return true
}

// noGuess is why no ports are guessed; empty if they may be, as soon as it is time.
func (pr *peer) noGuess(now time.Time) string {
	switch {
	case pr.search.round == 0:
		return "the search has not begun"
	case pr.direct():
		return "there is a direct path"
	case pr.atWork():
		return "an attempt is under way"
	case pr.p.budget.Sockets < 0:
		return "guessing is switched off"
	case !pr.wanted(now) && !pr.guesses.bidden(now):
		return "nobody wants to reach the peer"
	case !recent(now, pr.word.at, saidFor): // a coordinator may tell, and a disk remember, where it was before it was started again
		return "the peer has not said where it is"
	case pr.any(func(c *candidate) bool { return c.shunned.on() && recent(now, c.pong, Trust) }): // it may be in use the other way: other sockets would only undo it
		return "a direct path answers, and was left for its quality"
	}
	return ""
}

// wanted reports whether somebody here wants to reach the peer. If nobody does at either end there is no need to guess: not when
// one has moved, and the other is told.
func (pr *peer) wanted(now time.Time) bool {
	return recent(now, latest(pr.traffic.Sent, pr.sought), awake)
}

// guessAt is when the search has had its time.
func (pr *peer) guessAt() time.Time { return pr.search.began.Add(max(guessAfter, pr.relay.rtt*5/2)) }

// guessable reports whether there is anything to guess.
func (pr *peer) guessable() bool { return pr.word.nat.hard() || pr.p.self.NAT.hard() || pr.pools() }

// guessDue is when an attempt may begin, false if that is not a matter of time.
func (pr *peer) guessDue(now time.Time) (time.Time, bool) {
	if pr.noGuess(now) != "" || !pr.guessable() {
		return time.Time{}, false
	}
	at := latest(latest(pr.guessAt(), pr.guesses.hold), pr.guesses.again()) // both ends, at the same time
	return at, at.After(now)
}

// gotGuess takes the peer's word that it guesses: it has no direct path, whatever ours may be.
func (pr *peer) gotGuess(now time.Time) {
	if !pr.calls.heed(now) {
		return
	}
	slept := !pr.busy(now)
	pr.called, pr.guesses.bid = now, now
	t := pr.guesses.try
	switch {
	case pr.direct():
		pr.suspect(now)
	case slept: // and the Here before this got lost, or there would be a search: the peer is called, and says it again
		pr.search.restart(now)
		pr.seek(now)
	case pr.afresh.dig != nil, t != nil && now.Sub(t.start) > guessStale:
		pr.endTry()
	case t != nil:
		pr.guesses.bid = time.Time{} // we have just begun
	}
	pr.consider(now)
}
