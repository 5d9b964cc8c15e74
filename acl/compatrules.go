package acl

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
)

// flatRule is a packet filter rule in the flat form.
type flatRule struct {
	SrcIPs   []string
	DstPorts []flatDst `json:",omitempty"`
	IPProto  []uint8   `json:"-"`
	CapGrant []flatCap `json:",omitempty"`
	src      ranges
}

// MarshalJSON writes the protocols as numbers, not as bytes.
func (r flatRule) MarshalJSON() ([]byte, error) {
	type plain flatRule
	var protos []int
	for _, p := range r.IPProto {
		protos = append(protos, int(p))
	}
	return json.Marshal(struct {
		plain
		IPProto []int `json:",omitempty"`
	}{plain(r), protos})
}

// flatDst is a destination: a range of addresses, or all of them.
type flatDst struct {
	ip    string
	rng   ipRange
	any   bool
	exit  bool // takes in the internet
	ports PortRange
}

// MarshalJSON writes [ip, first, last].
func (d flatDst) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{d.ip, d.ports.First, d.ports.Last})
}

type flatCap struct {
	Dsts   []string
	CapMap map[string][]any
	rngs   []ipRange
}

// reaches reports whether the rule is about something in the range.
func (r *flatRule) reaches(rng ipRange) bool {
	return slices.ContainsFunc(r.DstPorts, func(d flatDst) bool { return d.any || d.rng.overlaps(rng) }) ||
		slices.ContainsFunc(r.CapGrant, func(g flatCap) bool { return slices.ContainsFunc(g.rngs, rng.overlaps) })
}

// flatSrc is a list of sources, expanded.
type flatSrc struct {
	text []string
	set  ranges
}

// flatOf lists ranges, each once and none that lies in another. Neighbours are not joined.
func flatOf(rs []ipRange) flatSrc {
	out := flatSrc{set: union(rs)}
	for _, r := range rs {
		inside := func(o ipRange) bool {
			return o != r && o.overlaps(r) && o.first.Compare(r.first) <= 0 && r.last.Compare(o.last) <= 0
		}
		if t := rangeText(r); !slices.Contains(out.text, t) && !slices.ContainsFunc(rs, inside) {
			out.text = append(out.text, t)
		}
	}
	slices.Sort(out.text)
	return out
}

// expand turns sources into addresses. What stands beside "*" stays listed, and routes stay as they are.
func (f *flat) expand(srcs []source, postures []string) flatSrc {
	var rs []ipRange
	any := false
	for _, s := range srcs {
		sel := s[0].selector
		switch {
		case len(postures) > 0:
			rs = append(rs, f.addrsOf(f.w.healthy(f.w.source(s), postures).idx)...)
		case sel.kind == selDangerAll:
			return flatSrc{[]string{"*"}, ranges{rangeOf(all4), rangeOf(all6)}}
		case sel.kind == selAny:
			any = true
		default:
			rs = append(rs, f.literals(sel)...)
		}
	}
	out := flatOf(rs)
	if any {
		more := slices.Clone(f.mesh)
		for _, r := range f.routes {
			more = append(more, rangeOf(r))
		}
		for _, r := range more {
			if t := rangeText(r); !slices.Contains(out.text, t) {
				out.text = append(out.text, t)
			}
		}
		out.set = union(append(rs, more...))
	}
	slices.Sort(out.text)
	return out
}

// literals are the addresses that a selector other than "*" stands for, each on its own.
func (f *flat) literals(s selector) []ipRange {
	switch s.kind {
	case selHost, selPrefix:
		return []ipRange{rangeOf(s.prefix)}
	case selIPSet:
		var out []ipRange
		for _, p := range f.p.ipsets[s.text] {
			out = append(out, rangeOf(p))
		}
		return out
	}
	return f.addrsOf(f.w.named(s))
}

func (f *flat) addrsOf(idx []int32) []ipRange {
	var out []ipRange
	for _, i := range idx {
		for _, a := range f.w.nodes[i].Addrs {
			out = append(out, ipRange{a, a})
		}
	}
	return out
}

func (f *flat) isExit(i int32) bool {
	_, ok := slices.BinarySearch(f.w.exits, i)
	return ok
}

// touches reports whether a destination is the node's own, or behind it.
func (f *flat) touches(i int32, r ipRange) bool {
	n := &f.w.nodes[i].Node
	return slices.ContainsFunc(n.Addrs, func(a netip.Addr) bool { return r.overlaps(ipRange{a, a}) }) || f.carries(i, r)
}

// carries reports whether the node has an approved route, other than an exit's, that overlaps the range.
func (f *flat) carries(i int32, r ipRange) bool {
	return slices.ContainsFunc(f.w.nodes[i].Routes, func(p netip.Prefix) bool { return p.Bits() > 0 && rangeOf(p).overlaps(r) })
}

// compile expands every row for every node.
func (f *flat) compile() {
	f.filters = make([][]flatRule, len(f.w.nodes))
	f.seen = make([][]flatRule, len(f.w.nodes))
	rows := f.p.rows
	if f.p.allowAll {
		anyone := selector{kind: selAny, text: "*"}
		rows = []*row{{src: []source{{{selector: anyone}}}, dst: []dest{{anyone, []PortRange{AllPorts}}}}}
	}
	for _, r := range rows {
		postures := f.p.posturesOf(r)
		src := f.expand(r.src, postures)
		for n := range f.w.nodes {
			i := int32(n)
			if len(r.via) > 0 {
				f.viaRow(r, src, i)
				continue
			}
			for _, pt := range parts(r, nil) {
				f.emit(i, pt, src)
				f.emitSelf(i, pt, src)
			}
			f.emitCaps(i, r, src)
		}
	}
}

// emit adds the part's rule for a node, with the destinations that concern it.
func (f *flat) emit(i int32, pt part, src flatSrc) {
	rule := flatRule{SrcIPs: src.text, src: src.set, IPProto: pt.protos}
	for _, d := range pt.dst {
		for _, ports := range d.ports {
			rule.DstPorts = append(rule.DstPorts, f.dests(i, d.selector, ports)...)
		}
	}
	f.send(i, rule)
}

// send gives the node a rule, joined to one with the same sources and protocols.
func (f *flat) send(i int32, rule flatRule) {
	if len(rule.SrcIPs) == 0 || len(rule.DstPorts) == 0 {
		return
	}
	for n := range f.filters[i] {
		r := &f.filters[i][n]
		if len(r.CapGrant) == 0 && slices.Equal(r.SrcIPs, rule.SrcIPs) && slices.Equal(r.IPProto, rule.IPProto) {
			r.DstPorts = append(r.DstPorts, rule.DstPorts...)
			return
		}
	}
	f.filters[i] = append(f.filters[i], rule)
}

// dests are a selector's destinations that concern a node.
func (f *flat) dests(i int32, s selector, ports PortRange) []flatDst {
	var out []flatDst
	switch s.kind {
	case selAny:
		return []flatDst{{ip: "*", any: true, exit: true, ports: ports}}
	case selSelf:
		return nil
	case selInternet:
		if f.isExit(i) {
			for _, r := range internetRanges {
				out = append(out, flatDst{ip: r.first.String() + "-" + r.last.String(), rng: r, exit: true, ports: ports})
			}
		}
		return out
	}
	for _, r := range f.literals(s) {
		if f.touches(i, r) {
			out = append(out, flatDst{ip: rangeText(r), rng: r, ports: ports})
		}
	}
	return out
}

// ownSources are the addresses of the owner's devices that the sources cover; none for a tagged node.
func (f *flat) ownSources(i int32, src flatSrc) flatSrc {
	n := &f.w.nodes[i].Node
	if len(n.Tags) > 0 || n.User == "" {
		return flatSrc{}
	}
	var idx []int32
	for _, o := range f.w.devices(n.User) {
		if slices.ContainsFunc(f.w.nodes[o].Addrs, src.set.contains) {
			idx = append(idx, o)
		}
	}
	return flatOf(f.addrsOf(idx))
}

func (f *flat) emitSelf(i int32, pt part, src flatSrc) {
	if !slices.ContainsFunc(pt.dst, isSelf) {
		return
	}
	own := f.ownSources(i, src)
	rule := flatRule{SrcIPs: own.text, src: own.set, IPProto: pt.protos}
	for _, d := range pt.dst {
		if !isSelf(d) {
			continue
		}
		for _, ports := range d.ports {
			for _, r := range f.addrsOf([]int32{i}) {
				rule.DstPorts = append(rule.DstPorts, flatDst{ip: rangeText(r), rng: r, ports: ports})
			}
		}
	}
	f.send(i, rule)
}

// viaRow adds a grant with via: to nodes that carry a via tag and a route that overlaps the destination.
func (f *flat) viaRow(r *row, src flatSrc, i int32) {
	if !slices.ContainsFunc(r.via, func(t string) bool { return slices.Contains(f.w.nodes[i].Tags, t) }) {
		return
	}
	specs := r.ip
	if len(specs) == 0 {
		specs = []ipSpec{{ports: []PortRange{AllPorts}}}
	}
	for _, ip := range specs {
		rule := flatRule{SrcIPs: src.text, src: src.set, IPProto: ip.protos}
		for _, d := range r.dst {
			for _, ports := range ip.ports {
				for _, t := range f.dests(i, d.selector, ports) {
					if d.kind == selInternet || numbers&(1<<d.kind) != 0 && f.carries(i, t.rng) {
						rule.DstPorts = append(rule.DstPorts, t)
					}
				}
			}
		}
		switch {
		case len(rule.DstPorts) == 0 || len(rule.SrcIPs) == 0:
		case len(r.ip) == 0: // applications only: the router is seen, and nothing is granted
			f.seen[i] = append(f.seen[i], rule)
		default:
			f.send(i, rule)
		}
	}
}

// companions are the capabilities that a grant implies in the other direction.
var companions = []struct{ name, reverse string }{
	{"tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer"},
	{"tailscale.com/cap/relay", "tailscale.com/cap/relay-target"},
}

// emitCaps adds the capability rules of a grant.
func (f *flat) emitCaps(i int32, r *row, src flatSrc) {
	if len(r.app) == 0 || len(r.src) == 0 {
		return
	}
	caps := map[string][]any{}
	for _, c := range r.app {
		caps[c.name] = c.values
	}
	for _, self := range []bool{false, true} {
		if !slices.ContainsFunc(r.dst, func(d dest) bool { return isSelf(d) == self }) {
			continue
		}
		from := src
		rule := flatRule{SrcIPs: []string{}}
		var back []ipRange // what the destinations are
		all := false
		for _, d := range r.dst {
			if isSelf(d) != self {
				continue
			}
			var at []ipRange
			switch {
			case self:
				if from = f.ownSources(i, src); len(from.text) > 0 {
					at = f.addrsOf([]int32{i})
				}
				back = append(back, at...)
			case d.kind == selAny:
				all = true
				at = f.addrsOf([]int32{i})
			default:
				at = f.literals(d.selector)
				back = append(back, at...)
				at = f.narrow(i, at)
			}
			if len(at) > 0 {
				rule.CapGrant = append(rule.CapGrant, capGrant(at, caps))
			}
		}
		rule.SrcIPs, rule.src = append(rule.SrcIPs, from.text...), from.set
		if len(rule.CapGrant) > 0 {
			f.filters[i] = append(f.filters[i], rule)
		}
		f.emitReverse(i, caps, r.src, from, back, all, self)
	}
}

// emitReverse adds the rules that go to the sources of a grant.
func (f *flat) emitReverse(i int32, caps map[string][]any, srcs []source, from flatSrc, back []ipRange, all, self bool) {
	to := flatOf(back)
	switch {
	case all:
		to = f.expand([]source{{{selector: selector{kind: selAny, text: "*"}}}}, nil)
	case self:
		to = from
	}
	var at []ipRange
	for _, s := range srcs {
		if sel := s[0].selector; sel.kind == selAny || sel.kind == selDangerAll {
			at = append(at, f.addrsOf([]int32{i})...)
		} else {
			at = append(at, f.narrow(i, f.literals(sel))...)
		}
	}
	if len(to.text) == 0 || len(at) == 0 {
		return
	}
	for _, c := range companions {
		if _, ok := caps[c.name]; ok {
			f.filters[i] = append(f.filters[i], flatRule{SrcIPs: to.text, src: to.set, CapGrant: []flatCap{capGrant(at, map[string][]any{c.reverse: {}})}})
		}
	}
}

// narrow keeps of some addresses the node's own, and prefixes that overlap its routes.
func (f *flat) narrow(i int32, rs []ipRange) []ipRange {
	var out []ipRange
	for _, r := range rs {
		for _, a := range f.w.nodes[i].Addrs {
			if own := (ipRange{a, a}); r.overlaps(own) && !slices.Contains(out, own) {
				out = append(out, own)
			}
		}
		if f.carries(i, r) {
			out = append(out, r)
		}
	}
	return out
}

func capGrant(at []ipRange, caps map[string][]any) flatCap {
	g := flatCap{CapMap: caps, rngs: at}
	for _, r := range at {
		t := rangeText(r)
		if r.first == r.last {
			t = netip.PrefixFrom(r.first, r.first.BitLen()).String()
		}
		g.Dsts = append(g.Dsts, t)
	}
	slices.SortFunc(g.Dsts, strings.Compare)
	return g
}
