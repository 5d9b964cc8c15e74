package acl

import (
	"encoding/binary"
	"slices"
	"sync"
)

// class is the nodes that no rule tells apart: they are in the same sets, by addresses of the same families. (Their
// own autogroup:self and targets that are single addresses aside.) A program judges what rules say of a node once for
// its class.
type class struct {
	key    string
	sets   []int32 // their numbers, sorted
	routes bool    // the nodes carry some, and there are rules that stop all of a node's traffic

	once  sync.Once
	rules []*compiled // that concern it, in order
}

// classify gives each node its class.
func (c *Program) classify() {
	in := make([][]int32, len(c.w.nodes))
	for _, m := range c.w.sets {
		for i := range m.each() {
			in[i] = append(in[i], m.no)
		}
	}
	var buf []byte
	for i, n := range c.w.nodes {
		n.class, buf = c.class(&n.Node, in[i], buf[:0])
	}
}

// class is that of a node which is in the sets. Its key is made in buf.
func (c *Program) class(n *Node, sets []int32, buf []byte) (*class, []byte) {
	flag := func(b bool) {
		if b {
			buf = append(buf, 1)
			return
		}
		buf = append(buf, 0)
	}
	for _, a := range n.Addrs {
		buf = append(buf, byte(a.BitLen()))
	}
	flag(false)
	routes := c.plan.blankets && len(n.Routes) > 0
	flag(routes)
	for _, no := range sets {
		buf = binary.AppendUvarint(buf, uint64(no))
		d := c.w.sets[no].definition
		if d.whole {
			continue
		}
		ps := d.prefixes
		if d.of != nil {
			ps = d.of.prefixes
		}
		for _, a := range n.Addrs {
			flag(contains(ps, a))
		}
	}
	k, ok := c.plan.classes[string(buf)]
	if !ok {
		k = &class{key: string(buf), sets: slices.Clone(sets), routes: routes}
		c.plan.classes[k.key] = k
	}
	return k, buf
}

// Classes is how many identity classes the inventory has: nodes that no rule tells apart.
func (c *Program) Classes() int {
	seen := map[*class]bool{}
	for _, n := range c.w.nodes {
		if n != nobody {
			seen[n.class] = true
		}
	}
	return len(seen)
}

// is reports whether the class is in one of the sets.
func (k *class) is(rs []ref) bool {
	return slices.ContainsFunc(rs, func(r ref) bool {
		_, ok := slices.BinarySearch(k.sets, r.no)
		return ok
	})
}

// concerns reports whether the class's nodes are sources of a rule that is not of autogroup:self, and whether destinations.
func (k *class) concerns(r *compiled) (src, dst bool) {
	return k.is(r.src), (!r.steered || k.is([]ref{r.via})) && k.is(r.dst)
}

// relevant lists the rules that concern a class, but for those of autogroup:self, in the order of the file.
func (pl *plan) relevant(k *class) []*compiled {
	k.once.Do(func() {
		var ns []int32
		for _, no := range k.sets {
			ns = append(ns, pl.mentions[no]...)
		}
		slices.Sort(ns)
		for _, n := range slices.Compact(ns) {
			r := pl.rules[n]
			if s, d := k.concerns(r); s || d {
				k.rules = append(k.rules, r)
			}
		}
	})
	return k.rules
}

// sight is whom the nodes of a class see, themselves included if they may, and whom a deny stops altogether. What
// autogroup:self lets them see comes on top.
type sight struct{ sees, noIn, noOut bitset }

// sight is found once for each class that is asked about.
func (c *Program) sight(k *class) *sight {
	if s, ok := c.sights.Load(k); ok {
		return s.(*sight)
	}
	n := len(c.w.nodes)
	in, out := newBitset(n), newBitset(n)
	s := &sight{}
	for _, r := range c.plan.relevant(k) {
		src, dst := k.concerns(r)
		switch {
		case r.Action != Deny:
			if src {
				c.destinations(r, out)
			}
			if dst {
				for _, m := range r.src {
					c.set(m).addTo(in)
				}
			}
		case r.blanket:
			if src && c.covers(k, r.src) {
				s.noOut = c.blocked(r.dst, s.noOut)
			}
			if dst && c.covers(k, r.dst) {
				s.noIn = c.blocked(r.src, s.noIn)
			}
		}
	}
	in.andNot(s.noIn)
	out.andNot(s.noOut)
	in.or(out)
	s.sees = in
	c.sights.Store(k, s)
	return s
}

// destinations adds to b the nodes that the rule reaches.
func (c *Program) destinations(r *compiled, b bitset) {
	if !r.steered {
		for _, m := range r.dst {
			c.set(m).addTo(b)
		}
		return
	}
	for i := range c.set(r.via).each() {
		if c.any(r.dst, func(m *members) bool { return m.has(i) }) {
			b.add(i)
		}
	}
}

// covers reports whether the sets take in all that a node of the class is: its addresses, and its routes if it has any.
func (c *Program) covers(k *class, sets []ref) bool {
	return c.any(sets, func(m *members) bool { return m.whole && (m.any || !k.routes) && k.is([]ref{{no: m.no}}) })
}

// blocked adds to b, which may be nil, the nodes that the sets take in altogether.
func (c *Program) blocked(sets []ref, b bitset) bitset {
	if b == nil {
		b = newBitset(len(c.w.nodes))
	}
	for _, r := range sets {
		m := c.set(r)
		if !m.whole {
			continue
		}
		if m.any {
			m.addTo(b)
			continue
		}
		for i := range m.each() {
			if !c.w.nodes[i].class.routes {
				b.add(i)
			}
		}
	}
	return b
}

// visible are the nodes that a rule lets the node send to, or hear from. What a deny stops altogether does not count.
func (c *Program) visible(i int32) bitset {
	n := c.w.nodes[i]
	s := c.sight(n.class)
	out := slices.Clone(s.sees)
	for _, r := range c.selfOf(n) {
		src, dst := c.concerns(r, i)
		for _, x := range []struct {
			is  bool
			who ref
			not bitset
		}{{src, r.dst[0], s.noOut}, {dst, r.src[0], s.noIn}} {
			if !x.is || r.Action == Deny {
				continue
			}
			for o := range c.set(x.who).each() {
				if !x.not.has(o) {
					out.add(o)
				}
			}
		}
	}
	out.remove(i)
	return out
}

// seen is visible where the node itself may be in it, and for less work.
func (c *Program) seen(i int32) bitset {
	if n := c.w.nodes[i]; len(c.selfOf(n)) == 0 {
		return c.sight(n.class).sees
	}
	return c.visible(i)
}

// selfOf are the rules that autogroup:self makes for a node's owner, if they may be about the node.
func (c *Program) selfOf(n *entry) []*compiled {
	if len(n.Tags) > 0 || len(c.plan.self) == 0 {
		return nil
	}
	rs, _ := c.self.get(n.User)
	return rs
}
