package path

import (
	"net/netip"
	"slices"
	"time"
)

// Two NATs, each with one port for all far ends, may fail to meet: a packet that came too early, when a NAT forgot or a
// machine moved, has spoilt a port for the other (see early), and both go on with ports that are no use. Sockets with
// ports of their own, which neither NAT has seen, begin anew: each side opens one, asks how it looks from outside and says
// so by relay, opens its own NAT by it for the other's, says that too, and only then pings.
//
//	a: another socket ─ STUN     a2                     b2    STUN ─ another socket :b
//	a ──── Here, fresh a2 ────▶                  ◀─── Here, fresh b2 ──── b
//	a2 ─ opener ─┤                                     ├─ opener ─ b2
//	a ──── Here, opened b2 ───▶                  ◀─── Here, opened a2 ─── b
//	a2 ◀──────────────────────── ping, pong ─────────────────────────▶ b2
//
// A peer that cannot, or need not, pings the fresh address by its usual socket. One that still thinks that its path works is
// told otherwise by this, and opens a fresh socket as well: a machine that moved was ahead of itself if its last packets left
// by the new network before it knew, and its first opener to where they came from made it take another port for all that follow.
const (
	freshLost  = 3               // rounds of the search, where there was a direct path
	freshCold  = tryRound        // and where there was none yet
	freshAsk   = time.Second     // for STUN to answer
	freshAgain = 2 * time.Second // between two, doubling
	freshMost  = 10 * time.Minute
	freshBurst = 4               // times that the peer may have us do it, and then
	freshEvery = 8 * time.Second // so often
	freshShift = 100 * time.Millisecond
)

// freshWaits are the times between pings by the fresh socket, and then to the end of the attempt.
var freshWaits = [...]time.Duration{openFor, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, time.Second}

// afresh is what is tried by fresh sockets, ours and the peer's.
type afresh struct {
	dig    *dig           // by ours; nil if there is none
	theirs netip.AddrPort // the outside of the peer's, if it has one
	asked  bucket         // of attempts that the peer asks for
	vain   vain
}

// vain is what was in vain since there was a direct path, or since our network is what it is.
type vain struct {
	again time.Time // when a fresh socket may be tried again of our own accord
	times int       // it was
	digs  int       // of all attempts, so many to which the peer had something to say
}

// count takes note of an attempt of our own accord: the next is twice as far away.
func (v *vain) count(now time.Time) {
	v.again = now.Add(min(freshAgain<<min(v.times, 16), freshMost))
	v.times++
}

// dig is one attempt by a fresh socket.
type dig struct {
	outside netip.AddrPort // of the socket, as soon as STUN has told
	sent    int            // rounds of pings
	next    time.Time      // the next, or the end
	heard   bool           // the peer has said something since
}

// ready reports whether the peer may be told of it.
func (d *dig) ready() bool { return d != nil && d.outside.IsValid() }

// refresh begins an attempt with a fresh socket if the search has been in vain for some rounds.
func (pr *peer) refresh(now time.Time) {
	rounds := freshCold
	if !pr.went.IsZero() {
		rounds = freshLost
	}
	if v := &pr.afresh.vain; pr.search.round >= rounds && !v.again.After(now) && !pr.direct() && pr.noFresh() == "" {
		v.count(now)
		pr.openFresh(now)
	}
}

func (pr *peer) openFresh(now time.Time) {
	pr.afresh.dig = &dig{next: now.Add(freshAsk)}
	pr.p.do(Sockets{pr.key, 1, true})
}

// unsure reports whether there is no direct path, or none that surely works.
func (pr *peer) unsure() bool { return !pr.direct() || pr.doubt }

// noFresh is why a fresh socket is not tried; empty if it may be, for both NATs are of the kind that it helps with and there is need.
func (pr *peer) noFresh() string {
	ours, theirs := pr.p.self, pr.word.nat
	switch {
	case !pr.unsure():
		return "there is a direct path"
	case pr.atWork():
		return "an attempt is under way"
	case pr.word.at.IsZero():
		return "the peer has not said where it is"
	case ours.NAT.Kind == Blocked:
		return "our network lets no UDP through"
	case ours.NAT.Kind != Easy:
		return "our NAT is not known to have one port for all far ends"
	case theirs.hard():
		return "the peer's NAT gives a port of its own to each far end"
	case theirs.Kind == Blocked:
		return "the peer's network lets no UDP through"
	case !pr.public().IsValid():
		return "the peer has said no address outside its NAT"
	case !slices.ContainsFunc(ours.Endpoints, func(a netip.AddrPort) bool { return a.Addr().Is4() }):
		return "we have no IPv4 address"
	case pr.any(func(c *candidate) bool { return c.shunned.on() && c.by&called != 0 }): // unless the peer is elsewhere by now
		return "the direct path was left for its quality, and not lost"
	}
	return ""
}

// gotOutside takes the outside address of the fresh socket: our NAT is opened, and the peer told.
func (pr *peer) gotOutside(now time.Time, a netip.AddrPort) {
	d := pr.afresh.dig
	if d == nil || d.ready() || !a.IsValid() || !pr.unsure() {
		return
	}
	d.outside = a
	pr.sayFresh(now)
}

// sayFresh opens our NAT by the fresh socket, and says where that is. Every other time the openers come one router further.
func (pr *peer) sayFresh(now time.Time) {
	if !pr.p.cfg.Plain {
		pr.bySocket(now, openTTL+pr.afresh.vain.digs%2)
	}
	pr.call(now, 0)
	pr.afresh.dig.next = now.Add(max(freshWaits[0], pr.relay.rtt/2+openFor/3))
}

// gotFresh takes a Here as far as it concerns fresh sockets, the peer's and ours.
func (pr *peer) gotFresh(now time.Time, m Here) {
	f := &pr.afresh
	old := f.theirs
	if f.theirs = (netip.AddrPort{}); m.Fresh {
		f.theirs = m.Endpoints[0]
	}
	if m.Fresh && f.theirs != old && pr.direct() && f.theirs != pr.best.addr {
		pr.doubt = true // the peer has none, or would have no need of that
		pr.search.restart(now.Add(pongLeast))
	}
	d := f.dig
	if d != nil {
		d.heard = true
	}
	switch {
	case !m.Fresh:
	case d.ready() && f.theirs != old:
		pr.sayFresh(now)
	case d.ready() && d.sent == 0 && m.Opened == sum(pr.here().Endpoints):
		if f.vain.digs > 1 && pr.p.rand(2) == 0 {
			// In vain so far, though the openers of the second time came one router further. It may be that they die before a
			// third NAT, or spoil the peer's, so that one of us must be the first to ping.
			d.next = now.Add(freshShift)
			return
		}
		pr.bySocket(now, 0)
	case pr.noFresh() == "" && f.asked.take(now, 1/freshEvery.Seconds(), freshBurst):
		pr.openFresh(now)
	}
}

// bySocket sends pings by the fresh socket: to the peer's, or to the outside of its NAT if it has none.
func (pr *peer) bySocket(now time.Time, ttl int) {
	theirs := pr.afresh.theirs
	for _, c := range pr.candidates {
		switch {
		case theirs.IsValid() && c.addr != theirs, c.by&(told|called) == 0, !public(c.addr.Addr()):
			continue
		case ttl == 0 && !pr.rationed(now, c) || !pr.pings.probe(now):
			continue
		}
		g := ping{tx: pr.p.cfg.Tx(), to: c.addr, sent: now, due: now.Add(pongMost)}
		if c.opened = now; ttl == 0 && !pr.pings.full() {
			pr.pings.add(g)
		}
		pr.p.do(Send{Peer: pr.key, To: c.addr, Msg: Ping{Tx: g.tx}, Socket: 1, TTL: ttl})
	}
}

// freshOn goes on with the attempt, or ends it, in its time.
func (pr *peer) freshOn(now time.Time) {
	d := pr.afresh.dig
	if d == nil || d.next.After(now) {
		return
	}
	if d.sent++; !pr.unsure() || !d.ready() || d.sent == len(freshWaits) {
		if d.heard { // while nothing comes of the peer, no way of meeting it has been tried
			pr.afresh.vain.digs++
		}
		pr.endTry()
		return
	}
	pr.bySocket(now, 0)
	d.next = now.Add(freshWaits[d.sent])
}

// isFresh reports whether an address is for the fresh socket alone.
func (pr *peer) isFresh(a netip.AddrPort) bool { return a == pr.afresh.theirs && pr.afresh.dig != nil }
