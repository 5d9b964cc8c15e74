package acl

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Program is a policy compiled against an inventory. It does not change, and may be used by many goroutines.
type Program struct {
	w    *world
	plan *plan
	// self are the rules that autogroup:self makes for each owner, who alone is concerned.
	self   index[string, []*compiled]
	sights *sync.Map // by *class; see sight
}

// plan is what of a program does not depend on who exists. The programs that are made from one another share it.
type plan struct {
	rules []*compiled // but those of autogroup:self
	self  []*selfRow
	// mentions are the rules that name a set, by its number, in order.
	mentions [][]int32
	denies   bool                // there are some
	blankets bool                // and some of all traffic
	groups   map[string][]string // those of a login, sorted

	mu      sync.Mutex // held by With
	classes map[string]*class
}

// compiled is a rule with its sets.
type compiled struct {
	Rule
	seq int   // its place in the file
	src []ref // of Rule.Src, in step
	dst []ref // of Rule.Dst, in step
	// via is the set of nodes that may be destinations, if the rule is steered.
	via     ref
	steered bool
	// blanket says that the rule covers all traffic between its nodes.
	blanket bool
}

// ref is a set that a rule names: by its number in the world, or the rule's very own.
type ref struct {
	no  int32
	own *members
}

// selfRow is a part of a row with autogroup:self among its destinations.
type selfRow struct {
	Rule
	seq   int
	src   []ref
	ports []PortRange
}

// set is what a rule names.
func (c *Program) set(r ref) *members {
	if r.own != nil {
		return r.own
	}
	return c.w.sets[r.no]
}

// any reports whether one of the sets is such.
func (c *Program) any(rs []ref, such func(*members) bool) bool {
	return slices.ContainsFunc(rs, func(r ref) bool { return such(c.set(r)) })
}

// Compile resolves a policy's rules against an inventory. The same policy and inventory give the same program, in
// whatever order the inventory lists its nodes and users. It fails on an inventory that contradicts itself.
func Compile(p *Policy, inv *Inventory) (*Program, error) {
	if err := inv.check(); err != nil {
		return nil, err
	}
	c := &Program{w: newWorld(p, inv), plan: &plan{classes: map[string]*class{}}, self: newIndex[string, []*compiled](strings.Compare), sights: &sync.Map{}}
	denied := p.allProtos()
	for i, r := range p.rows {
		for _, part := range parts(r, denied) {
			c.add(i, r, part)
		}
		if r.relays() {
			c.add(i, r, part{dst: r.dst, relay: true})
		}
	}
	c.plan.mentions = make([][]int32, len(c.w.sets))
	for n, r := range c.plan.rules {
		c.plan.mention(r, int32(n))
		c.plan.denies = c.plan.denies || r.Action == Deny
		c.plan.blankets = c.plan.blankets || r.blanket && r.Action == Deny
	}
	c.plan.groups = map[string][]string{}
	for _, g := range names(p.groups) {
		for _, u := range p.groups[g] {
			if l := c.plan.groups[u]; len(l) == 0 || l[len(l)-1] != g {
				c.plan.groups[u] = append(l, g)
			}
		}
	}
	c.classify()
	if len(c.plan.self) > 0 {
		for u := range c.w.lists().byUser {
			c.ownSelf(u)
		}
	}
	return c, nil
}

func (pl *plan) mention(r *compiled, n int32) {
	for _, refs := range [][]ref{r.src, r.dst} {
		for _, x := range refs {
			if l := pl.mentions[x.no]; len(l) == 0 || l[len(l)-1] != n {
				pl.mentions[x.no] = append(l, n)
			}
		}
	}
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
	relay  bool // it is not about packets
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
		return []part{{protos: r.protos, dst: r.dst, any: len(r.protos) == 0}}
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

// add compiles one part of a row: a rule for its shared destinations, and what makes those of autogroup:self.
func (c *Program) add(seq int, r *row, pt part) {
	base := Rule{Pos: r.pos, Path: r.path, Action: r.action, Protos: pt.protos, Expires: r.expires, Window: r.window}
	if pt.relay {
		base.Action = Relay
	}
	postures := c.w.policy.posturesOf(r)
	if r.action == Deny {
		postures = nil // Parse refused it otherwise
	}
	var src []ref
	for _, s := range r.src {
		if x := (ref{no: c.w.healthy(c.w.source(s), postures).no}); !slices.Contains(src, x) {
			src = append(src, x)
		}
	}
	var shared []dest
	var self []PortRange
	own := false
	for _, d := range pt.dst {
		if d.kind != selSelf {
			shared = append(shared, d)
			continue
		}
		own = own || pt.relay
		for _, p := range d.ports {
			if !slices.Contains(self, p) {
				self = append(self, p)
			}
		}
	}
	if len(src) == 0 {
		return
	}
	if len(shared) > 0 {
		cr := &compiled{Rule: base, seq: seq, src: src}
		for _, s := range src {
			cr.Src = append(cr.Src, c.set(s).name)
		}
		if len(r.via) > 0 {
			cr.steered, cr.via, shared = true, ref{no: c.w.through(r.via).no}, steered(shared)
		}
		cr.aim(c, shared)
		if len(cr.Dst) > 0 {
			cr.blanket = pt.any && !r.timed() && !slices.ContainsFunc(cr.Dst, func(t Target) bool { return !slices.Contains(t.Ports, AllPorts) })
			c.plan.rules = append(c.plan.rules, cr)
		}
	}
	if len(self) > 0 || own {
		c.plan.self = append(c.plan.self, &selfRow{Rule: base, seq: seq, src: src, ports: self})
	}
}

// aim gives a rule its targets; ports for the same set are joined.
func (r *compiled) aim(c *Program, ds []dest) {
	for _, d := range ds {
		m := c.w.of(d.selector)
		at := slices.Index(r.dst, ref{no: m.no})
		if at < 0 {
			r.dst = append(r.dst, ref{no: m.no})
			r.Dst = append(r.Dst, Target{Set: m.name, Ports: slices.Clone(d.ports)})
			continue
		}
		for _, p := range d.ports {
			if !slices.Contains(r.Dst[at].Ports, p) {
				r.Dst[at].Ports = append(r.Dst[at].Ports, p)
			}
		}
	}
}

// steered are the destinations that can lie behind a router.
func steered(ds []dest) []dest {
	var out []dest
	for _, d := range ds {
		if numbers&(1<<d.kind) != 0 || d.kind == selInternet {
			out = append(out, d)
		}
	}
	return out
}

// ownSelf makes the rules of autogroup:self for an owner: from the untagged devices, as far as the sources cover them,
// to all of them.
func (c *Program) ownSelf(user string) {
	own := c.w.devices(user)
	var rules []*compiled
	var to *members
	for _, r := range c.plan.self {
		var covered []int32
		for _, i := range own {
			if c.any(r.src, func(m *members) bool { return m.has(i) }) {
				covered = append(covered, i)
			}
		}
		if len(covered) == 0 {
			continue
		}
		if to == nil {
			to = newMembers(&definition{no: -1, name: "self:" + user, whole: true}, own, len(c.w.nodes))
		}
		from := to
		if len(covered) != len(own) {
			from = newMembers(&definition{no: -1, name: to.name + " (" + r.Path + ")", whole: true}, covered, len(c.w.nodes))
		}
		cr := &compiled{Rule: r.Rule, seq: r.seq, src: []ref{{own: from}}, dst: []ref{{own: to}}}
		cr.Src, cr.Dst = []string{from.name}, []Target{{Set: to.name, Ports: r.ports}}
		rules = append(rules, cr)
	}
	if len(rules) > 0 {
		c.self.put(user, rules)
	} else {
		c.self.remove(user)
	}
}

// all are the program's rules, those of autogroup:self after the others, by owner.
func (c *Program) all() []*compiled {
	out := slices.Clone(c.plan.rules)
	for _, rs := range c.self.all() {
		out = append(out, rs...)
	}
	return out
}

// Rules are all the rules of the program, in the order of the file, grants first.
func (c *Program) Rules() []Rule {
	all := c.all()
	slices.SortStableFunc(all, func(a, b *compiled) int { return cmp.Compare(a.seq, b.seq) })
	out := make([]Rule, len(all))
	for i, r := range all {
		out[i] = r.Rule
	}
	return out
}
