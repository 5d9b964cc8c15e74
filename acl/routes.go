package acl

import (
	"net/netip"
	"slices"
)

// Routes are the approved routes that a node may use, by who carries them:
//
//	10.33.0.0/16   a rule lets the node reach something in it by this carrier, or something in it reach the node
//	0.0.0.0/0      a rule lets the node reach "*" or autogroup:internet by this exit
//
// Others it is not to know of: an address that it sends to a router for nothing is one that it cannot reach otherwise.
// Several nodes may carry the same route; who of them is used is not for the policy to say.
func (c *Program) Routes(id NodeID) map[NodeID][]netip.Prefix {
	i, ok := c.w.at(id)
	if !ok || len(c.w.routers)+len(c.w.exits) == 0 {
		return nil
	}
	carriers := slices.Concat(c.w.routers, c.w.exits)
	rules := c.relevant(i)
	out := map[NodeID][]netip.Prefix{}
	for _, to := range carriers {
		n := c.w.nodes[to]
		if _, had := out[n.ID]; had || to == i {
			continue
		}
		for _, route := range n.Routes {
			if slices.ContainsFunc(rules, func(r *compiled) bool {
				return r.Action == Accept && (c.leadsTo(r, i, to, route) || c.comesFrom(r, i, route))
			}) {
				out[n.ID] = append(out[n.ID], route)
			}
		}
	}
	return out
}

// leadsTo reports whether the rule lets a node reach something behind a carrier's route. Through an exit, only "*" and
// the internet are reached.
func (c *Program) leadsTo(r *compiled, from, to int32, route netip.Prefix) bool {
	return c.reaches(r, to) && c.any(r.src, func(m *members) bool { return m.has(from) }) &&
		c.any(r.dst, func(m *members) bool {
			return m.set.Any || !m.whole && m.has(to) && m.set.overlaps(route) && (route.Bits() > 0 || isInternet(m.name))
		})
}

// comesFrom reports whether the rule lets something in a route reach a node.
func (c *Program) comesFrom(r *compiled, to int32, route netip.Prefix) bool {
	return route.Bits() > 0 && c.reaches(r, to) && c.any(r.dst, func(m *members) bool { return m.has(to) }) &&
		c.any(r.src, func(m *members) bool { return m.set.Any || m.set.overlaps(route) })
}

// overlaps reports whether any of the prefixes does.
func (s *Set) overlaps(p netip.Prefix) bool {
	return slices.ContainsFunc(s.Prefixes, p.Overlaps)
}

// Internet is what an exit carries, whatever a rule says ("*" included): the addresses of autogroup:internet, as sorted
// prefixes.
func Internet() []netip.Prefix { return slices.Clone(internetPrefixes()[0]) }

// NotInternet is the rest: private networks, loopback, multicast and the like, as sorted prefixes.
func NotInternet() []netip.Prefix {
	return union([]ipRange{rangeOf(all4), rangeOf(all6)}).minus(internetHard).prefixes()
}
