package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// Update is what changes in an inventory.
type Update struct {
	Nodes []Node   // new, or with a changed record
	Gone  []NodeID // those not known are passed over
	Users []User   // new, or with other roles
}

// With is the program as Compile would make it for the changed inventory, and what the change means for the nodes. It
// costs what the changed nodes are concerned with: rules stay as they are, the sets that a node joins or leaves are
// made anew, and the rest is shared with c, which does not change. It fails on what Compile would refuse.
//
//	changed node ─ its sets, before and after ─ other members ─ its class ─ its peers, before and after ─ Change
func (c *Program) With(u Update) (*Program, *Change, error) {
	c.plan.mu.Lock()
	defer c.plan.mu.Unlock()
	w := *c.w
	n := &Program{w: &w, plan: c.plan, self: c.self, sights: &sync.Map{}}
	t := &updater{before: c, after: n, put: map[int32]*Node{}, toggled: map[int32][]toggle{}, owners: map[string]bool{}}
	if err := t.place(u); err != nil {
		return nil, nil, err
	}
	w.lists = sync.OnceValue(w.newLists)
	t.settle()
	ch := t.change()
	if len(w.nodes)-w.live > w.live+64 || len(c.plan.classes) > 2*len(w.nodes)+1024 { // most of it is of those who have gone
		var err error
		if n, err = Compile(w.policy, n.inventory()); err != nil {
			return nil, nil, err
		}
	}
	return n, ch, nil
}

func (c *Program) inventory() *Inventory {
	inv := &Inventory{Nodes: c.Nodes()}
	for login, roles := range c.w.roles.all() {
		inv.Users = append(inv.Users, User{Login: login, Roles: roles})
	}
	return inv
}

// updater makes one program of another.
type updater struct {
	before, after *Program
	put           map[int32]*Node // by place; nil for nobody
	order         []int32         // the places, in the order in which they changed
	toggled       map[int32][]toggle
	owners        map[string]bool // whose autogroup:self rules may be others
	drifted       []int32         // sets with a touched node
}

// toggle puts a node into a set, or takes it out.
type toggle struct {
	i  int32
	in bool
}

func (t *updater) touch(i int32, n *Node) {
	if _, ok := t.put[i]; !ok {
		t.order = append(t.order, i)
	}
	t.put[i] = n
}

// place gives each changed node its place, and brings the indexes up to date.
func (t *updater) place(u Update) error {
	w := t.after.w
	w.nodes = slices.Grow(slices.Clone(w.nodes), len(u.Nodes))
	w.byID, w.byAddr, w.byOwner = w.byID.copy(), w.byAddr.copy(), w.byOwner.copy()
	if len(u.Users) > 0 {
		w.roles = w.roles.copy()
	}
	for _, x := range u.Users {
		was, _ := w.roles.get(x.Login)
		w.roles.put(x.Login, x.Roles)
		if slices.Equal(was, x.Roles) {
			continue
		}
		theirs, _ := w.byOwner.get(x.Login)
		for _, i := range theirs {
			t.touch(i, &w.nodes[i].Node)
		}
	}
	for _, id := range u.Gone {
		if i, ok := w.at(id); ok {
			t.touch(i, nil)
		}
	}
	last := w.newest()
	for k := range u.Nodes {
		n := &u.Nodes[k]
		if n.ID == 0 {
			return fmt.Errorf("acl: a node (%q) comes without a number", n.Name)
		}
		i, ok := w.at(n.ID)
		if !ok {
			i = int32(len(w.nodes))
			w.byID.put(n.ID, i)
			w.shuffled = w.shuffled || last > n.ID
			last = max(last, n.ID)
			w.nodes = append(w.nodes, nobody)
		}
		t.touch(i, n)
	}
	for _, i := range t.order {
		t.leave(i)
	}
	for _, i := range t.order {
		if err := t.enter(i); err != nil {
			return err
		}
	}
	return nil
}

// newest is the highest number of a node.
func (w *world) newest() NodeID {
	last, _ := w.byID.tree.Max()
	return last.key
}

// leave takes the node that was at a place out of the indexes.
func (t *updater) leave(i int32) {
	w := t.after.w
	was := w.nodes[i]
	if was == nobody {
		return
	}
	for _, a := range was.Addrs {
		w.byAddr.remove(a)
	}
	w.own(was.User, i, false)
	w.routers, w.exits = w.without(w.routers, i), w.without(w.exits, i)
	t.owners[was.User] = true
	w.nodes[i] = nobody
	w.live--
	if t.put[i] == nil {
		w.byID.remove(was.ID)
	}
}

// enter puts the node that is now at a place into the indexes.
func (t *updater) enter(i int32) error {
	n, w := t.put[i], t.after.w
	if n == nil {
		return nil
	}
	w.live++
	w.nodes[i] = &entry{Node: *n}
	for _, a := range n.Addrs {
		if o, dup := w.owner(a); dup {
			return fmt.Errorf("acl: %s is given to node %d and to node %d", a, w.nodes[o].ID, n.ID)
		}
		w.byAddr.put(a, i)
	}
	w.own(n.User, i, true)
	if slices.ContainsFunc(n.Routes, func(r netip.Prefix) bool { return !isExit(r) }) {
		w.routers = w.inserted(w.routers, i)
	}
	if slices.ContainsFunc(n.Routes, isExit) {
		w.exits = w.inserted(w.exits, i)
	}
	t.owners[n.User] = true
	return nil
}

// inserted is a list of places, sorted by the numbers of the nodes there, with one more.
func (w *world) inserted(l []int32, i int32) []int32 {
	at, _ := slices.BinarySearchFunc(l, w.nodes[i].ID, func(o int32, id NodeID) int {
		if w.nodes[o].ID < id {
			return -1
		}
		return 1
	})
	return slices.Insert(slices.Clone(l), at, i)
}

func (w *world) without(l []int32, i int32) []int32 {
	at := slices.Index(l, i)
	if at < 0 {
		return l
	}
	return slices.Delete(slices.Clone(l), at, at+1)
}

// own says whose node is at a place.
func (w *world) own(user string, i int32, is bool) {
	if user == "" {
		return
	}
	l, _ := w.byOwner.get(user)
	if is {
		l = w.inserted(l, i)
	} else {
		l = w.without(l, i)
	}
	if len(l) == 0 {
		w.byOwner.remove(user)
		return
	}
	w.byOwner.put(user, l)
}

// settle finds the sets that the changed nodes are in, and makes those anew that are others now.
func (t *updater) settle() {
	c, w := t.after, t.after.w
	w.sets = slices.Clone(w.sets)
	for _, i := range t.order {
		was, is := t.setsBefore(i), []int32(nil)
		if n := w.nodes[i]; n != nobody {
			if b := t.entryBefore(i); b != nil && alike(&b.Node, &n.Node) && !t.rolesChanged(n.User) {
				n.class = b.class
				is = b.class.sets
			} else {
				is = t.setsOf(n)
				n.class, _ = c.class(&n.Node, is, nil)
			}
		}
		eachOther(was, is, func(no int32, in bool) { t.toggled[no] = append(t.toggled[no], toggle{i, in}) })
		for _, l := range [][]int32{was, is} {
			for _, no := range l {
				if w.sets[no].drifts() && !slices.Contains(t.drifted, no) {
					t.drifted = append(t.drifted, no)
				}
			}
		}
	}
	for no, ts := range t.toggled {
		m := w.sets[no]
		for _, x := range ts {
			m = m.with(x.i, x.in)
		}
		w.sets[no] = m
	}
	for _, no := range t.drifted {
		m := *w.sets[no]
		w.drift(&m)
		w.sets[no] = &m
	}
	if len(c.plan.self) > 0 {
		c.self = c.self.copy()
		for u := range t.owners {
			c.ownSelf(u)
		}
	}
}

func (t *updater) entryBefore(i int32) *entry {
	if ns := t.before.w.nodes; int(i) < len(ns) && ns[i] != nobody {
		return ns[i]
	}
	return nil
}

func (t *updater) setsBefore(i int32) []int32 {
	if b := t.entryBefore(i); b != nil {
		return b.class.sets
	}
	return nil
}

func (t *updater) rolesChanged(user string) bool {
	was, _ := t.before.w.roles.get(user)
	is, _ := t.after.w.roles.get(user)
	return !slices.Equal(was, is)
}

// alike reports whether all that sets ask about is the same.
func alike(a, b *Node) bool {
	if len(a.Attrs) != len(b.Attrs) {
		return false
	}
	for k, v := range a.Attrs {
		if o, ok := b.Attrs[k]; !ok || o != v {
			return false
		}
	}
	return a.User == b.User && slices.Equal(a.Tags, b.Tags) && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Routes, b.Routes)
}

// setsOf are the sets that a node is in, sorted.
func (t *updater) setsOf(n *entry) []int32 {
	w := t.after.w
	roles, _ := w.roles.get(n.User)
	who := subject{&n.Node, roles, t.after.plan.groups[n.User]}
	var out []int32
	for _, m := range w.sets {
		if w.belongs(m.definition, who) {
			out = append(out, m.no)
		}
	}
	return out
}

// eachOther calls f with what is in only one of two sorted lists.
func eachOther(was, is []int32, f func(v int32, in bool)) {
	for len(was)+len(is) > 0 {
		switch {
		case len(is) == 0 || len(was) > 0 && was[0] < is[0]:
			f(was[0], false)
			was = was[1:]
		case len(was) == 0 || is[0] < was[0]:
			f(is[0], true)
			is = is[1:]
		default:
			was, is = was[1:], is[1:]
		}
	}
}
