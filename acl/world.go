package acl

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/btree"
)

// world is an inventory with the indexes that make sets cheap to build. A node has a place in it, which it keeps in
// the worlds made from this one; where a node was is nobody's.
type world struct {
	policy  *Policy
	nodes   []*entry // by place: sorted by ID, unless shuffled
	live    int      // how many of them are somebody
	byID    index[NodeID, int32]
	byAddr  index[netip.Addr, int32]
	byOwner index[string, []int32]  // tagged nodes that kept a user included
	roles   index[string, []string] // by login
	routers []int32                 // with a route that is no exit route, sorted by ID
	exits   []int32                 // the same, with an exit route
	// shuffled says that the order of places is not that of IDs.
	shuffled bool

	sets    []*members // by number
	numbers map[string]int32

	lists func() *lists
}

// entry is a node in a world.
type entry struct {
	Node
	class *class
}

// nobody is in the places of nodes that have gone.
var nobody = &entry{class: &class{}}

// lists are who has what, for sets that are built from nothing.
type lists struct {
	byUser  map[string][]int32
	byOwner map[string][]int32 // as byUser, with the tagged nodes that kept a user
	byTag   map[string][]int32
	untag   []int32 // with a user and without tags
	tagged  []int32
	all     []int32
}

// index is a sorted map. A copy costs nothing, and shares what neither has changed.
type index[K, V any] struct{ tree *btree.BTreeG[item[K, V]] }

type item[K, V any] struct {
	key K
	val V
}

func newIndex[K, V any](compare func(a, b K) int) index[K, V] {
	return index[K, V]{btree.NewG(32, func(a, b item[K, V]) bool { return compare(a.key, b.key) < 0 })}
}

func (x index[K, V]) get(k K) (V, bool) {
	i, ok := x.tree.Get(item[K, V]{key: k})
	return i.val, ok
}

func (x index[K, V]) put(k K, v V) { x.tree.ReplaceOrInsert(item[K, V]{k, v}) }
func (x index[K, V]) remove(k K)   { x.tree.Delete(item[K, V]{key: k}) }

// copy is not for two at a time, though others may read.
func (x index[K, V]) copy() index[K, V] { return index[K, V]{x.tree.Clone()} }

// from yields what is at k and after it, in order.
func (x index[K, V]) from(k K) func(yield func(K, V) bool) {
	return func(yield func(K, V) bool) {
		x.tree.AscendGreaterOrEqual(item[K, V]{key: k}, func(i item[K, V]) bool { return yield(i.key, i.val) })
	}
}

func (x index[K, V]) all() func(yield func(K, V) bool) {
	return func(yield func(K, V) bool) {
		x.tree.Ascend(func(i item[K, V]) bool { return yield(i.key, i.val) })
	}
}

func newWorld(p *Policy, inv *Inventory) *world {
	w := &world{
		policy: p, nodes: make([]*entry, len(inv.Nodes)), live: len(inv.Nodes),
		byID:    newIndex[NodeID, int32](cmp.Compare[NodeID]),
		byAddr:  newIndex[netip.Addr, int32](netip.Addr.Compare),
		byOwner: newIndex[string, []int32](strings.Compare),
		roles:   newIndex[string, []string](strings.Compare),
		numbers: map[string]int32{},
	}
	es := make([]entry, len(inv.Nodes))
	for i := range inv.Nodes {
		es[i].Node = inv.Nodes[i]
		w.nodes[i] = &es[i]
	}
	slices.SortFunc(w.nodes, func(a, b *entry) int { return cmp.Compare(a.ID, b.ID) })
	for _, u := range inv.Users {
		w.roles.put(u.Login, u.Roles)
	}
	for i, n := range w.nodes {
		w.byID.put(n.ID, int32(i))
		for _, a := range n.Addrs {
			w.byAddr.put(a, int32(i))
		}
		if slices.ContainsFunc(n.Routes, func(r netip.Prefix) bool { return !isExit(r) }) {
			w.routers = append(w.routers, int32(i))
		}
		if slices.ContainsFunc(n.Routes, isExit) {
			w.exits = append(w.exits, int32(i))
		}
	}
	w.lists = sync.OnceValue(w.newLists)
	l := w.lists()
	for _, u := range names(l.byOwner) {
		w.byOwner.put(u, l.byOwner[u])
	}
	return w
}

func (w *world) newLists() *lists {
	l := &lists{byUser: map[string][]int32{}, byOwner: map[string][]int32{}, byTag: map[string][]int32{}}
	for _, i := range w.byID.all() {
		n := w.nodes[i]
		l.all = append(l.all, i)
		if n.User != "" {
			l.byOwner[n.User] = append(l.byOwner[n.User], i)
		}
		switch { // a node with neither is nobody's, and no identity names it
		case len(n.Tags) > 0:
			l.tagged = append(l.tagged, i)
		case n.User != "":
			l.untag = append(l.untag, i)
			l.byUser[n.User] = append(l.byUser[n.User], i)
		}
		for _, t := range n.Tags {
			if in := l.byTag[t]; len(in) == 0 || in[len(in)-1] != i {
				l.byTag[t] = append(in, i)
			}
		}
	}
	return l
}

// devices are the untagged nodes of an owner.
func (w *world) devices(user string) []int32 {
	all, _ := w.byOwner.get(user)
	if !slices.ContainsFunc(all, func(i int32) bool { return len(w.nodes[i].Tags) > 0 }) {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(i int32) bool { return len(w.nodes[i].Tags) > 0 })
}

// at is the place of a node.
func (w *world) at(id NodeID) (int32, bool) { return w.byID.get(id) }

// owner is the place of the node whose own address this is.
func (w *world) owner(a netip.Addr) (int32, bool) { return w.byAddr.get(a) }

// touching lists the nodes with an address in the range, or a route other than an exit's that overlaps it.
func (w *world) touching(r ipRange) []int32 {
	var out []int32
	for a, i := range w.byAddr.from(r.first) {
		if a.Compare(r.last) > 0 {
			break
		}
		out = append(out, i)
	}
	for _, i := range w.routers {
		if slices.ContainsFunc(w.nodes[i].Routes, func(p netip.Prefix) bool { return !isExit(p) && rangeOf(p).overlaps(r) }) {
			out = append(out, i)
		}
	}
	return out
}

// named lists the nodes that an identity selector names.
func (w *world) named(s selector) []int32 { return w.namedOf(s, w.lists().byUser) }

// namedOf is named with people's nodes to be found in byUser.
func (w *world) namedOf(s selector, byUser map[string][]int32) []int32 {
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
		for u, roles := range w.roles.all() {
			if slices.Contains(roles, s.arg) {
				out = append(out, byUser[u]...)
			}
		}
	case selTag:
		return w.lists().byTag[s.text]
	case selMember:
		return w.lists().untag
	case selTagged:
		return w.lists().tagged
	}
	return out
}

// ids are the numbers of the nodes in a set, sorted.
func (w *world) ids(b bitset) []NodeID {
	n := b.count()
	if n == 0 {
		return nil
	}
	out := make([]NodeID, 0, n)
	for i := range b.all() {
		out = append(out, w.nodes[i].ID)
	}
	if w.shuffled {
		slices.Sort(out)
	}
	return out
}
