package filter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

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
	if w.IntN(2) == 0 { // so that much is said
		c.View.Rules = append(c.View.Rules, acl.Rule{Action: acl.Accept, Src: []string{"*"}, Dst: []acl.Target{{Set: "*", Ports: anyPort}}, Protos: worldProtos})
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

// said is a packet as its sender means it.
type said struct {
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16 // of an echo both are its identifier
	inbound      bool
	flags        uint8 // TCP, down to scale
	seq, ack     uint32
	win          uint16
	data         int
	scale        int   // that a SYN offers, or -1
	reply        bool  // of an echo
	init         bool  // of SCTP
	quote        *said // of an ICMP error
	pad          int   // bytes behind the quote; below zero, bytes cut from it
	piece        *piece
}

type piece struct {
	id     uint16
	off, n int
	more   bool
}

func (p *said) size() int { return len(p.bytes()) }

func (p *said) bytes() []byte {
	src, dst := p.src.String(), p.dst.String()
	var t l4
	switch {
	case p.quote != nil:
		q := p.quote.bytes()
		if p.pad < 0 { // down to what an error must quote
			q = q[:min(len(q), map[bool]int{true: 28, false: 48}[p.src.Is4()])]
		}
		q = append(slices.Clone(q), make([]byte, max(p.pad, 0))...)
		if p.src.Is4() {
			return ip(src, dst, icmp([]byte{3, 11, 12}[p.sport%3], 0, 0, q...))
		}
		return ip(src, dst, icmp([]byte{1, 2, 3, 4}[p.sport%4], 0, 1, q...))
	case p.proto == 6:
		var options []byte
		if p.scale >= 0 && p.flags&syn != 0 {
			options = []byte{2, 4, 5, 0xb4, 1, 3, 3, byte(p.scale)}
		}
		t = tcpSeg(p.sport, p.dport, p.flags, p.seq, p.ack, string(make([]byte, p.data)), options...)
		t.body[14], t.body[15] = byte(p.win>>8), byte(p.win)
	case p.proto == 17:
		t = udp(p.sport, p.dport, 4)
	case p.proto == 132:
		t = l4{132, udp(p.sport, p.dport, 12).body}
		if clear(t.body[4:]); p.init {
			t.body[12] = 1
		}
	case p.reply:
		return pong(src, dst, p.sport)
	case p.proto == 1 || p.proto == 58:
		return ping(src, dst, p.sport)
	default:
		t = l4{p.proto, make([]byte, 24)}
	}
	if f := p.piece; f != nil {
		if t.body = make([]byte, f.n); f.off == 0 && p.proto == 17 {
			copy(t.body, udp(p.sport, p.dport, 60000).body[:8])
		}
		return fragOf(src, dst, p.proto, f.id, f.off, f.more, t.body)
	}
	return ip(src, dst, t)
}

// trial is one policy in both.
type trial struct {
	*testing.T
	w     world
	o     *oracle
	f     *Filter
	now   time.Time
	seen  map[Reason]int
	stage map[stage]int
	focus oracleFlow // the flow that most is said on
	begun *said      // the newest first piece of a datagram
	log   [32]entry  // the last of them
	n     int
}

// entry is what was said and what followed.
type entry struct {
	at   time.Duration
	said said
	talk talk
	want Reason
}

func (e entry) String() string {
	p := &e.said
	what := fmt.Sprintf("%v %v %d %v:%d > %v:%d %v", e.at, map[bool]string{true: "in", false: "out"}[p.inbound], p.proto, p.src, p.sport, p.dst, p.dport, e.want)
	switch {
	case p.quote != nil:
		what += fmt.Sprintf(" about %+v", *p.quote)
	case p.piece != nil:
		what += fmt.Sprintf(" piece %+v", *p.piece)
	case p.proto == 6:
		what += fmt.Sprintf(" flags %x seq %d ack %d win %d data %d scale %d, then %+v", p.flags, p.seq, p.ack, p.win, p.data, p.scale, e.talk)
	}
	return what
}

func (r *trial) note(e entry) {
	r.log[r.n%len(r.log)] = e
	r.n++
}

// A million packets, or ten with HEDGE_FULL=1 in the environment. What they must lead to the first tenth of the million
// leads to, which is the same in every run.
func TestAgainstOracle(t *testing.T) {
	fixed, policies := 250, 2250
	switch {
	case os.Getenv("HEDGE_FULL") != "":
		policies = 25000
	case testing.Short():
		policies = 0
	}
	seen := trials(t, fixed, 1)
	for _, reason := range Reasons() {
		if never := slices.Contains(neverInTrials, reason); never == (seen[reason] > 0) {
			t.Errorf("%v came about %d times; does no trial lead to it? %v", reason, seen[reason], never)
		}
	}
	trials(t, policies, uint64(time.Now().UnixNano()))
}

// What no trial leads to: other tests see to these.
var neverInTrials = []Reason{Unknown, NoPolicy, Malformed, IPOptions, ExtHeader, ICMPType, FragTiny, FragFull, FlowsFull, PeerFull, FlowGone}

// trials holds a filter and an oracle against each other under so many policies, and counts what came about.
func trials(t *testing.T, policies int, seed uint64) map[Reason]int {
	const checks, packets = 100, 400
	t.Logf("seed %d", seed)
	w, seen, stages := world{rand.New(rand.NewPCG(seed, 1))}, map[Reason]int{}, map[stage]int{}
	for range policies {
		r := &trial{T: t, w: w, f: New(Options{}), now: t0, seen: seen, stage: stages,
			o: &oracle{c: w.config(), told: ClockJumped, flows: map[oracleFlow]*oracleState{}, grams: map[oracleGram]*oraclePieces{}}}
		r.cuts(r.f.Set(r.o.c, r.now), r.o.set(r.o.c, r.now))
		for i := range packets {
			if i%25 == 24 {
				r.set()
			}
			r.packet()
			if i%(packets/checks) == 0 {
				r.check()
			}
		}
	}
	t.Logf("%d policies, %d packets and %d questions: %v; of TCP in stages %v", policies, policies*packets, policies*checks, seen, stages)
	return seen
}

func (r *trial) compare(src, dst netip.Addr, got, want Reason) {
	r.Helper()
	r.seen[want]++
	if got != want {
		for i := max(0, r.n-len(r.log)); i < r.n; i++ {
			r.Log(r.log[i%len(r.log)])
		}
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
	named := want == ByRule || want == DenyRule || want == RuleExpired || want == RuleShut || want == ClockDoubt
	if v.Peer != peer || v.Allow != (want == ByRule) || (v.Rule != nil) != named {
		r.Fatalf("%v > %v: %+v, want peer %d", src, dst, v, peer)
	}
}

// set changes the policy under the flows, or what is known of the clock, or only lets time tell.
func (r *trial) set() {
	switch r.w.IntN(6) {
	case 0:
		c := r.w.config()
		if r.w.IntN(4) == 0 {
			c.NotBefore = r.now.Add(pick(r.w, leaps))
		}
		r.cuts(r.f.Set(c, r.now), r.o.set(c, r.now))
	case 1:
		r.cuts(r.f.Set(r.o.c, r.now), r.o.set(r.o.c, r.now))
	case 2:
		theirs := r.now.Add(pick(r.w, leaps) / 100 * time.Duration(r.w.IntN(3)))
		r.cuts(r.f.Confirm(theirs, r.now), r.o.confirm(theirs, r.now))
	default:
		r.cuts(r.f.Tick(r.now), r.o.tick(r.now))
	}
}

// leaps are by how much a clock may be wrong.
var leaps = []time.Duration{-30 * time.Hour, -2 * time.Minute, -time.Minute, -time.Second, 0, time.Second, time.Minute, 2 * time.Minute, 30 * time.Hour}

// leap sets the clock, which it may be that nobody notices before the next packet.
func (r *trial) leap() {
	by := pick(r.w, leaps)
	jump(r.f, by)
	r.o.apart += by
	if r.o.doubt != Believed || r.w.IntN(2) == 0 {
		r.cuts(r.f.Tick(r.now), r.o.tick(r.now))
	}
}

// cuts compares what was cut.
func (r *trial) cuts(got []Cut, want []oracleCut) {
	r.Helper()
	if r.f.Doubt() != r.o.doubt {
		r.Fatalf("the clock %v; the oracle says that it %v", r.f.Doubt(), r.o.doubt)
	}
	if len(got) != len(want) {
		r.Fatalf("%v by a clock that %v, and is %v ahead: cut %+v, oracle %+v\nrules %+v", r.now.Sub(t0), r.o.doubt, r.o.apart, got, want, r.o.c.View.Rules)
	}
	for i := range got {
		c := &got[i]
		at := slices.IndexFunc(want, func(w oracleCut) bool {
			k := w.key
			return k.peer == c.Peer && k.proto == c.Proto && netip.AddrPortFrom(k.src, k.sport) == c.Src && netip.AddrPortFrom(k.dst, k.dport) == c.Dst
		})
		if at < 0 {
			r.Fatalf("cut %+v, which the oracle does not", c)
		}
		r.resets(c, want[at].key, want[at].state.talk)
		want = slices.Delete(want, at, at+1)
	}
}

// resets checks that both ends of a connection that was cut are told so, each at its place.
func (r *trial) resets(c *Cut, k oracleFlow, t *talk) {
	if t == nil {
		r.errors(c, k)
		return
	}
	if told := t.stage < left; told != (c.ToPeer != nil) || told != (c.ToSelf != nil) {
		r.Fatalf("%+v is told to %v and %v", k, c.ToPeer, c.ToSelf)
	} else if !told {
		return
	}
	to := [2][][]byte{c.ToSelf, c.ToPeer} // by the opener, and who answers
	if k.openedByRemote {
		to = [2][][]byte{c.ToPeer, c.ToSelf}
	}
	for who, told := range to {
		var p packet
		b := told[len(told)-1] // behind all that was sent
		if _, ok := p.parse(b); !ok || p.flags != rst|ackFlag {
			r.Fatalf("RST % x", b)
		}
		me, other := &t.end[who], &t.end[1-who]
		if t.stage > saidSYN && (p.seq != other.seq(other.sent) || p.ack != me.seq(me.sent)) {
			r.Fatalf("RST at %d, want %d; it acknowledges %d, want %d", p.seq, other.seq(other.sent), p.ack, me.seq(me.sent))
		}
	}
}

// errors checks that who opened a flow without RSTs is told of its end, by an ICMP error that quotes it, from the other.
func (r *trial) errors(c *Cut, k oracleFlow) {
	told, self := c.ToSelf, false
	if k.openedByRemote {
		told, self = c.ToPeer, true
	}
	if len(told) != 1 {
		r.Fatalf("%+v is told %d times", k, len(told))
	}
	var p, q packet
	b := told[0]
	if _, ok := p.parse(b); !ok || p.icmp != icmpError || !q.quote(p.l4[8:], p.v6) {
		r.Fatalf("%+v is told % x", k, b)
	}
	checkSums(r, b)
	if p.src != q.dst || p.dst != q.src || p.src != addrOf(k.dst) || p.dst != addrOf(k.src) || q.proto != k.proto || q.sport != k.sport {
		r.Fatalf("%+v (ours: %v) is told % x", k, self, b)
	}
}

// packet sends both a packet, a little later, mostly of a flow there is.
func (r *trial) packet() {
	r.now = r.now.Add(time.Duration(r.w.IntN(12)) * time.Second)
	if r.w.IntN(600) == 0 {
		r.now = r.now.Add(time.Duration(r.w.IntN(30)) * time.Hour)
	}
	if r.w.IntN(100) == 0 {
		r.leap()
	}
	p, t, who := r.some()
	switch {
	case r.begun != nil && r.w.IntN(5) == 0: // more of it
		next := *r.begun
		if p, t = &next, nil; r.w.IntN(4) > 0 {
			f := *p.piece
			f.off, f.more = f.n*(1+r.w.IntN(4)), r.w.IntN(3) > 0
			p.piece = &f
		}
	case p.proto == 6:
		r.segment(p, t, who)
	case (p.proto == 17 || p.proto == 47) && r.w.IntN(3) == 0:
		p.piece = &piece{id: uint16(r.w.IntN(3)), off: 256 * r.w.IntN(5), n: 256 + 256*r.w.IntN(2), more: r.w.IntN(3) > 0}
		if p.piece.off == 0 || r.w.IntN(4) == 0 {
			p.piece.off, p.piece.more = 0, true
		}
	case p.proto == 132:
		p.init = r.w.IntN(3) > 0
	}
	if r.w.IntN(12) == 0 && p.piece == nil { // an error about it, if not something else
		p = &said{src: p.dst, dst: p.src, proto: 1, sport: uint16(r.w.IntN(12)), inbound: !p.inbound, quote: p, pad: pick(r.w, []int{-1, 0, 1, 500, 1300})}
		if p.src.Is6() {
			p.proto = 58
		}
		if r.w.IntN(5) == 0 {
			a, b := r.w.addrs()
			if p.inbound && a.Is4() == p.src.Is4() {
				p.src = a
			} else if b.Is4() == p.src.Is4() {
				p.dst = b
			}
		}
	}
	pkt := p.bytes()
	want := r.o.judge(p, r.now)
	if p.piece != nil && p.piece.off == 0 && want.Allows() {
		r.begun = p
	}
	judge := r.f.Out
	if p.inbound {
		judge = r.f.In
	}
	got := judge(pkt, r.now).Reason
	e := entry{at: r.now.Sub(t0), said: *p, want: want}
	if t != nil {
		e.talk = *t
	}
	r.note(e)
	r.compare(p.src, p.dst, got, want)
}

// some is a packet of a flow there is, or of none, with its connection and which end of that sends it.
func (r *trial) some() (p *said, t *talk, who int) {
	k, s := r.focus, r.o.flows[r.focus]
	if s == nil || r.w.IntN(12) == 0 {
		k, s = r.o.some(r.w)
		r.focus = k
	}
	if s == nil || r.w.IntN(4) == 0 {
		dst, src := r.w.addrs()
		p = &said{src: src, dst: dst, proto: pick(r.w, []uint8{6, 6, 6, 17, 17, 1, 1, 132, 47, 4}), sport: pick(r.w, worldPorts),
			dport: pick(r.w, worldPorts), inbound: r.w.IntN(2) == 0}
		if p.inbound {
			p.src, p.dst = dst, src
		}
		switch p.proto {
		case 1:
			if p.src.Is6() {
				p.proto = 58
			}
			p.reply, p.dport = r.w.IntN(4) == 0, p.sport
		case 47, 4:
			p.sport, p.dport = 0, 0
		}
		_, s, forward := r.o.find(p, r.now)
		if s != nil && !forward {
			who = opens2
		}
		if s != nil {
			t = s.talk
		}
		return p, t, who
	}
	p = &said{src: k.src, dst: k.dst, proto: k.proto, sport: k.sport, dport: k.dport, inbound: k.openedByRemote}
	if r.w.IntN(2) == 0 {
		p.src, p.dst, p.sport, p.dport, p.inbound, who = p.dst, p.src, p.dport, p.sport, !p.inbound, opens2
		p.reply = p.proto == 1 || p.proto == 58
	}
	return p, s.talk, who
}
