package path

import (
	"container/heap"
	"net/netip"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// peer is one peer's paths: which one is in use, and the parts that decide about it, each with its own rules and times.
//
//	            ┌─ search ── guesses, afresh ─┐
//	candidates ─┤                             ├─▶ best ── lull, hearing ─▶ doubt ─▶ left, shuns ─▶ the relay
//	            └─ pings ─────── compare ─────┘
//	by relay:      calls, word, order
type peer struct {
	p    *Paths
	key  key.NodePublic
	told []netip.AddrPort // by the coordinator
	hops []Hop            // the same
	kept uint64           // the last set of peers it was in

	candidates []*candidate
	relay      quality

	best    *candidate // the path in use; nil for the relay
	doubt   bool       // best missed a pong, is stale, or one side moved: packets go by relay too
	also    also
	since   time.Time // when best was chosen, and
	why     string    // for people
	went    time.Time // when it was the last time that there was none before
	stirred time.Time // when one side moved

	traffic Traffic
	sought  time.Time // last time that the user asked for the path
	called  time.Time // last call from the peer, which keeps us busy as a packet to it does

	search  search     // for a direct path
	guesses guesses    // of ports
	afresh  afresh     // fresh sockets
	compare comparison // of best with the others
	lull    lull       // silence of best
	asks    asks       // because of silence
	left    left       // the path that was best
	hearing hearing    // what arrives of the peer's packets
	shuns   shuns      // paths left for their quality

	pings pings
	calls calls
	word  word

	used   Use  // as last told
	first  bool // it has been
	ticked bool // in this Step
	slot

	order   ordered
	answers answers
}

// also is another route that packets go by too, until then.
type also struct {
	to    Route
	until time.Time
}

// settle tells what changed and sets the time of the next Tick.
func (pr *peer) settle(now time.Time) {
	pr.tell(now)
	wake, ok := pr.next(now)
	switch {
	case ok:
		pr.wake = wake
		if pr.at < 0 {
			heap.Push(&pr.p.due, pr)
		} else {
			heap.Fix(&pr.p.due, pr.at)
		}
	case pr.at >= 0 || pr.ticked:
		if pr.at >= 0 {
			heap.Remove(&pr.p.due, pr.at)
		}
		pr.p.do(Sleep{pr.key, pr.traffic.Sent})
	}
	pr.ticked = false
}

// dues are what a peer may wait for while there is anything to do.
var dues = [...]func(*peer, time.Time) (time.Time, bool){
	(*peer).seekDue, (*peer).muteDue, // while there is no path that surely works
	(*peer).checkDue, (*peer).mtuDue, (*peer).compareDue, // while there is one
	(*peer).knockDue, (*peer).retryDue, // a path that was left
	(*peer).workDue, (*peer).hopsDue, // what is being tried
	(*peer).callDue, (*peer).sleepDue,
}

// next is when this peer wants a Tick; false while it has nothing to do.
func (pr *peer) next(now time.Time) (wake time.Time, ok bool) {
	sooner := func(t time.Time) {
		if wake.IsZero() || t.Before(wake) {
			wake = t
		}
	}
	for _, g := range pr.pings.flight {
		sooner(g.due)
	}
	if pr.busy(now) {
		for _, due := range dues {
			if t, ok := due(pr, now); ok {
				sooner(t)
			}
		}
	}
	if !wake.IsZero() && !wake.After(now) {
		wake = now.Add(time.Millisecond)
	}
	return wake, !wake.IsZero()
}

// sleepDue is when there is nothing to do any more.
func (pr *peer) sleepDue(now time.Time) (time.Time, bool) {
	t := latest(pr.traffic.Sent, pr.called).Add(awake + time.Millisecond)
	return t, t.After(now) || !pr.atWork()
}

// busy reports whether there is anything to do. An attempt to guess ports goes on to its end, though nobody sends any more: it
// has been paid for by the peer as well, the next is far off, and three pings of a user's would never get one through.
func (pr *peer) busy(now time.Time) bool {
	return recent(now, pr.traffic.Sent, awake) || recent(now, pr.called, awake) || pr.atWork()
}

// tick does what time makes due.
func (pr *peer) tick(now time.Time, t Traffic) {
	if t.Heard.After(pr.traffic.Heard) && (pr.best == nil || t.Heard.After(pr.best.pong)) {
		pr.lull.asked = 0
	}
	pr.traffic, pr.ticked = t, true
	pr.expire(now)
	pr.judgeLapse(now)
	if !pr.busy(now) {
		return
	}
	if pr.calls.waits(now) {
		pr.call(now, 0)
	}
	if pr.best != nil {
		pr.check(now)
	} else if at, ok := pr.muteDue(now); ok && !at.After(now) {
		pr.asks.muted = now
		pr.ping(now, Relay, 0, true)
	}
	if pr.seeking() && !pr.search.next.After(now) {
		pr.seek(now)
	}
	pr.hearLoss(now, t.Counts)
	pr.retry(now)
	pr.knock(now)
	pr.consider(now)
	pr.refresh(now)
	pr.guessOn(now)
	pr.freshOn(now)
	pr.tryHops(now)
	pr.lookForBetter(now)
	pr.findMTU(now)
}

// leave goes back to the relay.
func (pr *peer) leave(now time.Time, why string) {
	old := pr.best
	old.pong, old.wins = time.Time{}, 0
	pr.best, pr.doubt, pr.lull, pr.compare = nil, false, lull{}, comparison{}
	pr.also = also{old.addr, now.Add(bothFor)}
	pr.since, pr.why = now, why
	if pr.search.round > 2 { // the search that began with the doubt goes on
		pr.search.restart(now)
	}
}

// adopt makes c the direct path.
func (pr *peer) adopt(now time.Time, c *candidate, why string) {
	pr.also.to = Relay
	if pr.compare = compareAgain(now); !pr.direct() && c.hop == nil {
		pr.compare, pr.went = compareYoung(now), now
	}
	if pr.best != nil && !pr.doubt {
		pr.also.to = pr.best.addr
	}
	had := pr.best != nil
	pr.best, pr.doubt, pr.lull = c, false, lull{}
	pr.afresh.vain, pr.guesses.unlucky = vain{}, false
	if had {
		pr.stir(now) // the peer may have moved
	}
	c.mtu = mtu{due: now}
	pr.traffic.Waiting = time.Time{} // that was by another
	pr.also.until = now.Add(bothFor)
	pr.since, pr.why = now, why
	for _, o := range pr.candidates {
		o.wins = 0
	}
	pr.pings.forget(c.addr, now) // they were not sent to judge the path in use, and would keep it from being asked
	if pr.afresh.dig != nil {
		pr.endTry() // a socket that has met is of no use for the next time
	}
}

// moved says our network changed.
func (pr *peer) moved(now time.Time) {
	for _, c := range pr.candidates {
		c.pinged, c.opened = time.Time{}, time.Time{} // by another NAT
		c.shunned, c.trust = shunned{}, 0
		if c != pr.best {
			c.pong = time.Time{}
		}
	}
	pr.shuns.fill(now)
	pr.asks.alarms.fill(now, alarmBurst)
	pr.pings.unproven = nil // where we are now they may answer
	pr.stir(now)
	pr.guesses.renew()
	if pr.afresh.vain = (vain{}); pr.atWork() {
		pr.endTry() // its ports are of another NAT
	}
	pr.search.restart(now)
	if !recent(now, pr.traffic.Sent, callable) {
		if pr.best != nil { // nobody is using it: it will have to prove itself when somebody does
			pr.best.pong, pr.traffic.Heard, pr.doubt = time.Time{}, time.Time{}, true
		}
		return
	}
	pr.called = now
	switch {
	case pr.best == nil:
	case pr.trap():
		pr.leave(now, "our network changed")
		pr.also, pr.search.clear = also{}, time.Time{} // nothing must come to the peer's NAT before it is opened anew
		pr.search.restart(now)
	default:
		pr.doubt = true
		pr.ping(now, pr.best.addr, 0, true)
	}
	pr.seek(now)
	pr.call(now, hereLeast)
}

// unblocked begins the search anew. What was asked or guessed in vain meanwhile says nothing of the addresses.
func (pr *peer) unblocked(now time.Time) {
	if pr.best != nil || !pr.busy(now) {
		return
	}
	pr.pings.unproven = nil
	pr.guesses.renew()
	pr.search.restart(now)
	pr.seek(now)
	pr.call(now, hereLeast)
}

// trap reports whether the path in use leads to a NAT that an unexpected packet may spoil for us (see early).
func (pr *peer) trap() bool {
	return !pr.p.cfg.Plain && public(pr.best.addr.Addr()) && !pr.p.self.NAT.hard() &&
		pr.any(func(c *candidate) bool { return c.addr.Addr().Is4() && !public(c.addr.Addr()) })
}

// probe serves `hedge ping`.
func (pr *peer) probe(now time.Time, id uint64) {
	pr.called, pr.sought = now, now // a wish to reach the peer, as a packet is
	if pr.best == nil || pr.doubt {
		pr.ping(now, Relay, id, true)
	}
	if pr.best != nil {
		pr.ping(now, pr.best.addr, id, true)
	} else if !pr.search.next.After(now) {
		pr.seek(now)
	}
}

// tell emits a Use if it differs from the last.
func (pr *peer) tell(now time.Time) {
	u := pr.use(now)
	same := pr.first && u.Primary == pr.used.Primary && u.Both == pr.used.Both && u.Other == pr.used.Other &&
		u.Until.Equal(pr.used.Until) && u.RTT == pr.used.RTT && u.Trust == pr.used.Trust && u.MTU == pr.used.MTU && u.Why == pr.used.Why && u.Since.Equal(pr.used.Since) &&
		slices.Equal(u.First, pr.used.First) && slices.Equal(u.Proven, pr.used.Proven)
	if !same {
		pr.used, pr.first = u, true
		pr.p.do(u)
	}
}

// use is where packets to the peer go now.
func (pr *peer) use(now time.Time) Use {
	u := Use{Peer: pr.key, Since: pr.since, Why: pr.why, RTT: pr.relay.rtt, First: pr.firstOnes(now), Proven: pr.proven()}
	if pr.best != nil {
		u.Primary, u.RTT, u.MTU, u.Trust = pr.best.addr, pr.best.rtt, pr.mtu(), pr.best.trusted()
	}
	switch {
	case pr.best != nil && pr.doubt:
		u.Both = true
	case pr.also.until.After(now):
		u.Both, u.Other, u.Until = true, pr.also.to, pr.also.until
	case pr.used.Both && !pr.used.Until.IsZero() && pr.used.Primary == u.Primary: // it ended by itself
		u.Both, u.Other, u.Until = true, pr.used.Other, pr.used.Until
	}
	return u
}

// firstOnes are where a handshake goes besides relay and direct path: it is too precious for WireGuard's retry in 5 s.
func (pr *peer) firstOnes(now time.Time) []netip.AddrPort {
	if pr.best != nil && !pr.doubt {
		return nil
	}
	var out []netip.AddrPort
	for _, proven := range [...]bool{true, false} {
		for _, c := range pr.candidates {
			if c != pr.best && !c.pong.IsZero() == proven && (c.hop == nil || proven) && !pr.early(now, c) && len(out) < maxFirst {
				out = append(out, c.addr)
			}
		}
	}
	return out
}

func (pr *peer) proven() []netip.AddrPort {
	var out []netip.AddrPort
	for _, c := range pr.candidates {
		if c.proven {
			out = append(out, c.addr)
		}
	}
	return out
}
