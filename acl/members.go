package acl

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// bitset is a set of node indexes.
type bitset []uint64

func newBitset(n int) bitset { return make(bitset, (n+63)/64) }

func (b bitset) add(i int32)      { b[i/64] |= 1 << (i % 64) }
func (b bitset) has(i int32) bool { return b[i/64]&(1<<(i%64)) != 0 }

func (b bitset) or(o bitset) {
	for i, w := range o {
		b[i] |= w
	}
}

func (b bitset) andNot(o bitset) {
	for i, w := range o {
		b[i] &^= w
	}
}

// members is a set that rules name, and the nodes that it concerns: those whose identity it names, whose addresses
// it holds, or which carry an approved route that overlaps it.
type members struct {
	name string
	set  Set
	// whole says that every node concerned is named as such, and not by some addresses.
	whole bool
	idx   []int32 // of the nodes concerned, sorted
	bits  bitset  // the same; nil when there are few
}

const fewMembers = 32

func (m *members) has(i int32) bool {
	if m.bits != nil {
		return m.bits.has(i)
	}
	_, ok := slices.BinarySearch(m.idx, i)
	return ok
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

// meets reports whether any of the nodes concerned is in b.
func (m *members) meets(b bitset) bool {
	return slices.ContainsFunc(m.idx, b.has)
}

// world is an inventory with the indexes that make sets cheap to build.
type world struct {
	policy  *Policy
	nodes   []Node // sorted by ID
	byID    map[NodeID]int32
	byAddr  map[netip.Addr]int32
	addrs   []nodeAddr // sorted
	byUser  map[string][]int32
	byOwner map[string][]int32 // as byUser, with the tagged nodes that kept a user
	byTag   map[string][]int32
	untag   []int32 // with a user and without tags
	tagged  []int32
	all     []int32
	routers []int32 // with a route that is no exit route
	exits   []int32
	roles   map[string][]string
	sets    map[string]*members
}

type nodeAddr struct {
	addr netip.Addr
	idx  int32
}

func newWorld(p *Policy, inv *Inventory) *world {
	w := &world{
		policy: p, nodes: slices.Clone(inv.Nodes), byID: map[NodeID]int32{}, byAddr: map[netip.Addr]int32{},
		byUser: map[string][]int32{}, byOwner: map[string][]int32{}, byTag: map[string][]int32{},
		roles: map[string][]string{}, sets: map[string]*members{},
	}
	slices.SortFunc(w.nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	for _, u := range inv.Users {
		w.roles[u.Login] = u.Roles
	}
	for n := range w.nodes {
		node, i := &w.nodes[n], int32(n)
		w.byID[node.ID] = i
		w.all = append(w.all, i)
		for _, a := range node.Addrs {
			w.byAddr[a] = i
			w.addrs = append(w.addrs, nodeAddr{a, i})
		}
		if node.User != "" {
			w.byOwner[node.User] = append(w.byOwner[node.User], i)
		}
		switch { // a node with neither is nobody's, and no identity names it
		case len(node.Tags) > 0:
			w.tagged = append(w.tagged, i)
		case node.User != "":
			w.untag = append(w.untag, i)
			w.byUser[node.User] = append(w.byUser[node.User], i)
		}
		for _, t := range node.Tags {
			if l := w.byTag[t]; len(l) == 0 || l[len(l)-1] != i {
				w.byTag[t] = append(l, i)
			}
		}
		if slices.ContainsFunc(node.Routes, func(r netip.Prefix) bool { return r.Bits() > 0 }) {
			w.routers = append(w.routers, i)
		}
		if slices.ContainsFunc(node.Routes, func(r netip.Prefix) bool { return r.Bits() == 0 }) {
			w.exits = append(w.exits, i)
		}
	}
	slices.SortFunc(w.addrs, func(a, b nodeAddr) int { return a.addr.Compare(b.addr) })
	return w
}

// put gives a set its name and indexes.
func (w *world) put(m *members) *members {
	slices.Sort(m.idx)
	m.idx = slices.Compact(m.idx)
	if len(m.idx) > fewMembers {
		m.bits = newBitset(len(w.nodes))
		for _, i := range m.idx {
			m.bits.add(i)
		}
	}
	w.sets[m.name] = m
	return m
}

// identities is the set of whole nodes.
func (w *world) identities(name string, idx []int32) *members {
	m := &members{name: name, whole: true, idx: slices.Clone(idx)}
	w.put(m)
	for _, i := range m.idx {
		m.set.Nodes = append(m.set.Nodes, w.nodes[i].ID)
	}
	return m
}

// literal is the set of addresses as written.
func (w *world) literal(name string, pfxs []netip.Prefix) *members {
	m := &members{name: name, set: Set{Prefixes: slices.Clone(pfxs)}}
	slices.SortFunc(m.set.Prefixes, netip.Prefix.Compare)
	for _, p := range m.set.Prefixes {
		m.idx = append(m.idx, w.touching(rangeOf(p))...)
	}
	return w.put(m)
}

// touching lists the nodes with an address in the range, or a route other than an exit's that overlaps it.
func (w *world) touching(r ipRange) []int32 {
	var out []int32
	at, _ := slices.BinarySearchFunc(w.addrs, r.first, func(a nodeAddr, first netip.Addr) int { return a.addr.Compare(first) })
	for ; at < len(w.addrs) && w.addrs[at].addr.Compare(r.last) <= 0; at++ {
		out = append(out, w.addrs[at].idx)
	}
	for _, i := range w.routers {
		if slices.ContainsFunc(w.nodes[i].Routes, func(p netip.Prefix) bool { return p.Bits() > 0 && rangeOf(p).overlaps(r) }) {
			out = append(out, i)
		}
	}
	return out
}

// of builds the set that a selector names, once.
func (w *world) of(s selector) *members {
	if m, ok := w.sets[s.text]; ok {
		return m
	}
	switch s.kind {
	case selAny:
		return w.put(&members{name: s.text, set: Set{Any: true}, whole: true, idx: slices.Clone(w.all)})
	case selDangerAll:
		m := &members{name: s.text, set: Set{Prefixes: []netip.Prefix{all4, all6}}, idx: slices.Clone(w.all)}
		return w.put(m)
	case selInternet:
		m := &members{name: s.text, set: Set{Prefixes: internetHard.prefixes()}, idx: slices.Clone(w.exits)}
		return w.put(m)
	case selHost, selPrefix:
		return w.literal(s.text, []netip.Prefix{s.prefix})
	case selIPSet:
		return w.literal(s.text, w.policy.ipsets[s.text])
	}
	return w.identities(s.text, w.named(s, w.byUser, w.untag))
}

// named lists the nodes that an identity selector names; byUser and untagged are where it looks for people's.
func (w *world) named(s selector, byUser map[string][]int32, untagged []int32) []int32 {
	var out []int32
	switch s.kind {
	case selUser:
		return byUser[s.text]
	case selGroup:
		for _, u := range w.policy.groups[s.text] {
			out = append(out, byUser[u]...)
		}
	case selUserDomain:
		for u, is := range byUser {
			if strings.HasSuffix(u, "@"+s.arg) {
				out = append(out, is...)
			}
		}
	case selRole:
		for u, roles := range w.roles {
			if slices.Contains(roles, s.arg) {
				out = append(out, byUser[u]...)
			}
		}
	case selTag:
		return w.byTag[s.text]
	case selMember:
		return untagged
	case selTagged:
		return w.tagged
	}
	return out
}

// source builds the set that one string of a src list names.
func (w *world) source(s source) *members {
	if s.plain() {
		return w.of(s[0].selector)
	}
	name := s.text()
	if m, ok := w.sets[name]; ok {
		return m
	}
	in := newBitset(len(w.nodes))
	for _, i := range w.all {
		in.add(i)
	}
	for _, t := range s {
		b := newBitset(len(w.nodes))
		// A device keeps its user beside its tags here: that is what & is for.
		for _, i := range w.named(t.selector, w.byOwner, w.untag) {
			b.add(i)
		}
		if !t.not {
			out := newBitset(len(w.nodes))
			out.or(in)
			out.andNot(b)
			b = out
		}
		in.andNot(b)
	}
	var idx []int32
	for _, i := range w.all {
		if in.has(i) {
			idx = append(idx, i)
		}
	}
	return w.identities(name, idx)
}

// healthy is the part of a set whose devices hold one of the postures. Only devices can, so what lies behind a
// router is not in it.
func (w *world) healthy(m *members, postures []string) *members {
	if len(postures) == 0 {
		return m
	}
	name := m.name + " [" + strings.Join(postures, " | ") + "]"
	if h, ok := w.sets[name]; ok {
		return h
	}
	h := &members{name: name, whole: m.whole}
	for _, i := range m.idx {
		n := &w.nodes[i]
		if !w.policy.postureHolds(postures, n.Attrs) {
			continue
		}
		if m.whole {
			h.idx = append(h.idx, i)
			h.set.Nodes = append(h.set.Nodes, n.ID)
			continue
		}
		for _, a := range n.Addrs {
			if slices.ContainsFunc(m.set.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
				h.idx = append(h.idx, i)
				h.set.Prefixes = append(h.set.Prefixes, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	slices.SortFunc(h.set.Prefixes, netip.Prefix.Compare)
	return w.put(h)
}
