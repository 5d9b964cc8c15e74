package path

import (
	"fmt"
	"time"
)

// A path that brings nothing while we send is asked, and left when it does not answer; what silence means depends on what
// was before it:
//
//	a peer that answered all the time ── steady ──▶ ask, and both ways ── hasty ──▶ ┐
//	a peer that answered              ── silence ─▶ ask ─────────────── pongLeast ─▶ ├ in doubt, ask ── pongLeast ──▶ left
//	a flow from the peer, that ends   ── hush ────▶ ask ──────────────────────────▶ ┘                                  │
//	                                                         asked every knockEvery, as long as somebody sends ◀───────┘

// lull is what the silences of the path in use have been; it is reset with the path.
type lull struct {
	asked int   // times the path had to be asked since a packet came by it
	lapse lapse // the last long silence, while it is not known whether the path survived it
}

// lapse is a silence that a ping ended, or is to end.
type lapse struct {
	from, to time.Time
	over     bool // it was answered
}

// endedBy reports whether a ping that was sent then is the one.
func (l *lapse) endedBy(sent time.Time) bool { return !l.to.IsZero() && sent.Equal(l.to) }

// known reports whether it is over for so long that all is there that the peer said meanwhile.
func (l *lapse) known(now time.Time) bool { return l.over && now.Sub(l.to) >= pongMost }

// asks are when silences made us ask, so that they do it seldom.
type asks struct {
	alarms bucket    // of suspicions after a short pause
	hushed time.Time // the last time because a flow had ended,
	muted  time.Time // and because nothing came of the peer by relay
}

// alarming reports whether a short pause may be reason enough to ask, and alarm takes one of the times that it is.
func (a *asks) alarming(now time.Time) bool {
	return a.alarms.some(now, 1/alarmEvery.Seconds(), alarmBurst)
}

func (a *asks) alarm(now time.Time) bool {
	return a.alarms.take(now, 1/alarmEvery.Seconds(), alarmBurst)
}

// left is the path that stopped answering last.
type left struct {
	path *candidate
	at   time.Time
}

// trusted is how long a path may have been silent and still be used alone: NATs and firewalls forget what is not used, some in a
// second, and only what was seen tells.
//
//	first packet after a silence ── longer than any survived ──▶ both ways, ask ─┬─ answered ─▶ it is survived
//	                                                                             └─ not ──────▶ trustLeast
func (c *candidate) trusted() time.Duration { return min(max(c.trust, trustLeast), Trust) }

// judgeLapse draws the conclusion from a silence that the path seems to have survived, as soon as it is sure that the peer
// said nothing by relay meanwhile: it would have sent by the path too, and so opened it.
func (pr *peer) judgeLapse(now time.Time) {
	l := pr.lull.lapse
	if !l.known(now) {
		return
	}
	if pr.lull.lapse = (lapse{}); pr.best != nil && latest(pr.traffic.Relayed, pr.word.at).Before(l.from) {
		d := l.to.Sub(l.from)
		pr.best.trust = max(pr.best.trust, d+d/8)
	}
}

// check asks whether the direct path still works, if there is reason to.
func (pr *peer) check(now time.Time) {
	if pr.pings.asked(pr.best.addr) {
		return
	}
	proof := latest(pr.traffic.Heard, pr.best.pong)
	switch {
	case pr.stale(now, proof): // it mostly answers, so that is waited for before searching
		if !pr.doubt {
			pr.doubt = true
			pr.search.restart(now.Add(max(pongLeast, pr.best.rtt*3/2+4*pr.best.rttvar)))
			pr.lull.lapse = lapse{from: proof, to: now}
		}
		pr.ping(now, pr.best.addr, 0, true)
	case pr.silent(now):
		pr.askSoon(now, pr.lull.asked == 0 && pr.alarming(now) && pr.asks.alarm(now))
		pr.lull.asked++
		pr.doubtMTU(now, false)
	case pr.hush(now, proof):
		pr.asks.hushed = now
		pr.askSoon(now, pr.steady(now))
	case now.Sub(pr.best.pong) >= recheck:
		pr.ping(now, pr.best.addr, 0, true)
	}
}

// checkDue is when that may be.
func (pr *peer) checkDue(now time.Time) (time.Time, bool) {
	switch {
	case pr.best == nil, pr.doubt, pr.pings.asked(pr.best.addr):
		return now, false
	case pr.traffic.Waiting.IsZero():
		return now.Add(min(silence, pr.patience(now))), true
	}
	return pr.traffic.Waiting.Add(pr.patience(now)), true
}

// stale reports whether the direct path was quiet for so long, since the last proof that it works, that a NAT may have forgotten it.
func (pr *peer) stale(now, proof time.Time) bool {
	waiting := pr.traffic.Waiting
	return !recent(now, proof, Trust) || !waiting.IsZero() && !recent(waiting, proof, pr.best.trusted())
}

// silent reports whether we send by the direct path, and nothing has come by it for too long.
func (pr *peer) silent(now time.Time) bool {
	waiting := pr.traffic.Waiting
	return !waiting.IsZero() && now.Sub(waiting) >= pr.patience(now)
}

// patience is how long that is.
func (pr *peer) patience(now time.Time) time.Duration {
	if pr.lull.asked == 0 && pr.alarming(now) {
		return min(max(steady, pr.best.rtt*3/2+4*pr.best.rttvar), silence)
	}
	return min(silence<<min(pr.lull.asked, 2), silenceMost)
}

// hush reports whether a flow from the peer seems to have ended, while we say nothing.
func (pr *peer) hush(now, proof time.Time) bool {
	pause := hush
	if pr.steady(now) {
		pause = hushSteady
	}
	return now.Sub(proof) >= pause && pr.hearing.flowing(now, hushRate, hush) && now.Sub(pr.asks.hushed) >= hushEvery
}

// steady reports whether so much has come of the peer, up to a moment ago, that a pause means something.
func (pr *peer) steady(now time.Time) bool { return pr.hearing.flowing(now, steadyRate, silence) }

// alarming reports whether a short pause is reason enough to ask.
func (pr *peer) alarming(now time.Time) bool { return pr.steady(now) && pr.asks.alarming(now) }

// askSoon asks the direct path, of which a pause says much if it was steady: then the answer has little time, and until it
// comes packets go by relay too. Were they to wait for the verdict, they would be lost if it is bad; if it is good, as when a
// flow has ended or a machine was busy, that were some copies for a round trip or two.
func (pr *peer) askSoon(now time.Time, steady bool) {
	pr.ping(now, pr.best.addr, 0, true)
	if !steady {
		return
	}
	g := &pr.pings.flight[len(pr.pings.flight)-1]
	g.due = now.Add(min(max(2*pr.best.rtt+4*pr.best.rttvar, hasty), pongMost))
	if !pr.traffic.Waiting.IsZero() && pr.relay.rtt > 0 && pr.hearing.rate <= bulk && !pr.also.until.After(now) {
		pr.also = also{Relay, g.due}
	}
}

// suspect asks the direct path and sends by relay too until it answers, and looks for others meanwhile.
func (pr *peer) suspect(now time.Time) {
	if pr.instead(now) {
		return
	}
	if !pr.doubt {
		pr.doubt = true
		pr.search.restart(now)
		pr.p.do(Look{})
		pr.call(now, hereDoubt) // it may be only our way to the peer or only its way to us that is broken
	}
	if !pr.pings.asked(pr.best.addr) {
		pr.ping(now, pr.best.addr, 0, true)
	}
}

// expire takes pings that were not answered off the list and draws the conclusion.
func (pr *peer) expire(now time.Time) {
	var asked time.Time // by the latest of those that the path in use has not answered
	pr.pings.expire(now, func(g *ping) {
		if !g.to.IsValid() {
			pr.relay.missed++
		}
		c := pr.find(g.to)
		if c == nil || !g.sent.After(c.pong) {
			return
		}
		if c.miss(); c == pr.best {
			asked, pr.lull.lapse = latest(asked, g.sent), lapse{}
		}
	})
	if !asked.IsZero() {
		pr.unanswered(now, asked)
	}
}

// miss takes note of a ping without an answer.
func (c *candidate) miss() {
	c.missed++
	c.wins, c.shunned.streak, c.trust = 0, 0, 0
	if c.hop != nil {
		c.hop.open, c.hop.trial = false, nil // it may have forgotten us
	}
}

// unanswered draws the conclusion where the path in use has not answered, of late a ping that was sent then.
func (pr *peer) unanswered(now, sent time.Time) {
	missed := pr.best.missed
	if pr.traffic.Heard.After(sent) { // the path brings packets: it may be lossy only
		missed /= 2
	}
	switch {
	case missed >= 2 && !pr.instead(now):
		pr.stopped(now)
	case missed == 1:
		pr.suspect(now)
	case missed == 0 && !pr.pings.asked(pr.best.addr):
		pr.ping(now, pr.best.addr, 0, true)
	}
}

// stopped leaves the path in use, which has stopped answering. It is shunned if it was lossy before, or does that all the time.
func (pr *peer) stopped(now time.Time) {
	c, lossy := pr.best, pr.lossy(now)
	pr.leave(now, fmt.Sprintf("%s stopped answering", c))
	pr.left = left{c, now}
	switch {
	case lossy && !pr.p.self.NAT.hard(): // from another port of ours, as soon as one is found, it is another path
		pr.doubtful(now, c, shunStreak)
	case !pr.shuns.stop(now):
		pr.doubtful(now, c, stopStreak)
	}
}

// lossy reports whether the path in use, which has stopped answering, was lossy before: something came by it after there was word of
// loss. What is lost because it stopped, as when a NAT forgets, says nothing of what it is worth when it answers again.
func (pr *peer) lossy(now time.Time) bool {
	c := pr.best
	came := latest(pr.traffic.Heard, c.pong)
	return pr.relay.rtt > 0 && (c.lost.now(now) > 0 && came.After(c.lost.last) || pr.hearing.complains(now, came))
}

// instead takes another address that answered just now in place of the one that does not: that which did so last, as the
// others may be gone with it.
func (pr *peer) instead(now time.Time) bool {
	var next *candidate
	for _, c := range pr.candidates {
		if c != pr.best && c.missed == 0 && (c.hop == nil || !pr.direct()) && recent(now, c.pong, pongMost) && (next == nil || c.pong.After(next.pong)) {
			next = c
		}
	}
	if next == nil {
		return false
	}
	old := pr.best
	pr.doubt = true // so that packets go by relay too, not by the old address
	pr.adopt(now, next, fmt.Sprintf("%s answers and %s does not", next, old))
	old.pong = time.Time{}
	return true
}

// knocks reports whether the path that was left is asked for, which stopped answering a moment ago: it may be that everything
// has, the relay too, and it will answer as soon as there is light. The first rounds of the search ask often enough.
func (pr *peer) knocks(now time.Time) bool {
	return pr.best == nil && pr.search.round > 3 && recent(now, pr.left.at, knockFor) && recent(now, pr.traffic.Sent, awake) &&
		!pr.left.path.shunned.on() && pr.find(pr.left.path.addr) == pr.left.path
}

// knockDue is when it is.
func (pr *peer) knockDue(now time.Time) (time.Time, bool) {
	if !pr.knocks(now) {
		return now, false
	}
	return pr.left.path.pinged.Add(knockEvery), true
}

func (pr *peer) knock(now time.Time) {
	if at, ok := pr.knockDue(now); ok && !at.After(now) {
		pr.ping(now, pr.left.path.addr, 0, true)
	}
}

// muteDue is when a peer on the relay is asked because nothing comes of it: it may have left its relay, and whoever would
// tell us be where it cannot be reached either.
func (pr *peer) muteDue(time.Time) (at time.Time, ok bool) {
	last := pr.traffic.Any
	if pr.best != nil || last.IsZero() || !pr.traffic.Sent.After(last) || pr.pings.asked(Relay) {
		return at, false
	}
	at = last.Add(muteAfter)
	if !pr.mute() {
		at = latest(at, pr.asks.muted.Add(muteEvery))
	}
	return at, pr.asks.muted.Sub(last) < muteFor
}

// mute reports whether a peer on the relay did not answer there when it was asked last. From then on it is asked by all relays at
// which it may be, and the answer comes by the one at which it is.
func (pr *peer) mute() bool { return pr.best == nil && pr.relay.missed > 0 }
