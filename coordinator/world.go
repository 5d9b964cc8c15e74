package coordinator

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
)

// world is what the mesh is at one revision: the state with the policy compiled against it. It does not change.
type world struct {
	revision   uint64
	state      *state
	program    *acl.Program // nil: no policy is in force, and nothing is allowed
	nextExpiry time.Time
	expired    map[acl.NodeID]bool // not part of the mesh: no policy counts them, no peer sees them

	routes   map[acl.NodeID][]netip.Prefix // approved
	carriers map[netip.Prefix][]acl.NodeID // of each route but exits', in order of use
}

// inventory is who exists, with the routes that an admin or the state's policy has approved.
func (s *state) inventory(now time.Time) (inv *acl.Inventory, expired map[acl.NodeID]bool, next time.Time) {
	inv, expired = &acl.Inventory{}, map[acl.NodeID]bool{}
	for _, u := range s.users {
		inv.Users = append(inv.Users, acl.User{Login: u.Login, Roles: u.Roles})
	}
	for _, n := range s.nodes {
		if n.expired(now) {
			expired[n.ID] = true
			continue
		}
		if !n.Expires.IsZero() && (next.IsZero() || n.Expires.Before(next)) {
			next = n.Expires
		}
		a := n.acl()
		a.Routes = s.routes(n)
		inv.Nodes = append(inv.Nodes, a)
	}
	slices.SortFunc(inv.Users, func(a, b acl.User) int { return cmp.Compare(a.Login, b.Login) })
	slices.SortFunc(inv.Nodes, func(a, b acl.Node) int { return cmp.Compare(a.ID, b.ID) })
	return inv, expired, next
}

// poke asks for a new world.
func (s *Server) poke() {
	select {
	case s.rebuild <- struct{}{}:
	default: // one is due already, and will see this change too
	}
}

func (s *Server) buildLoop() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.rebuild:
			s.buildWorld()
		}
	}
}

// buildWorld compiles the state as it is, and wakes the sessions it may concern. Changes that come meanwhile are
// together in the next.
func (s *Server) buildWorld() {
	s.elect()
	old := s.world.Load()
	w := &world{state: s.state.Load()}
	w.revision = w.state.revision
	inv, expired, next := w.state.inventory(s.now())
	w.expired, w.nextExpiry = expired, next
	w.setRoutes(inv)
	if p := w.state.policy; p != nil {
		var err error
		if w.program, err = acl.Compile(p.parsed, inv); err != nil {
			s.cfg.Log.Error().Err(err).Msg("the mesh's records contradict themselves; nothing is allowed until this is repaired")
			w.program = nil
		}
	}
	s.world.Store(w)
	if old == nil || old.state.policy != w.state.policy || (old.program == nil) != (w.program == nil) {
		s.sessions.each((*session).wake)
	} else {
		for id := range old.concerns(w) {
			if x := s.sessions.get(id); x != nil {
				x.wake()
			}
		}
	}
	for id := range expired {
		if n := w.state.nodes[id]; n != nil && (old == nil || !old.expired[id]) {
			s.cutOff(n, w.outOf(n))
		}
	}
	s.told.Store(w.revision)
	s.built.tell()
}

// concerns lists the nodes that a change of other nodes may matter to: a node's map depends on itself and on the nodes
// it sees, and on nothing else. So it is those that see a changed node, before or after.
func (w *world) concerns(next *world) map[acl.NodeID]bool {
	out := map[acl.NodeID]bool{}
	changed := func(id acl.NodeID) {
		out[id] = true
		for _, x := range []*world{w, next} {
			if x.program != nil {
				for _, p := range x.program.View(id).Peers {
					out[p] = true
				}
			}
		}
	}
	for id, n := range next.state.nodes {
		if w.state.nodes[id] != n || w.expired[id] != next.expired[id] {
			changed(id)
		}
	}
	for id := range w.state.nodes {
		if next.state.nodes[id] == nil {
			changed(id)
		}
	}
	w.reordered(next, changed)
	for login, u := range next.state.users {
		if w.state.users[login] != u { // its roles may have changed
			for id, n := range next.state.nodes {
				if n.User == login {
					changed(id)
				}
			}
		}
	}
	return out
}

// mapFor is the durable plane of a node's map, or nil if the node is not part of the mesh.
func (s *Server) mapFor(w *world, id acl.NodeID) *wire.Map {
	n := w.state.nodes[id]
	if n == nil || w.expired[id] {
		return nil
	}
	m := &wire.Map{Revision: w.revision, Relays: s.cfg.Relays, Sets: map[string]acl.Set{},
		Self: wire.Self{Peer: n.peer(), Domain: s.cfg.Domain, Prefixes: s.cfg.Prefixes}}
	m.Self.Routes = w.routes[id]
	if w.program == nil {
		return m
	}
	v := w.program.View(id)
	m.Rules, m.Sets = v.Rules, v.Sets
	m.Peers = make([]wire.Peer, 0, len(v.Peers))
	routes := w.routesFor(id)
	for _, p := range v.Peers {
		peer := w.state.nodes[p].peer()
		peer.Routes = routes[p]
		m.Peers = append(m.Peers, peer)
	}
	return m
}

func (n *node) peer() wire.Peer {
	a := n.acl()
	a.Attrs = nil // not for others to know
	return wire.Peer{Node: a, Key: n.Key, Expires: n.Expires}
}

// worldOf waits for a world that has the state of revision.
func (s *Server) worldOf(ctx context.Context, revision uint64) (*world, error) {
	for {
		next := s.built.wait()
		if w := s.world.Load(); w != nil && w.revision >= revision {
			return w, nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		}
	}
}
