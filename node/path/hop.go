package path

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// A peer relay is a node that carries packets between us and a peer (derp.Forwarder), if the policy lets both of us use
// it. A way by one is a candidate like an address: it is pinged, proved, scored and left. It differs in three things:
//
//	direct ──────────▶ better than a peer relay, as long as it is good enough to be used at all
//	peer relay ──────▶ better than the relay, if its score is; a direct path is sought meanwhile
//	relay
//
// and it has to be asked for before it can be pinged, which is done only when no address has answered for a while, for
// the relay works for others.

// Hops is where the routes by peer relays are: addresses that lead nowhere (RFC 6666), as the caller numbers them.
var Hops = netip.MustParsePrefix("100::/64")

// ByHop reports whether a route is by a peer relay.
func ByHop(r Route) bool { return r.Addr().Is6() && Hops.Contains(r.Addr()) }

// Hop is a peer relay that we and a peer may use.
type Hop struct {
	Relay key.NodePublic
	Name  string // for people
	Route Route  // of Hops, for this relay and this peer only
}

// MaxHops is how many peer relays are tried for a peer, and measured: of those that answer the best by score is used. As both
// ends must try one, and each has them in an order of its own, it is more than a mesh usually has.
const MaxHops = 8

const (
	hopRound = 3                // of the search, from which peer relays are asked
	hopAgain = 10 * time.Second // between asks where one has refused
	hopLeast = time.Second      // between asks
)

// Events and an action of peer relays.
type (
	// AskHop asks the peer relay of a route for a way to the peer; a Hopped tells what became of it.
	AskHop struct {
		Peer  key.NodePublic
		Route Route
	}
	// Hopped says that a peer relay has been asked: a way is there, or it is refused.
	Hopped struct {
		Peer   key.NodePublic
		Route  Route
		Refuse string // why not; empty if there is a way
	}
)

func (Hopped) event()  {}
func (AskHop) action() {}

// hop is what a candidate by a peer relay has more.
type hop struct {
	Hop
	open   bool // a way was given, and no ping by it has failed since
	asked  time.Time
	refuse string // the last answer, if it was no

	trial []time.Duration // its last round trips, while the relay is better
	next  time.Time       // of them; zero if there have been enough
}

// direct reports whether the path in use is by nobody else.
func (pr *peer) direct() bool { return pr.best != nil && pr.best.hop == nil }

// wants reports whether it is time to try a candidate.
func (pr *peer) wants(c *candidate) bool {
	return c.hop == nil || !pr.direct() && (pr.search.round >= hopRound || pr.best != nil)
}

// reachHop pings by a peer relay, or asks for that first.
func (pr *peer) reachHop(now time.Time, c *candidate) {
	h := c.hop
	switch {
	case h.open:
		pr.ping(now, c.addr, 0, false)
	case recent(now, h.asked, hopLeast) || h.refuse != "" && recent(now, h.asked, hopAgain) || !pr.pings.probe(now):
	default:
		h.asked = now
		pr.p.do(AskHop{pr.key, c.addr})
	}
}

// hopped takes a peer relay's answer.
func (pr *peer) hopped(now time.Time, ev Hopped) {
	c := pr.find(ev.Route)
	if c == nil || c.hop == nil {
		return
	}
	c.hop.refuse, c.hop.open = ev.Refuse, ev.Refuse == ""
	switch {
	case c.hop.open && pr.wants(c):
		pr.ping(now, c.addr, 0, false)
	case !c.hop.open && c == pr.best:
		c.hop.asked = now
		pr.quit(now, fmt.Sprintf("%s: %s", c, ev.Refuse))
	}
}

// quit leaves a peer relay that does not serve any more: nothing goes by it from now on.
func (pr *peer) quit(now time.Time, why string) {
	pr.pings.forget(pr.best.addr, now) // an answer under way would bring us back
	pr.leave(now, why)
	pr.also = also{}
	pr.search.restart(now)
}

// setHops replaces the peer relays that may be used. One in use that may not be any more is left at once.
func (pr *peer) setHops(now time.Time, hops []Hop) {
	pr.hops = hops
	hops = hops[:min(len(hops), MaxHops)]
	gone := func(c *candidate) bool {
		return c.hop != nil && !slices.Contains(hops, c.hop.Hop)
	}
	lost := func(r Route) bool { c := pr.find(r); return c != nil && gone(c) }
	if b := pr.best; b != nil && gone(b) {
		pr.quit(now, b.String()+" may not be used any more")
	}
	if lost(pr.also.to) {
		pr.also = also{}
	}
	if lost(pr.used.Other) {
		pr.used.Both = false
	}
	pr.candidates = slices.DeleteFunc(pr.candidates, gone)
	for _, h := range hops {
		if pr.find(h.Route) == nil && ByHop(h.Route) {
			pr.candidates = append(pr.candidates, &candidate{addr: h.Route, by: hired, added: now, hop: &hop{Hop: h}})
			if !pr.direct() {
				pr.search.restart(now)
			}
		}
	}
}

// worth reports whether a way of which an answer came is no worse than the relay, if it is by a peer relay. If it is not
// at first, some more answers are asked for: medians tell a path from a machine that was busy.
func (pr *peer) worth(now time.Time, c *candidate, rtt time.Duration) bool {
	h := c.hop
	if h == nil {
		return true
	}
	if h.trial = append(h.trial, rtt); len(h.trial) > trialRounds {
		h.trial = h.trial[1:]
	}
	if len(h.trial) >= winsNeeded {
		c.rtt, c.rttvar = medians(h.trial)
	}
	if pr.relay.missed >= 2 || c.score(now) <= pr.relayScore(now) {
		h.trial, h.next = nil, time.Time{}
		return true
	}
	if h.next = (time.Time{}); len(h.trial) < trialRounds {
		h.next = now.Add(seekWaits[2])
	}
	return false
}

// hopsDue is when the first of them wants that.
func (pr *peer) hopsDue(time.Time) (at time.Time, ok bool) {
	for _, c := range pr.candidates {
		if c.hop != nil && !c.hop.next.IsZero() && (!ok || c.hop.next.Before(at)) {
			at, ok = c.hop.next, true
		}
	}
	return at, ok
}

// tryHops goes on with that.
func (pr *peer) tryHops(now time.Time) {
	for _, c := range pr.candidates {
		if c.hop == nil || c.hop.next.IsZero() || c.hop.next.After(now) {
			continue
		}
		if c.hop.next = (time.Time{}); pr.best == nil && c.hop.open && !c.shunned.on() {
			pr.ping(now, c.addr, 0, false)
			if !pr.pings.asked(Relay) {
				pr.ping(now, Relay, 0, false)
			}
		}
	}
}

// String names the candidate for people.
func (c *candidate) String() string {
	if c.hop != nil {
		return "peer relay " + c.hop.Name
	}
	return c.addr.String()
}
