package coordinator

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
)

// From a commit to what a node is told, at the cost of what changed and not of the mesh:
//
//	commit ─ dirt ─┐
//	clock ─────────┴▶ build(old world, state) ─▶ step: acl.Change ─ wakes ─▶ session ─ delta(step) ─▶ wire.Delta
//
// A step that is about routes or the policy has no acl.Change: those it concerns compare their whole map.

// dirt is what has been committed since the last world was built.
type dirt struct {
	nodes    map[acl.NodeID]struct{}
	users    map[string]struct{}
	carriers bool // their order
	all      bool
}

// register is the state, and what in it is new.
type register struct {
	state atomic.Pointer[state]

	mu  sync.Mutex // held while state and dirt change together
	new dirt
}

func (r *register) Load() *state { return r.state.Load() }

// store puts a state in force that a change has made; a nil change may have made anything.
func (r *register) store(st *state, c *change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.Store(st)
	if c == nil {
		r.new.all = true
		return
	}
	if r.new.nodes == nil {
		r.new.nodes, r.new.users = map[acl.NodeID]struct{}{}, map[string]struct{}{}
	}
	for id := range c.nodes {
		r.new.nodes[id] = struct{}{}
	}
	for login := range c.users {
		r.new.users[login] = struct{}{}
	}
	r.new.carriers = r.new.carriers || len(c.carriers) > 0
}

// take returns the state, and what in it is new since the last take.
func (r *register) take() (*state, dirt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.new
	if r.new = (dirt{}); d.nodes == nil {
		d.nodes = map[acl.NodeID]struct{}{}
	}
	return r.state.Load(), d
}

// maxSteps bounds how far back a session that is behind can be told of steps; beyond, it compares maps.
const maxSteps = 16

// step is how a world came of the one before.
type step struct {
	seq    uint64      // of the world it made
	change *acl.Change // nil: anything may be another
}

// build makes the world of a state. It is made of old if that can be, else anew, which fails if the records contradict
// themselves: then nothing is allowed. wake lists the nodes that may have to be told; all stands for everybody.
func build(old *world, st *state, d dirt, now time.Time) (w *world, wake []acl.NodeID, all bool, err error) {
	if old != nil && old.program != nil && !d.all && old.state.policy == st.policy && !now.Before(old.built) {
		if w, wake, err = old.with(st, d, now); err == nil {
			return w, wake, false, nil
		}
	}
	w = &world{state: st, revision: st.revision, built: now, routes: map[acl.NodeID][]netip.Prefix{}}
	if old != nil {
		w.seq = old.seq + 1
	}
	inv, expired := st.inventory(now)
	w.expired = expired
	for _, n := range inv.Nodes {
		if len(n.Routes) > 0 {
			w.routes[n.ID] = n.Routes
		}
	}
	w.order()
	w.steps = []step{{seq: w.seq}}
	if p := st.policy; p != nil {
		w.program, err = acl.Compile(p.parsed, inv)
	}
	return w, nil, true, err
}

// with is the world that the state's new parts make of this one.
func (w *world) with(st *state, d dirt, now time.Time) (*world, []acl.NodeID, error) {
	n := &world{state: st, revision: st.revision, built: now, seq: w.seq + 1, routes: w.routes, carriers: w.carriers}
	n.touched(w, d)
	var u acl.Update
	routed, cloned := d.carriers, false
	for login := range d.users {
		if x := st.users[login]; x != nil {
			u.Users = append(u.Users, acl.User{Login: login, Roles: x.Roles})
		}
	}
	n.expired = maps.Clone(w.expired)
	for id := range d.nodes {
		x := st.nodes.get(id)
		delete(n.expired, id)
		var routes []netip.Prefix
		switch {
		case x == nil:
			u.Gone = append(u.Gone, id)
		case x.expired(now):
			u.Gone = append(u.Gone, id)
			n.expired[id] = true
		default:
			a := x.acl()
			a.Routes = st.routes(x)
			routes = a.Routes
			u.Nodes = append(u.Nodes, a)
		}
		if was := w.routes[id]; len(was)+len(routes) > 0 {
			if !cloned {
				n.routes = maps.Clone(n.routes)
			}
			routed, cloned = true, true
			if delete(n.routes, id); len(routes) > 0 {
				n.routes[id] = routes
			}
		}
	}
	if routed {
		n.order()
	}
	slices.SortFunc(u.Nodes, func(a, b acl.Node) int { return cmp.Compare(a.ID, b.ID) })
	program, change, err := w.program.With(u)
	if err != nil {
		return nil, nil, err
	}
	n.program = program
	wake := append(change.Concerned(), change.Gone()...)
	for id := range d.nodes { // expired, or of an owner the policy does not know
		wake = append(wake, id)
	}
	s := step{seq: n.seq, change: change}
	if routed {
		s.change = nil
		w.reordered(n, func(id acl.NodeID) {
			wake = slices.Concat(wake, []acl.NodeID{id}, w.program.Peers(id), n.program.Peers(id))
		})
	}
	slices.Sort(wake)
	n.steps = append(slices.Clone(w.steps[max(0, len(w.steps)+1-maxSteps):]), s)
	return n, slices.Compact(wake), nil
}

// touched adds to the dirt the nodes whose key has expired since the world before, and those whose owner's roles may
// have a say about their routes.
func (w *world) touched(before *world, d dirt) {
	for k, x := range w.state.due.from(due{when: before.built}) {
		if k.when.After(w.built) {
			break
		}
		d.nodes[x.ID] = struct{}{}
	}
	if len(d.users) > 0 {
		for id, x := range w.state.offering.all() {
			if _, is := d.users[x.User]; is {
				d.nodes[id] = struct{}{}
			}
		}
	}
}

// expiryDue reports whether a key has expired since the world was built.
func (w *world) expiryDue(now time.Time) bool {
	for k, x := range w.state.due.from(due{when: w.built}) {
		if !w.expired[x.ID] {
			return !now.Before(k.when)
		}
	}
	return false
}

// delta is what a node that has been told of w is to be told to know next, from revision told; nil for nothing. It
// fails when only a comparison of the maps can say.
func (w *world) delta(next *world, id acl.NodeID, told uint64) (d *wire.Delta, ok bool) {
	if n := len(next.steps); w.program == nil || next.program == nil || next.seq-w.seq > uint64(n) {
		return nil, false
	}
	var v *acl.ViewChange
	for _, s := range next.steps[uint64(len(next.steps))-(next.seq-w.seq):] {
		if s.change == nil {
			return nil, false
		}
		x := s.change.Of(id)
		if x.Anew || !x.Empty() && v != nil {
			return nil, false
		}
		if !x.Empty() {
			v = x
		}
	}
	d = &wire.Delta{From: told, Revision: next.revision}
	if v == nil {
		return d, true
	}
	for _, p := range v.New {
		d.Peers = append(d.Peers, next.state.nodes.get(p).peer())
	}
	for _, p := range v.Kept {
		was, is := w.state.nodes.get(p).peer(), next.state.nodes.get(p).peer()
		if !wire.SamePeer(&was, &is) {
			d.Peers = append(d.Peers, is)
		}
	}
	slices.SortFunc(d.Peers, func(a, b wire.Peer) int { return cmp.Compare(a.ID, b.ID) })
	d.PeersGone = v.Gone
	for _, s := range v.Sets {
		d.Members = append(d.Members, wire.Membership{Set: s.Set, Add: s.Add, Remove: s.Remove})
	}
	return d, true
}
