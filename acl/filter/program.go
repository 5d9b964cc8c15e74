package filter

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// program is what addresses of one class may send to addresses of another. It is compiled when the first packet
// between the two asks for it, and again when a rule of it has entered or left its window. Of its cache
// lines a verdict mostly reads the first two alone.
type program struct {
	src, dst       int32
	from, until    int64 // Unix ns: between them no window opens or shuts
	tcp, udp, sctp *portTable
	icmp           [2]cell // echo: ICMP, ICMPv6

	recent [8]answer

	other        []otherCell
	asker, asked addr // two of these classes, from which the next snapshot knows that they are in use
	work         int  // how many matches it was compiled from
}

// cell is the answer for one kind of packet: of the accepts and of the denies that match, the one that is in force
// longest. While no window opens or shuts rules only ever end, so it stands for all of them. An accept outside its
// window is named if there is no other, as shut(rule).
type cell struct{ accept, deny int32 }

const noRule = -1

func shut(rule int32) int32 { return -2 - rule }

var closed = cell{noRule, noRule}

// portTable splits the 65,536 ports into intervals, each with a cell. Where intervals begin is a set of bits, of which
// only the words that are not zero are kept, and which interval a port is in is how many begin up to it: so it is found
// in the same time whether there is one or are thousands.
//
//	port  = 4 bits: top[i] ─ 6 bits: of its bits ─ 6 bits: of the word's bits
//
// What most ports need of it, which are below 4,096, begins with one cache line.
type portTable struct {
	cells []cell
	words []portWord   // a bit for each beginning; before counts those. The first is empty
	top   [16]portWord // a bit for each word that is kept; before counts those words
}

type portWord struct {
	bits   uint64
	before int32 // set bits in all the words before this
}

type otherCell struct {
	proto uint8
	cell
}

// rank counts the set bits up to the n-th.
func (w *portWord) rank(n uint16) int { return int(w.before) + bits.OnesCount64(w.bits<<(63-n&63)) }

func (t *portTable) at(port uint16) cell {
	top, word := &t.top[port>>12], port>>6&63
	w := &t.words[top.rank(word)] // this port's word, or if there is none the last before it, of which all bits count
	if top.bits>>word&1 == 0 {
		port = 63
	}
	return t.cells[w.rank(port&63)-1]
}

// newPortTable makes one of the intervals that begin at first, in order, the first at 0.
func newPortTable(first []int32, cells []cell) *portTable {
	t := &portTable{cells: slices.Clone(cells), words: make([]portWord, 1, 1+len(cells))}
	for i, port := range first {
		word := &t.top[port>>12]
		if bit := uint64(1) << (port >> 6 & 63); word.bits&bit == 0 {
			word.bits |= bit
			t.words = append(t.words, portWord{before: int32(i)})
		}
		t.words[len(t.words)-1].bits |= 1 << (port & 63)
	}
	for i := range t.top[1:] {
		t.top[i+1].before = t.top[i].before + int32(bits.OnesCount64(t.top[i].bits))
	}
	return t
}

// portTable is newPortTable, except that the same answer for all ports is kept but once: for most pairs of classes it
// is all there is.
func (s *snapshot) portTable(first []int32, cells []cell) *portTable {
	if len(cells) > 1 {
		return newPortTable(first, cells)
	}
	t, ok := s.plain.Load(cells[0])
	if !ok {
		t, _ = s.plain.LoadOrStore(cells[0], newPortTable(first, cells))
	}
	return t.(*portTable)
}

// answer is what a portTable said of a port, in one word, so that it can be read and written without a lock. Many classes
// have more tables between them than fit the processor's cache, but of each few ports are asked about.
//
//	protocol: 8 ─ port: 16 ─ accept + 2^19: 20 ─ deny + 2^19: 20
type answer struct{ atomic.Uint64 }

const answerMid = 1 << 19

// of looks for the answer to key, which is protocol and port and never zero.
func (a *answer) of(key uint64) (cell, bool) {
	v := a.Load()
	return cell{int32(v>>20&(2*answerMid-1)) - answerMid, int32(v&(2*answerMid-1)) - answerMid}, v>>40 == key
}

// keep keeps an answer, unless the rules are too many for its bits.
func (a *answer) keep(key uint64, c cell) {
	accept, deny := uint64(int64(c.accept)+answerMid), uint64(int64(c.deny)+answerMid)
	if accept < 2*answerMid && deny < 2*answerMid {
		a.Store(key<<40 | accept<<20 | deny)
	}
}

// at finds the cell of a protocol and a destination port.
func (g *program) at(proto uint8, port uint16) cell {
	var t *portTable
	switch proto {
	case protoTCP:
		t = g.tcp
	case protoUDP:
		t = g.udp
	case protoSCTP:
		t = g.sctp
	default:
		return g.portless(proto)
	}
	key := uint64(proto)<<16 | uint64(port)
	recent := &g.recent[key&7^key>>16&7]
	c, ok := recent.of(key)
	if !ok {
		c = t.at(port)
		recent.keep(key, c)
	}
	return c
}

func (g *program) portless(proto uint8) cell {
	switch proto {
	case protoICMP:
		return g.icmp[0]
	case protoICMPv6:
		return g.icmp[1]
	}
	for i := range g.other {
		if g.other[i].proto == proto {
			return g.other[i].cell
		}
	}
	return closed
}

// hasProto reports whether r is about proto; without a list it is about TCP, UDP and both ICMPs.
func hasProto(r *acl.Rule, proto uint8) bool {
	if len(r.Protos) == 0 {
		return proto == protoTCP || proto == protoUDP || proto == protoICMP || proto == protoICMPv6
	}
	return slices.Contains(r.Protos, proto)
}

// match is a rule of a program with the ports of one of its targets.
type match struct {
	rule  int32
	ends  int64 // Unix ns; a rule outside its window has ended
	ports []acl.PortRange
}

// build compiles the program from src to dst for a time around wall.
func (s *snapshot) build(src, dst int32, wall int64) *program {
	from := make([]uint64, (len(s.rules)+63)/64)
	for _, set := range s.classes[src] {
		for _, r := range s.srcRules[set] {
			from[r>>6] |= 1 << (r & 63)
		}
	}
	g := &program{src: src, dst: dst, from: math.MinInt64, until: math.MaxInt64, icmp: [2]cell{closed, closed}}
	var found []match
	for _, set := range s.classes[dst] {
		for _, t := range s.dstRules[set] {
			if from[t.rule>>6]&(1<<(t.rule&63)) == 0 {
				continue
			}
			r, m := &s.rules[t.rule], match{rule: t.rule, ends: s.expires[t.rule]}
			switch deny := r.Action == acl.Deny; {
			case r.Window == "", s.doubt != Believed && deny:
			case s.doubt == Believed && g.within(r, wall):
			case deny:
				continue
			default:
				m.ends = math.MinInt64
			}
			m.ports = r.Dst[t.target].Ports
			found = append(found, m)
		}
	}
	slices.SortFunc(found, func(a, b match) int { return cmp.Or(cmp.Compare(b.ends, a.ends), cmp.Compare(a.rule, b.rule)) })
	g.work = len(found)
	g.tcp, g.udp, g.sctp = s.ports(found, protoTCP), s.ports(found, protoUDP), s.ports(found, protoSCTP)
	for _, m := range found {
		s.buildPortless(g, m)
	}
	return g
}

// within reports whether a rule with a window is in force at wall, and has the program end when that changes.
func (g *program) within(r *acl.Rule, wall int64) bool {
	now := time.Unix(0, wall)
	g.from = wall
	if next := r.Next(now); !next.IsZero() {
		g.until = min(g.until, unixNano(next))
	}
	return r.InForce(now)
}

// buildPortless enters m for the protocols that have no ports. Those are matched by AllPorts only, except that any
// accept between two nodes lets them ping.
func (s *snapshot) buildPortless(g *program, m match) {
	r := &s.rules[m.rule]
	all := slices.Contains(m.ports, acl.AllPorts)
	for i, proto := range [...]uint8{protoICMP, protoICMPv6} {
		if r.Action == acl.Accept && len(m.ports) > 0 || all && hasProto(r, proto) {
			s.enter(&g.icmp[i], m)
		}
	}
	if !all {
		return
	}
	for _, proto := range r.Protos {
		switch proto {
		case protoTCP, protoUDP, protoSCTP, protoICMP, protoICMPv6:
			continue
		}
		i := slices.IndexFunc(g.other, func(o otherCell) bool { return o.proto == proto })
		if i < 0 {
			i = len(g.other)
			g.other = append(g.other, otherCell{proto, closed})
		}
		s.enter(&g.other[i].cell, m)
	}
}

// enter puts a rule in a cell unless a better one, which came before, is there.
func (s *snapshot) enter(c *cell, m match) {
	switch {
	case s.rules[m.rule].Action == acl.Deny:
		if c.deny == noRule {
			c.deny = m.rule
		}
	case c.accept != noRule:
	case m.ends == math.MinInt64 && s.rules[m.rule].Window != "":
		c.accept = shut(m.rule)
	default:
		c.accept = m.rule
	}
}

// stripe is one range of one rule, from lo up to hi.
type stripe struct {
	lo, hi int32
	match
}

// ports lays the ranges for one protocol side by side. The rules paint their ranges, best first, and what is painted
// stays: so the work does not depend on how many overlap.
func (s *snapshot) ports(found []match, proto uint8) *portTable {
	var stripes []stripe
	bounds := []int32{0, 65536}
	for _, m := range found {
		if !hasProto(&s.rules[m.rule], proto) {
			continue
		}
		for _, pr := range m.ports {
			if pr.First <= pr.Last {
				st := stripe{int32(pr.First), int32(pr.Last) + 1, m}
				stripes, bounds = append(stripes, st), append(bounds, st.lo, st.hi)
			}
		}
	}
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	cells := make([]cell, len(bounds)-1)
	for i := range cells {
		cells[i] = closed
	}
	accepts, denies := newBrush(len(cells)), newBrush(len(cells))
	for _, st := range stripes {
		lo, _ := slices.BinarySearch(bounds, st.lo)
		hi, _ := slices.BinarySearch(bounds, st.hi)
		if s.rules[st.rule].Action == acl.Deny {
			denies.paint(lo, hi, func(i int) { s.enter(&cells[i], st.match) })
		} else {
			accepts.paint(lo, hi, func(i int) { s.enter(&cells[i], st.match) })
		}
	}
	first, last := bounds[:1], cells[:1]
	for i, c := range cells[1:] {
		if c != last[len(last)-1] {
			first, last = append(first, bounds[i+1]), append(last, c) // in place: never ahead of i
		}
	}
	return s.portTable(first, last)
}

// brush paints each cell once: next[i] leads to the first unpainted cell from i on.
type brush []int32

func newBrush(n int) brush {
	b := make(brush, n+1)
	for i := range b {
		b[i] = int32(i)
	}
	return b
}

func (b brush) unpainted(i int) int {
	for int(b[i]) != i {
		b[i] = b[b[i]]
		i = int(b[i])
	}
	return i
}

func (b brush) paint(lo, hi int, cell func(int)) {
	for i := b.unpainted(lo); i < hi; i = b.unpainted(i) {
		cell(i)
		b[i] = int32(i + 1)
	}
}

// programCache holds the programs compiled so far: a pair's is in one of the ways slots from its place on. When they
// are all taken by others the first is replaced, so its memory is bounded whatever is asked.
type programCache struct {
	slots []atomic.Pointer[program]
	mask  uint64
}

const ways = 8

func (pc *programCache) init(classes int) {
	size := 1 << 10
	for size < 8*classes && size < 1<<18 {
		size *= 2
	}
	pc.slots, pc.mask = make([]atomic.Pointer[program], size), uint64(size-1)
}

// program is that of two addresses, of these classes, at wall.
func (s *snapshot) program(src, dst *addr, at way, wall int64) *program {
	pc := &s.programs
	// Who sends to one class share cache lines: mostly it is this node's.
	h := uint64(uint32(at.dst))*0x9e3779b97f4a7c15>>32 + uint64(uint32(at.src))
	for i := range uint64(ways) {
		slot := &pc.slots[(h+i)&pc.mask]
		g := slot.Load()
		if g == nil {
			g = s.compile(src, dst, at, wall)
			slot.CompareAndSwap(nil, g)
			return g
		}
		if g.src == at.src && g.dst == at.dst {
			if wall < g.from || g.until <= wall {
				g = s.compile(src, dst, at, wall)
				slot.Store(g)
			}
			return g
		}
	}
	g := s.compile(src, dst, at, wall)
	pc.slots[h&pc.mask].Store(g)
	return g
}

func (s *snapshot) compile(src, dst *addr, at way, wall int64) *program {
	g := s.build(at.src, at.dst, wall)
	g.asker, g.asked = *src, *dst
	return g
}

// way is from which class to which a packet goes.
type way struct{ src, dst int32 }

// rule judges one kind of packet by the rules alone, at a moment, and says until when (Unix ns) that stands.
func (s *snapshot) rule(src, dst *addr, at way, proto uint8, port uint16, m moment) (Reason, int32, int64) {
	g := s.program(src, dst, at, m.late)
	c := g.at(proto, port)
	if c.deny != noRule && m.early < s.expires[c.deny] {
		return DenyRule, c.deny, 0
	}
	if c.accept < 0 {
		if c.accept == noRule {
			return NoRule, noRule, 0
		}
		if s.doubt != Believed {
			return ClockDoubt, shut(c.accept), 0
		}
		return RuleShut, shut(c.accept), 0
	}
	if m.late >= s.expires[c.accept] {
		return RuleExpired, c.accept, 0
	}
	return ByRule, c.accept, min(s.expires[c.accept], g.until)
}
