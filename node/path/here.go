package path

import (
	"hash/crc32"
	"net/netip"
	"slices"
	"time"
)

// Two ends tell each other by relay where they are, in Heres: when one wants to be reached, or has moved, or learns more.
//
//	a ─── Here: a's addresses, NAT, and what of b's it has opened its side for ───▶ b
//	a ◀── Here: the same of b's ─────────────────────────────────────────────────── b

// calls are our Heres to a peer, and its to us as far as they are too many.
type calls struct {
	sent   time.Time // the last
	due    time.Time // one that must be; zero if none
	heeded bucket    // Heres and Guesses of the peer
}

// within reports whether the peer was called so short a time ago.
func (c *calls) within(now time.Time, d time.Duration) bool { return recent(now, c.sent, d) }

// waits reports whether a call is due.
func (c *calls) waits(now time.Time) bool { return !c.due.IsZero() && !c.due.After(now) }

// heed reports whether one more call of the peer may be heeded.
func (c *calls) heed(now time.Time) bool { return c.heeded.take(now, hereRate, hereBurst) }

// word is what the peer last said of itself, in a Here; of its addresses candidates are made.
type word struct {
	at      time.Time // zero if it has yet to say anything
	nat     NAT
	outside outside
}

// call tells the peer where we are, unless it was told within least.
func (pr *peer) call(now time.Time, least time.Duration) {
	if least > 0 && pr.calls.within(now, least) {
		return
	}
	pr.calls.sent, pr.calls.due = now, time.Time{}
	h := pr.here()
	h.Opened = pr.openedSum(now)
	pr.p.do(Send{Peer: pr.key, To: Relay, Msg: h})
}

// callDue is when the peer must be called.
func (pr *peer) callDue(time.Time) (time.Time, bool) { return pr.calls.due, !pr.calls.due.IsZero() }

// news is a call that must not get lost: at once, or as soon as the last is old enough.
func (pr *peer) news(now time.Time) {
	pr.calls.due = latest(now, pr.calls.sent.Add(hereNews))
	if pr.calls.waits(now) {
		pr.call(now, 0)
	}
}

// relinked repeats a call that the relay may not have passed on. A peer that is reached by relay gets one in any case: the
// connection may have been dead for a while, and what the peer sent lost. Hearing of us, it sends the last of it again.
func (pr *peer) relinked(now time.Time) {
	if pr.calls.within(now, hereLost) || pr.best == nil {
		pr.call(now, 0)
	}
}

// here is where the peer may reach us.
func (pr *peer) here() Here {
	h := pr.p.self
	if d := pr.afresh.dig; d.ready() {
		h.Endpoints, h.Fresh = slices.Concat([]netip.AddrPort{d.outside}, h.Endpoints), true
		h.Endpoints = h.Endpoints[:min(len(h.Endpoints), MaxHere)]
	}
	return h
}

// gotHere takes the peer's own account of where it is: it wants to be reached, or it moved.
func (pr *peer) gotHere(now time.Time, m Here) {
	if !pr.calls.heed(now) {
		return
	}
	// A search goes on at the peer's call, or each would begin anew at the other's, for ever.
	searching := pr.busy(now) && pr.search.round > 1 && m.NAT.Kind == pr.word.nat.Kind && !pr.word.at.IsZero()
	least := hereEvery
	if pr.word.at.IsZero() {
		least = hereNews // it has just come up, and what we said before that is lost
	}
	was := pr.word.outside
	pr.called, pr.word = now, word{now, m.NAT, outsideOf(m.NAT, m.Endpoints)}
	fresh := pr.setCandidates(now, m.Endpoints, called)
	if !m.Fresh && pr.word.outside != was {
		if pr.guesses.renew(); pr.guesses.try != nil {
			pr.endTry() // it is for where the peer was
		}
		pr.pardon(func(c *candidate) bool { return c.by&called == 0 }) // that is not where the peer is now
	}
	switch {
	case m.Opened == sum(pr.here().Endpoints):
		pr.search.clear = now
	case fresh: // what was open before is not what leads there
		pr.search.clear = time.Time{}
	}
	if fresh { // perhaps begun anew, and what we said before that is lost; or it waits to hear that we have opened our side
		least = hereNews
	}
	if pr.best != nil {
		pr.confirm(now, m, fresh, least)
		return
	}
	if !pr.atWork() && (fresh || !searching) {
		pr.search.restart(now)
	}
	pr.search.round = max(pr.search.round, 1) // the call is answered here
	pr.gotFresh(now, m)
	pr.seek(now)
	pr.call(now, least)
}

// confirm asks the path in use at a call of the peer, which may have seen trouble that we do not, and where it has moved its new
// addresses; until then packets go by relay too.
func (pr *peer) confirm(now time.Time, m Here, moved bool, least time.Duration) {
	if moved {
		pr.stir(now)
		pr.search.began = now
	}
	pr.gotFresh(now, m)
	for _, c := range pr.candidates {
		if (moved && c.by&called != 0 || !pr.direct()) && c != pr.best && pr.wants(c) && !pr.isFresh(c.addr) {
			pr.reach(now, c)
		}
	}
	pr.call(now, least)
	pr.also = also{Relay, now.Add(bothCalled)}
	if !pr.pings.asked(pr.best.addr) {
		pr.ping(now, pr.best.addr, 0, true)
	}
}

// outside is what a node's network looks like to its peers, as far as guessing depends on it.
type outside struct {
	kind Kind
	addr netip.AddrPort
}

// outsideOf is that of a Here; the ports of a hard NAT say nothing.
func outsideOf(n NAT, endpoints []netip.AddrPort) (o outside) {
	o.kind = n.Kind
	for _, a := range endpoints {
		if public(a.Addr()) {
			if o.addr = a; n.hard() {
				o.addr = netip.AddrPortFrom(a.Addr(), 0)
			}
			break
		}
	}
	return o
}

// sum is a checksum of a set of addresses in any order, of those that may be a NAT's outside.
func sum(set []netip.AddrPort) (s uint32) {
	for _, a := range set {
		if public(a.Addr()) {
			b, _ := a.MarshalBinary()
			s += crc32.ChecksumIEEE(b)
		}
	}
	return s
}

// openedSum is the sum of those addresses of the peer's that we sent to of late: of those that it said itself, as soon as
// it has.
func (pr *peer) openedSum(now time.Time) uint32 {
	var set []netip.AddrPort
	by := told
	if pr.any(func(c *candidate) bool { return c.by&called != 0 }) {
		by = called
	}
	for _, c := range pr.candidates {
		if c.by&by != 0 && recent(now, latest(c.pinged, c.opened), openedFor) {
			set = append(set, c.addr)
		}
	}
	return sum(set)
}
