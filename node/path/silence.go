package path

import (
	"fmt"
	"slices"
	"time"
)

// A path that brings nothing while we send is asked, and left when it does not answer; what silence means depends on what
// was before it:
//
//	a peer that answered all the time ── steady ──▶ ask, and both ways ── hasty ──▶ ┐
//	a peer that answered              ── silence ─▶ ask ─────────────── pongLeast ─▶ ├ in doubt, ask ── pongLeast ──▶ left
//	a flow from the peer, that ends   ── hush ────▶ ask ──────────────────────────▶ ┘                                  │
//	                                                         asked every knockEvery, as long as somebody sends ◀───────┘

// patience is how long the direct path may bring nothing while we send.
func (pr *peer) patience(now time.Time) time.Duration {
	if pr.quiet == 0 && pr.alarming(now) {
		return min(max(steady, pr.best.rtt*3/2+4*pr.best.rttvar), silence)
	}
	return min(silence<<min(pr.quiet, 2), silenceMost)
}

// trusted is how long a path may have been silent and still be used alone: NATs and firewalls forget what is not used, some in a
// second, and only what was seen tells.
//
//	first packet after a silence ── longer than any survived ──▶ both ways, ask ─┬─ answered ─▶ it is survived
//	                                                                             └─ not ──────▶ trustLeast
func (c *candidate) trusted() time.Duration { return min(max(c.trust, trustLeast), Trust) }

// lapse is a silence of the direct path, which a ping ended.
type lapse struct {
	from, to time.Time
	over     bool // it was answered
}

// asked reports whether a ping that was sent then is the one.
func (l *lapse) asked(sent time.Time) bool { return !l.to.IsZero() && sent.Equal(l.to) }

// judgeLapse draws the conclusion from a silence that the path seems to have survived, as soon as it is sure that the peer
// said nothing by relay meanwhile: it would have sent by the path too, and so opened it.
func (pr *peer) judgeLapse(now time.Time) {
	l := pr.lapse
	if !l.over || now.Sub(l.to) < pongMost {
		return
	}
	if pr.lapse = (lapse{}); pr.best != nil && latest(pr.traffic.Relayed, pr.word.at).Before(l.from) {
		d := l.to.Sub(l.from)
		pr.best.trust = max(pr.best.trust, d+d/8)
	}
}

// steady reports whether so much has come of the peer, up to a moment ago, that a pause means something.
func (pr *peer) steady(now time.Time) bool {
	return pr.hearing.flowing(now, steadyRate, silence)
}

// check asks whether the direct path still works, if there is reason to.
func (pr *peer) check(now time.Time) {
	if pr.pings.asked(pr.best.addr) {
		return
	}
	proof := latest(pr.traffic.Heard, pr.best.pong)
	switch {
	case !recent(now, proof, Trust), !pr.traffic.Waiting.IsZero() && !recent(pr.traffic.Waiting, proof, pr.best.trusted()):
		// Quiet for long, perhaps forgotten by a NAT. It mostly answers, so wait for that before searching.
		if !pr.doubt {
			pr.doubt = true
			pr.search.restart(now.Add(max(pongLeast, pr.best.rtt*3/2+4*pr.best.rttvar)))
			pr.lapse = lapse{from: proof, to: now}
		}
		pr.ping(now, pr.best.addr, 0, true)
	case !pr.traffic.Waiting.IsZero() && now.Sub(pr.traffic.Waiting) >= pr.patience(now):
		pr.askSoon(now, pr.quiet == 0 && pr.alarming(now) && pr.alarms.take(now, 1/alarmEvery.Seconds(), alarmBurst))
		pr.quiet++
		pr.doubtMTU(now, false)
	case now.Sub(proof) >= pr.hush(now) && pr.hearing.flowing(now, hushRate, hush) && now.Sub(pr.hushed) >= hushEvery:
		pr.hushed = now
		pr.askSoon(now, pr.steady(now))
	case now.Sub(pr.best.pong) >= recheck:
		pr.ping(now, pr.best.addr, 0, true)
	}
}

// alarming reports whether a short pause is reason enough to ask.
func (pr *peer) alarming(now time.Time) bool {
	return pr.steady(now) && pr.alarms.some(now, 1/alarmEvery.Seconds(), alarmBurst)
}

// hush is how long a flow from the peer may pause while we say nothing.
func (pr *peer) hush(now time.Time) time.Duration {
	if pr.steady(now) {
		return hushSteady
	}
	return hush
}

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
	for i := range pr.pings.flight {
		g := &pr.pings.flight[i]
		if g.late || g.due.After(now) {
			continue
		}
		g.late, g.due = true, g.sent.Add(lateMost)
		if !g.to.IsValid() {
			pr.relay.missed++
		}
		if c := pr.find(g.to); c != nil && g.sent.After(c.pong) {
			c.missed++
			c.wins, c.shunned.streak = 0, 0
			if c.hop != nil {
				c.hop.open, c.hop.trial = false, nil // it may have forgotten us
			}
			if c.trust = 0; c == pr.best {
				asked, pr.lapse = latest(asked, g.sent), lapse{}
			}
		}
	}
	pr.pings.flight = slices.DeleteFunc(pr.pings.flight, func(g ping) bool { return !g.due.After(now) })
	if asked.IsZero() {
		return
	}
	missed := pr.best.missed
	if pr.traffic.Heard.After(asked) { // the path brings packets: it may be lossy only
		missed /= 2
	}
	switch {
	case missed >= 2 && !pr.instead(now):
		c := pr.best
		lossy := pr.lossy(now)
		pr.leave(now, fmt.Sprintf("%s stopped answering", c))
		pr.left, pr.leftAt = c, now
		switch {
		case lossy && !pr.p.self.NAT.hard(): // from another port of ours, as soon as one is found, it is another path
			pr.doubtful(now, c, shunStreak)
		case !pr.shuns.stop(now):
			pr.doubtful(now, c, stopStreak)
		}
	case missed == 1:
		pr.suspect(now)
	case missed == 0 && !pr.pings.asked(pr.best.addr):
		pr.ping(now, pr.best.addr, 0, true)
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
	return pr.best == nil && pr.search.round > 3 && recent(now, pr.leftAt, knockFor) && recent(now, pr.traffic.Sent, awake) &&
		!pr.left.shunned.on() && pr.find(pr.left.addr) == pr.left
}

func (pr *peer) knock(now time.Time) {
	if pr.knocks(now) && now.Sub(pr.left.pinged) >= knockEvery {
		pr.ping(now, pr.left.addr, 0, true)
	}
}

// muteDue is when a peer on the relay is asked because nothing comes of it: it may have left its relay, and whoever would
// tell us be where it cannot be reached either.
func (pr *peer) muteDue() (at time.Time, ok bool) {
	any := pr.traffic.Any
	if pr.best != nil || any.IsZero() || !pr.traffic.Sent.After(any) || pr.pings.asked(Relay) {
		return at, false
	}
	at = any.Add(muteAfter)
	if !pr.mute() {
		at = latest(at, pr.muted.Add(muteEvery))
	}
	return at, pr.muted.Sub(any) < muteFor
}

// mute reports whether a peer on the relay did not answer there when it was asked last. From then on it is asked by all relays at
// which it may be, and the answer comes by the one at which it is.
func (pr *peer) mute() bool { return pr.best == nil && pr.relay.missed > 0 }
