package acl

import (
	"cmp"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Party is one end of flows: nodes of one identity, or addresses that are no node's own.
type Party struct {
	// Identity is the owner's login, or the tags with " + " between, or both; empty for nodes that are nobody's.
	Identity string   `json:"identity,omitempty"`
	Nodes    []string `json:"nodes,omitempty"` // their names, sorted
	All      bool     `json:"all,omitempty"`   // no other node has this identity
	// Addrs lie behind the node named Carrier, or behind none if that is empty.
	Addrs   []netip.Prefix `json:"addrs,omitempty"`
	Carrier string         `json:"carrier,omitempty"`
	// Everyone is every node but Except.
	Everyone bool    `json:"everyone,omitempty"`
	Except   []Party `json:"except,omitempty"`
}

// String is the party as people say it: "tag:web (3 nodes)", "laptop (alice@example.com)", "10.33.0.0/16 behind router".
func (p Party) String() string {
	switch {
	case p.Everyone && len(p.Except) == 0:
		return "everyone"
	case p.Everyone:
		return "everyone but " + PartiesText(p.Except)
	case len(p.Addrs) > 0 && p.Carrier == "":
		return addrsText(p.Addrs) + " (behind no node)"
	case len(p.Addrs) > 0:
		return addrsText(p.Addrs) + " behind " + p.Carrier
	case p.All && len(p.Nodes) > 1:
		return fmt.Sprintf("%s (%d nodes)", orElse(p.Identity, "nobody's"), len(p.Nodes))
	}
	names := p.Nodes
	more := ""
	if len(names) > 3 {
		names, more = names[:3], fmt.Sprintf(" and %d more", len(names)-3)
	}
	s := strings.Join(names, ", ") + more
	if p.Identity != "" {
		s += " (" + p.Identity + ")"
	}
	return s
}

// PartiesText lists parties for people, the first few by name.
func PartiesText(ps []Party) string {
	const few = 8
	var out []string
	for i, p := range ps {
		if i == few && len(ps) > few+1 {
			out = append(out, fmt.Sprintf("and %d more", len(ps)-few))
			break
		}
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

func addrsText(ps []netip.Prefix) string {
	var out []string
	for _, all := range internetPrefixes() {
		if slices.Equal(ps, all) {
			return "autogroup:internet"
		}
	}
	for i, p := range ps {
		if i == 4 && len(ps) > 5 {
			out = append(out, fmt.Sprintf("and %d more prefixes", len(ps)-i))
			break
		}
		out = append(out, prefixText(p))
	}
	return strings.Join(out, ", ")
}

// only are the prefixes of one family.
func only(ps []netip.Prefix, v6 bool) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(ps), func(p netip.Prefix) bool { return p.Addr().Is6() != v6 })
}

// Access is who may open what to whom.
type Access struct {
	Src      []Party   `json:"src"`
	Dst      []Party   `json:"dst"`
	Family   int       `json:"family,omitempty"` // 4 or 6; 0 where both are alike
	Services []Service `json:"services"`
}

// Delta is what a change lets somebody do, and what it stops them from.
type Delta struct {
	Src    []Party   `json:"src"`
	Dst    []Party   `json:"dst"`
	Family int       `json:"family,omitempty"` // 4 or 6; 0 where both are alike
	Gained []Service `json:"gained,omitempty"`
	Lost   []Service `json:"lost,omitempty"` // by the deny that stops it now, or else by the accept that is no more
}

// Diff is exactly what changes between two programs from now on: a new policy, or a changed inventory. No packet is
// tried; the rules of both are laid over each other. Addresses that a rule names and nobody carries yet count too.
func Diff(before, after *Program, now time.Time) []Delta {
	return compare(before, after, scope{dormant: true}, now).deltas()
}

// Reach is all that the nodes may open, at the time now.
func (c *Program) Reach(nodes []NodeID, now time.Time) []Access {
	return c.access(scope{src: func(id NodeID) bool { return slices.Contains(nodes, id) }}, now)
}

// WhoReaches is everyone who may open something to the nodes' own addresses, at the time now.
func (c *Program) WhoReaches(nodes []NodeID, now time.Time) []Access {
	return c.access(scope{dst: func(id NodeID) bool { return slices.Contains(nodes, id) }}, now)
}

// WhoReachesAddr is WhoReaches for an address, a node's own or behind one.
func (c *Program) WhoReachesAddr(a netip.Addr, now time.Time) []Access {
	if i, own := c.w.owner(a); own {
		return slices.DeleteFunc(c.WhoReaches([]NodeID{c.w.nodes[i].ID}, now), func(x Access) bool {
			return x.Family == 4 && a.Is6() || x.Family == 6 && a.Is4()
		})
	}
	return c.access(scope{addr: a}, now)
}

func (c *Program) access(in scope, now time.Time) []Access {
	in.atOnce = true
	var out []Access
	for _, d := range compare(nil, c, in, now).deltas() {
		out = append(out, Access{Src: d.Src, Dst: d.Dst, Family: d.Family, Services: d.Gained})
	}
	return out
}

// deltas are the findings as they are told.
func (x *comparer) deltas() []Delta {
	type key struct{ srcs, dsts, what string }
	type told struct {
		Delta
		src, dst string // what it is sorted by
	}
	at := map[key]int{}
	var all []told
	ids := x.identities()
	for _, f := range x.found {
		srcs, dsts, rest := x.expand(f, ids)
		if len(rest) == 0 && dsts.count() == 0 {
			continue
		}
		d := Delta{Family: 4, Gained: f.gained, Lost: f.lost}
		if f.v6 {
			d.Family = 6
		}
		k := key{srcs.key(), dsts.key(), servicesKey(f.gained) + "/" + servicesKey(f.lost)}
		if i, ok := at[k]; ok && len(rest) == 0 && all[i].Family != d.Family {
			all[i].Family = 0
			all[i].Gained, all[i].Lost = bothPings(all[i].Gained, f.gained), bothPings(all[i].Lost, f.lost)
			continue
		}
		if len(rest) == 0 {
			at[k] = len(all)
		}
		d.Src = ids.parties(srcs)
		d.Dst = append(ids.parties(dsts), ids.ranges(rest)...)
		all = append(all, told{d, d.Src[0].String(), d.Dst[0].String()})
	}
	slices.SortFunc(all, func(a, b told) int {
		return cmp.Or(cmp.Compare(a.src, b.src), cmp.Compare(a.dst, b.dst), cmp.Compare(a.Family, b.Family),
			slices.CompareFunc(a.Gained, b.Gained, compareServices), slices.CompareFunc(a.Lost, b.Lost, compareServices),
			cmp.Compare(len(a.Src), len(b.Src)), cmp.Compare(len(a.Dst), len(b.Dst)))
	})
	var out []Delta
	for _, d := range all {
		out = append(out, d.Delta)
	}
	return out
}

func compareServices(a, b Service) int {
	return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Ports.First, b.Ports.First), cmp.Compare(a.Ports.Last, b.Ports.Last), cmp.Compare(a.Pos.Line, b.Pos.Line))
}

// servicesKey is the same for services that differ only in the ping of their family.
func servicesKey(ss []Service) string {
	var b strings.Builder
	for _, s := range ss {
		n := s.Proto
		if n == protoICMPv6 {
			n = protoICMP
		}
		b.WriteString(strconv.Itoa(int(n)))
		fmt.Fprint(&b, s.Ports, s.Rule, s.From.UnixNano(), ";")
	}
	// Ping comes first in IPv4 and later in IPv6.
	parts := strings.Split(b.String(), ";")
	slices.Sort(parts)
	return strings.Join(parts, ";")
}

// bothPings adds the ping of the other family.
func bothPings(a, b []Service) []Service {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, compareServices)
	return out
}

// identities name nodes for people.
type identities struct {
	nodes []*Node // sorted by number
	at    map[NodeID]int32
	who   []int32  // by node, an index of names
	names []string // sorted
	count []int    // of nodes, by name
}

func (x *comparer) identities() *identities {
	ids := &identities{at: map[NodeID]int32{}}
	for _, k := range []int{1, 0} {
		if c := x.sides[k].c; c != nil {
			for i := range c.w.nodes {
				n := &c.w.nodes[i].Node
				if n.ID == 0 {
					continue
				}
				if _, ok := ids.at[n.ID]; !ok {
					ids.at[n.ID] = 0
					ids.nodes = append(ids.nodes, n)
				}
			}
		}
	}
	slices.SortFunc(ids.nodes, func(a, b *Node) int { return cmp.Compare(a.ID, b.ID) })
	at := map[string]int32{}
	for i, n := range ids.nodes {
		ids.at[n.ID] = int32(i)
		at[n.Identity()] = 0
	}
	ids.names = names(at)
	for i, s := range ids.names {
		at[s] = int32(i)
	}
	ids.count = make([]int, len(ids.names))
	for _, n := range ids.nodes {
		w := at[n.Identity()]
		ids.who = append(ids.who, w)
		ids.count[w]++
	}
	return ids
}

// Identity is whose the node is: the owner's login, or its tags with " + " between; both if it kept its owner.
func (n *Node) Identity() string {
	tags := strings.Join(n.Tags, " + ")
	if n.User != "" && tags != "" {
		return n.User + ", " + tags
	}
	return n.User + tags
}

// most is how many nodes a mesh must have for most of them to be told by the others.
const most = 50

// parties groups nodes by identity. Most of a large mesh is everyone but the others.
func (ids *identities) parties(b bitset) []Party {
	if n := b.count(); len(ids.nodes) >= most && 2*n > len(ids.nodes) {
		rest := newBitset(len(ids.nodes))
		for i := range ids.nodes {
			rest.add(int32(i))
		}
		rest.andNot(b)
		return []Party{{Everyone: true, Except: ids.group(rest)}}
	}
	return ids.group(b)
}

func (ids *identities) group(b bitset) []Party {
	var out []Party
	in := map[int32]int{}
	for w, word := range b {
		for ; word != 0; word &= word - 1 {
			n := int32(w*64 + bits.TrailingZeros64(word))
			i, ok := in[ids.who[n]]
			if !ok {
				i = len(out)
				in[ids.who[n]] = i
				out = append(out, Party{Identity: ids.names[ids.who[n]]})
			}
			out[i].Nodes = append(out[i].Nodes, ids.nodes[n].Name)
		}
	}
	for who, i := range in {
		slices.Sort(out[i].Nodes)
		out[i].All = len(out[i].Nodes) == ids.count[who]
	}
	slices.SortFunc(out, func(a, b Party) int { return cmp.Compare(a.Identity, b.Identity) })
	return out
}

// ranges groups addresses by the node that carries them.
func (ids *identities) ranges(as []atom) []Party {
	by := map[NodeID][]atom{}
	for _, a := range as {
		by[a.node] = append(by[a.node], a)
	}
	var out []Party
	for id, l := range by {
		p := Party{Addrs: prefixesOf(l)}
		if id != 0 {
			p.Carrier = ids.nodes[ids.at[id]].Name
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Party) int { return cmp.Or(cmp.Compare(a.Carrier, b.Carrier), a.Addrs[0].Compare(b.Addrs[0])) })
	return out
}
