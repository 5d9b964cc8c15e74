package coordinator

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
)

// Routes, from who offers them to who uses them:
//
//	node ─ Advertise ─▶ advertised ─┐
//	admin ─ approve, revoke ────────┼─▶ approved ─▶ policy: who may use them ─┐
//	policy ─ autoApprovers ─────────┘       └─────▶ order: which of several ──┴─▶ Peer.Routes of a viewer
//
// Nothing is kept of what autoApprovers say: it is asked anew in each world. What an admin has said is kept with the
// node, and is stronger.

// How long a carrier may be away before the next of its route takes over: longer than a session takes to come back
// after a lost connection, and after a start of the coordinator longer than all of them take.
const (
	failover     = 2 * time.Second
	startingTime = 45 * time.Second
)

// proper are the prefixes that can be routes, sorted, at most wire.MaxRoutes; the others are bad.
func (m mesh) proper(offered []netip.Prefix) (good, bad []netip.Prefix) {
	for _, r := range offered {
		if wire.CheckRoute(r, []netip.Prefix{m.v4, m.v6}) != nil {
			bad = append(bad, r)
		} else {
			good = append(good, r)
		}
	}
	slices.SortFunc(good, netip.Prefix.Compare)
	good = slices.Compact(good)
	if len(good) > wire.MaxRoutes {
		bad = append(bad, good[wire.MaxRoutes:]...)
		good = good[:wire.MaxRoutes]
	}
	return good, bad
}

// advertise is the change that a node's offer makes; nil for none.
func (s *state) advertise(m mesh, id acl.NodeID, offered []netip.Prefix) *change {
	was := s.nodes.get(id)
	good, _ := m.proper(offered)
	if was == nil || slices.Equal(was.Advertised, good) {
		return nil
	}
	n := *was
	n.Advertised = good
	return &change{nodes: map[acl.NodeID]*node{id: &n}}
}

// By whom a route was decided about.
const (
	byPolicy = "policy"
	byAdmin  = "admin"
)

// approval says whether a node may carry a route that it offers, and by whose word; by is empty if nobody has said
// anything. What overlaps a prefix that an admin has revoked is not for the policy to approve: else a node would get
// around it with a wider route, or with two halves.
func (s *state) approval(n *node, route netip.Prefix) (ok bool, by string) {
	if slices.Contains(n.Approved, route) {
		return true, byAdmin
	}
	if slices.ContainsFunc(n.Revoked, func(r netip.Prefix) bool { return r == route || r.Bits() > 0 && route.Bits() > 0 && r.Overlaps(route) }) {
		return false, byAdmin
	}
	if s.policy == nil {
		return false, ""
	}
	var owner *acl.User
	if u := s.users[n.User]; u != nil {
		owner = &acl.User{Login: u.Login, Roles: u.Roles}
	}
	a := n.acl()
	if s.policy.parsed.Approves(&a, owner, route) {
		return true, byPolicy
	}
	return false, ""
}

// under is the state as it would be with another policy.
func (s *state) under(p *acl.Policy) *state {
	n := *s
	n.policy = &policyRecord{parsed: p}
	return &n
}

// routes are those that the node offers and that are approved; nil for none.
func (s *state) routes(n *node) (out []netip.Prefix) {
	for _, r := range n.Advertised {
		if ok, _ := s.approval(n, r); ok {
			out = append(out, r)
		}
	}
	return out
}

// decide is the node after an admin has approved and revoked routes. A revoked prefix takes with it all approved ones
// inside it.
func (n *node) decide(approve, revoke []netip.Prefix) {
	approved, revoked := slices.Clone(n.Approved), slices.Clone(n.Revoked)
	for _, r := range revoke {
		approved = slices.DeleteFunc(approved, func(a netip.Prefix) bool {
			return a == r || r.Bits() > 0 && a.Bits() >= r.Bits() && r.Contains(a.Addr())
		})
	}
	revoked = append(revoked, revoke...)
	for _, r := range approve {
		revoked = slices.DeleteFunc(revoked, func(x netip.Prefix) bool { return x == r })
	}
	approved = append(approved, approve...)
	for _, l := range []*[]netip.Prefix{&approved, &revoked} {
		slices.SortFunc(*l, netip.Prefix.Compare)
		*l = slices.Compact(*l)
	}
	n.Approved, n.Revoked = approved, revoked
}

// carriers are the nodes that carry one route, in the order in which they are used.
type carriers struct {
	Nodes []acl.NodeID `json:"nodes"`
}

// order is who carries a route, in the order of use: as it was, with those at the end who came since, by their
// number, and with those behind who are away. Who was first and comes back is thus not first again: each change ends
// the connections through the carrier before.
func order(was, now []acl.NodeID, alive func(acl.NodeID) bool) []acl.NodeID {
	var out []acl.NodeID
	for _, id := range was {
		if slices.Contains(now, id) {
			out = append(out, id)
		}
	}
	for _, id := range slices.Sorted(slices.Values(now)) {
		if !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	slices.SortStableFunc(out, func(a, b acl.NodeID) int {
		switch x, y := alive(a), alive(b); {
		case x && !y:
			return -1
		case y && !x:
			return 1
		}
		return 0
	})
	return out
}

// carried lists who carries each route; exits, which are chosen by those who use them, are not among them.
func (s *state) carried(now time.Time) map[netip.Prefix][]acl.NodeID {
	out := map[netip.Prefix][]acl.NodeID{}
	for id, n := range s.offering.all() {
		if n.expired(now) {
			continue
		}
		for _, r := range s.routes(n) {
			if r.Bits() > 0 {
				out[r] = append(out[r], id)
			}
		}
	}
	return out
}

// election is the change that puts the carriers of shared routes in their order; nil for none. before is who carried
// a route that was not shared.
func (s *state) election(now time.Time, before map[netip.Prefix][]acl.NodeID, alive func(acl.NodeID) bool) *change {
	c := &change{carriers: map[netip.Prefix]*carriers{}}
	carried := s.carried(now)
	for r, ids := range carried {
		if len(ids) < 2 {
			continue
		}
		was := before[r]
		if o := s.carriers[r]; o != nil {
			was = o.Nodes
		}
		if is := order(was, ids, alive); s.carriers[r] == nil || !slices.Equal(is, s.carriers[r].Nodes) {
			c.carriers[r] = &carriers{is}
		}
	}
	for r := range s.carriers {
		if len(carried[r]) < 2 {
			c.carriers[r] = nil
		}
	}
	if len(c.carriers) == 0 {
		return nil
	}
	return c
}

// elect makes the order of carriers what it should be now.
func (s *Server) elect() {
	var before map[netip.Prefix][]acl.NodeID
	if w := s.world.Load(); w != nil {
		before = w.carriers
	}
	var did *change
	err := s.commit(func(st *state) (*change, error) {
		did = st.election(s.now(), before, s.alive)
		return did, nil
	})
	if err != nil {
		s.cfg.Log.Error().Err(err).Msg("cannot store who carries which route; it stays as it was")
		return
	}
	if did == nil {
		return
	}
	st := s.state.Load()
	for r, c := range did.carriers {
		if c != nil && st.nodes.get(c.Nodes[0]) != nil {
			s.cfg.Log.Info().Stringer("route", r).Str("by", st.nodes.get(c.Nodes[0]).Name).Int("of", len(c.Nodes)).Msg("a shared route is carried")
		}
	}
}

// alive reports whether a carrier is there, or may just have lost its session.
func (s *Server) alive(id acl.NodeID) bool {
	if x := s.sessions.get(id); x != nil {
		return time.Since(x.conn.Heard()) < wire.CarrierSilence
	}
	now := s.now()
	p, known := s.presence.of(id)
	if !known {
		return now.Sub(s.started) < startingTime
	}
	return p.Online || now.Sub(p.LastSeen) < failover
}

// electionDue reports whether a shared route should be carried by another.
func (s *Server) electionDue() bool {
	for _, c := range s.state.Load().carriers {
		if !s.alive(c.Nodes[0]) && slices.ContainsFunc(c.Nodes[1:], s.alive) {
			return true
		}
	}
	return false
}

// order notes who carries what, and in which order.
func (w *world) order() {
	w.carriers = map[netip.Prefix][]acl.NodeID{}
	for _, id := range slices.Sorted(maps.Keys(w.routes)) {
		for _, r := range w.routes[id] {
			if r.Bits() > 0 {
				w.carriers[r] = append(w.carriers[r], id)
			}
		}
	}
	for r, o := range w.state.carriers {
		if len(w.carriers[r]) > 1 {
			w.carriers[r] = order(o.Nodes, w.carriers[r], func(acl.NodeID) bool { return true })
		}
	}
}

// reordered calls f with the nodes whose place among the carriers of a route is another in next.
func (w *world) reordered(next *world, f func(acl.NodeID)) {
	for r, is := range next.carriers {
		if was := w.carriers[r]; !slices.Equal(was, is) {
			for _, id := range slices.Concat(was, is) {
				f(id)
			}
		}
	}
}

// routesFor are the routes that a node may use, by who carries them for it: of several that the policy lets it use,
// the first in order.
func (w *world) routesFor(id acl.NodeID) map[acl.NodeID][]netip.Prefix {
	may := w.program.Routes(id)
	if len(may) == 0 {
		return nil
	}
	out := make(map[acl.NodeID][]netip.Prefix, len(may))
	for by, rs := range may {
		for _, r := range rs {
			i := slices.IndexFunc(w.carriers[r], func(c acl.NodeID) bool { return slices.Contains(may[c], r) })
			if r.Bits() == 0 || i >= 0 && w.carriers[r][i] == by {
				out[by] = append(out[by], r)
			}
		}
	}
	return out
}

// offers takes what a node offers to carry.
func (x *session) offers(routes []netip.Prefix) error {
	if _, bad := x.s.mesh.proper(routes); len(bad) > 0 {
		x.s.cfg.Log.Warn().Str("node", x.node.Name).Str("routes", fmt.Sprint(bad)).Msg("a node offers what cannot be a route; it is ignored")
	}
	return x.s.commit(func(st *state) (*change, error) { return st.advertise(x.s.mesh, x.id, routes), nil })
}

// routeInfos are all routes that the node offers or that an admin has decided about, sorted.
func (s *Server) routeInfos(n *node) []RouteInfo {
	st, w := s.state.Load(), s.world.Load()
	all := map[netip.Prefix]bool{}
	for _, r := range slices.Concat(n.Advertised, n.Approved, n.Revoked) {
		all[r] = true
	}
	var out []RouteInfo
	for _, r := range slices.SortedFunc(maps.Keys(all), netip.Prefix.Compare) {
		i := RouteInfo{Route: r, Advertised: slices.Contains(n.Advertised, r)}
		i.Approved, i.By = st.approval(n, r)
		if i.Approved && i.Advertised {
			switch c := w.carriers[r]; {
			case r.Bits() == 0 || len(c) > 0 && c[0] == n.ID:
				i.Primary = true
			case len(c) > 0 && st.nodes.get(c[0]) != nil:
				i.StandbyFor = st.nodes.get(c[0]).Name
			}
		}
		out = append(out, i)
	}
	return out
}

func (s *Server) adminRoutes(r *http.Request) (any, error) {
	var req RoutesRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	mesh := []netip.Prefix{s.mesh.v4, s.mesh.v6}
	for _, p := range slices.Concat(req.Approve, req.Revoke) {
		if err := wire.CheckRoute(p, mesh); err != nil {
			return nil, invalid("%v", err)
		}
		if slices.Contains(req.Approve, p) && slices.Contains(req.Revoke, p) {
			return nil, invalid("%v is to be approved and to be revoked: say one of the two", p)
		}
	}
	n, err := s.edit(r, func(_ *state, n *node) error {
		n.decide(req.Approve, req.Revoke)
		if len(n.Approved) > wire.MaxRoutes || len(n.Revoked) > wire.MaxRoutes {
			return invalid("that is more than %d routes for one node", wire.MaxRoutes)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if _, err := s.worldOf(r.Context(), s.state.Load().revs.get(nodeKeyOf(n.ID))); err != nil {
		return nil, err
	}
	return s.nodeInfo(n), nil
}
