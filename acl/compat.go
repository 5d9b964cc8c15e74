package acl

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The flat form of a policy, as Tailscale's clients receive it: for people who compare, and for tests against
// captures. Hedge itself never expands rules so.
//
//	case (policy, users, nodes) ─ CompatCase ─ filters, peers with their routes, ssh rules, attributes; all by node

type compatCase struct {
	Policy   string   `json:"policy"`
	Domains  []string `json:"domains"`
	Prefixes []string `json:"prefixes"`
	Users    []struct {
		Name  string   `json:"name"`
		Email string   `json:"email"`
		Roles []string `json:"roles"`
	} `json:"users"`
	Nodes []struct {
		Name     string         `json:"name"`
		User     string         `json:"user"`
		Tags     []string       `json:"tags"`
		IPv4     string         `json:"ipv4"`
		IPv6     string         `json:"ipv6"`
		Approved []netip.Prefix `json:"approved_routes"`
		Primary  []netip.Prefix `json:"primary_routes"`
	} `json:"nodes"`
}

type compatResult struct {
	Error   *string                        `json:"error"`
	Filters map[string][]flatRule          `json:"filters,omitempty"`
	Peers   map[string]map[string][]string `json:"peers,omitempty"`
	SSH     map[string][]flatSSH           `json:"ssh,omitempty"`
	Attrs   map[string][]string            `json:"attrs,omitempty"`
}

// CompatCase reads one policy with its users and nodes as JSON, compiles it as Tailscale's service would, and
// returns what each node receives, as JSON. An invalid policy is a result with an error; an error is for a case
// that cannot be read.
func CompatCase(src []byte) ([]byte, error) {
	var c compatCase
	if err := json.Unmarshal(src, &c); err != nil {
		return nil, fmt.Errorf("read case: %w", err)
	}
	f, err := c.flatten()
	var es Errors
	if errors.As(err, &es) {
		s := es.Error()
		if slices.Equal(es.Classes(), []string{ClassTestFailed}) {
			s = "test(s) failed\n" + s
		}
		return json.Marshal(compatResult{Error: &s})
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(f.result())
}

// flat is a policy being expanded.
type flat struct {
	p       *Policy
	w       *world
	mesh    ranges // what "*" is as a source, without routes
	routes  []netip.Prefix
	primary [][]netip.Prefix // by node
	logins  []string         // in the order of the users
	filters [][]flatRule     // by node
	seen    [][]flatRule     // rules that make peers visible and are not sent
}

func (c *compatCase) flatten() (*flat, error) {
	p, err := Parse("policy.hujson", []byte(c.Policy), Options{Compat: true, Domains: c.Domains})
	if err != nil {
		return nil, err
	}
	inv := &Inventory{}
	f := &flat{p: p}
	logins := map[string]string{}
	for _, u := range c.Users {
		login := orElse(u.Email, u.Name)
		logins[u.Name] = login
		inv.Users = append(inv.Users, User{Login: login, Roles: u.Roles})
		f.logins = append(f.logins, login)
	}
	for i, n := range c.Nodes {
		node := Node{ID: NodeID(i + 1), Name: n.Name, Tags: n.Tags, Routes: n.Approved}
		if len(n.Tags) == 0 {
			node.User = orElse(logins[n.User], n.User)
		}
		for _, s := range []string{n.IPv4, n.IPv6} {
			if s == "" {
				continue
			}
			a, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("node %s: %w", n.Name, err)
			}
			node.Addrs = append(node.Addrs, a)
		}
		inv.Nodes = append(inv.Nodes, node)
		f.primary = append(f.primary, n.Primary)
		for _, r := range n.Approved {
			if r.Bits() > 0 && !slices.Contains(f.routes, r) {
				f.routes = append(f.routes, r)
			}
		}
	}
	var mesh []ipRange
	for _, s := range c.Prefixes {
		pfx, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		mesh = append(mesh, rangeOf(pfx))
	}
	f.mesh = union(mesh).minus(rangesOf(chromeOS))
	if es := p.Test(inv); len(es) > 0 {
		return nil, es
	}
	f.w = newWorld(p, inv)
	f.compile()
	return f, nil
}

func (f *flat) result() compatResult {
	r := compatResult{
		Filters: map[string][]flatRule{}, Peers: map[string]map[string][]string{},
		SSH: map[string][]flatSSH{}, Attrs: map[string][]string{},
	}
	for i := range f.w.nodes {
		name := f.w.nodes[i].Name
		r.Filters[name] = append([]flatRule{}, f.filters[i]...)
		r.Peers[name] = f.peersOf(int32(i))
		r.SSH[name] = f.sshOf(int32(i))
		r.Attrs[name] = f.attrsOf(int32(i))
	}
	return r
}

// attrsOf are the attributes that nodeAttrs gives a node.
func (f *flat) attrsOf(i int32) []string {
	out := []string{}
	if f.p.randomizePort {
		out = append(out, "randomize-client-port")
	}
	for _, a := range f.p.attrs {
		if slices.ContainsFunc(a.target, func(s selector) bool { return f.w.of(s).has(i) }) {
			out = append(out, a.attrs...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// peersOf lists whom a node sees, and which of their routes.
func (f *flat) peersOf(a int32) map[string][]string {
	out := map[string][]string{}
	for n := range f.w.nodes {
		b := int32(n)
		if a == b || !f.sees(a, b) && !f.sees(b, a) {
			continue
		}
		routes := []string{}
		for _, r := range f.w.nodes[b].Routes {
			if f.shows(a, b, r) {
				routes = append(routes, r.String())
			}
		}
		out[f.w.nodes[b].Name] = routes
	}
	return out
}

// sees reports whether the node's own filter has a rule about the other.
func (f *flat) sees(node, other int32) bool {
	about := func(r flatRule) bool { return f.from(r, other) }
	return slices.ContainsFunc(f.filters[node], about) || slices.ContainsFunc(f.seen[node], about)
}

// from reports whether a rule's sources include the node, or what lies behind it.
func (f *flat) from(r flatRule, i int32) bool {
	n := f.w.nodes[i]
	return slices.ContainsFunc(n.Addrs, r.src.contains) ||
		slices.ContainsFunc(n.Routes, func(p netip.Prefix) bool { return p.Bits() > 0 && r.src.overlaps(rangeOf(p)) })
}

// shows reports whether a is told that b carries the route.
func (f *flat) shows(a, b int32, route netip.Prefix) bool {
	if route.Bits() == 0 {
		return slices.ContainsFunc(f.filters[b], func(r flatRule) bool {
			return f.from(r, a) && slices.ContainsFunc(r.DstPorts, func(d flatDst) bool { return d.exit })
		})
	}
	elected := func(i int32) bool { return slices.Contains(f.primary[i], route) }
	if slices.ContainsFunc(f.w.lists().all, elected) && !elected(b) {
		return false
	}
	to := func(r flatRule) bool { return f.from(r, a) && r.reaches(rangeOf(route)) }
	from := func(r flatRule) bool { return r.src.overlaps(rangeOf(route)) }
	return slices.ContainsFunc(f.filters[b], to) || slices.ContainsFunc(f.seen[b], to) ||
		slices.ContainsFunc(f.filters[a], from) ||
		b == f.lead(route) && slices.Contains(f.w.nodes[a].Routes, route)
}

// lead is the node that carries a route for those whom no via steers elsewhere: the first of the elected, or -1.
// With via, several nodes can be elected for one route, each for its own viewers.
func (f *flat) lead(route netip.Prefix) int32 {
	return int32(slices.IndexFunc(f.primary, func(rs []netip.Prefix) bool { return slices.Contains(rs, route) }))
}

// rangeText is a range as the flat form writes it.
func rangeText(r ipRange) string {
	if r.first == r.last {
		return r.first.String()
	}
	if p := (ranges{r}).prefixes(); len(p) == 1 {
		return p[0].String()
	}
	return r.first.String() + "-" + r.last.String()
}

// isSelf reports whether a destination is autogroup:self.
func isSelf(d dest) bool { return d.kind == selSelf }

// localpart is the part of a login before its domain.
func localpart(login string) string { s, _, _ := strings.Cut(login, "@"); return s }
