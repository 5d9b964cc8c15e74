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
	revision uint64
	seq      uint64 // of the worlds of this run
	built    time.Time
	state    *state
	program  *acl.Program        // nil: no policy is in force, and nothing is allowed
	expired  map[acl.NodeID]bool // not part of the mesh: no policy counts them, no peer sees them

	routes   map[acl.NodeID][]netip.Prefix // approved
	carriers map[netip.Prefix][]acl.NodeID // of each route but exits', in order of use

	steps []step // that led here, the last of them to this world
}

// inventory is who exists, with the routes that an admin or the state's policy has approved.
func (s *state) inventory(now time.Time) (inv *acl.Inventory, expired map[acl.NodeID]bool) {
	inv, expired = &acl.Inventory{}, map[acl.NodeID]bool{}
	for _, u := range s.users {
		inv.Users = append(inv.Users, acl.User{Login: u.Login, Roles: u.Roles})
	}
	for _, n := range s.nodes.all() {
		if n.expired(now) {
			expired[n.ID] = true
			continue
		}
		a := n.acl()
		a.Routes = s.routes(n)
		inv.Nodes = append(inv.Nodes, a)
	}
	slices.SortFunc(inv.Users, func(a, b acl.User) int { return cmp.Compare(a.Login, b.Login) })
	slices.SortFunc(inv.Nodes, func(a, b acl.Node) int { return cmp.Compare(a.ID, b.ID) })
	return inv, expired
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

// buildWorld brings the world up to the state, and wakes the sessions it may concern. Changes that come meanwhile are
// together in the next.
func (s *Server) buildWorld() {
	s.elect()
	old := s.world.Load()
	st, d := s.state.take()
	w, wake, all, err := build(old, st, d, s.now())
	if err != nil {
		s.cfg.Log.Error().Err(err).Msg("the mesh's records contradict themselves; nothing is allowed until this is repaired")
	}
	s.world.Store(w)
	s.presence.vouch(&s.world)
	if all {
		s.sessions.each((*session).wake)
	}
	for _, id := range wake {
		if x := s.sessions.get(id); x != nil {
			x.wake()
		}
	}
	for id := range w.expired {
		if n := w.state.nodes.get(id); n != nil && (old == nil || !old.expired[id]) {
			s.cutOff(n, w.outOf(n))
		}
	}
	s.told.Store(w.revision)
	s.built.tell()
}

// mapFor is the durable plane of a node's map, or nil if the node is not part of the mesh.
func (s *Server) mapFor(w *world, id acl.NodeID) *wire.Map {
	if w.lacks(id) {
		return nil
	}
	n := w.state.nodes.get(id)
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
		peer := w.state.nodes.get(p).peer()
		peer.Routes = routes[p]
		m.Peers = append(m.Peers, peer)
	}
	return m
}

// lacks reports whether a node is not part of the mesh.
func (w *world) lacks(id acl.NodeID) bool { return w.state.nodes.get(id) == nil || w.expired[id] }

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
