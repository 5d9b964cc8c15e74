package filter

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// oracle is the policy as it is written, slow and obvious: it asks every rule about every packet, remembers flows in
// a map, and shares no code with the filter but the types of acl. Random policies, packets, changes of policy and
// leaps of time must get the same answers from both.
type oracle struct {
	c     *Config
	flows map[oracleFlow]*oracleState
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
	stage   int // of TCP: the last segment of the handshake that was seen, 0 to 2
}

// idle is how long a flow lives without a packet.
func (k oracleFlow) idle(s *oracleState) time.Duration {
	switch {
	case k.proto == 6:
		return [...]time.Duration{2 * time.Minute, time.Minute, 24 * time.Hour}[s.stage]
	case k.proto == 17 && s.replied:
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
	return peer, isOurs, longest == 0, longest > 0
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
		over := !r.Expires.IsZero() && !now.Before(r.Expires)
		switch {
		case r.Action == acl.Deny && r.InForce(now):
			return DenyRule, peer.ID
		case r.Action == acl.Accept && r.Window != "" && !r.InForce(now):
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

// packet judges UDP and echo with state, and TCP SYNs without. kind is 0 for a packet, 1 for an echo reply.
func (o *oracle) packet(src, dst netip.Addr, proto uint8, sport, dport uint16, reply, inbound bool, now time.Time) Reason {
	alive := func(k oracleFlow) *oracleState {
		s := o.flows[k]
		if s == nil {
			return nil
		}
		if now.Sub(s.last) >= k.idle(s) {
			delete(o.flows, k)
			return nil
		}
		return s
	}
	for k := range o.flows {
		forward := k.openedByRemote == inbound && k.src == src && k.dst == dst && k.sport == sport && k.dport == dport && !reply
		backward := k.openedByRemote != inbound && k.src == dst && k.dst == src && k.sport == dport && k.dport == sport && (reply || proto == 17)
		if k.proto != proto || !forward && !backward {
			continue
		}
		s := alive(k)
		if s == nil {
			continue
		}
		if r, _ := o.rules(k.src, k.dst, k.proto, k.dport, k.openedByRemote, now); r != ByRule {
			return r
		}
		s.last, s.replied = now, s.replied || backward
		return ByFlow
	}
	r, peer := o.rules(src, dst, proto, dport, inbound, now)
	if reply && r != SrcNotOwned && r != DstNotOwned {
		return ICMPNoRequest
	}
	if r == ByRule {
		o.flows[oracleFlow{peer, proto, src, dst, sport, dport, inbound}] = &oracleState{last: now}
	}
	return r
}

// Of TCP the oracle knows connections without data, in which openers count from 1000 and responders from 5000.
const (
	segSYN = iota
	segSYNACK
	segACK
	segStray // far outside every window
	segKinds
)

// segment judges a TCP segment, and writes it as whoever sends it would.
func (o *oracle) segment(src, dst netip.Addr, sport, dport uint16, kind int, inbound bool, now time.Time) (l4, Reason) {
	write := func(mine, others uint32) l4 {
		switch kind {
		case segSYN:
			return tcpSeg(sport, dport, syn, mine, 0, "")
		case segSYNACK:
			return tcpSeg(sport, dport, syn|ackFlag, mine, others+1, "")
		case segStray:
			return tcpSeg(sport, dport, ackFlag, mine+1<<30, others+1, "")
		}
		return tcpSeg(sport, dport, ackFlag, mine+1, others+1, "")
	}
	for k, s := range o.flows {
		opener := k.openedByRemote == inbound && k.src == src && k.dst == dst && k.sport == sport && k.dport == dport
		responder := k.openedByRemote != inbound && k.src == dst && k.dst == src && k.sport == dport && k.dport == sport
		if k.proto != 6 || !opener && !responder {
			continue
		}
		if now.Sub(s.last) >= k.idle(s) {
			delete(o.flows, k)
			break
		}
		seg := write(1000, 5000)
		if responder {
			seg = write(5000, 1000)
		}
		if r, _ := o.rules(k.src, k.dst, 6, k.dport, k.openedByRemote, now); r != ByRule {
			return seg, r
		}
		r := o.handshake(s, opener, kind)
		if r == ByFlow {
			s.last = now
		}
		return seg, r
	}
	r, peer := o.rules(src, dst, 6, dport, inbound, now)
	switch {
	case r == SrcNotOwned || r == DstNotOwned:
	case kind != segSYN && inbound && r == ByRule:
		r = TCPLost
	case kind != segSYN:
		r = TCPNoFlow
	case r == ByRule:
		o.flows[oracleFlow{peer, 6, src, dst, sport, dport, inbound}] = &oracleState{last: now}
	}
	return write(1000, 5000), r
}

// handshake is what may come next: SYN, SYN+ACK, ACK, and anything again.
func (o *oracle) handshake(s *oracleState, opener bool, kind int) Reason {
	switch {
	case kind == segSYN && opener:
		return ByFlow
	case kind == segSYNACK && !opener:
		s.stage = max(s.stage, 1)
		return ByFlow
	case kind == segSYN, kind == segSYNACK:
		return TCPState
	case s.stage == 0 && !opener: // it may ask whether this is an old connection
		return ByFlow
	case s.stage == 0:
		return TCPState
	case kind == segStray:
		return TCPSeq
	case opener:
		s.stage = 2
	}
	return ByFlow
}

// set drops what the new policy does not admit, and reports how many flows that cut.
func (o *oracle) set(c *Config, now time.Time) (cut int) {
	o.c = c
	for k, s := range o.flows {
		if now.Sub(s.last) >= k.idle(s) {
			delete(o.flows, k)
			continue
		}
		if r, peer := o.rules(k.src, k.dst, k.proto, k.dport, k.openedByRemote, now); r != ByRule || peer != k.peer {
			delete(o.flows, k)
			cut++
		}
	}
	return cut
}

// world makes random things out of small vocabularies, so that they meet.
type world struct{ *rand.Rand }

var (
	worldAddrs = []string{v4, v6, a4, a6, x4, x6, r4, r6, "100.64.0.4", "fd68::4", "10.9.0.1", "10.9.1.1", "10.3.0.1", "10.3.200.7",
		"10.4.0.1", "8.8.8.8", "192.168.1.1", "2001:db8::1", "fd00:3::1", "127.0.0.1", "169.254.1.1", "fe80::1", "224.0.0.1", "::1"}
	worldRoutes = []string{"10.3.0.0/16", "10.9.0.0/16", "10.9.1.0/24", "10.0.0.0/8", "0.0.0.0/0", "::/0", "fd00:3::/32", "192.168.1.0/24", "100.64.0.0/29", "100.0.0.0/8", "fd68::/64"}
	worldSets   = []string{"*", "g0", "g1", "g2", "h0", "h1", "h2", "mix", "autogroup:internet", "missing"}
	worldPorts  = []uint16{0, 1, 22, 53, 80, 443, 65535}
	// t0 is noon of a Sunday in UTC.
	worldWindows = []acl.Window{"Sun 12:01-12:03 UTC", "Sun 00:00-12:02,12:04-24:00 UTC", "Mon-Fri 08:00-18:00 Europe/Zurich", "daily 13:02-23:00 Europe/Zurich", "nonsense"}
	worldProtos  = []uint8{6, 17, 1, 58, 47, 132, 4}
)

func pick[T any](w world, list []T) T { return list[w.IntN(len(list))] }

func (w world) prefix() netip.Prefix {
	if w.IntN(3) == 0 {
		return netip.MustParsePrefix(pick(w, worldRoutes))
	}
	a := netip.MustParseAddr(pick(w, worldAddrs))
	p, _ := a.Prefix(w.IntN(a.BitLen() + 1))
	return p
}

func (w world) config() *Config {
	c := &Config{Self: node(idV, "v", []string{v4, v6})}
	peers := []acl.Node{node(1, "a", []string{a4, a6}), node(2, "x", []string{x4, x6}), node(3, "r", []string{r4, r6}), node(4, "q", []string{"100.64.0.4", "fd68::4"})}
	for i := range peers {
		for range w.IntN(3) {
			peers[i].Routes = append(peers[i].Routes, netip.MustParsePrefix(pick(w, worldRoutes)))
		}
		if w.IntN(5) > 0 {
			c.Peers = append(c.Peers, peers[i])
		}
	}
	if w.IntN(2) == 0 {
		c.Mesh = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd68::/32")}
	}
	for range w.IntN(3) {
		c.Self.Routes = append(c.Self.Routes, netip.MustParsePrefix(pick(w, worldRoutes)))
	}
	c.View.Sets = map[string]acl.Set{"*": {Any: true}, "autogroup:internet": prefixSet("8.0.0.0/7", "2000::/3")}
	for _, name := range worldSets[1:8] {
		var s acl.Set
		for id := range acl.NodeID(10) {
			if name[0] != 'h' && w.IntN(4) == 0 {
				s.Nodes = append(s.Nodes, id)
			}
		}
		for name[0] != 'g' && w.IntN(2) == 0 {
			s.Prefixes = append(s.Prefixes, w.prefix())
		}
		c.View.Sets[name] = s
	}
	for range 1 + w.IntN(8) {
		r := acl.Rule{Action: acl.Accept}
		if w.IntN(6) == 0 {
			r.Action = acl.Deny
		}
		for range 1 + w.IntN(2) {
			r.Src = append(r.Src, pick(w, worldSets))
		}
		for range 1 + w.IntN(2) {
			t := acl.Target{Set: pick(w, worldSets)}
			for range 1 + w.IntN(2) {
				pr := acl.PortRange{First: pick(w, worldPorts), Last: pick(w, worldPorts)}
				if pr.First > pr.Last {
					pr.First, pr.Last = pr.Last, pr.First
				}
				t.Ports = append(t.Ports, pr)
			}
			r.Dst = append(r.Dst, t)
		}
		for w.IntN(2) == 0 {
			r.Protos = append(r.Protos, pick(w, worldProtos))
		}
		if w.IntN(4) == 0 {
			r.Expires = after(time.Duration(w.IntN(300)) * time.Second)
		}
		if w.IntN(4) == 0 {
			r.Window = pick(w, worldWindows)
		}
		c.View.Rules = append(c.View.Rules, r)
	}
	return c
}

// addrs picks two of one family, and sees to it that most are of V and a peer.
func (w world) addrs() (remote, local netip.Addr) {
	for {
		remote, local = netip.MustParseAddr(pick(w, worldAddrs)), netip.MustParseAddr(pick(w, worldAddrs))
		if w.IntN(3) > 0 {
			remote = netip.MustParseAddr(pick(w, worldAddrs[2:10]))
		}
		if w.IntN(3) > 0 {
			local = netip.MustParseAddr(pick(w, worldAddrs[:2]))
		}
		if remote.Is4() == local.Is4() {
			return
		}
	}
}

// trial is one policy in both.
type trial struct {
	*testing.T
	w    world
	o    *oracle
	f    *Filter
	now  time.Time
	seen map[Reason]int
}

// A million packets, or ten with HEDGE_FULL=1 in the environment.
func TestAgainstOracle(t *testing.T) {
	policies, checks, packets := 2500, 100, 400
	switch {
	case os.Getenv("HEDGE_FULL") != "":
		policies *= 10
	case testing.Short():
		policies = 100
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w, seen := world{rand.New(rand.NewPCG(seed, 1))}, map[Reason]int{}
	for range policies {
		r := &trial{t, w, &oracle{c: w.config(), flows: map[oracleFlow]*oracleState{}}, New(Options{}), t0, seen}
		r.f.Set(r.o.c, r.now)
		for range checks {
			r.check()
		}
		for i := range packets {
			if i%25 == 24 {
				r.set()
			}
			r.packet()
		}
	}
	t.Logf("%d policies, %d packets and %d questions: %v", policies, policies*packets, policies*checks, seen)
}

func (r *trial) compare(src, dst netip.Addr, got, want Reason) {
	r.Helper()
	r.seen[want]++
	if got != want {
		r.Fatalf("%v > %v: filter says %v, oracle %v\nself %+v\npeers %+v\nrules %+v\nsets %+v", src, dst, got, want,
			r.o.c.Self, r.o.c.Peers, r.o.c.View.Rules, r.o.c.View.Sets)
	}
}

// check asks both whether a flow might begin, at some time.
func (r *trial) check() {
	src, dst := r.w.addrs()
	proto, port := pick(r.w, worldProtos), pick(r.w, worldPorts)
	if proto == 1 && !src.Is4() || proto == 58 && src.Is4() {
		proto ^= 1 ^ 58
	}
	at := r.now.Add(time.Duration(r.w.IntN(400)) * time.Second)
	_, outbound, _, _ := r.o.owner(src)
	want, peer := r.o.rules(src, dst, proto, port, !outbound, at)
	v := r.f.Check(netip.AddrPortFrom(src, 9), netip.AddrPortFrom(dst, port), proto, at)
	r.compare(src, dst, v.Reason, want)
	named := want == ByRule || want == DenyRule || want == RuleExpired || want == RuleShut
	if v.Peer != peer || v.Allow != (want == ByRule) || (v.Rule != nil) != named {
		r.Fatalf("%v > %v: %+v, want peer %d", src, dst, v, peer)
	}
}

// set changes the policy under the flows, or not.
func (r *trial) set() {
	c := r.o.c
	if r.w.IntN(2) == 0 {
		c = r.w.config()
	}
	if cuts, want := r.f.Set(c, r.now), r.o.set(c, r.now); len(cuts) != want {
		r.Fatalf("Set cut %+v, oracle %d", cuts, want)
	}
}

// packet sends both a UDP or echo packet, a little later, often of a flow there is.
func (r *trial) packet() {
	r.now = r.now.Add(time.Duration(r.w.IntN(12)) * time.Second)
	dst, src := r.w.addrs()
	sport, dport, inbound, reply := pick(r.w, worldPorts), pick(r.w, worldPorts), r.w.IntN(2) == 0, false
	if inbound {
		src, dst = dst, src
	}
	if len(r.o.flows) > 0 && r.w.IntN(2) == 0 {
		for k := range r.o.flows {
			src, dst, sport, dport, inbound = k.src, k.dst, k.sport, k.dport, k.openedByRemote
			if r.w.IntN(2) == 0 {
				src, dst, sport, dport, inbound, reply = dst, src, dport, sport, !inbound, true
			}
			break
		}
	}
	if r.w.IntN(3) == 0 {
		r.segment(src, dst, sport, dport, inbound)
		return
	}
	pkt, proto := ip(src.String(), dst.String(), udp(sport, dport, 4)), uint8(17)
	switch {
	case r.w.IntN(3) > 0:
		reply = false
	case reply:
		pkt = pong(src.String(), dst.String(), sport)
	default:
		pkt = ping(src.String(), dst.String(), sport)
	}
	if _, _, proto, _ = Tuple(pkt); proto != 17 {
		dport = sport
	}
	want := r.o.packet(src, dst, proto, sport, dport, reply, inbound, r.now)
	judge := r.f.Out
	if inbound {
		judge = r.f.In
	}
	r.compare(src, dst, judge(pkt, r.now).Reason, want)
}

// segment sends both a TCP segment. SYNs that cross are left to TestSimultaneousOpen.
func (r *trial) segment(src, dst netip.Addr, sport, dport uint16, inbound bool) {
	kind := r.w.IntN(segKinds)
	for k, s := range r.o.flows {
		if kind == segSYN && k.proto == 6 && s.stage == 0 && k.src == dst && k.sport == dport {
			kind = segStray
		}
	}
	seg, want := r.o.segment(src, dst, sport, dport, kind, inbound, r.now)
	judge := r.f.Out
	if inbound {
		judge = r.f.In
	}
	r.compare(src, dst, judge(ip(src.String(), dst.String(), seg), r.now).Reason, want)
}
