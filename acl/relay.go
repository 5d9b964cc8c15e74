package acl

import (
	"slices"
	"time"
)

// CapRelay is the capability that makes its destinations peer relays of its sources: such a source and any other node that
// the relay knows may have it forward their packets to each other, which it cannot read. One of the two is enough, as with
// Tailscale (https://tailscale.com/docs/features/peer-relay): a server behind a bad NAT, say, and whoever talks to it.
//
//	{"src": ["tag:branch"], "dst": ["tag:hub"], "app": {"tailscale.com/cap/relay": []}}
//
// It becomes a rule of action Relay, without protocols and ports: no packet matches it, and whoever does not know the
// action has a rule that says nothing. It lets its ends see each other, and carry nothing but that.
const CapRelay = "tailscale.com/cap/relay"

// relays reports whether the row grants CapRelay. One that is steered grants no capability.
func (r *row) relays() bool {
	return len(r.via) == 0 && slices.ContainsFunc(r.app, func(c capability) bool { return c.name == CapRelay })
}

// MayRelay is the first rule in force that lets src use dst as a peer relay, nil for none. The rules and sets are those
// of a [View] in which both are known.
func MayRelay(rules []Rule, sets map[string]Set, src, dst *Node, now time.Time) *Rule {
	if src.ID == dst.ID {
		return nil
	}
	for i := range rules {
		r := &rules[i]
		if r.Action == Relay && r.InForce(now) &&
			slices.ContainsFunc(r.Src, func(name string) bool { return sets[name].names(src) }) &&
			slices.ContainsFunc(r.Dst, func(t Target) bool { return sets[t.Set].names(dst) }) {
			return r
		}
	}
	return nil
}

// Relays reports whether a rule makes the node a peer relay of others, whenever it is in force.
func (c *Program) Relays(id NodeID) bool {
	i, ok := c.w.at(id)
	return ok && slices.ContainsFunc(c.relevant(i), func(r *compiled) bool {
		_, dst := c.concerns(r, i)
		return r.Action == Relay && dst
	})
}

// names reports whether the set has the node itself, whatever the node carries for others.
func (s Set) names(n *Node) bool {
	if _, in := slices.BinarySearch(s.Nodes, n.ID); in || s.Any {
		return true
	}
	return slices.ContainsFunc(n.Addrs, s.holds)
}

// protoRelay stands for the use as a peer relay among services: no packet has it, and no rule may name it.
const protoRelay = 0

// relaying compares the sides for the use of the destination as a peer relay.
func (x *comparer) relaying(c *change, cols [2][]int32) {
	var gained, lost [][]Service // by time
	some := false
	for t := range x.live {
		var rule [2]*Rule
		for k, s := range x.sides {
			for _, col := range cols[k] {
				if r := s.rules[s.cols[col].rule]; rule[k] == nil && r.Action == Relay && x.live[t][k][s.cols[col].rule] {
					rule[k], some = &r.Rule, true
				}
			}
		}
		var g, l []Service
		switch {
		case rule[1] != nil && rule[0] == nil:
			g = extend(g, protoRelay, AllPorts, rule[1])
		case rule[0] != nil && rule[1] == nil:
			l = extend(l, protoRelay, AllPorts, rule[0])
		}
		gained, lost = append(gained, g), append(lost, l)
	}
	if some {
		c.gained = append(c.gained, x.throughout(gained)...)
		c.lost = append(c.lost, x.throughout(lost)...)
	}
}
