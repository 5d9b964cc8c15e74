package acl

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// stand is what a source of a never can get to be: a node that it controls, or an address that it speaks from.
type stand struct {
	actor
	how   string // every step from the source here, ready to go on
	steps int
}

// climb looks for what the sources of a never reach over others, breadth first, so that what it finds is short.
//
//	source ─┬─ ssh ────── a node that it reaches on tcp/22 ─────────────────┐
//	        ├─ router ─── an address behind a router that it reaches or is ─┤
//	        └─ tagOwners ─ a node with a tag that it may give ──────────────┴─ and on from there ─ … ─ a destination
//
// A node on the way is anybody's, or has one tag or tags that go together, and an address that no rule names unless
// the step there does. Whoever reaches a host behind a router on any port is taken to speak through it: nothing here
// knows what runs there.
type climb struct {
	*prover
	n     *never
	seen  map[string]bool
	todo  []stand
	hops  map[selector][]actor  // by what names them
	rows  map[selector][]*row   // accepts, by what names a source
	loose []*row                // and those with other sources
	sigs  map[string][]selector // what names a person
	outer []netip.Addr          // addresses behind routers that rules tell apart as sources
}

// maxSteps bounds the ways that are looked at.
const maxSteps = 64

// pivot finds what breaks a never in more than one step, or nil.
func (pr *prover) pivot(n *never) *counter {
	c := &climb{prover: pr, n: n, seen: map[string]bool{}, hops: map[selector][]actor{}}
	if n.through&overRouter != 0 {
		for _, r := range pr.accept {
			for _, s := range r.src {
				c.outer = append(c.outer, slices.DeleteFunc(pr.p.edges(s[0].selector), pr.inMesh)...)
			}
		}
	}
	for _, x := range c.starts() {
		c.own(x)
		if found := c.carry(x); found != nil {
			return found
		}
	}
	for _, r := range pr.accept {
		for _, a := range pr.senders(n, r) {
			c.leave(stand{actor: a}, r)
		}
	}
	for len(c.todo) > 0 && pr.work <= maxWork {
		x := c.todo[0]
		c.todo = c.todo[1:]
		if found := c.arrive(x); found != nil {
			return found
		}
	}
	return nil
}

// starts are the identities of the never's sources, each once.
func (c *climb) starts() []stand {
	var out []stand
	for _, s := range c.n.src {
		pts := slices.Concat(srcDefaults, c.srcPts, c.p.edges(s[0].selector))
		for _, x := range c.identities(s, s) {
			for _, addr := range pts {
				x.addr = addr
				c.work++
				if c.inMesh(addr) && c.p.isSource(s, x) {
					out = append(out, stand{actor: x})
					break
				}
			}
		}
	}
	return out
}

// arrive asks what a stand reaches, and where it leads.
func (c *climb) arrive(x stand) *counter {
	for _, r := range c.rowsFrom(x) {
		for _, a := range c.speakers(x) {
			c.work++
			if !slices.ContainsFunc(r.src, func(s source) bool { return c.p.isSource(s, a) }) {
				continue
			}
			if found := c.reach(c.n, r, a); found != nil {
				found.how = x.how
				return found
			}
			y := x
			y.actor = a
			c.leave(y, r)
		}
	}
	if x.node == nil {
		return nil
	}
	c.own(x)
	return c.carry(x)
}

// rowsFrom are the accepts that may have a stand as a source: those that name it, and those that do not say whom.
func (c *climb) rowsFrom(x stand) []*row {
	if c.rows == nil {
		c.rows = map[selector][]*row{}
		for _, r := range c.accept {
			loose := false
			for _, s := range r.src {
				if s.plain() && (s[0].kind == selTag || s[0].kind == selUser || s[0].kind == selGroup) {
					c.rows[s[0].selector] = append(c.rows[s[0].selector], r)
				} else {
					loose = true
				}
			}
			if loose {
				c.loose = append(c.loose, r)
			}
		}
		c.sigs = map[string][]selector{}
		for s, l := range c.byName {
			for _, i := range l {
				u := c.people[i]
				c.sigs[u.Login+" "+strings.Join(u.Roles, ",")] = append(c.sigs[u.Login+" "+strings.Join(u.Roles, ",")], s)
			}
		}
	}
	out := slices.Clone(c.loose)
	if x.node == nil {
		return out
	}
	for _, t := range x.node.Tags {
		out = append(out, c.rows[selector{kind: selTag, text: t}]...)
	}
	if len(x.node.Tags) == 0 {
		for _, s := range c.sigs[x.node.User+" "+strings.Join(x.roles, ",")] {
			out = append(out, c.rows[s]...)
		}
	}
	slices.SortFunc(out, func(a, b *row) int { return cmp.Compare(a.off, b.off) })
	return slices.Compact(out)
}

// speakers are a stand by each address that it sends from.
func (c *climb) speakers(x stand) []actor {
	if x.addr.IsValid() {
		return []actor{x.actor}
	}
	var out []actor
	for _, addr := range hopAddrs(x.steps) {
		a := x.actor
		a.addr = addr
		out = append(out, a)
	}
	return out
}

// hopAddrs are addresses for the node after so many steps, of which a source and a destination have the first two.
func hopAddrs(steps int) []netip.Addr {
	v4, v6 := srcDefaults[0].As4(), srcDefaults[1].As16()
	v4[3] += byte(steps + 1)
	v6[15] += byte(steps + 1)
	return []netip.Addr{netip.AddrFrom4(v4), netip.AddrFrom16(v6)}
}

// visit goes to a stand, once.
func (c *climb) visit(x stand) {
	if key := x.key(); !c.seen[key] && x.steps < maxSteps {
		c.seen[key] = true
		c.todo = append(c.todo, x)
	}
}

// key tells stands apart: two nodes that no rule tells apart are one.
func (x stand) key() string {
	if x.node == nil {
		return x.addr.String()
	}
	at := ""
	if x.addr.IsValid() {
		at = x.addr.String()
	}
	return strings.Join([]string{x.node.User, strings.Join(x.node.Tags, ","), strings.Join(x.roles, ","), at}, " ")
}

// leave takes the ways that a row opens to one of its sources.
func (c *climb) leave(x stand, r *row) {
	ssh := &never{protos: []uint8{protoTCP}}
	for _, pt := range c.parts[r] {
		for _, d := range pt.dst {
			if c.n.through&overSSH != 0 && len(r.via) == 0 && slices.ContainsFunc(d.ports, func(p PortRange) bool { return p.Contains(22) }) {
				for _, y := range c.nodesAt(d.selector, x.steps+1) {
					if y.addr.BitLen() != x.addr.BitLen() {
						continue
					}
					if c.steps(x, y, r, pt, d, ssh, PortRange{22, 22}) {
						how := fmt.Sprintf("%s%s may log in on %s by ssh (%s, line %d), and ", x.how, x.actor, y, r.path, r.pos.Line)
						c.visit(stand{c.unless(d.selector, y), how, x.steps + 1})
					}
				}
			}
			if c.n.through&overRouter != 0 && (numbers|kinds(selAny))&(1<<d.kind) != 0 {
				for _, addr := range c.outer {
					if addr.BitLen() != x.addr.BitLen() {
						continue
					}
					if y := (actor{addr: addr}); c.steps(x, y, r, pt, d, &never{}, AllPorts) {
						how := fmt.Sprintf("%s%s reaches %s behind its router (%s, line %d), and ", x.how, x.actor, addr, r.path, r.pos.Line)
						c.visit(stand{y, how, x.steps + 1})
					}
				}
			}
		}
	}
}

// steps reports whether a row lets a stand reach another that has not been looked at yet. Unlike the last step of a path
// it is not compiled to be sure: were the two ever to differ, the never would be refused.
func (c *climb) steps(x stand, y actor, r *row, pt part, d dest, what *never, ports PortRange) bool {
	c.work++
	if c.seen[stand{actor: c.unless(d.selector, y)}.key()] || x.addr == y.addr || !c.p.isDest(d.selector, y, x.actor) {
		return false
	}
	if y.node != nil && x.node != nil && x.node.User == y.node.User && !slices.Equal(x.roles, y.roles) {
		return false // one user has one set of roles
	}
	try := &counter{src: x.actor, dst: y, row: r}
	return c.flow(try, what, pt, d, dest{selector{kind: selAny}, []PortRange{ports}})
}

// nodesAt are the nodes that a destination may name, after so many steps.
func (c *climb) nodesAt(d selector, steps int) []actor {
	out, ok := c.hops[d]
	if !ok {
		pts := slices.DeleteFunc(c.p.edges(d), func(a netip.Addr) bool { return !c.inMesh(a) })
		for _, x := range c.identities(source{{selector: d}}, source{{selector: d}}) {
			for _, x.addr = range pts {
				out = append(out, x)
			}
			if numbers&(1<<d.kind) == 0 {
				x.addr = netip.Addr{}
				out = append(out, x)
			}
		}
		c.hops[d] = out
	}
	var at []actor
	for _, x := range out {
		if x.addr.IsValid() {
			at = append(at, x)
			continue
		}
		at = append(at, c.speakers(stand{actor: x, steps: steps})...)
	}
	return at
}

// unless forgets the address of a node that is not named by it: it sends from all that it has.
func (c *climb) unless(d selector, y actor) actor {
	if numbers&(1<<d.kind) == 0 && y.node != nil {
		y.addr = netip.Addr{}
	}
	return y
}

// own takes the tags that a stand may give to a node. Tags without owners are for admins to give, who may change the
// policy as well.
func (c *climb) own(x stand) {
	if c.n.through&overOwners == 0 || x.node == nil {
		return
	}
	whos, roles := []string{x.node.User}, x.roles
	if len(x.node.Tags) > 0 {
		whos, roles = x.node.Tags, nil
	}
	for _, who := range whos {
		said := who
		if len(x.node.Tags) > 0 {
			said = "a node with " + who
		}
		for _, t := range c.p.Tags() {
			c.work++
			if who != t && slices.ContainsFunc(c.p.tagOwners[t], func(s selector) bool { return c.p.owns(s, who, roles) }) {
				c.visit(stand{actor{node: &Node{Tags: []string{t}}}, x.how + said + " may give " + t + ", and ", x.steps + 1})
			}
		}
	}
}

// carry takes the routes that a stand may carry without an admin's word: it speaks as what lies behind it, and if it
// is not a source itself it gets there too, with no rule's leave.
func (c *climb) carry(x stand) *counter {
	if x.node == nil {
		return nil
	}
	owner := &User{Login: x.node.User, Roles: x.roles}
	for _, a := range c.p.routes {
		if c.n.through&overRouter == 0 || !c.p.anyApprover(a.owners, x.node, owner) {
			continue
		}
		how := fmt.Sprintf("%s%s may carry %s", x.how, x.actor, a.prefix)
		for _, d := range c.n.dst {
			if at, ok := c.meets(d.selector, a.prefix); ok && x.steps > 0 {
				return &counter{how: x.how, src: x.actor, dst: actor{addr: at}}
			}
		}
		for _, addr := range c.outer {
			if a.prefix.Contains(addr) {
				c.visit(stand{actor{addr: addr}, how + ", and ", x.steps + 1})
			}
		}
	}
	if x.steps > 0 && c.n.through&overExit != 0 && c.p.anyApprover(c.p.exitNode, x.node, owner) {
		for _, d := range c.n.dst {
			for _, all := range []netip.Prefix{netip.MustParsePrefix("1.1.1.1/32"), netip.MustParsePrefix("2606:4700::1111/128")} {
				if at, ok := c.meets(d.selector, all); ok {
					return &counter{how: x.how, src: x.actor, dst: actor{addr: at}}
				}
			}
			for _, at := range c.p.edges(d.selector) {
				if internetHard.contains(at) && c.p.isDest(d.selector, actor{addr: at}, actor{}) {
					return &counter{how: x.how, src: x.actor, dst: actor{addr: at}}
				}
			}
		}
	}
	return nil
}

// meets finds an address of a prefix that a selector of addresses takes in.
func (c *climb) meets(s selector, p netip.Prefix) (netip.Addr, bool) {
	for _, a := range append(c.p.edges(s), rangeOf(p).first, rangeOf(p).last) {
		if p.Contains(a) && c.p.isDest(s, actor{addr: a}, actor{}) {
			return a, true
		}
	}
	return netip.Addr{}, false
}
