package acl

import (
	"fmt"
	"net/netip"
	"slices"
)

// Test runs the file's own tests against an inventory, and proves its nevers of the tags and roles that go together
// there. A policy with failed tests must not be put into force, nor an inventory that fails them.
//
// A test holds of the nodes that exist. Where a name has none yet, it must hold of the node that would be the
// first, so that a new mesh can have tests from the start. An accept must hold of every source and every
// destination, in each address family that both have; a deny of none. Deny rules count; expiry does not.
func (p *Policy) Test(inv *Inventory) Errors {
	r := &tester{p: p, inv: &Inventory{Users: inv.Users, Nodes: slices.Clone(inv.Nodes)}, fake: map[string]bool{}}
	for _, t := range p.tests {
		r.invent(t)
	}
	prog, err := Compile(p, r.inv)
	if err != nil {
		return Errors{{Pos: Pos{File: p.doc.file, Line: 1, Col: 1}, Class: ClassTestFailed, Msg: err.Error()}}
	}
	r.c = prog
	for _, t := range p.tests {
		r.run(t)
	}
	for _, t := range p.sshTests {
		r.runSSH(t)
	}
	r.errs = append(r.errs, p.Prove(inv)...)
	r.errs.sort()
	return r.errs
}

// Tests is how many tests the file has, of both kinds.
func (p *Policy) Tests() int { return len(p.tests) + len(p.sshTests) }

type tester struct {
	p    *Policy
	inv  *Inventory
	c    *Program
	w    *world          // of inv, until it changes
	fake map[string]bool // names that were given a node
	errs Errors
}

func (r *tester) fail(off int, hint, format string, args ...any) {
	r.errs = append(r.errs, r.p.doc.error(off, ClassTestFailed, hint, fmt.Sprintf(format, args...)))
}

// invent adds a node for each name in a test that no node has.
func (r *tester) invent(t *test) {
	r.inventFor(t.src)
	for _, d := range append(slices.Clone(t.accept), t.deny...) {
		r.inventFor(d.sel)
	}
}

func (r *tester) inventFor(s selector) {
	if r.fake[s.text] || devices&(1<<s.kind) == 0 {
		return
	}
	r.fake[s.text] = true
	if r.w == nil {
		r.w = newWorld(r.p, r.inv)
	}
	if w := r.w; len(w.named(s)) > 0 {
		return
	}
	n := Node{Name: "a first " + s.text}
	for _, o := range r.inv.Nodes {
		n.ID = max(n.ID, o.ID)
	}
	n.ID++
	n.Addrs = r.freeAddrs()
	switch s.kind {
	case selTag:
		n.Tags = []string{s.text}
	case selTagged:
		n.Tags = []string{"tag:any"}
	case selUser:
		if !r.knownUser(s.text) {
			return
		}
		n.User = s.text
	case selGroup:
		if len(r.p.groups[s.text]) == 0 {
			return
		}
		n.User = r.p.groups[s.text][0]
	case selUserDomain:
		n.User = "someone@" + s.arg
	case selMember:
		n.User = "someone@hedge.invalid"
	case selRole:
		n.User = s.arg + "@hedge.invalid"
		r.inv.Users = append(slices.Clone(r.inv.Users), User{Login: n.User, Roles: []string{s.arg}})
	}
	r.inv.Nodes = append(r.inv.Nodes, n)
	r.w = nil
}

// freeAddrs are addresses, one of each family, that a new node could be given.
func (r *tester) freeAddrs() []netip.Addr {
	out := []netip.Addr{netip.MustParseAddr("100.127.254.1"), netip.MustParseAddr("fd68:6564:6765:ffff::1")}
	for i := range out {
		for {
			if _, taken := r.w.owner(out[i]); !taken {
				break
			}
			out[i] = out[i].Next()
		}
	}
	return out
}

// knownUser reports whether a login is anybody: a user of the mesh or, in our own reading, one that the file names
// somewhere other than in tests.
func (r *tester) knownUser(login string) bool {
	if slices.ContainsFunc(r.inv.Users, func(u User) bool { return u.Login == login }) {
		return true
	}
	if r.p.opt.Compat {
		return false
	}
	for _, m := range r.p.groups {
		if slices.Contains(m, login) {
			return true
		}
	}
	for _, row := range r.p.rows {
		for _, s := range row.src {
			if slices.ContainsFunc(s, func(t term) bool { return t.text == login }) {
				return true
			}
		}
		if slices.ContainsFunc(row.dst, func(d dest) bool { return d.text == login }) {
			return true
		}
	}
	return false
}

// nodesOf lists the nodes that a name of a test stands for.
func (r *tester) nodesOf(s selector) []int32 {
	if s.prefix.IsValid() {
		if i, ok := r.c.w.owner(s.prefix.Addr()); ok {
			return []int32{i}
		}
		return nil
	}
	return r.c.w.named(s)
}

func (r *tester) run(t *test) {
	c := r.c
	srcs := r.nodesOf(t.src)
	if len(srcs) == 0 && t.src.prefix.IsValid() {
		// An address that no node has: judge it as a node with that address alone.
		n := Node{ID: NodeID(1<<63 + uint64(t.off)), Name: t.src.text, Addrs: []netip.Addr{t.src.prefix.Addr()}, Tags: []string{"tag:(address)"}}
		inv := &Inventory{Users: r.inv.Users, Nodes: append(slices.Clone(r.inv.Nodes), n)}
		var err error
		if c, err = Compile(r.p, inv); err == nil {
			i, _ := c.w.at(n.ID)
			srcs = []int32{i}
		}
	}
	if len(srcs) == 0 {
		r.fail(t.off, "name somebody who is in the mesh or in the file", "%s: nobody is %q", t.path, t.src.text)
		return
	}
	for _, d := range t.accept {
		r.reach(c, t, d, srcs, true)
	}
	for _, d := range t.deny {
		r.reach(c, t, d, srcs, false)
	}
}

// reach judges one destination of a test.
func (r *tester) reach(c *Program, t *test, d testDest, srcs []int32, want bool) {
	tried := 0
	for _, s := range r.oneOfEach(c, srcs) {
		src := c.w.nodes[s]
		if t.attrs != nil {
			c = r.withAttrs(src.ID, t.attrs)
		}
		rules := c.relevant(s)
		for _, dst := range r.addrsOf(c, d.sel, s) {
			if !d.sel.prefix.IsValid() && !slices.ContainsFunc(src.Addrs, func(a netip.Addr) bool { return a.BitLen() == dst.BitLen() }) {
				continue
			}
			tried++
			rule, ok := r.open(c, rules, s, dst, d.port, t.protos)
			switch {
			case ok == want:
			case want && rule != nil:
				r.fail(d.off, "", "%s: %s should reach %s, but %s (line %d) denies it", t.path, src.Name, d.text, rule.Path, rule.Pos.Line)
				return
			case want:
				r.fail(d.off, "", "%s: %s should reach %s, but no rule lets it", t.path, src.Name, d.text)
				return
			default:
				r.fail(d.off, "", "%s: %s should not reach %s, but %s (line %d) lets it", t.path, src.Name, d.text, rule.Path, rule.Pos.Line)
				return
			}
		}
	}
	if tried == 0 {
		r.fail(d.off, "", "%s: nothing is %q", t.path, d.sel.text)
	}
}

// oneOfEach keeps the first node of each identity class: the others would be judged the same.
func (r *tester) oneOfEach(c *Program, idx []int32) []int32 {
	seen := map[*class]bool{}
	var out []int32
	for _, i := range idx {
		if k := c.w.nodes[i].class; !seen[k] {
			seen[k] = true
			out = append(out, i)
		}
	}
	return out
}

// withAttrs is the program as it would be if the node had the attributes.
func (r *tester) withAttrs(id NodeID, attrs map[string]string) *Program {
	inv := &Inventory{Users: r.inv.Users, Nodes: slices.Clone(r.inv.Nodes)}
	for i := range inv.Nodes {
		if inv.Nodes[i].ID == id {
			inv.Nodes[i].Attrs = attrs
		}
	}
	c, err := Compile(r.p, inv)
	if err != nil {
		return r.c
	}
	return c
}

// open checks a flow: of one of the protocols of the test or, without any, by TCP or failing that by UDP.
func (r *tester) open(c *Program, rules []*compiled, src int32, dst netip.Addr, port uint16, protos []uint8) (*Rule, bool) {
	if len(protos) == 0 {
		protos = []uint8{protoTCP, protoUDP}
	}
	var deny *Rule
	for _, n := range protos {
		rule, ok := c.judge(rules, src, dst, port, n)
		if ok {
			return rule, true
		}
		if deny == nil {
			deny = rule
		}
	}
	return deny, false
}

// addrsOf lists the addresses that a destination of a test stands for.
func (r *tester) addrsOf(c *Program, s selector, src int32) []netip.Addr {
	var idx []int32
	switch {
	case s.prefix.IsValid():
		return []netip.Addr{s.prefix.Addr()}
	case s.kind == selSelf:
		if n := c.w.nodes[src]; len(n.Tags) == 0 {
			idx = c.w.devices(n.User)
		}
	default:
		idx = c.w.named(s)
	}
	var out []netip.Addr
	for _, i := range r.oneOfEach(c, idx) {
		out = append(out, c.w.nodes[i].Addrs...)
	}
	return out
}
