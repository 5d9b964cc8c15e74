package acl

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tailscale/hujson"
)

// Change is a kind of flow that one program admits and another does not, shown by one pair of nodes out of all that
// are alike.
type Change struct {
	Src    NodeID     `json:"src"`
	Dst    NodeID     `json:"dst,omitempty"` // 0 for what is no node's own address
	Addr   netip.Addr `json:"addr"`          // the destination
	Proto  uint8      `json:"proto"`
	Ports  PortRange  `json:"ports"`
	Opened bool       `json:"opened"` // admitted now, and not before; otherwise the reverse
	// Rule is what opens or shuts it: the rule that admits it now, the deny that stops it now, or the accept that is
	// no more.
	Rule *Rule `json:"rule,omitempty"`
}

// Diff lists what changes between two programs, at most limit kinds of flows: the preview of a new policy, or of a
// changed inventory. Nodes that neither program tells apart are shown once. A node that is in one inventory only
// can do nothing in the other. Ping, which follows other rules, is listed only where a rule is about ICMP.
func Diff(before, after *Program, limit int) []Change {
	d := &differ{a: before, b: after, limit: limit, seen: map[string]bool{}, class: map[string]NodeID{}, of: map[NodeID]NodeID{}, next: map[NodeID]NodeID{}}
	d.classify()
	for _, side := range []struct{ from, other *Program }{{after, before}, {before, after}} {
		for _, r := range side.from.changed(side.other) {
			d.rule(side.from, r)
		}
	}
	slices.SortStableFunc(d.out, func(x, y Change) int {
		return cmp.Or(cmp.Compare(x.Src, y.Src), cmp.Compare(x.Dst, y.Dst), x.Addr.Compare(y.Addr), cmp.Compare(x.Proto, y.Proto), cmp.Compare(x.Ports.First, y.Ports.First))
	})
	return d.out
}

type differ struct {
	a, b  *Program
	limit int
	out   []Change
	seen  map[string]bool
	class map[string]NodeID
	of    map[NodeID]NodeID // the first node that neither program tells from this one
	next  map[NodeID]NodeID // the second node of the class of a first
	// rules are those of the source at hand, in both programs.
	rules [2][]*compiled
}

// classify joins the classes of both programs.
func (d *differ) classify() {
	for _, c := range []*Program{d.a, d.b} {
		for i := range c.w.nodes {
			id := c.w.nodes[i].ID
			if _, done := d.of[id]; done {
				continue
			}
			key := fmt.Sprint(classIn(d.a, id), classIn(d.b, id))
			if first, ok := d.class[key]; !ok {
				d.class[key] = id
			} else if _, ok := d.next[first]; !ok {
				d.next[first] = id
			}
			d.of[id] = d.class[key]
		}
	}
}

func classIn(c *Program, id NodeID) int32 {
	if i, ok := c.w.byID[id]; ok {
		return c.classes()[i]
	}
	return -1
}

// all are the program's rules, those of autogroup:self included.
func (c *Program) all() []*compiled {
	out := slices.Clone(c.rules)
	for _, u := range names(c.self) {
		out = append(out, c.self[u]...)
	}
	return out
}

// text says all that a rule means, names and members, and not where it stands.
func (r *compiled) text() string {
	var b strings.Builder
	fmt.Fprint(&b, r.Action, r.Protos, r.Expires, r.via)
	for _, m := range r.src {
		fmt.Fprint(&b, "|", m.set)
	}
	for i, m := range r.dst {
		fmt.Fprint(&b, ">", m.set, r.Dst[i].Ports)
	}
	return b.String()
}

// changed are the rules that the other program does not have.
func (c *Program) changed(other *Program) []*compiled {
	has := map[string]bool{}
	for _, r := range other.all() {
		has[r.text()] = true
	}
	return slices.DeleteFunc(c.all(), func(r *compiled) bool { return has[r.text()] })
}

// rule looks for changes among what one changed rule is about.
func (d *differ) rule(from *Program, r *compiled) {
	protos := r.Protos
	if len(protos) == 0 {
		protos = DefaultProtos
	}
	srcs := d.nodesOf(from, r.src)
	for t, m := range r.dst {
		dsts := d.nodesOf(from, []*members{m})
		for _, src := range srcs {
			for i, c := range []*Program{d.a, d.b} {
				d.rules[i] = nil
				if at, ok := c.w.byID[src]; ok {
					d.rules[i] = c.relevant(at)
				}
			}
			var addrs []netip.Addr
			for _, id := range dsts {
				if id == src { // another of the same class, if there is one
					id = d.next[id]
				}
				if i, ok := from.w.byID[id]; ok {
					addrs = append(addrs, from.w.nodes[i].Addrs...)
				}
			}
			for _, p := range m.set.Prefixes {
				addrs = append(addrs, p.Addr())
			}
			for _, addr := range addrs {
				for _, proto := range protos {
					for _, ports := range r.Dst[t].Ports {
						if len(d.out) >= d.limit {
							return
						}
						d.flows(src, addr, proto, ports)
					}
				}
			}
		}
	}
}

// nodesOf are the nodes in any of the sets, one of each class.
func (d *differ) nodesOf(c *Program, sets []*members) []NodeID {
	var out []NodeID
	for _, m := range sets {
		for _, i := range m.idx {
			out = append(out, d.of[c.w.nodes[i].ID])
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return slices.DeleteFunc(out, func(id NodeID) bool { _, ok := c.w.byID[id]; return !ok })
}

// flows compares the programs over a range of ports, cut where any rule of the source begins or ends.
func (d *differ) flows(src NodeID, addr netip.Addr, proto uint8, ports PortRange) {
	key := fmt.Sprint(src, addr, proto, ports)
	if d.seen[key] {
		return
	}
	d.seen[key] = true
	if (proto == protoICMP) == addr.Is6() && (proto == protoICMP || proto == protoICMPv6) {
		return
	}
	cuts := []int{int(ports.First), int(ports.Last) + 1}
	if !hasPorts(proto) {
		cuts = []int{0, 65536}
	}
	for _, rules := range d.rules {
		for _, r := range rules {
			for _, t := range r.Dst {
				for _, p := range t.Ports {
					for _, x := range []int{int(p.First), int(p.Last) + 1} {
						if hasPorts(proto) && int(ports.First) < x && x <= int(ports.Last) {
							cuts = append(cuts, x)
						}
					}
				}
			}
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	for n := 0; n+1 < len(cuts); n++ {
		var rule [2]*Rule
		var ok [2]bool
		for i, c := range []*Program{d.a, d.b} {
			if at, in := c.w.byID[src]; in {
				rule[i], ok[i] = c.judge(d.rules[i], at, addr, uint16(cuts[n]), proto)
			}
		}
		if ok[0] != ok[1] {
			d.add(src, addr, proto, PortRange{uint16(cuts[n]), uint16(cuts[n+1] - 1)}, rule, ok[1])
		}
	}
}

func (d *differ) add(src NodeID, addr netip.Addr, proto uint8, ports PortRange, rule [2]*Rule, opened bool) {
	c := Change{Src: src, Addr: addr, Proto: proto, Ports: ports, Opened: opened, Rule: rule[1]}
	if c.Rule == nil {
		c.Rule = rule[0]
	}
	for _, p := range []*Program{d.a, d.b} {
		if i, ok := p.w.byAddr[addr]; ok {
			c.Dst = p.w.nodes[i].ID
		}
	}
	if c.Dst == src {
		return
	}
	if n := len(d.out); n > 0 { // the next piece of the same
		last := &d.out[n-1]
		if last.Src == src && last.Addr == addr && last.Proto == proto && last.Opened == opened && last.Rule == c.Rule && int(last.Ports.Last)+1 == int(ports.First) {
			last.Ports.Last = ports.Last
			return
		}
	}
	key := fmt.Sprint(src, addr, proto, ports, opened)
	if !d.seen[key] {
		d.seen[key] = true
		d.out = append(d.out, c)
	}
}

// Who lists the nodes that may open a flow to a destination, sorted.
func (c *Program) Who(dst netip.Addr, port uint16, proto uint8) []NodeID {
	var out []NodeID
	allowed := map[int32]bool{}
	for i, class := range c.classes() {
		ok, done := allowed[class]
		if !done {
			_, ok = c.judge(c.relevant(class), class, dst, port, proto)
			allowed[class] = ok
		}
		if ok && !slices.Contains(c.w.nodes[i].Addrs, dst) {
			out = append(out, c.w.nodes[i].ID)
		}
	}
	return out
}

// Format writes a policy file in its usual layout, comments and all. The error is as of [Parse], for syntax only.
func Format(file string, src []byte) ([]byte, error) {
	p := newParser(file, src, Options{})
	if _, ok := p.parse(); !ok || len(p.errs) > 0 {
		return nil, p.result()
	}
	return hujson.Format(src)
}
