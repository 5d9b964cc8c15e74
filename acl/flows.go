package acl

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// Who may open what to whom, exactly and all at once: every address is put in a class with those that no rule tells
// from it, and each pair of classes is judged once, over intervals of ports.
//
//	addresses ─ class by the rules they are a source of ──────┐
//	                                                          ├─ pair ─ protocol ─ ports cut where a rule begins or ends
//	addresses ─ class by the rules' targets that they are in ─┘
//
// Two programs are judged side by side, so that what differs comes out with nothing in between.

// side is one of the two programs; c may be nil for one that admits nothing.
type side struct {
	c       *Program
	rules   []*compiled
	changed []bool   // by rule: the other side has none that means the same
	cols    []column // the targets of all rules
	anySrc  []int32  // rules with the source *
	anyDst  []int32  // columns with the target *
	colsOf  map[*members][]int32
	src     [][]*members // of each rule
}

// column is one target of one rule.
type column struct{ rule, target int32 }

// atom is an address of a node's own, or a range of addresses behind one, which is 0 if nobody carries them.
type atom struct {
	node NodeID
	ipRange
	own, exit bool
}

type srcClass struct {
	v6    bool
	nodes []NodeID
	has   [2]bitset // rules
}

type dstClass struct {
	v6    bool
	atoms []atom
	cols  [2][]int32

	// The atoms apart, once they are asked for: nodes by their place among identities, and ranges.
	own  bitset
	rest []atom
}

// comparer judges what one program admits beside what another does.
type comparer struct {
	sides [2]*side
	srcs  []*srcClass
	dsts  []*dstClass
	// live says, for each time worth looking at, which rules of the two sides are in force.
	live  [][2][]bool
	times []time.Time
	memo  map[string]*change
	found map[findingKey]*finding
}

// scope narrows a question. A nil function means everyone.
type scope struct {
	src, dst func(NodeID) bool
	addr     netip.Addr // the one destination, no node's own
	// dormant takes in addresses that nobody carries.
	dormant bool
	// atOnce looks at the time of the question alone.
	atOnce bool
}

func newSide(c *Program, other *Program) *side {
	s := &side{c: c, colsOf: map[*members][]int32{}}
	if c == nil {
		return s
	}
	has := map[string]bool{}
	if other != nil {
		texts := other.texts()
		for _, r := range other.all() {
			has[texts(r)] = true
		}
	}
	texts := c.texts()
	s.rules = c.all()
	slices.SortStableFunc(s.rules, func(a, b *compiled) int { return cmp.Compare(a.seq, b.seq) })
	for i, r := range s.rules {
		s.changed = append(s.changed, other == nil || !has[texts(r)])
		var src []*members
		for _, x := range r.src {
			src = append(src, c.set(x))
		}
		s.src = append(s.src, src)
		if slices.ContainsFunc(src, func(m *members) bool { return m.set.Any }) {
			s.anySrc = append(s.anySrc, int32(i))
		}
		for t, x := range r.dst {
			m, col := c.set(x), int32(len(s.cols))
			s.cols = append(s.cols, column{int32(i), int32(t)})
			if m.set.Any {
				s.anyDst = append(s.anyDst, col)
			} else {
				s.colsOf[m] = append(s.colsOf[m], col)
			}
		}
	}
	return s
}

// compare finds the classes of all addresses within a scope, and the pairs of them that changed rules are about.
func compare(before, after *Program, in scope, now time.Time) *comparer {
	x := &comparer{memo: map[string]*change{}, found: map[findingKey]*finding{}}
	x.sides = [2]*side{newSide(before, after), newSide(after, before)}
	x.findTimes(now, in.atOnce)
	x.findSources(in)
	x.findDests(in)
	x.pairs()
	return x
}

// nodes yields every node of either side, and where the two programs have it, or -1.
func (x *comparer) nodes(yield func(id NodeID, idx [2]int32)) {
	seen := map[NodeID]bool{}
	for _, s := range x.sides {
		if s.c == nil {
			continue
		}
		for id := range s.c.w.byID.all() {
			if seen[id] {
				continue
			}
			seen[id] = true
			idx := [2]int32{-1, -1}
			for k, o := range x.sides {
				if o.c == nil {
					continue
				}
				if at, ok := o.c.w.at(id); ok {
					idx[k] = at
				}
			}
			yield(id, idx)
		}
	}
}

// addrsOf are the addresses that a node has in either program.
func (x *comparer) addrsOf(idx [2]int32) []netip.Addr {
	var out []netip.Addr
	for k, i := range idx {
		if i < 0 {
			continue
		}
		for _, a := range x.sides[k].c.w.nodes[i].Addrs {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// findSources classes the nodes' addresses by the rules that they are a source of.
func (x *comparer) findSources(in scope) {
	var named [2][][]int32 // rules, by node
	for k, s := range x.sides {
		if s.c == nil {
			continue
		}
		named[k] = make([][]int32, len(s.c.w.nodes))
		for ri := range s.rules {
			for _, m := range s.src[ri] {
				if m.set.Any {
					continue
				}
				for i := range m.each() {
					if l := named[k][i]; len(l) == 0 || l[len(l)-1] != int32(ri) {
						named[k][i] = append(l, int32(ri))
					}
				}
			}
		}
	}
	byKey := map[string]*srcClass{}
	x.nodes(func(id NodeID, idx [2]int32) {
		if in.src != nil && !in.src(id) {
			return
		}
		for _, a := range x.addrsOf(idx) {
			key := []byte{byte(a.BitLen())}
			var lists [2][]int32
			for k, s := range x.sides {
				if idx[k] >= 0 {
					lists[k] = s.sourceOf(named[k][idx[k]], idx[k], a)
				}
				key = appendList(key, lists[k])
			}
			c := byKey[string(key)]
			if c == nil {
				c = &srcClass{v6: a.Is6()}
				for k, s := range x.sides {
					c.has[k] = newBitset(len(s.rules))
					for _, ri := range lists[k] {
						c.has[k].add(ri)
					}
				}
				byKey[string(key)] = c
				x.srcs = append(x.srcs, c)
			}
			if n := len(c.nodes); n == 0 || c.nodes[n-1] != id {
				c.nodes = append(c.nodes, id)
			}
		}
	})
}

// sourceOf are those of the rules, and of those from *, that a node's address is a source of.
func (s *side) sourceOf(named []int32, i int32, a netip.Addr) []int32 {
	out := slices.Clone(s.anySrc)
	for _, ri := range named {
		if slices.ContainsFunc(s.src[ri], func(m *members) bool { return m.holdsAddr(i, a) }) {
			out = append(out, ri)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func appendList(key []byte, l []int32) []byte {
	key = binary.AppendUvarint(key, uint64(len(l)))
	for _, v := range l {
		key = binary.AppendUvarint(key, uint64(v))
	}
	return key
}

// findDests classes destinations by the targets that they are in.
func (x *comparer) findDests(in scope) {
	byKey := map[string]*dstClass{}
	enter := func(a atom, cols [2][]int32) {
		key := []byte{byte(a.first.BitLen())}
		for k := range cols {
			slices.Sort(cols[k])
			key = appendList(key, cols[k])
		}
		c := byKey[string(key)]
		if c == nil {
			c = &dstClass{v6: a.first.Is6(), cols: cols}
			byKey[string(key)] = c
			x.dsts = append(x.dsts, c)
		}
		c.atoms = append(c.atoms, a)
	}
	if !in.addr.IsValid() {
		var named [2][][]*members
		for k, s := range x.sides {
			if s.c == nil {
				continue
			}
			named[k] = make([][]*members, len(s.c.w.nodes))
			for m := range s.colsOf {
				for i := range m.each() {
					named[k][i] = append(named[k][i], m)
				}
			}
		}
		x.nodes(func(id NodeID, idx [2]int32) {
			if in.dst != nil && !in.dst(id) {
				return
			}
			for _, a := range x.addrsOf(idx) {
				var cols [2][]int32
				for k, s := range x.sides {
					if idx[k] >= 0 {
						cols[k] = s.targetsOf(named[k][idx[k]], idx[k], a)
					}
				}
				enter(atom{node: id, ipRange: ipRange{a, a}, own: true}, cols)
			}
		})
	}
	if in.dst != nil {
		return
	}
	for _, a := range x.carried(in) {
		var cols [2][]int32
		for k, s := range x.sides {
			cols[k] = s.behind(a)
		}
		enter(a, cols)
	}
}

// targetsOf are the columns that a node's own address is in.
func (s *side) targetsOf(sets []*members, i int32, a netip.Addr) []int32 {
	out := slices.Clone(s.anyDst)
	for _, m := range sets {
		if !m.holdsAddr(i, a) {
			continue
		}
		for _, col := range s.colsOf[m] {
			if s.c.reaches(s.rules[s.cols[col].rule], i) {
				out = append(out, col)
			}
		}
	}
	return out
}

// behind are the columns that addresses behind a node are in, or that addresses which nobody carries would be in.
func (s *side) behind(a atom) []int32 {
	if s.c == nil {
		return nil
	}
	i, known := int32(-1), false
	if a.node != 0 {
		if i, known = s.c.w.at(a.node); !known || !s.c.carries(i, a.first, a.exit) {
			return nil
		}
	}
	out := slices.Clone(s.anyDst)
	for m, cols := range s.colsOf {
		if m.whole || !m.set.holds(a.first) || known && !m.has(i) || a.exit && !isInternet(m.name) {
			continue
		}
		for _, col := range cols {
			if !known || s.c.reaches(s.rules[s.cols[col].rule], i) {
				out = append(out, col)
			}
		}
	}
	return out
}

// carries reports whether a node has an approved route to an address; exit asks for a /0, which is one to the internet
// alone.
func (c *Program) carries(i int32, a netip.Addr, exit bool) bool {
	return (!exit || internetHard.contains(a)) && slices.ContainsFunc(c.w.nodes[i].Routes, func(r netip.Prefix) bool { return (r.Bits() == 0) == exit && r.Contains(a) })
}

// carriers are the nodes with the narrowest approved route to an address.
func (c *Program) carriers(a netip.Addr) (out []int32, exit bool) {
	best := 0
	for _, i := range c.w.routers {
		for _, r := range c.w.nodes[i].Routes {
			switch {
			case r.Bits() == 0 || !r.Contains(a) || r.Bits() < best:
			case r.Bits() > best:
				best, out = r.Bits(), []int32{i}
			case out[len(out)-1] != i:
				out = append(out, i)
			}
		}
	}
	if len(out) > 0 {
		return out, false
	}
	for _, i := range c.w.exits {
		if c.carries(i, a, true) {
			out = append(out, i)
		}
	}
	return out, true
}

// carried are the ranges of addresses that are no node's own, cut wherever a set or a route begins or ends, each once
// for every node that carries it.
func (x *comparer) carried(in scope) []atom {
	var starts []netip.Addr // of ranges, or just past one
	var all []ipRange
	see := func(p netip.Prefix) {
		r := rangeOf(p)
		all = append(all, r)
		if starts = append(starts, r.first); r.last.Next().IsValid() {
			starts = append(starts, r.last.Next())
		}
	}
	if in.addr.IsValid() {
		see(netip.PrefixFrom(in.addr, in.addr.BitLen()))
	} else {
		for _, s := range x.sides {
			for m := range s.colsOf {
				for _, p := range m.set.Prefixes {
					see(p)
				}
			}
			if s.c == nil {
				continue
			}
			for _, i := range s.c.w.routers {
				for _, p := range s.c.w.nodes[i].Routes {
					see(p)
				}
			}
			if len(s.c.w.exits) > 0 {
				for _, p := range internetPrefixes()[0] {
					see(p)
				}
			}
		}
	}
	slices.SortFunc(starts, netip.Addr.Compare)
	starts = slices.Compact(starts)
	space := union(all)
	var out []atom
	for n, a := range starts {
		if !space.contains(a) || x.isOwn(a) && !x.wider(starts, n) {
			continue
		}
		last := a
		if n+1 < len(starts) && starts[n+1].BitLen() == a.BitLen() {
			last = starts[n+1].Prev()
		} else if i := slices.IndexFunc(space, func(r ipRange) bool { return r.overlaps(ipRange{a, a}) }); i >= 0 {
			last = space[i].last
		}
		out = append(out, x.carriersOf(ipRange{a, last}, in.dormant)...)
	}
	return out
}

// wider reports whether the nth range has more than one address.
func (x *comparer) wider(starts []netip.Addr, n int) bool {
	return n+1 >= len(starts) || starts[n+1] != starts[n].Next()
}

// isOwn reports whether an address is some node's own.
func (x *comparer) isOwn(a netip.Addr) bool {
	return slices.ContainsFunc(x.sides[:], func(s *side) bool {
		if s.c == nil {
			return false
		}
		_, own := s.c.w.owner(a)
		return own
	})
}

// carriersOf is a range once for every node that carries it in either program.
func (x *comparer) carriersOf(r ipRange, dormant bool) []atom {
	var out []atom
	for _, s := range x.sides {
		if s.c == nil {
			continue
		}
		idx, exit := s.c.carriers(r.first)
		for _, i := range idx {
			if a := (atom{node: s.c.w.nodes[i].ID, ipRange: r, exit: exit}); !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	if dormant && (len(out) == 0 || out[0].exit) && x.named(r.first, len(out) == 0) {
		out = append(out, atom{ipRange: r})
	}
	return out
}

// named reports whether a rule names an address by more than "*", or by more than the internet too: whoever carries it
// may come.
func (x *comparer) named(a netip.Addr, web bool) bool {
	return slices.ContainsFunc(x.sides[:], func(s *side) bool {
		for m := range s.colsOf {
			if (web || !isInternet(m.name)) && m.set.holds(a) {
				return true
			}
		}
		return false
	})
}

// pairs judges each pair of classes that a changed rule is about.
func (x *comparer) pairs() {
	var about [2][]bitset // destination classes, by rule
	for k, s := range x.sides {
		about[k] = make([]bitset, len(s.rules))
		for d, c := range x.dsts {
			for _, col := range c.cols[k] {
				ri := s.cols[col].rule
				if !s.changed[ri] {
					continue
				}
				if about[k][ri] == nil {
					about[k][ri] = newBitset(len(x.dsts))
				}
				about[k][ri].add(int32(d))
			}
		}
	}
	for _, src := range x.srcs {
		todo := newBitset(len(x.dsts))
		for k := range x.sides {
			for ri, b := range about[k] {
				if b != nil && src.has[k].has(int32(ri)) {
					todo.or(b)
				}
			}
		}
		r := map[*change]bitset{}
		for d, dst := range x.dsts {
			if !todo.has(int32(d)) || dst.v6 != src.v6 {
				continue
			}
			ch := x.judge(src, dst)
			if ch.empty() {
				continue
			}
			if r[ch] == nil {
				r[ch] = newBitset(len(x.dsts))
			}
			r[ch].add(int32(d))
		}
		x.enter(src, r)
	}
}
