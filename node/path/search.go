package path

import (
	"net/netip"
	"time"
)

// openTTL lets a packet through our own NAT and no further: at least one router stands between that and the peer's.
const (
	openTTL   = 2
	openFor   = 150 * time.Millisecond // by then the peer has had the time to open its side,
	openBlind = 350 * time.Millisecond // and by then if we have yet to connect to its relay
	clearFor  = 10 * time.Second
	openedFor = 20 * time.Second
)

// search is the search for a direct path: rounds of pings to all candidates, further and further apart.
//
//	restart ──▶ round 0 ── 50 ms ── 1 ── 100 ms ── 2 ── 200 ms ── … ── every 30 s
//	            call the peer          hopRound: peer relays too     tryRound: call again, it may be lost
type search struct {
	began time.Time // the first round
	round int       // the next
	next  time.Time // when that is due
	clear time.Time // when we knew that the peer has opened its side; that is no matter of one search
}

// restart begins anew at that time.
func (s *search) restart(at time.Time) { *s = search{began: at, next: at, clear: s.clear} }

// start takes note that a round begins. The first may have been planned long ago, when nobody was sending.
func (s *search) start(now time.Time) {
	if s.round == 0 {
		s.began = now
	}
}

// done takes note that a round was.
func (s *search) done(now time.Time) {
	s.next = now.Add(seekWaits[min(s.round, len(seekWaits)-1)])
	s.round++
}

// early reports whether the peer has not had the time to open its side for us, to which a round trip by relay is rtt.
func (s *search) early(now time.Time, rtt time.Duration) bool {
	if recent(now, s.clear, clearFor) {
		return false
	}
	wait := max(openFor, rtt/2+openFor/3)
	if rtt == 0 {
		wait = openBlind
	}
	return s.round == 0 || now.Sub(s.began) < wait
}

// seek pings every candidate, and at first tells the peer by relay to do the same.
func (pr *peer) seek(now time.Time) {
	pr.search.start(now)
	for _, c := range pr.candidates {
		if c != pr.best && !c.shunned.on() && pr.wants(c) && !pr.isFresh(c.addr) {
			pr.reach(now, c)
		}
	}
	ours, round := pr.p.self.NAT, pr.search.round
	if round < 2 && pr.best == nil && (ours.Kind == Sequential || ours.Kind == Block) {
		pr.p.do(Look{}) // where are its ports by now?
	}
	switch {
	case round >= tryRound && recent(now, pr.traffic.Sent, awake):
		// In vain so far: the first call may have been lost. Being called is no reason, or two would call each other for ever.
		pr.call(now, hereDoubt)
		if round == tryRound && pr.best == nil && !pr.word.nat.hard() && !ours.hard() {
			pr.p.do(Look{}) // does any UDP get out?
		}
	case round == 0:
		pr.call(now, hereEvery)
		if pr.relay.rtt == 0 && !pr.pings.asked(Relay) {
			pr.ping(now, Relay, 0, false)
		}
	}
	pr.search.done(now)
}

// seekDue is when the next round is due, if addresses are being tried.
func (pr *peer) seekDue(time.Time) (time.Time, bool) { return pr.search.next, pr.seeking() }

// seeking reports whether addresses are being tried.
func (pr *peer) seeking() bool { return pr.best == nil || pr.doubt || pr.best.hop != nil }

// reach pings a candidate, or just opens our NAT for it while it is early to do more.
func (pr *peer) reach(now time.Time, c *candidate) {
	if c.hop != nil {
		pr.reachHop(now, c)
		return
	}
	if !pr.early(now, c) {
		pr.ping(now, c.addr, 0, false)
	} else if pr.pings.probe(now) {
		c.opened = now
		pr.p.do(Send{Peer: pr.key, To: c.addr, Msg: Ping{Tx: pr.p.cfg.Tx()}, TTL: openTTL})
	}
}

// early reports whether a packet to a candidate would come before the peer has opened its NAT for us. Some NATs, Linux
// without a firewall of its own, take such a packet for their own, and never use that port towards us after it: then
// the pair could not meet. So at first we open our side only, and say so by relay; who hears that pings in earnest.
// A NAT of ours with a port for each far end gains nothing by it, and behind addresses that are not public is no NAT.
func (pr *peer) early(now time.Time, c *candidate) bool {
	switch {
	case pr.p.cfg.Plain, !c.pong.IsZero(), !public(c.addr.Addr()), pr.p.self.NAT.hard():
		return false
	case pr.word.nat.spoilt() && pooled(pr.p.self.Endpoints) != nil: // it does not know all addresses that we may come from (see planPool)
		return true
	}
	return pr.search.early(now, pr.relay.rtt)
}

// public reports whether an address may be a NAT's outside, and is IPv4, for which NATs are made.
func public(ip netip.Addr) bool {
	return ip.Is4() && !ip.IsPrivate() && !ip.IsLoopback() && !shared.Contains(ip)
}

var shared = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598
