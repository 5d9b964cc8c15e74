package acl

import (
	"iter"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
)

// bitset is a set of nodes by their place in the world. One that was made before a node came is shorter.
type bitset []uint64

func newBitset(n int) bitset { return make(bitset, (n+63)/64) }

func (b bitset) add(i int32)    { b[i/64] |= 1 << (i % 64) }
func (b bitset) remove(i int32) { b[i/64] &^= 1 << (i % 64) }
func (b bitset) has(i int32) bool {
	return int(i/64) < len(b) && b[i/64]&(1<<(i%64)) != 0
}

// or adds what is in o, which is no longer than b.
func (b bitset) or(o bitset) {
	for i, w := range o {
		b[i] |= w
	}
}

func (b bitset) andNot(o bitset) {
	for i := range min(len(b), len(o)) {
		b[i] &^= o[i]
	}
}

// meets reports whether the two have anybody in common but one.
func (b bitset) meets(o bitset, but int32) bool {
	for i := range min(len(b), len(o)) {
		if x := b[i] & o[i]; x != 0 && (int(but/64) != i || x != 1<<(but%64)) {
			return true
		}
	}
	return false
}

// all yields what is in the set, in order.
func (b bitset) all() iter.Seq[int32] {
	return func(yield func(int32) bool) {
		for w, word := range b {
			for ; word != 0; word &= word - 1 {
				if !yield(int32(w*64 + bits.TrailingZeros64(word))) {
					return
				}
			}
		}
	}
}

func (b bitset) count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// definition says who is in a set, whoever exists.
type definition struct {
	no   int32 // its number
	name string
	// One of these says who: a selector, a source with & or !, a set of which postures must hold, or via's tags.
	sel      selector
	src      source
	of       *definition
	postures []string
	via      []string

	any      bool           // Set.Any
	prefixes []netip.Prefix // the addresses as written, sorted
	// whole says that every node concerned is named as such, and not by some addresses.
	whole bool
}

// drifts reports whether the set's addresses depend on who exists.
func (d *definition) drifts() bool { return d.of != nil && !d.whole }

// identities reports whether the set is of nodes as such: of those whose numbers go with it.
func (d *definition) identities() bool { return d.whole && !d.any }

// members is a set that rules name, and the nodes that it concerns: those whose identity it names, whose addresses
// it holds, or which carry an approved route that overlaps it.
type members struct {
	*definition
	set  Set     // without Nodes, which are in idx or bits
	idx  []int32 // of the nodes concerned, sorted, when they are few
	bits bitset  // nil when they are few
}

const fewMembers = 32

// newMembers takes indexes in any order.
func newMembers(d *definition, idx []int32, size int) *members {
	m := &members{definition: d, set: Set{Any: d.any, Prefixes: d.prefixes}}
	if len(idx) <= fewMembers {
		m.idx = slices.Compact(slices.Sorted(slices.Values(idx)))
		return m
	}
	m.bits = newBitset(size)
	for _, i := range idx {
		m.bits.add(i)
	}
	return m
}

// with is the set with a node put in, or taken out. It is as it would be made anew.
func (m *members) with(i int32, in bool) *members {
	n := *m
	at, found := slices.BinarySearch(m.idx, i)
	switch {
	case m.bits != nil:
		n.bits = make(bitset, max(len(m.bits), int(i/64)+1))
		copy(n.bits, m.bits)
		if n.bits.remove(i); in {
			n.bits.add(i)
		}
	case in == found:
	case in && len(m.idx) == fewMembers:
		n.idx, n.bits = nil, make(bitset, max(int(m.idx[fewMembers-1]), int(i))/64+1)
		for _, k := range m.idx {
			n.bits.add(k)
		}
		n.bits.add(i)
	case in:
		n.idx = slices.Insert(slices.Clone(m.idx), at, i)
	default:
		n.idx = slices.Delete(slices.Clone(m.idx), at, at+1)
	}
	return &n
}

func (m *members) has(i int32) bool {
	if m.bits != nil {
		return m.bits.has(i)
	}
	_, ok := slices.BinarySearch(m.idx, i)
	return ok
}

// each yields the nodes concerned, in order.
func (m *members) each() iter.Seq[int32] {
	if m.bits != nil {
		return m.bits.all()
	}
	return slices.Values(m.idx)
}

// addTo adds the nodes concerned to b.
func (m *members) addTo(b bitset) {
	if m.bits != nil {
		b.or(m.bits)
		return
	}
	for _, i := range m.idx {
		b.add(i)
	}
}

// meets reports whether any of the nodes concerned but one is in b.
func (m *members) meets(b bitset, but int32) bool {
	if m.bits != nil {
		return m.bits.meets(b, but)
	}
	return slices.ContainsFunc(m.idx, func(i int32) bool { return i != but && b.has(i) })
}

// holdsAddr reports whether a node's address is in the set.
func (m *members) holdsAddr(i int32, a netip.Addr) bool {
	return m.set.Any || m.whole && m.has(i) || m.set.holds(a)
}

// put makes a set that has no number yet of a definition and the nodes it names.
func (w *world) put(d *definition, idx []int32) *members {
	m := newMembers(d, idx, len(w.nodes))
	if d.drifts() {
		w.drift(m)
	}
	d.no = int32(len(w.sets))
	w.numbers[d.name] = d.no
	w.sets = append(w.sets, m)
	return m
}

// drift gives a set of addresses, of whose nodes postures must hold, the addresses of those of which they do.
func (w *world) drift(m *members) {
	m.set.Prefixes = nil
	for i := range m.each() {
		for _, a := range w.nodes[i].Addrs {
			if contains(m.of.prefixes, a) {
				m.set.Prefixes = append(m.set.Prefixes, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	slices.SortFunc(m.set.Prefixes, netip.Prefix.Compare)
}

// contains reports whether an address is in any of the prefixes.
func contains(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

// named is the set of a name, if anything made it.
func (w *world) set(name string) (*members, bool) {
	no, ok := w.numbers[name]
	if !ok {
		return nil, false
	}
	return w.sets[no], true
}

// literal is the set of addresses as written.
func (w *world) literal(s selector, pfxs []netip.Prefix) *members {
	d := &definition{name: s.text, sel: s, prefixes: slices.Clone(pfxs)}
	slices.SortFunc(d.prefixes, netip.Prefix.Compare)
	var idx []int32
	for _, p := range d.prefixes {
		idx = append(idx, w.touching(rangeOf(p))...)
	}
	return w.put(d, idx)
}

// of builds the set that a selector names, once.
func (w *world) of(s selector) *members {
	if m, ok := w.set(s.text); ok {
		return m
	}
	l := w.lists()
	switch s.kind {
	case selAny:
		return w.put(&definition{name: s.text, sel: s, any: true, whole: true}, l.all)
	case selDangerAll:
		return w.put(&definition{name: s.text, sel: s, prefixes: []netip.Prefix{all4, all6}}, l.all)
	case selInternet:
		return w.put(&definition{name: s.text, sel: s, prefixes: internetHard.prefixes()}, w.exits)
	case selHost, selPrefix:
		return w.literal(s, []netip.Prefix{s.prefix})
	case selIPSet:
		return w.literal(s, w.policy.ipsets[s.text])
	}
	return w.put(&definition{name: s.text, sel: s, whole: true}, w.named(s))
}

// source builds the set that one string of a src list names.
func (w *world) source(s source) *members {
	if s.plain() {
		return w.of(s[0].selector)
	}
	name := s.text()
	if m, ok := w.set(name); ok {
		return m
	}
	l := w.lists()
	in := newBitset(len(w.nodes))
	for _, i := range l.all {
		in.add(i)
	}
	for _, t := range s {
		b := newBitset(len(w.nodes))
		// A device keeps its user beside its tags here: that is what & is for.
		for _, i := range w.namedOf(t.selector, l.byOwner) {
			b.add(i)
		}
		if t.not {
			in.andNot(b)
			continue
		}
		for i := range in {
			in[i] &= b[i]
		}
	}
	return w.put(&definition{name: name, src: s, whole: true}, slices.Collect(in.all()))
}

// healthy is the part of a set whose devices hold one of the postures. Only devices can, so what lies behind a
// router is not in it.
func (w *world) healthy(m *members, postures []string) *members {
	if len(postures) == 0 {
		return m
	}
	d := &definition{name: m.name + " [" + strings.Join(postures, " | ") + "]", of: m.definition, postures: postures, whole: m.whole}
	if h, ok := w.set(d.name); ok {
		return h
	}
	var idx []int32
	for i := range m.each() {
		if w.isHealthy(d, &w.nodes[i].Node) {
			idx = append(idx, i)
		}
	}
	return w.put(d, idx)
}

// isHealthy reports whether a node that a set of which postures must hold is made of is in it.
func (w *world) isHealthy(d *definition, n *Node) bool {
	return w.policy.postureHolds(d.postures, n.Attrs) &&
		(d.whole || slices.ContainsFunc(n.Addrs, func(a netip.Addr) bool { return contains(d.of.prefixes, a) }))
}

// through is the set of the nodes with one of the tags of via.
func (w *world) through(via []string) *members {
	name := "via " + strings.Join(via, " ")
	if m, ok := w.set(name); ok {
		return m
	}
	var idx []int32
	for _, t := range via {
		idx = append(idx, w.lists().byTag[t]...)
	}
	return w.put(&definition{name: name, via: via, whole: true}, idx)
}

// subject is a node as sets ask about it.
type subject struct {
	*Node
	roles  []string
	groups []string // sorted
}

// belongs reports whether a set concerns a node: what of, source, healthy and through find by lists, for one.
func (w *world) belongs(d *definition, n subject) bool {
	switch {
	case d.of != nil:
		return w.belongs(d.of, n) && w.isHealthy(d, n.Node)
	case d.via != nil:
		return slices.ContainsFunc(n.Tags, func(t string) bool { return slices.Contains(d.via, t) })
	case d.src != nil:
		for _, t := range d.src {
			if w.isNamed(t.selector, n, n.User != "") == t.not {
				return false
			}
		}
		return true
	case numbers&(1<<d.sel.kind) != 0:
		return d.touches(n.Node)
	}
	return w.isNamed(d.sel, n, n.User != "" && len(n.Tags) == 0)
}

// touches reports whether a node has an address in the set, or a route other than an exit's that overlaps it.
func (d *definition) touches(n *Node) bool {
	return slices.ContainsFunc(d.prefixes, func(p netip.Prefix) bool {
		return slices.ContainsFunc(n.Addrs, p.Contains) ||
			slices.ContainsFunc(n.Routes, func(r netip.Prefix) bool { return r.Bits() > 0 && r.Overlaps(p) })
	})
}

// isNamed reports whether a selector names a node; person says that its user counts.
func (w *world) isNamed(s selector, n subject, person bool) bool {
	switch s.kind {
	case selAny, selDangerAll:
		return true
	case selInternet:
		return slices.ContainsFunc(n.Routes, isExit)
	case selTag:
		return slices.Contains(n.Tags, s.text)
	case selTagged:
		return len(n.Tags) > 0
	case selMember:
		return n.User != "" && len(n.Tags) == 0
	case selGroup:
		_, in := slices.BinarySearch(n.groups, s.text)
		return person && in
	}
	return person && w.policy.isUser(s, n.User, n.roles)
}

func isExit(r netip.Prefix) bool { return r.Bits() == 0 }
