package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Prove looks, for each never, for nodes that could be and that the rules would let meet, in one step or over others.
// The last step of what it finds it has checked by compiling the policy for just these nodes.
//
// A node that could be is anybody's, or has one tag, or the tags that a source of the file names together; it has any
// address of the mesh and any posture. An inventory adds the tags that its nodes have together, and the roles of its
// users: without one, whoever the file names by login has no role. A rule that is not always in force is taken to be
// if it accepts, and not to be if it denies.
//
// inv may be nil. The errors are of the class [ClassNeverBroken].
func (p *Policy) Prove(inv *Inventory) Errors {
	if len(p.nevers) == 0 {
		return nil
	}
	var errs Errors
	pr := newProver(p, inv)
	for _, n := range p.nevers {
		var c *counter
		if pr.work <= maxWork {
			c = pr.refute(n)
		}
		if c == nil && n.through != 0 && pr.work <= maxWork {
			c = pr.pivot(n)
		}
		switch {
		case pr.work > maxWork:
			return append(errs, p.doc.error(n.off, ClassNeverBroken, "forbid less at once, or name fewer addresses and tags in deny rules",
				n.path+" cannot be proved: there are too many cases to look at"))
		case c != nil:
			errs = append(errs, p.doc.error(n.off, ClassNeverBroken, c.hint(), n.path+" does not hold: "+c.String()))
		}
	}
	return errs
}

// prover holds what all proofs of a policy share.
type prover struct {
	p      *Policy
	people []User               // one for each way in which the file tells logins apart
	byName map[selector][]int32 // those of people that a selector names
	denies []denial
	srcPts []netip.Addr // addresses at the edges of what denies name
	dstPts []netip.Addr
	accept []*row
	parts  map[*row][]part
	known  map[[2]string][]actor // what sources found
	combos [][]string            // tags that one node may have together
	roles  map[string][]string   // of users that an inventory knows
	meshes []netip.Prefix
	work   int // nodes looked at
}

// maxWork bounds the nodes that all proofs of a file may look at, to a second or so.
const maxWork = 10_000_000

type denial struct {
	row *row
	part
}

// actor is a node that could be, with the one address that matters; a nil node is an address behind some router.
type actor struct {
	node  *Node
	roles []string
	addr  netip.Addr
}

// counter is a counter-example.
type counter struct {
	src, dst actor
	port     uint16
	proto    uint8
	row      *row // the rule of the last step; nil if it needs none
	// how says how the source of the last step comes to be that, if it is none of the never's.
	how string
}

// String says it to a person.
func (c *counter) String() string {
	switch {
	case c.row == nil:
		return fmt.Sprintf("%s%s would reach %s", c.how, c.src, c.dst)
	case hasPorts(c.proto):
		return fmt.Sprintf("%s%s would reach %s on %s port %d", c.how, c.src, c.dst, protoName(c.proto), c.port)
	}
	return fmt.Sprintf("%s%s would reach %s on %s", c.how, c.src, c.dst, protoName(c.proto))
}

func (c *counter) hint() string {
	hint := "narrow autoApprovers"
	if c.row != nil {
		hint = fmt.Sprintf("narrow %s (line %d), or add a deny", c.row.path, c.row.pos.Line)
	}
	if c.how != "" {
		hint += `; or say which ways count, with "through"`
	}
	return hint
}

func (a actor) String() string {
	if a.node == nil {
		return a.addr.String()
	}
	tags, at := strings.Join(a.node.Tags, ", "), ""
	if a.addr.IsValid() {
		at = " at " + a.addr.String()
	}
	switch {
	case tags == "" && len(a.roles) > 0:
		return fmt.Sprintf("a node of %s, with role %s,%s", a.node.User, strings.Join(a.roles, ", "), at)
	case tags == "":
		return fmt.Sprintf("a node of %s%s", a.node.User, at)
	case a.node.User != "":
		return fmt.Sprintf("a node of %s with %s%s", a.node.User, tags, at)
	}
	return fmt.Sprintf("a node with %s%s", tags, at)
}

func newProver(p *Policy, inv *Inventory) *prover {
	pr := &prover{p: p, known: map[[2]string][]actor{}, parts: map[*row][]part{}, roles: map[string][]string{}}
	pr.meshes = append(slices.Clone(p.opt.Mesh), meshPrefixes...)
	pr.meshes = append(pr.meshes, netip.MustParsePrefix("fd7a:115c:a1e0::/48")) // of policies written for Tailscale
	if inv != nil {
		for _, u := range inv.Users {
			pr.roles[u.Login] = u.Roles
		}
		for _, n := range inv.Nodes {
			pr.combine(n.Tags)
		}
	}
	all := p.allProtos()
	for _, r := range p.rows {
		for _, s := range r.src {
			pr.combine(s.tags())
		}
		if r.action == Accept {
			pr.accept = append(pr.accept, r)
			pr.parts[r] = parts(r, nil)
		}
		if r.action != Deny || r.timed() {
			continue
		}
		for _, pt := range parts(r, all) {
			pr.denies = append(pr.denies, denial{r, pt})
		}
		for _, s := range r.src {
			pr.srcPts = append(pr.srcPts, p.edges(s[0].selector)...)
		}
		for _, d := range r.dst {
			pr.dstPts = append(pr.dstPts, p.edges(d.selector)...)
		}
	}
	pr.findPeople()
	return pr
}

// combine notes tags that one node may have together.
func (pr *prover) combine(tags []string) {
	if len(tags) > 1 && !slices.ContainsFunc(pr.combos, func(c []string) bool { return slices.Equal(c, tags) }) {
		pr.combos = append(pr.combos, tags)
	}
}

// tags are those that a node must have to be the source, sorted.
func (s source) tags() []string {
	var out []string
	for _, t := range s {
		if t.kind == selTag && !t.not && !slices.Contains(out, t.text) {
			out = append(out, t.text)
		}
	}
	slices.Sort(out)
	return out
}

// edges are addresses just inside and just outside what a selector names.
func (p *Policy) edges(s selector) []netip.Addr {
	var pfxs []netip.Prefix
	switch s.kind {
	case selHost, selPrefix:
		pfxs = []netip.Prefix{s.prefix}
	case selIPSet:
		pfxs = p.ipsets[s.text]
	case selInternet:
		pfxs = []netip.Prefix{netip.MustParsePrefix("1.1.1.1/32"), netip.MustParsePrefix("2606:4700::1111/128")}
	}
	var out []netip.Addr
	for _, x := range pfxs {
		r := rangeOf(x)
		out = append(out, r.first, r.first.Next(), r.last.Next())
	}
	return slices.DeleteFunc(out, func(a netip.Addr) bool { return !a.IsValid() })
}

var (
	srcDefaults = []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd68:6564:6765::1")}
	dstDefaults = []netip.Addr{netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd68:6564:6765::2")}
)

// inMesh reports whether nodes may have the address.
func (pr *prover) inMesh(a netip.Addr) bool {
	return slices.ContainsFunc(pr.meshes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// refute finds nodes that break a never in one step, or nil.
func (pr *prover) refute(n *never) *counter {
	for _, r := range pr.accept {
		for _, a := range pr.senders(n, r) {
			if pr.work > maxWork {
				return nil
			}
			if c := pr.reach(n, r, a); c != nil {
				return c
			}
		}
	}
	return nil
}

// senders are the sources of a never that are sources of a row too.
func (pr *prover) senders(n *never, r *row) []actor {
	var out []actor
	for _, rs := range r.src {
		for _, ns := range n.src {
			out = append(out, pr.sources(rs, ns)...)
		}
	}
	return out
}

// identities are the nodes that could be, of those worth trying for what both selectors or sources match: with no tag,
// with one that they name or several that go together or, where they name none and would do with any, with each.
func (pr *prover) identities(pair ...source) []actor {
	var tags []string
	anyTag, exprs := true, false
	for _, s := range pair {
		exprs = exprs || !s.plain()
		tags = append(tags, s.tags()...)
		for _, t := range s {
			anyTag = anyTag && (t.not || people&(1<<t.kind) == 0 || exprs)
		}
	}
	slices.Sort(tags)
	tags = slices.Compact(tags)
	if len(tags) == 0 && anyTag {
		tags = pr.p.Tags()
	}
	var sets [][]string
	for _, t := range tags {
		sets = append(sets, []string{t})
	}
	for _, c := range pr.combos {
		if slices.ContainsFunc(c, func(t string) bool { return slices.Contains(tags, t) }) {
			sets = append(sets, c)
		}
	}
	var out []actor
	who := pr.whoMay(pair)
	for _, u := range who {
		out = append(out, actor{node: &Node{User: u.Login}, roles: u.Roles})
	}
	for _, ts := range sets {
		out = append(out, actor{node: &Node{Tags: ts}})
		for _, u := range who {
			if exprs {
				out = append(out, actor{node: &Node{User: u.Login, Tags: ts}, roles: u.Roles})
			}
		}
	}
	return out
}

// sources are the nodes that could be and that both sources match.
func (pr *prover) sources(a, b source) []actor {
	key := [2]string{a.text(), b.text()}
	if out, ok := pr.known[key]; ok {
		return out
	}
	pts := slices.Concat(srcDefaults, pr.p.edges(a[0].selector), pr.p.edges(b[0].selector), pr.srcPts)
	var out []actor
	for _, x := range append(pr.identities(a, b), actor{}) {
		for _, addr := range pts {
			x.addr = addr
			pr.work++
			if pr.inMesh(addr) == (x.node != nil) && pr.p.isSource(a, x) && pr.p.isSource(b, x) {
				out = append(out, x)
			}
		}
	}
	pr.known[key] = out
	return out
}

// reach looks for a destination that a row lets the source reach, and a never forbids.
func (pr *prover) reach(n *never, r *row, a actor) *counter {
	for _, pt := range pr.parts[r] {
		for _, rd := range pt.dst {
			if len(r.via) > 0 && numbers&(1<<rd.kind) == 0 && rd.kind != selInternet {
				continue // lies behind no router
			}
			for _, nd := range n.dst {
				if !slices.ContainsFunc(rd.ports, func(x PortRange) bool {
					return slices.ContainsFunc(nd.ports, func(y PortRange) bool { return x.First <= y.Last && y.First <= x.Last })
				}) && !slices.Contains(nd.ports, AllPorts) {
					continue
				}
				for _, b := range pr.dests(rd.selector, nd.selector, a) {
					c := &counter{src: a, dst: b, row: r}
					if pr.flow(c, n, pt, rd, nd) && pr.confirm(c) {
						return c
					}
				}
			}
		}
	}
	return nil
}

// dests are the destinations that could be and that both selectors match, as seen from the source.
func (pr *prover) dests(a, b selector, from actor) []actor {
	pts := slices.Concat(dstDefaults, pr.p.edges(a), pr.p.edges(b), pr.dstPts)
	var out []actor
	try := func(x actor) {
		for _, addr := range pts {
			x.addr = addr
			pr.work++
			if x.node != nil && !pr.inMesh(addr) {
				continue
			}
			if addr.BitLen() == from.addr.BitLen() && addr != from.addr && pr.p.isDest(a, x, from) && pr.p.isDest(b, x, from) {
				out = append(out, x)
			}
		}
	}
	try(actor{})
	for _, x := range pr.identities(source{{selector: a}}, source{{selector: b}}) {
		if from.node != nil && x.node.User == from.node.User && !slices.Equal(x.roles, from.roles) {
			continue // one user has one set of roles
		}
		try(x)
	}
	return out
}

// isNamed reports whether an identity selector names the node; keep counts a tagged node's user.
func (p *Policy) isNamed(s selector, x actor, keep bool) bool {
	switch s.kind {
	case selTag:
		return slices.Contains(x.node.Tags, s.text)
	case selTagged:
		return len(x.node.Tags) > 0
	case selMember:
		return len(x.node.Tags) == 0 && x.node.User != ""
	}
	return x.node.User != "" && (keep || len(x.node.Tags) == 0) && p.isUser(s, x.node.User, x.roles)
}

func (p *Policy) isSource(s source, x actor) bool {
	if !s.plain() {
		return x.node != nil && !slices.ContainsFunc(s, func(t term) bool { return p.isNamed(t.selector, x, true) == t.not })
	}
	return p.isDest(s[0].selector, x, actor{})
}

func (p *Policy) isDest(s selector, x, from actor) bool {
	in := func(pfx netip.Prefix) bool { return pfx.Contains(x.addr) }
	switch s.kind {
	case selAny, selDangerAll:
		return true
	case selHost, selPrefix:
		return in(s.prefix)
	case selIPSet:
		return slices.ContainsFunc(p.ipsets[s.text], in)
	case selInternet:
		return x.node == nil && internetHard.contains(x.addr)
	case selSelf:
		return x.node != nil && from.node != nil && len(x.node.Tags)+len(from.node.Tags) == 0 && x.node.User == from.node.User
	}
	return x.node != nil && p.isNamed(s, x, false)
}

// flow picks a protocol and port that the row admits, the never forbids, and no deny stops.
func (pr *prover) flow(c *counter, n *never, pt part, rd, nd dest) bool {
	protos := pt.protos
	if len(protos) == 0 {
		protos = []uint8{protoTCP, protoUDP}
	}
	ping := uint8(protoICMP)
	if c.dst.addr.Is6() {
		ping = protoICMPv6
	}
	rule := Rule{Action: Accept, Protos: pt.protos}
	for _, proto := range append(slices.Clone(protos), ping) {
		if len(n.protos) > 0 && !slices.Contains(n.protos, proto) {
			continue
		}
		for _, rp := range rd.ports {
			for _, np := range nd.ports {
				if !hasPorts(proto) && np != AllPorts {
					continue
				}
				for _, port := range pr.portsToTry(rp, np, hasPorts(proto)) {
					c.proto, c.port = proto, port
					if rule.speaks(rp, port, proto) && !pr.denied(c) {
						return true
					}
				}
			}
		}
	}
	return false
}

// portsToTry are the ports of both ranges at which what denies say can change.
func (pr *prover) portsToTry(a, b PortRange, ported bool) []uint16 {
	if !ported {
		return []uint16{0}
	}
	lo, hi := max(a.First, b.First), min(a.Last, b.Last)
	if lo > hi {
		return nil
	}
	out := []uint16{lo}
	if lo == 0 && hi > 0 {
		out = []uint16{1, 0}
	}
	for _, d := range pr.denies {
		for _, x := range d.dst {
			for _, r := range x.ports {
				if r.Last < hi && r.Last >= lo {
					out = append(out, r.Last+1)
				}
			}
		}
	}
	return out
}

func (pr *prover) denied(c *counter) bool {
	return slices.ContainsFunc(pr.denies, func(d denial) bool {
		if !slices.ContainsFunc(d.row.src, func(s source) bool { return pr.p.isSource(s, c.src) }) {
			return false
		}
		rule := Rule{Action: Deny, Protos: d.protos}
		return slices.ContainsFunc(d.dst, func(x dest) bool {
			return pr.p.isDest(x.selector, c.dst, c.src) && slices.ContainsFunc(x.ports, func(r PortRange) bool {
				return rule.speaks(r, c.port, c.proto)
			})
		})
	})
}

// inventory is the mesh of the counter-example.
func (c *counter) inventory() *Inventory {
	inv := &Inventory{}
	for i, x := range []actor{c.src, c.dst} {
		n := Node{} // whoever sends from behind a router is nobody
		switch {
		case x.node != nil:
			n = *x.node
		case i == 1:
			continue
		}
		n.ID, n.Name, n.Addrs = NodeID(i+1), "n"+strconv.Itoa(i+1), []netip.Addr{x.addr}
		inv.Nodes = append(inv.Nodes, n)
		if n.User != "" {
			inv.Users = append(inv.Users, User{Login: n.User, Roles: x.roles})
		}
	}
	return inv
}

// confirm compiles the policy for the nodes of the counter-example, postures aside, and asks it.
func (pr *prover) confirm(c *counter) bool {
	p := *pr.p
	p.defaultPosture = nil
	p.rows = make([]*row, 0, len(pr.p.rows))
	for _, r := range pr.p.rows {
		if r.action == Deny && r.timed() {
			continue
		}
		q := *r
		q.postures, q.via = nil, nil
		p.rows = append(p.rows, &q)
	}
	prog, err := Compile(&p, c.inventory())
	if err != nil {
		return false
	}
	_, ok := prog.judge(prog.relevant(0), 0, c.dst.addr, c.port, c.proto)
	return ok
}
