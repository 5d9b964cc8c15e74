package acl

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// Program is a policy compiled against an inventory. It does not change, and may be used by many goroutines.
type Program struct {
	w     *world
	rules []*compiled
	// self are the rules that autogroup:self makes for each owner, who alone is concerned.
	self map[string][]*compiled

	classes func() []int32 // see newClasses
}

// compiled is a rule with its sets.
type compiled struct {
	Rule
	seq int        // its place in the file
	src []*members // of Rule.Src, in step
	dst []*members // of Rule.Dst, in step
	via []int32    // the nodes that may be destinations; nil for all
	// blanket says that the rule covers all traffic between its nodes.
	blanket bool
}

// Compile resolves a policy's rules against an inventory. The same policy and inventory give the same program, in
// whatever order the inventory lists its nodes and users. It fails on an inventory that contradicts itself.
func Compile(p *Policy, inv *Inventory) (*Program, error) {
	if err := inv.check(); err != nil {
		return nil, err
	}
	c := &Program{w: newWorld(p, inv), self: map[string][]*compiled{}}
	denied := p.allProtos()
	for i, r := range p.rows {
		for _, part := range parts(r, denied) {
			c.add(i, r, part)
		}
	}
	c.classes = sync.OnceValue(c.newClasses)
	return c, nil
}

// newClasses gives each node the number of its identity class, which is the index of the first node in it. Nodes of
// one class are in the same sets, by addresses of the same families, and so no rule tells them apart, except for
// the targets that are single addresses.
func (c *Program) newClasses() []int32 {
	keys := make([][]byte, len(c.w.nodes))
	for i := range c.w.nodes {
		for _, a := range c.w.nodes[i].Addrs {
			keys[i] = append(keys[i], byte(a.BitLen()))
		}
		keys[i] = append(keys[i], 0)
	}
	id := uint64(0)
	for _, name := range names(c.w.sets) {
		m := c.w.sets[name]
		id++
		for _, i := range m.idx {
			keys[i] = binary.AppendUvarint(keys[i], id)
			if m.whole {
				continue
			}
			for _, a := range c.w.nodes[i].Addrs {
				in := byte(0)
				if m.set.holds(a) {
					in = 1
				}
				keys[i] = append(keys[i], in)
			}
		}
	}
	first := map[string]int32{}
	out := make([]int32, len(keys))
	for i, k := range keys {
		if _, ok := first[string(k)]; !ok {
			first[string(k)] = int32(i)
		}
		out[i] = first[string(k)]
	}
	return out
}

// Classes is how many identity classes the inventory has: nodes that no rule tells apart.
func (c *Program) Classes() int {
	n := 0
	for i, first := range c.classes() {
		if int32(i) == first {
			n++
		}
	}
	return n
}

// check refuses an inventory in which an identity is not one node's alone.
func (inv *Inventory) check() error {
	ids := make(map[NodeID]bool, len(inv.Nodes))
	addrs := make(map[netip.Addr]NodeID, 2*len(inv.Nodes))
	for i := range inv.Nodes {
		n := &inv.Nodes[i]
		if n.ID == 0 || ids[n.ID] {
			return fmt.Errorf("acl: inventory has node %d (%q) twice, or without a number", n.ID, n.Name)
		}
		ids[n.ID] = true
		for _, a := range n.Addrs {
			if other, dup := addrs[a]; dup {
				return fmt.Errorf("acl: inventory gives %s to node %d and to node %d", a, other, n.ID)
			}
			addrs[a] = n.ID
		}
	}
	return nil
}

// part is what of a row becomes one rule: destinations that share protocols.
type part struct {
	protos []uint8
	dst    []dest
	any    bool // the row names no protocol
}

// parts splits a row by protocols, and keeps autogroup:self in the same parts.
func parts(r *row, all []uint8) []part {
	if r.grant {
		var out []part
		for _, ip := range r.ip {
			ds := make([]dest, len(r.dst))
			for i, d := range r.dst {
				ds[i] = dest{d.selector, ip.ports}
			}
			at := slices.IndexFunc(out, func(p part) bool { return slices.Equal(p.protos, ip.protos) })
			if at < 0 {
				out, at = append(out, part{protos: ip.protos, any: len(ip.protos) == 0}), len(out)
			}
			out[at].dst = append(out[at].dst, ds...)
		}
		return out
	}
	if r.action != Deny || len(r.protos) > 0 {
		return []part{{r.protos, r.dst, len(r.protos) == 0}}
	}
	// A deny without a protocol stops every protocol that anything admits; one of ports, every protocol with ports.
	var whole, ported part
	whole.protos, whole.any = all, true
	ported.protos = []uint8{protoTCP, protoUDP, protoSCTP}
	for _, d := range r.dst {
		if slices.Contains(d.ports, AllPorts) {
			whole.dst = append(whole.dst, d)
		} else {
			ported.dst = append(ported.dst, d)
		}
	}
	var out []part
	for _, p := range []part{whole, ported} {
		if len(p.dst) > 0 {
			out = append(out, p)
		}
	}
	return out
}

// allProtos are the protocols that the policy's rules can admit.
func (p *Policy) allProtos() []uint8 {
	out := slices.Clone(DefaultProtos)
	for _, r := range p.rows {
		out = append(out, r.protos...)
		for _, ip := range r.ip {
			out = append(out, ip.protos...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// add compiles one part of a row: a rule for its shared destinations, and one for each owner with autogroup:self.
func (c *Program) add(seq int, r *row, pt part) {
	base := Rule{Pos: r.pos, Path: r.path, Action: r.action, Protos: pt.protos, Expires: r.expires, Window: r.window}
	postures := c.w.policy.posturesOf(r)
	if r.action == Deny {
		postures = nil // Parse refused it otherwise
	}
	var src []*members
	for _, s := range r.src {
		m := c.w.healthy(c.w.source(s), postures)
		if !slices.Contains(src, m) {
			src = append(src, m)
		}
	}
	var shared, self []dest
	for _, d := range pt.dst {
		if d.kind == selSelf {
			self = append(self, d)
		} else {
			shared = append(shared, d)
		}
	}
	if len(src) == 0 {
		return
	}
	if len(shared) > 0 {
		cr := &compiled{Rule: base, seq: seq, src: src}
		for _, s := range src {
			cr.Src = append(cr.Src, s.name)
		}
		if len(r.via) > 0 {
			cr.via, shared = c.steered(r.via, shared)
		}
		cr.aim(c, shared)
		if len(cr.Dst) > 0 {
			cr.blanket = pt.any && !r.timed() && !slices.ContainsFunc(cr.Dst, func(t Target) bool { return !slices.Contains(t.Ports, AllPorts) })
			c.rules = append(c.rules, cr)
		}
	}
	if len(self) > 0 {
		c.addSelf(seq, base, src, self)
	}
}

// aim gives a rule its targets; ports for the same set are joined.
func (cr *compiled) aim(c *Program, ds []dest) {
	for _, d := range ds {
		m := c.w.of(d.selector)
		at := slices.Index(cr.dst, m)
		if at < 0 {
			cr.dst = append(cr.dst, m)
			cr.Dst = append(cr.Dst, Target{Set: m.name, Ports: slices.Clone(d.ports)})
			continue
		}
		for _, p := range d.ports {
			if !slices.Contains(cr.Dst[at].Ports, p) {
				cr.Dst[at].Ports = append(cr.Dst[at].Ports, p)
			}
		}
	}
}

// steered are the nodes with one of the tags, and of the destinations those that can lie behind a router.
func (c *Program) steered(via []string, ds []dest) ([]int32, []dest) {
	idx := []int32{}
	for _, t := range via {
		idx = append(idx, c.w.byTag[t]...)
	}
	slices.Sort(idx)
	var out []dest
	for _, d := range ds {
		if numbers&(1<<d.kind) != 0 || d.kind == selInternet {
			out = append(out, d)
		}
	}
	return slices.Compact(idx), out
}

// addSelf makes the rules of autogroup:self: each owner's untagged devices, as far as the sources cover them, to
// all of that owner's untagged devices.
func (c *Program) addSelf(seq int, base Rule, src []*members, self []dest) {
	covered := map[string][]int32{}
	for _, i := range c.w.untag {
		if u := c.w.nodes[i].User; slices.ContainsFunc(src, func(m *members) bool { return m.has(i) }) {
			covered[u] = append(covered[u], i)
		}
	}
	for _, u := range names(covered) {
		own := c.w.byUser[u]
		name := "self:" + u
		to, ok := c.w.sets[name]
		if !ok {
			to = c.w.identities(name, own)
		}
		from := to
		if idx := covered[u]; len(idx) != len(own) {
			from = c.w.identities(name+" ("+base.Path+")", idx)
		}
		cr := &compiled{Rule: base, seq: seq, src: []*members{from}, dst: []*members{to}}
		cr.Src = []string{from.name}
		t := Target{Set: to.name}
		for _, d := range self {
			for _, p := range d.ports {
				if !slices.Contains(t.Ports, p) {
					t.Ports = append(t.Ports, p)
				}
			}
		}
		cr.Dst = []Target{t}
		c.self[u] = append(c.self[u], cr)
	}
}

// Rules are all the rules of the program, in the order of the file, grants first.
func (c *Program) Rules() []Rule {
	all := slices.Clone(c.rules)
	for _, u := range names(c.self) {
		all = append(all, c.self[u]...)
	}
	slices.SortStableFunc(all, func(a, b *compiled) int { return cmp.Compare(a.seq, b.seq) })
	out := make([]Rule, len(all))
	for i, r := range all {
		out[i] = r.Rule
	}
	return out
}

// Set returns the members of a set that a rule names. They are shared, and not to be changed.
func (c *Program) Set(name string) (Set, bool) {
	m, ok := c.w.sets[name]
	if !ok {
		return Set{}, false
	}
	return m.set, true
}
