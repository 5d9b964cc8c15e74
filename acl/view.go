package acl

import (
	"cmp"
	"net/netip"
	"slices"
)

// concerns reports whether the node is a source of the rule, and whether a destination.
func (r *compiled) concerns(i int32) (src, dst bool) {
	src = slices.ContainsFunc(r.src, func(m *members) bool { return m.has(i) })
	dst = r.reaches(i) && slices.ContainsFunc(r.dst, func(m *members) bool { return m.has(i) })
	return src, dst
}

// reaches reports whether via, if any, lets the node be a destination.
func (r *compiled) reaches(i int32) bool {
	if r.via == nil {
		return true
	}
	_, ok := slices.BinarySearch(r.via, i)
	return ok
}

// relevant lists the rules that concern a node, in the order of the file.
func (c *Program) relevant(i int32) []*compiled {
	var out []*compiled
	for _, r := range c.rules {
		if s, d := r.concerns(i); s || d {
			out = append(out, r)
		}
	}
	n := &c.w.nodes[i]
	if len(n.Tags) == 0 && len(c.self[n.User]) > 0 {
		for _, r := range c.self[n.User] {
			if s, d := r.concerns(i); s || d {
				out = append(out, r)
			}
		}
		slices.SortStableFunc(out, func(a, b *compiled) int { return cmp.Compare(a.seq, b.seq) })
	}
	return out
}

// destinations adds to b the nodes that the rule reaches.
func (r *compiled) destinations(b bitset) {
	if r.via == nil {
		for _, m := range r.dst {
			m.addTo(b)
		}
		return
	}
	for _, i := range r.via {
		if slices.ContainsFunc(r.dst, func(m *members) bool { return m.has(i) }) {
			b.add(i)
		}
	}
}

// peers are the nodes that a rule lets the node send to, or hear from. What a deny stops altogether does not count.
func (c *Program) peers(i int32, rules []*compiled) bitset {
	n := len(c.w.nodes)
	in, out := newBitset(n), newBitset(n)
	noIn, noOut := newBitset(n), newBitset(n)
	for _, r := range rules {
		src, dst := r.concerns(i)
		switch {
		case r.Action == Accept:
			if src {
				r.destinations(out)
			}
			if dst {
				for _, m := range r.src {
					m.addTo(in)
				}
			}
		case r.blanket:
			if src && r.covers(i, r.src, c) {
				c.blocked(r.dst, noOut)
			}
			if dst && r.covers(i, r.dst, c) {
				c.blocked(r.src, noIn)
			}
		}
	}
	in.andNot(noIn)
	out.andNot(noOut)
	in.or(out)
	in[i/64] &^= 1 << (i % 64)
	return in
}

// covers reports whether the sets take in all that the node is: its addresses, and its routes if it has any.
func (r *compiled) covers(i int32, sets []*members, c *Program) bool {
	return slices.ContainsFunc(sets, func(m *members) bool {
		return m.has(i) && m.whole && (m.set.Any || len(c.w.nodes[i].Routes) == 0)
	})
}

// blocked adds to b the nodes that the sets take in altogether.
func (c *Program) blocked(sets []*members, b bitset) {
	for _, m := range sets {
		if !m.whole {
			continue
		}
		for _, i := range m.idx {
			if m.set.Any || len(c.w.nodes[i].Routes) == 0 {
				b.add(i)
			}
		}
	}
}

// View is what one node may know and must enforce. It is empty for a node the program does not know.
//
// A rule in which the node is only a destination keeps all its sources and only the targets that are the node; one
// in which it is only a source, the reverse. Sets hold the node itself and its peers, and nobody else.
func (c *Program) View(id NodeID) View {
	i, ok := c.w.byID[id]
	if !ok {
		return View{}
	}
	rules := c.relevant(i)
	visible := c.peers(i, rules)
	v := View{Sets: map[string]Set{}}
	for n := range c.w.nodes {
		if visible.has(int32(n)) {
			v.Peers = append(v.Peers, c.w.nodes[n].ID)
		}
	}
	known := slices.Clone(visible)
	known.add(i)
	for _, r := range rules {
		rule := r.cut(i)
		if r.Action == Deny && !r.matters(i, visible) {
			continue
		}
		v.Rules = append(v.Rules, rule)
		for _, name := range rule.Src {
			c.cutSet(v.Sets, name, known)
		}
		for _, t := range rule.Dst {
			c.cutSet(v.Sets, t.Set, known)
		}
	}
	return v
}

// matters reports whether a rule is about the node and one of its peers.
func (r *compiled) matters(i int32, visible bitset) bool {
	src, dst := r.concerns(i)
	meets := func(m *members) bool { return m.meets(visible) }
	return src && slices.ContainsFunc(r.dst, meets) || dst && slices.ContainsFunc(r.src, meets)
}

// cut is the rule as the node may see it.
func (r *compiled) cut(i int32) Rule {
	src, dst := r.concerns(i)
	rule := r.Rule
	if !dst {
		rule.Src = nil
		for n, m := range r.src {
			if m.has(i) {
				rule.Src = append(rule.Src, r.Src[n])
			}
		}
	}
	if !src {
		rule.Dst = nil
		for n, m := range r.dst {
			if m.has(i) {
				rule.Dst = append(rule.Dst, r.Dst[n])
			}
		}
	}
	return rule
}

// cutSet adds to sets the named set, without the nodes that are not known.
func (c *Program) cutSet(sets map[string]Set, name string, known bitset) {
	if _, ok := sets[name]; ok {
		return
	}
	m := c.w.sets[name]
	s := Set{Any: m.set.Any, Prefixes: m.set.Prefixes}
	if len(m.set.Nodes) > 0 {
		for _, i := range m.idx {
			if known.has(i) {
				s.Nodes = append(s.Nodes, c.w.nodes[i].ID)
			}
		}
	}
	sets[name] = s
}

// Check says whether src may open a flow to a destination, and which rule says so: the rule that admits it, or the
// deny rule that stops it, or nil when no rule covers it. What is no node's own address must lie behind one that
// carries it, by the narrowest route there is. When rules are in force is not judged here; it is the node's to judge.
// proto is an IANA protocol number; port means nothing to a protocol without ports.
func (c *Program) Check(src NodeID, dst netip.Addr, port uint16, proto uint8) (rule *Rule, ok bool) {
	from, known := c.w.byID[src]
	if !known {
		return nil, false
	}
	return c.check(c.relevant(from), from, dst, port, proto)
}

func (c *Program) check(rules []*compiled, from int32, dst netip.Addr, port uint16, proto uint8) (rule *Rule, ok bool) {
	if _, own := c.w.byAddr[dst]; own {
		return c.judge(rules, from, dst, port, proto)
	}
	carriers, exit := c.carriers(dst)
	for _, to := range carriers {
		var hit *Rule
		for _, r := range rules {
			if hit != nil && r.Action == Accept || to == from || !r.admitsFrom(c, from, dst) || !r.admitsBehind(to, exit, dst, port, proto) {
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
func (r *compiled) admitsBehind(to int32, exit bool, dst netip.Addr, port uint16, proto uint8) bool {
	if !r.reaches(to) {
		return false
	}
	for n, m := range r.dst {
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
	to, owned := c.w.byAddr[dst]
	if !owned {
		to = -1
	}
	var hit *compiled
	for _, r := range rules {
		if hit != nil && r.Action == Accept || !r.admitsFrom(c, from, dst) || !r.admitsTo(to, dst, port, proto) {
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
	return slices.ContainsFunc(r.src, func(m *members) bool {
		if m.whole {
			return m.has(from)
		}
		return slices.ContainsFunc(c.w.nodes[from].Addrs, func(a netip.Addr) bool {
			return a.BitLen() == dst.BitLen() && m.set.holds(a)
		})
	})
}

// admitsTo reports whether a destination, and the node it is if any, is a target.
func (r *compiled) admitsTo(to int32, dst netip.Addr, port uint16, proto uint8) bool {
	if to >= 0 && !r.reaches(to) {
		return false
	}
	for n, m := range r.dst {
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
