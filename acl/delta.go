package acl

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sync"
)

// Change is what an update of the inventory means for the nodes. It may be asked by many goroutines.
type Change struct {
	before, after *Program // in which the same place is the same node
	moved         []move
	// anew are the places of nodes whose rules may be others, the changed nodes and their owners' first of all.
	anew map[int32]bool
	gone []NodeID

	mu     sync.Mutex
	namers map[int32]bitset // by set: those whose rules, but for denies, name it
	memo   map[string]*ViewChange
	shared map[classKey]*ViewChange
}

// classKey is what decides what a change means for a node that no deny rule is about: its class, and which of the moved
// nodes it saw and sees.
type classKey struct {
	class *class
	moved string
}

// move is one changed node.
type move struct {
	i         int32
	id        NodeID
	saw, sees bitset  // its peers, before and after; nil for none
	was, is   []int32 // the sets that it was in and is in, but for those of addresses
	drifting  []int32 // the sets of addresses that depend on who exists, which it was or is in
	denies    []*compiled
}

// ViewChange is what a change means for one node's [View].
type ViewChange struct {
	// Anew says that the rules may be others too: View says which, and the rest is not told here.
	Anew bool
	New  []NodeID    // peers that were none
	Kept []NodeID    // changed nodes that were peers and still are: their records may be others
	Gone []NodeID    // peers no more
	Sets []SetChange // sorted by name
}

// Empty reports whether the view stays as it was, and so do the records of all peers.
func (v *ViewChange) Empty() bool {
	return !v.Anew && len(v.New)+len(v.Kept)+len(v.Gone)+len(v.Sets) == 0
}

// SetChange is the nodes that come to one set of a view, and that leave it; both sorted.
type SetChange struct {
	Set         string
	Add, Remove []NodeID
}

var viewAnew = &ViewChange{Anew: true}

// change sums up what the updater did.
func (t *updater) change() *Change {
	ch := &Change{before: t.before, after: t.after, anew: map[int32]bool{}, namers: map[int32]bitset{}, memo: map[string]*ViewChange{}, shared: map[classKey]*ViewChange{}}
	for _, i := range t.order {
		b, a := t.entryBefore(i), t.after.w.nodes[i]
		m := move{i: i}
		if b != nil {
			m.id, m.saw = b.ID, t.before.visible(i)
			m.was, m.drifting = t.split(b.class.sets, m.drifting)
			m.denies = t.denies(b.class.sets, m.denies)
		}
		if a != nobody {
			m.id, m.sees = a.ID, t.after.visible(i)
			m.is, m.drifting = t.split(a.class.sets, m.drifting)
			m.denies = t.denies(a.class.sets, m.denies)
			ch.anew[i] = true
		} else if b != nil {
			ch.gone = append(ch.gone, b.ID)
		}
		ch.moved = append(ch.moved, m)
	}
	if len(t.after.plan.self) > 0 {
		for u := range t.owners {
			for _, i := range t.after.w.devices(u) {
				ch.anew[i] = true
			}
		}
	}
	return ch
}

// split tells the sets whose members are told as nodes from those whose addresses depend on who exists.
func (t *updater) split(sets, drifting []int32) (ids, _ []int32) {
	for _, no := range sets {
		switch d := t.after.w.sets[no].definition; {
		case d.identities():
			ids = append(ids, no)
		case d.drifts() && !slices.Contains(drifting, no):
			drifting = append(drifting, no)
		}
	}
	return ids, drifting
}

// denies adds the deny rules that name one of the sets: each is in a view as long as it is about a peer.
func (t *updater) denies(sets []int32, to []*compiled) []*compiled {
	pl := t.after.plan
	if !pl.denies {
		return nil
	}
	for _, no := range sets {
		for _, n := range pl.mentions[no] {
			if r := pl.rules[n]; r.Action == Deny && !slices.Contains(to, r) {
				to = append(to, r)
			}
		}
	}
	return to
}

// Concerned lists the nodes whose view may be another, sorted: the changed nodes, and those that saw them or see them
// now. Nodes that have gone are not among them.
func (ch *Change) Concerned() []NodeID {
	all := newBitset(len(ch.after.w.nodes))
	for _, m := range ch.moved {
		all.or(m.saw)
		all.or(m.sees)
	}
	for i := range ch.anew {
		all.add(i)
	}
	for _, m := range ch.moved {
		if ch.after.w.nodes[m.i] == nobody {
			all.remove(m.i)
		}
	}
	return ch.after.w.ids(all)
}

// Gone lists the nodes that are no more.
func (ch *Change) Gone() []NodeID { return ch.gone }

// Of is what the change means for a node. Nodes for which it means the same may get the same answer, which is not to
// be changed.
func (ch *Change) Of(id NodeID) *ViewChange {
	i, ok := ch.after.w.at(id)
	if !ok || ch.anew[i] {
		return viewAnew
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	var moved [64]byte
	mine, denied := moved[:0], false
	for k := range ch.moved {
		m := &ch.moved[k]
		if f := flags(m.saw.has(i), m.sees.has(i)); f != 0 {
			mine = append(binary.AppendUvarint(mine, uint64(k)), f)
			denied = denied || len(m.denies) > 0
		}
	}
	class := ch.after.w.nodes[i].class
	if v, ok := ch.shared[classKey{class, string(mine)}]; ok && !denied {
		return v
	}
	v := ch.find(i)
	if !denied {
		ch.shared[classKey{class, string(mine)}] = v
	}
	return v
}

// find is Of for a node whose like was not asked about yet.
func (ch *Change) find(i int32) *ViewChange {
	var key []byte
	for k := range ch.moved {
		m := &ch.moved[k]
		f := flags(m.saw.has(i), m.sees.has(i))
		if f == 0 {
			continue
		}
		names, anew := ch.names(m, i)
		if anew {
			return viewAnew
		}
		key = append(binary.AppendUvarint(key, uint64(k)), f)
		key = appendList(key, names)
	}
	v, ok := ch.memo[string(key)]
	if !ok {
		v = ch.told(key)
		ch.memo[string(key)] = v
	}
	return v
}

func flags(a, b bool) (f byte) {
	if a {
		f |= 1
	}
	if b {
		f |= 2
	}
	return f
}

// names are the sets that a moved node was or is in and that are in the view of the node at i; anew says that there
// may be others.
func (ch *Change) names(m *move, i int32) (sets []int32, anew bool) {
	denies := m.denies
	if len(denies) > 0 {
		denies = nil
		saw, sees := ch.before.seen(i), ch.after.seen(i)
		for _, r := range m.denies {
			was, is := ch.before.matters(r, i, saw), ch.after.matters(r, i, sees)
			if was != is {
				return nil, true
			}
			if is {
				denies = append(denies, r)
			}
		}
	}
	in := func(no int32) bool {
		return ch.namersOf(no).has(i) || slices.ContainsFunc(denies, func(r *compiled) bool { return ch.after.names(r, no, i) })
	}
	if slices.ContainsFunc(m.drifting, in) {
		return nil, true
	}
	for _, no := range m.was {
		if in(no) {
			sets = append(sets, no)
		}
	}
	for _, no := range m.is {
		if _, had := slices.BinarySearch(m.was, no); !had && in(no) {
			sets = append(sets, no)
		}
	}
	return sets, false
}

// names reports whether a rule, as a node may see it, names a set.
func (c *Program) names(r *compiled, no, i int32) bool {
	src, dst := c.concerns(r, i)
	is := func(x ref) bool { return x.no == no }
	return (dst || src && c.w.sets[no].has(i)) && slices.ContainsFunc(r.src, is) ||
		(src || dst && c.w.sets[no].has(i)) && slices.ContainsFunc(r.dst, is)
}

// namersOf are the nodes that rules other than denies give a set: its own members, and whoever is at the other end.
func (ch *Change) namersOf(no int32) bitset {
	b, ok := ch.namers[no]
	if ok {
		return b
	}
	c := ch.after
	b = newBitset(len(c.w.nodes))
	for _, n := range c.plan.mentions[no] {
		r := c.plan.rules[n]
		if r.Action == Deny {
			continue
		}
		if slices.Contains(r.src, ref{no: no}) {
			c.w.sets[no].addTo(b)
			c.destinations(r, b)
			if r.Action == Relay { // its sources know of each other
				for _, x := range r.src {
					c.set(x).addTo(b)
				}
			}
		}
		if slices.Contains(r.dst, ref{no: no}) {
			for _, x := range r.src {
				c.set(x).addTo(b)
			}
			for i := range c.w.sets[no].each() {
				if c.reaches(r, i) {
					b.add(i)
				}
			}
		}
	}
	ch.namers[no] = b
	return b
}

// told is the change of a view by what Of has found for each moved node.
func (ch *Change) told(key []byte) *ViewChange {
	v := &ViewChange{}
	at := map[int32]int{}
	next := func() uint64 {
		n, size := binary.Uvarint(key)
		key = key[size:]
		return n
	}
	for len(key) > 0 {
		m := &ch.moved[next()]
		f := key[0]
		key = key[1:]
		switch f {
		case 1:
			v.Gone = append(v.Gone, m.id)
		case 2:
			v.New = append(v.New, m.id)
		default:
			v.Kept = append(v.Kept, m.id)
		}
		for range next() {
			no := int32(next())
			_, was := slices.BinarySearch(m.was, no)
			_, is := slices.BinarySearch(m.is, no)
			was, is = was && f&1 != 0, is && f&2 != 0
			if was == is {
				continue
			}
			k, ok := at[no]
			if !ok {
				k = len(v.Sets)
				at[no] = k
				v.Sets = append(v.Sets, SetChange{Set: ch.after.w.sets[no].name})
			}
			if s := &v.Sets[k]; is {
				s.Add = append(s.Add, m.id)
			} else {
				s.Remove = append(s.Remove, m.id)
			}
		}
	}
	for _, l := range [][]NodeID{v.New, v.Kept, v.Gone} {
		slices.Sort(l)
	}
	for _, s := range v.Sets {
		slices.Sort(s.Add)
		slices.Sort(s.Remove)
	}
	slices.SortFunc(v.Sets, func(a, b SetChange) int { return cmp.Compare(a.Set, b.Set) })
	return v
}
