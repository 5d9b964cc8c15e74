package acl

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Answer says whether a node may open a flow, and why.
type Answer struct {
	Src     string     `json:"src"`
	Dst     string     `json:"dst"` // a node, or an address and who carries it
	Addr    netip.Addr `json:"addr"`
	Port    uint16     `json:"port,omitempty"`
	Proto   uint8      `json:"proto"`
	Allow   bool       `json:"allow"`
	Rules   []Reason   `json:"rules"`             // all that admit it, or the deny that stops it
	Nearest *Reason    `json:"nearest,omitempty"` // of what is not allowed: the rule that wants least
	Missing []string   `json:"missing,omitempty"` // what that rule wants; one, or more where no rule comes that near
}

// Reason is a rule by its place.
type Reason struct {
	Path string `json:"path"`
	Pos  Pos    `json:"pos"`
}

// String is the rule and its place: "acls[3] (acl.hujson:12:5)".
func (r Reason) String() string { return fmt.Sprintf("%s (%s)", r.Path, r.Pos) }

// String says the answer in a few lines.
func (a Answer) String() string {
	on := Service{Proto: a.Proto, Ports: PortRange{a.Port, a.Port}}.String()
	var b strings.Builder
	if a.Allow {
		fmt.Fprintf(&b, "allowed: %s may reach %s on %s\n", a.Src, a.Dst, on)
		for _, r := range a.Rules {
			fmt.Fprintf(&b, "  by %s\n", r)
		}
		return strings.TrimSuffix(b.String(), "\n")
	}
	if len(a.Rules) > 0 {
		return fmt.Sprintf("denied: %s may not reach %s on %s\n  by %s, a deny, which no accept outweighs", a.Src, a.Dst, on, a.Rules[0])
	}
	fmt.Fprintf(&b, "denied: no rule lets %s reach %s on %s\n", a.Src, a.Dst, on)
	switch {
	case a.Nearest != nil && len(a.Missing) == 1:
		fmt.Fprintf(&b, "  %s matches but for one thing: %s", a.Nearest, a.Missing[0])
	case a.Nearest != nil:
		fmt.Fprintf(&b, "  no rule comes near; %s is nearest, but %s", a.Nearest, strings.Join(a.Missing, ", and "))
	case len(a.Missing) > 0:
		fmt.Fprintf(&b, "  %s", a.Missing[0])
	default:
		b.WriteString("  the policy has no accept rule")
	}
	return b.String()
}

// Why says whether src may open a flow to a destination at a time, by all the rules that say so, and if not, what
// the nearest rule wants. It allows what Check and the filters of both nodes allow.
func (c *Program) Why(src NodeID, dst netip.Addr, port uint16, proto uint8, now time.Time) (Answer, error) {
	from, known := c.w.at(src)
	if !known {
		return Answer{}, fmt.Errorf("no node has the number %d", src)
	}
	a := Answer{Src: c.w.nodes[from].Name, Addr: dst, Port: port, Proto: proto, Rules: []Reason{}}
	for _, at := range c.lies(dst) {
		accepts, deny := c.hits(from, at, dst, port, proto, now)
		if a.Dst == "" || deny == nil && len(accepts) > 0 {
			a.Dst, a.Rules = c.dstText(at, dst), []Reason{}
			if deny != nil {
				a.Rules = append(a.Rules, Reason{deny.Path, deny.Pos})
			}
		}
		if deny == nil && len(accepts) > 0 {
			a.Allow = true
			for _, r := range accepts {
				if x := (Reason{r.Path, r.Pos}); !slices.Contains(a.Rules, x) {
					a.Rules = append(a.Rules, x)
				}
			}
			return a, nil
		}
	}
	if len(a.Rules) == 0 {
		c.nearest(&a, from, dst, now)
	}
	return a, nil
}

// lie is where an address is: at a node or behind it; node is -1 if nobody carries it.
type lie struct {
	node      int32
	own, exit bool
}

func (c *Program) lies(dst netip.Addr) []lie {
	if i, own := c.w.owner(dst); own {
		return []lie{{i, true, false}}
	}
	carriers, exit := c.carriers(dst)
	if len(carriers) == 0 {
		return []lie{{node: -1}}
	}
	var out []lie
	for _, i := range carriers {
		out = append(out, lie{i, false, exit})
	}
	return out
}

func (c *Program) dstText(at lie, dst netip.Addr) string {
	switch {
	case at.node < 0:
		return dst.String()
	case at.own:
		return c.w.nodes[at.node].Name
	}
	return fmt.Sprintf("%s behind %s", dst, c.w.nodes[at.node].Name)
}

// hits are the rules in force that match a flow: all accepts, and the first deny.
func (c *Program) hits(from int32, at lie, dst netip.Addr, port uint16, proto uint8, now time.Time) (accepts []*compiled, deny *compiled) {
	if at.node < 0 || at.node == from {
		return nil, nil
	}
	for _, r := range c.relevant(from) {
		if !r.InForce(now) || !r.admitsFrom(c, from, dst) {
			continue
		}
		if at.own && !r.admitsTo(c, at.node, dst, port, proto) || !at.own && !r.admitsBehind(c, at.node, at.exit, dst, port, proto) {
			continue
		}
		if r.Action == Deny {
			return accepts, r
		}
		accepts = append(accepts, r)
	}
	return accepts, nil
}

// lack is what a rule wants of a flow that it does not admit. The weight says how far from admitting it is: what is
// wrong with the service is nearer than what is wrong with who.
type lack struct {
	text   string
	weight int
}

// nearest finds the accept that wants least of a flow, and what.
func (c *Program) nearest(a *Answer, from int32, dst netip.Addr, now time.Time) {
	best := 0
	for _, at := range c.lies(dst) {
		if at.node == from {
			a.Missing = []string{"a node reaches itself without the mesh"}
			return
		}
		for _, r := range c.w.policy.rows {
			if r.action != Accept {
				continue
			}
			who := c.lacksOfSource(r, from, dst, now)
			for _, pt := range parts(r, nil) {
				for _, d := range pt.dst {
					lacks := append(slices.Clone(who), c.lacksOfDest(r, d, from, at, dst)...)
					lacks = append(lacks, lacksOfService(pt, d, a.Port, a.Proto)...)
					if len(lacks) == 0 {
						continue // a peculiarity that rules and rows do not share; say nothing wrong
					}
					slices.SortStableFunc(lacks, func(x, y lack) int { return cmp.Compare(x.weight, y.weight) })
					weight := 0
					for _, l := range lacks {
						weight += 100 + l.weight
					}
					if best == 0 || weight < best {
						best = weight
						a.Nearest, a.Missing = &Reason{r.path, r.pos}, nil
						for _, l := range lacks {
							a.Missing = append(a.Missing, l.text)
						}
					}
				}
			}
		}
	}
}

// lacksOfSource is what a row wants of a source, and of the time.
func (c *Program) lacksOfSource(r *row, from int32, dst netip.Addr, now time.Time) []lack {
	var out []lack
	n := &c.w.nodes[from].Node
	rule := Rule{Action: r.action, Expires: r.expires, Window: r.window}
	switch {
	case rule.InForce(now):
	case !r.expires.IsZero() && !now.Before(r.expires):
		out = append(out, lack{"it ended on " + r.expires.Format(time.RFC3339), 10})
	default:
		out = append(out, lack{fmt.Sprintf("it is in force only in its window, %s", r.window), 10})
	}
	holds := slices.ContainsFunc(n.Addrs, func(a netip.Addr) bool { return a.BitLen() == dst.BitLen() })
	named := slices.ContainsFunc(r.src, func(s source) bool {
		m, ok := c.w.set(s.text())
		return ok && slices.ContainsFunc(n.Addrs, func(a netip.Addr) bool { return a.BitLen() == dst.BitLen() && m.holdsAddr(from, a) })
	})
	switch {
	case !holds:
		out = append(out, lack{fmt.Sprintf("%s has no address of the family of %s", n.Name, dst), 40})
	case !named:
		out = append(out, lack{fmt.Sprintf("%s is not in its src", c.told(from)), 40})
	case !c.healthyFor(r, n):
		out = append(out, lack{fmt.Sprintf("%s does not hold of %s", strings.Join(c.w.policy.posturesOf(r), " or "), n.Name), 10})
	}
	return out
}

func (c *Program) healthyFor(r *row, n *Node) bool {
	ps := c.w.policy.posturesOf(r)
	return len(ps) == 0 || c.w.policy.postureHolds(ps, n.Attrs)
}

// told is how a rule could name a node.
func (c *Program) told(i int32) string {
	n := c.w.nodes[i]
	switch {
	case len(n.Tags) > 0:
		return strings.Join(n.Tags, ", ")
	case n.User != "":
		return n.User
	}
	return n.Name
}

// lacksOfDest is what a row wants of a destination.
func (c *Program) lacksOfDest(r *row, d dest, from int32, at lie, dst netip.Addr) []lack {
	n := c.w.nodes[from]
	if d.kind == selSelf {
		if at.node >= 0 && at.own {
			to := c.w.nodes[at.node]
			if len(n.Tags)+len(to.Tags) == 0 && n.User != "" && n.User == to.User {
				return nil
			}
		}
		return []lack{{fmt.Sprintf("autogroup:self is the untagged devices of %s itself, and %s is none", c.told(from), c.dstText(at, dst)), 35}}
	}
	m, ok := c.w.set(d.text)
	in := ok && (at.own && m.holdsAddr(at.node, dst) || !at.own && (m.set.Any || !m.whole && m.set.holds(dst)))
	switch {
	case !in:
		what := dst.String()
		if at.own {
			what = c.told(at.node)
		}
		return []lack{{fmt.Sprintf("%s is not in its dst", what), 30}}
	case at.node < 0 && (len(c.w.exits) == 0 || internetHard.contains(dst)):
		return []lack{{fmt.Sprintf("no node has an approved route to %s", dst), 5}}
	case at.node < 0, at.exit && !m.set.Any && !isInternet(d.text):
		return []lack{{fmt.Sprintf("no router has an approved route to %s, and an exit carries only the internet", dst), 5}}
	case len(r.via) > 0 && !slices.ContainsFunc(r.via, func(t string) bool { return slices.Contains(c.w.nodes[at.node].Tags, t) }):
		return []lack{{fmt.Sprintf("it goes via %s, and %s is none", strings.Join(r.via, ", "), c.w.nodes[at.node].Name), 20}}
	case len(r.via) > 0 && numbers&(1<<d.kind) == 0 && d.kind != selInternet:
		return []lack{{fmt.Sprintf("it has via, and %s lies behind no router", d.text), 20}}
	}
	return nil
}

// lacksOfService is what a row wants of a protocol and port.
func lacksOfService(pt part, d dest, port uint16, proto uint8) []lack {
	rule := Rule{Action: Accept, Protos: pt.protos}
	if slices.ContainsFunc(d.ports, func(p PortRange) bool { return rule.speaks(p, port, proto) }) {
		return nil
	}
	protos := pt.protos
	if len(protos) == 0 {
		protos = DefaultProtos
	}
	if !slices.Contains(protos, proto) {
		var ns []string
		for _, n := range protos {
			ns = append(ns, protoName(n))
		}
		return []lack{{fmt.Sprintf("%s is not among its protocols (%s)", protoName(proto), strings.Join(ns, ", ")), 2}}
	}
	var ps []string
	for _, p := range d.ports {
		ps = append(ps, p.String())
	}
	if !hasPorts(proto) {
		return []lack{{fmt.Sprintf("%s has no ports, and its ports are not * but %s", protoName(proto), strings.Join(ps, ",")), 1}}
	}
	return []lack{{fmt.Sprintf("port %d is not among its ports for %s (%s)", port, d.text, strings.Join(ps, ",")), 1}}
}
