package acl

import (
	"cmp"
	"net/netip"
	"slices"
)

// concerns reports whether the node is a source of the rule, and whether a destination.
func (c *Program) concerns(r *compiled, i int32) (src, dst bool) {
	has := func(m *members) bool { return m.has(i) }
	return c.any(r.src, has), c.reaches(r, i) && c.any(r.dst, has)
}

// reaches reports whether via, if any, lets the node be a destination.
func (c *Program) reaches(r *compiled, i int32) bool { return !r.steered || c.set(r.via).has(i) }

// relevant lists the rules that concern a node, in the order of the file. They are not to be changed.
func (c *Program) relevant(i int32) []*compiled {
	n := c.w.nodes[i]
	out := c.plan.relevant(n.class)
	if self := c.selfOf(n); len(self) > 0 {
		out = slices.Clip(out)
		for _, r := range self {
			if s, d := c.concerns(r, i); s || d {
				out = append(out, r)
			}
		}
		slices.SortStableFunc(out, func(a, b *compiled) int { return cmp.Compare(a.seq, b.seq) })
	}
	return out
}

// View is what one node may know and must enforce. It is empty for a node the program does not know.
//
// A rule in which the node is only a destination keeps all its sources and only the targets that are the node; one
// in which it is only a source, the reverse; but of a relay's sources each knows the others, as it takes two. Sets hold
// the node itself and its peers, and nobody else.
func (c *Program) View(id NodeID) View {
	i, ok := c.w.at(id)
	if !ok {
		return View{}
	}
	visible := c.visible(i)
	v := View{Sets: map[string]Set{}, Peers: c.w.ids(visible)}
	known := slices.Clone(visible)
	known.add(i)
	cut := func(r ref) {
		if m := c.set(r); !hasKey(v.Sets, m.name) {
			v.Sets[m.name] = c.cutSet(m, known)
		}
	}
	for _, r := range c.relevant(i) {
		if r.Action == Deny && !c.matters(r, i, visible) {
			continue
		}
		rule, src, dst := c.cut(r, i)
		v.Rules = append(v.Rules, rule)
		for _, x := range src {
			cut(x)
		}
		for _, x := range dst {
			cut(x)
		}
	}
	return v
}

// Peers are the nodes that a node sees, which are those that see it: View's, for less work.
func (c *Program) Peers(id NodeID) []NodeID {
	i, ok := c.w.at(id)
	if !ok {
		return nil
	}
	return c.w.ids(c.visible(i))
}

// Sees reports whether two nodes see each other.
func (c *Program) Sees(a, b NodeID) bool {
	i, ok := c.w.at(a)
	o, too := c.w.at(b)
	return ok && too && c.visible(i).has(o)
}

func hasKey[K comparable, V any](m map[K]V, k K) bool { _, ok := m[k]; return ok }

// matters reports whether a rule is about the node and one of its peers; the node itself may be among these.
func (c *Program) matters(r *compiled, i int32, visible bitset) bool {
	src, dst := c.concerns(r, i)
	meets := func(m *members) bool { return m.meets(visible, i) }
	return src && c.any(r.dst, meets) || dst && c.any(r.src, meets)
}

// cut is the rule as the node may see it, and its sets.
func (c *Program) cut(r *compiled, i int32) (rule Rule, src, dst []ref) {
	isSrc, isDst := c.concerns(r, i)
	rule, src, dst = r.Rule, r.src, r.dst
	if !isDst && r.Action != Relay && !c.inAll(r.src, i) {
		rule.Src, src = nil, nil
		for n, x := range r.src {
			if c.set(x).has(i) {
				rule.Src, src = append(rule.Src, r.Src[n]), append(src, x)
			}
		}
	}
	if !isSrc && !c.inAll(r.dst, i) {
		rule.Dst, dst = nil, nil
		for n, x := range r.dst {
			if c.set(x).has(i) {
				rule.Dst, dst = append(rule.Dst, r.Dst[n]), append(dst, x)
			}
		}
	}
	return rule, src, dst
}

// inAll reports whether a node is in all of the sets.
func (c *Program) inAll(rs []ref, i int32) bool {
	return !c.any(rs, func(m *members) bool { return !m.has(i) })
}

// cutSet is the set without the nodes that are not known, nor their addresses.
func (c *Program) cutSet(m *members, known bitset) Set {
	s := m.set
	if !m.identities() && !m.drifts() {
		return s
	}
	s.Prefixes = nil
	for i := range m.each() {
		switch {
		case !known.has(i):
		case m.drifts():
			for _, a := range c.w.nodes[i].Addrs {
				if contains(m.of.prefixes, a) {
					s.Prefixes = append(s.Prefixes, netip.PrefixFrom(a, a.BitLen()))
				}
			}
		default:
			s.Nodes = append(s.Nodes, c.w.nodes[i].ID)
		}
	}
	slices.SortFunc(s.Prefixes, netip.Prefix.Compare)
	if c.w.shuffled {
		slices.Sort(s.Nodes)
	}
	return s
}

// Check says whether src may open a flow to a destination, and which rule says so: the rule that admits it, or the
// deny rule that stops it, or nil when no rule covers it. What is no node's own address must lie behind one that
// carries it, by the narrowest route there is. When rules are in force is not judged here; it is the node's to judge.
// proto is an IANA protocol number; port means nothing to a protocol without ports.
func (c *Program) Check(src NodeID, dst netip.Addr, port uint16, proto uint8) (rule *Rule, ok bool) {
	from, known := c.w.at(src)
	if !known {
		return nil, false
	}
	return c.check(c.relevant(from), from, dst, port, proto)
}

func (c *Program) check(rules []*compiled, from int32, dst netip.Addr, port uint16, proto uint8) (rule *Rule, ok bool) {
	if _, own := c.w.owner(dst); own {
		return c.judge(rules, from, dst, port, proto)
	}
	carriers, exit := c.carriers(dst)
	for _, to := range carriers {
		var hit *Rule
		for _, r := range rules {
			if hit != nil && r.Action == Accept || to == from || !r.admitsFrom(c, from, dst) || !r.admitsBehind(c, to, exit, dst, port, proto) {
				continue
			}
			if hit = &r.Rule; r.Action == Deny {
				break
			}
		}
		if hit != nil {
			rule, ok = hit, hit.Action == Accept
		}
		if ok {
			break
		}
	}
	return rule, ok
}

// admitsBehind is admitsTo for an address that a node carries a route to. Through an exit, only "*" and the internet
// are reached: a rule for a network means its router.
func (r *compiled) admitsBehind(c *Program, to int32, exit bool, dst netip.Addr, port uint16, proto uint8) bool {
	if !c.reaches(r, to) {
		return false
	}
	for n, x := range r.dst {
		m := c.set(x)
		if !m.set.Any && (m.whole || !m.has(to) || !m.set.holds(dst) || exit && !isInternet(m.name)) {
			continue
		}
		if slices.ContainsFunc(r.Dst[n].Ports, func(p PortRange) bool { return r.speaks(p, port, proto) }) {
			return true
		}
	}
	return false
}

func isInternet(set string) bool { return set == "autogroup:internet" }

// judge is Check with the rules that concern the source at hand, for any address as if somebody carried it.
func (c *Program) judge(rules []*compiled, from int32, dst netip.Addr, port uint16, proto uint8) (*Rule, bool) {
	to, owned := c.w.owner(dst)
	if !owned {
		to = -1
	}
	var hit *compiled
	for _, r := range rules {
		if hit != nil && r.Action == Accept || !r.admitsFrom(c, from, dst) || !r.admitsTo(c, to, dst, port, proto) {
			continue
		}
		if r.Action == Deny {
			return &r.Rule, false
		}
		hit = r
	}
	if hit == nil {
		return nil, false
	}
	return &hit.Rule, true
}

// admitsFrom reports whether the node is a source, with its address of the destination's family.
func (r *compiled) admitsFrom(c *Program, from int32, dst netip.Addr) bool {
	return c.any(r.src, func(m *members) bool {
		if m.whole {
			return m.has(from)
		}
		return slices.ContainsFunc(c.w.nodes[from].Addrs, func(a netip.Addr) bool {
			return a.BitLen() == dst.BitLen() && m.set.holds(a)
		})
	})
}

// admitsTo reports whether a destination, and the node it is if any, is a target.
func (r *compiled) admitsTo(c *Program, to int32, dst netip.Addr, port uint16, proto uint8) bool {
	if to >= 0 && !c.reaches(r, to) {
		return false
	}
	for n, x := range r.dst {
		m := c.set(x)
		if !m.set.Any && !(m.whole && to >= 0 && m.has(to)) && !m.set.holds(dst) {
			continue
		}
		if slices.ContainsFunc(r.Dst[n].Ports, func(p PortRange) bool { return r.speaks(p, port, proto) }) {
			return true
		}
	}
	return false
}

// holds reports whether the address is one of the prefixes.
func (s *Set) holds(a netip.Addr) bool {
	return slices.ContainsFunc(s.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// speaks reports whether the rule's protocols, and this range of its ports, take in a packet. Ping follows any rule
// that admits anything, and is stopped only by a rule about ICMP.
func (r *Rule) speaks(p PortRange, port uint16, proto uint8) bool {
	protos := r.Protos
	if len(protos) == 0 {
		protos = DefaultProtos
	}
	named := slices.Contains(protos, proto)
	switch {
	case proto == protoICMP || proto == protoICMPv6:
		return named || r.Action == Accept
	case hasPorts(proto):
		return named && p.Contains(port)
	}
	return named && p == AllPorts
}
