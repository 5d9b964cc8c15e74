package filter

import (
	"net/netip"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// oracle is the policy as it is written, slow and obvious: it asks every rule about every packet, remembers flows in
// a map, and shares no code with the filter but the types of acl. Random policies, packets, changes of policy and
// leaps of time must get the same answers from both.
type oracle struct {
	c     *Config
	flows map[oracleFlow]*oracleState
	grams map[oracleGram]*oraclePieces
	order []oracleFlow  // as they were opened, those that are gone among them
	sets  int           // how many policies there have been
	apart time.Duration // how far the clock has run away from what it must say, since it was last believed
	told  Doubt         // what that means
	doubt Doubt         // as it was last looked at
	ended []oracleCut   // of which nobody was told yet
}

// oracleCut is a flow that nothing admits any more.
type oracleCut struct {
	key   oracleFlow
	state *oracleState
}

// doubts holds the clock against what it must say.
func (o *oracle) doubts(now time.Time) Doubt {
	switch {
	case now.Before(o.c.NotBefore.Add(-time.Minute)):
		return ClockEarly
	case o.apart.Abs() > time.Minute:
		return o.told
	}
	return Believed
}

// span is the earliest and the latest that it may be when the clock says now.
func (o *oracle) span(now time.Time) (early, late time.Time) {
	if o.doubt == Believed {
		return now, now
	}
	early, late = now, now.Add(-o.apart)
	if late.Before(early) {
		early, late = late, early
	}
	if floor := o.c.NotBefore; early.Before(floor) {
		early = floor
	}
	if floor := o.c.NotBefore; late.Before(floor) {
		late = floor
	}
	return early, late
}

// oracleGram names a datagram in pieces.
type oracleGram struct {
	src, dst netip.Addr
	proto    uint8
	id       uint16
	inbound  bool
}

type oraclePieces struct {
	key     oracleFlow
	at      time.Time
	have    map[int]bool // by eight bytes
	end     int          // 0 until the last piece was seen
	refused bool
	set     int
}

type oracleFlow struct {
	peer           acl.NodeID
	proto          uint8
	src, dst       netip.Addr // of the packet that opened it
	sport, dport   uint16
	openedByRemote bool
}

type oracleState struct {
	last    time.Time
	replied bool
	talk    *talk // of TCP
}

// idle is how long a flow lives without a packet.
func (k oracleFlow) idle(s *oracleState) time.Duration {
	switch {
	case k.proto == 6:
		return life[s.talk.stage]
	case k.proto == 132 && s.replied:
		return 2 * time.Hour
	case k.proto != 1 && k.proto != 58 && s.replied:
		return 3 * time.Minute
	}
	return 30 * time.Second
}

// owner says whose an address is by the longest of all prefixes: a peer's, ours, or (equally long) both.
func (o *oracle) owner(a netip.Addr) (peer *acl.Node, isOurs, viaExit, viaRoute bool) {
	for _, x := range o.c.Self.Addrs {
		if x == a {
			return nil, true, false, false
		}
	}
	for i := range o.c.Peers {
		for _, x := range o.c.Peers[i].Addrs {
			if x == a {
				return &o.c.Peers[i], false, false, false
			}
		}
	}
	for _, bad := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/64", "fe80::/10", "ff00::/8"} {
		if netip.MustParsePrefix(bad).Contains(a) {
			return
		}
	}
	for _, m := range o.c.Mesh {
		if m.Contains(a) { // and is none of the nodes above
			return
		}
	}
	longest := -1
	consider := func(p netip.Prefix) bool {
		if !p.Contains(a) || p.Bits() < longest {
			return false
		}
		if p.Bits() > longest {
			longest, peer, isOurs = p.Bits(), nil, false
		}
		return true
	}
	for i := range o.c.Peers {
		for _, p := range o.c.Peers[i].Routes {
			if consider(p) && peer == nil {
				peer = &o.c.Peers[i]
			}
		}
	}
	for _, p := range o.c.Self.Routes {
		if consider(p) {
			isOurs = true
		}
	}
	if longest == 0 && !onInternet(a) {
		return nil, false, false, false
	}
	return peer, isOurs, longest == 0, longest > 0
}

// onInternet says whether an exit carries an address, by what is left once the above are out.
func onInternet(a netip.Addr) bool {
	if a.Is6() {
		return netip.MustParsePrefix("2000::/3").Contains(a)
	}
	for _, p := range []string{"10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"} {
		if netip.MustParsePrefix(p).Contains(a) {
			return false
		}
	}
	return true
}

func (o *oracle) inSet(name string, a netip.Addr, node *acl.Node, viaExit, viaRoute, asSource bool) bool {
	s := o.c.View.Sets[name]
	if s.Any && !(asSource && viaExit) {
		return true
	}
	if !viaExit && !viaRoute {
		for _, id := range s.Nodes {
			if id == node.ID {
				return true
			}
		}
	}
	if viaExit && !asSource && name != "autogroup:internet" {
		return false
	}
	for _, p := range s.Prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// rules judges a new flow.
func (o *oracle) rules(src, dst netip.Addr, proto uint8, port uint16, inbound bool, now time.Time) (Reason, acl.NodeID) {
	sPeer, sOurs, sExit, sRoute := o.owner(src)
	dPeer, dOurs, dExit, dRoute := o.owner(dst)
	var from, to, peer *acl.Node
	if inbound {
		from, to, peer = sPeer, &o.c.Self, sPeer
		if sPeer == nil {
			return SrcNotOwned, 0
		}
		if !dOurs {
			return DstNotOwned, sPeer.ID
		}
	} else {
		from, to, peer = &o.c.Self, dPeer, dPeer
		if !sOurs {
			return SrcNotOwned, 0
		}
		if dPeer == nil {
			return DstNotOwned, 0
		}
	}
	early, late := o.span(now)
	accepted, expired, shut := false, false, false
	for _, r := range o.c.View.Rules {
		srcOK, dstOK := false, false
		for _, s := range r.Src {
			srcOK = srcOK || o.inSet(s, src, from, sExit, sRoute, true)
		}
		for _, d := range r.Dst {
			if !o.inSet(d.Set, dst, to, dExit, dRoute, false) {
				continue
			}
			for _, pr := range d.Ports {
				dstOK = dstOK || o.covers(r, pr, proto, port)
			}
		}
		if !srcOK || !dstOK {
			continue
		}
		over := !r.Expires.IsZero() && !late.Before(r.Expires)
		switch {
		case r.Action == acl.Deny && o.doubt == Believed && !r.InForce(now):
		case r.Action == acl.Deny && !r.Expires.IsZero() && !early.Before(r.Expires):
		case r.Action == acl.Deny:
			return DenyRule, peer.ID
		case r.Action == acl.Accept && r.Window != "" && (o.doubt != Believed || !r.InForce(now)):
			shut = true
		case r.Action == acl.Accept && over:
			expired = true
		case r.Action == acl.Accept:
			accepted = true
		}
	}
	switch {
	case accepted:
		return ByRule, peer.ID
	case expired:
		return RuleExpired, peer.ID
	case shut && o.doubt != Believed:
		return ClockDoubt, peer.ID
	case shut:
		return RuleShut, peer.ID
	}
	return NoRule, peer.ID
}

func (o *oracle) covers(r acl.Rule, pr acl.PortRange, proto uint8, port uint16) bool {
	if r.Action == acl.Accept && (proto == 1 || proto == 58) {
		return true // any accept between the two
	}
	protos := r.Protos
	if len(protos) == 0 {
		protos = []uint8{6, 17, 1, 58}
	}
	named := false
	for _, p := range protos {
		named = named || p == proto
	}
	if proto == 6 || proto == 17 || proto == 132 {
		return named && port >= pr.First && port <= pr.Last
	}
	return named && pr.First == 0 && pr.Last == 65535
}

// find is the live flow that p is of, if any, and whether p goes the way of its first packet.
func (o *oracle) find(p *said, now time.Time) (oracleFlow, *oracleState, bool) {
	reply := p.proto == 1 || p.proto == 58
	for k, s := range o.flows {
		forward := k.openedByRemote == p.inbound && k.src == p.src && k.dst == p.dst && k.sport == p.sport && k.dport == p.dport
		backward := k.openedByRemote != p.inbound && k.src == p.dst && k.dst == p.src && k.sport == p.dport && k.dport == p.sport
		if reply { // of an echo it is said which it is
			forward, backward = forward && !p.reply, backward && p.reply
		}
		if k.proto != p.proto || !forward && !backward {
			continue
		}
		if now.Sub(s.last) < k.idle(s) {
			return k, s, forward
		}
		delete(o.flows, k)
	}
	return oracleFlow{}, nil, false
}

// still says whether the rules admit a flow now.
func (o *oracle) still(k oracleFlow, s *oracleState, now time.Time) (Reason, acl.NodeID) {
	r, peer := o.rules(k.src, k.dst, k.proto, k.dport, k.openedByRemote, now)
	if r != ByRule && s.talk != nil && s.talk.crossed {
		if back, who := o.rules(k.dst, k.src, k.proto, k.sport, !k.openedByRemote, now); back == ByRule {
			return back, who
		}
	}
	return r, peer
}

// denied is reason r, unless an address is not its user's.
func (o *oracle) denied(p *said, r Reason, now time.Time) Reason {
	if why, _ := o.rules(p.src, p.dst, p.proto, p.dport, p.inbound, now); why == SrcNotOwned || why == DstNotOwned {
		return why
	}
	return r
}

// judge is the verdict on one packet.
func (o *oracle) judge(p *said, now time.Time) Reason {
	switch {
	case p.piece != nil && p.piece.off > 0:
		return o.later(p, now)
	case p.quote != nil:
		return o.about(p, now)
	case p.proto == 6 && !possible(p.flags):
		return o.denied(p, TCPFlags, now)
	}
	r := o.whole(p, now)
	if p.piece != nil && r.Allows() {
		return o.first(p, r, now)
	}
	return r
}

// possible reports whether a TCP may send these flags: a SYN neither ends nor pushes anything, and all but a first SYN
// and an RST acknowledge.
func possible(flags uint8) bool {
	has := func(f uint8) bool { return flags&f != 0 }
	switch {
	case has(syn):
		return !has(fin) && !has(rst) && !has(psh) && !has(urg)
	case has(rst):
		return !has(fin)
	}
	return has(ackFlag)
}

func (o *oracle) whole(p *said, now time.Time) Reason {
	if o.doubt == Believed && o.doubts(now) != Believed {
		o.look(now)
	}
	k, s, forward := o.find(p, now)
	who := opens1
	if !forward {
		who = opens2
	}
	if s != nil && !(s.talk != nil && s.talk.anew(p, who)) {
		if r, _ := o.still(k, s, now); r != ByRule {
			return r
		}
		if s.talk != nil {
			cross := func() Reason {
				r, _ := o.rules(p.src, p.dst, 6, p.dport, p.inbound, now)
				return r
			}
			if r := s.talk.hear(p, who, cross); r != ByFlow {
				return r
			}
		}
		s.last, s.replied = now, s.replied || !forward
		return ByFlow
	}
	r, peer := o.rules(p.src, p.dst, p.proto, p.dport, p.inbound, now)
	switch {
	case r == SrcNotOwned || r == DstNotOwned:
		return r
	case p.proto == 6 && p.kind() != syn:
		if p.inbound && p.flags&rst == 0 && r == ByRule {
			return TCPLost
		}
		return TCPNoFlow
	case p.proto == 132 && !p.init:
		return NoFlow
	case p.reply:
		return ICMPNoRequest
	case r != ByRule:
		return r
	}
	delete(o.flows, k)
	fresh := &oracleState{last: now}
	if p.proto == 6 {
		fresh.talk = &talk{}
		fresh.talk.end[opens1].greet(p)
	}
	k = oracleFlow{peer, p.proto, p.src, p.dst, p.sport, p.dport, p.inbound}
	o.flows[k], o.order = fresh, append(o.order, k)
	return ByRule
}

// about judges an ICMP error: it must be about a packet that its receiver has sent on a flow with its sender.
func (o *oracle) about(p *said, now time.Time) Reason {
	switch q := p.quote; {
	case p.src.Is4() && p.size() > 576, p.src.Is6() && p.size() > 1280:
		return o.denied(p, ICMPSize, now)
	case q.src != p.dst:
		return o.denied(p, ICMPNoFlow, now)
	default:
		if r := o.denied(p, ByRule, now); r != ByRule {
			return r
		}
		k, s, _ := o.find(q, now)
		if _, peer := o.rules(p.src, p.dst, p.proto, 0, p.inbound, now); s == nil || k.peer != peer {
			return ICMPNoFlow
		}
		if r, _ := o.still(k, s, now); r != ByRule {
			return r
		}
		return Related
	}
}

func (p *said) gram() oracleGram { return oracleGram{p.src, p.dst, p.proto, p.piece.id, p.inbound} }

// first enters a datagram whose first piece was admitted.
func (o *oracle) first(p *said, r Reason, now time.Time) Reason {
	if g := o.grams[p.gram()]; g != nil && now.Sub(g.at) < 15*time.Second {
		g.refused = true
		return FragOverlap
	}
	k, _, _ := o.find(p, now)
	g := &oraclePieces{key: k, at: now, have: map[int]bool{}, set: o.sets}
	o.grams[p.gram()] = g
	g.take(p.piece)
	return r
}

// later judges another piece: it passes if the first did, it overlaps nothing, and the rules still admit the flow.
func (o *oracle) later(p *said, now time.Time) Reason {
	g := o.grams[p.gram()]
	if g == nil || now.Sub(g.at) >= 15*time.Second {
		return o.denied(p, FragNoFirst, now)
	}
	if g.set != o.sets {
		k, s, _ := o.find(&said{src: g.key.src, dst: g.key.dst, proto: g.key.proto, sport: g.key.sport, dport: g.key.dport,
			inbound: g.key.openedByRemote}, now)
		if s == nil {
			g.refused = true
			return FragNoFirst
		}
		if r, _ := o.still(k, s, now); r != ByRule {
			g.refused = true
			return FragNoFirst
		}
	}
	if g.refused || !g.take(p.piece) {
		g.refused = true
		return FragOverlap
	}
	g.set = o.sets
	if 8*len(g.have) == g.end {
		delete(o.grams, p.gram())
	}
	return ByFragment
}

func (g *oraclePieces) take(p *piece) bool {
	past := p.off + p.n
	for at := range g.have {
		if 8*at >= p.off && 8*at < past || !p.more && 8*at >= past {
			return false
		}
	}
	if g.end > 0 && (past > g.end || !p.more) {
		return false
	}
	for at := p.off; at < past; at += 8 {
		g.have[at/8] = true
	}
	if !p.more {
		g.end = past
	}
	return true
}

// set drops what the new policy does not admit, and returns what that cuts.
func (o *oracle) set(c *Config, now time.Time) []oracleCut {
	o.c = c
	o.sets++
	return o.tick(now)
}

// confirm has somebody say what time it is.
func (o *oracle) confirm(theirs, now time.Time) []oracleCut {
	o.apart, o.told = now.Sub(theirs), ClockJumped
	if o.apart.Abs() > time.Minute {
		o.told = ClockApart
	}
	return o.tick(now)
}

func (o *oracle) tick(now time.Time) []oracleCut {
	o.look(now)
	ended := o.ended
	o.ended = nil
	return ended
}

// look asks about the clock and then, for every flow, whether the rules admit it still.
func (o *oracle) look(now time.Time) {
	if d := o.doubts(now); d != o.doubt {
		o.doubt = d
		o.sets++
	}
	for k, s := range o.flows {
		if now.Sub(s.last) >= k.idle(s) {
			delete(o.flows, k)
			continue
		}
		if r, peer := o.still(k, s, now); r != ByRule || peer != k.peer {
			delete(o.flows, k)
			o.ended = append(o.ended, oracleCut{k, s})
		}
	}
}

// some is one of the flows there are.
func (o *oracle) some(w world) (k oracleFlow, s *oracleState) {
	for len(o.order) > 0 {
		i := w.IntN(len(o.order))
		if k = o.order[i]; o.flows[k] != nil {
			return k, o.flows[k]
		}
		last := len(o.order) - 1
		o.order[i], o.order = o.order[last], o.order[:last]
	}
	return k, nil
}
