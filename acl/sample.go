package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Sample is the smallest mesh in which every rule of the policies has somebody to be about: one device for each
// login, tag, role and mail domain that they name, for each source with & its own, and one for each host that is a
// lone address. Devices meet the postures where they can; what may be approved, or has a via, is carried.
func Sample(ps ...*Policy) *Inventory {
	s := &sampler{inv: &Inventory{}, taken: map[string]bool{}, users: map[string]int{}, tags: map[string]int{}, addrs: map[netip.Addr]bool{}}
	for _, p := range ps {
		s.policy(p)
	}
	for _, p := range ps {
		s.carry(p)
	}
	for i := range s.inv.Nodes {
		s.inv.Nodes[i].ID = NodeID(i + 1)
	}
	giveAddrs(s.inv, func(a netip.Addr) bool { return s.addrs[a] })
	return s.inv
}

type sampler struct {
	inv   *Inventory
	taken map[string]bool // names of nodes
	users map[string]int  // login → its device
	tags  map[string]int
	addrs map[netip.Addr]bool
	attrs map[string]string
}

func (s *sampler) policy(p *Policy) {
	if s.attrs == nil {
		s.attrs = map[string]string{}
	}
	for _, name := range names(p.postures) {
		for _, c := range p.postures[name] {
			if _, set := s.attrs[c.attr]; !set && c.op != "NOT SET" {
				s.attrs[c.attr] = c.example()
			}
		}
	}
	for _, g := range names(p.groups) {
		for _, u := range p.groups[g] {
			s.user(u)
		}
	}
	for _, t := range p.Tags() {
		s.tag(t)
		for _, o := range p.tagOwners[t] {
			s.selector(o)
		}
	}
	for _, r := range p.rows {
		for _, src := range r.src {
			for _, t := range src {
				s.selector(t.selector)
			}
			s.both(p, src)
		}
		for _, d := range r.dst {
			s.selector(d.selector)
		}
	}
	for _, t := range p.tests {
		s.selector(t.src)
		for _, d := range append(slices.Clone(t.accept), t.deny...) {
			s.selector(d.sel)
		}
	}
	for _, h := range names(p.hosts) {
		a := p.hosts[h].Addr()
		if p.hosts[h].IsSingleIP() && inMesh(a) && !s.addrs[a] {
			s.addrs[a] = true
			s.device(h, Node{Addrs: []netip.Addr{a}})
		}
	}
	for _, a := range append(slices.Clone(p.routes), approver{owners: p.exitNode}) {
		for _, o := range a.owners {
			s.selector(o)
		}
	}
}

var meshPrefixes = []netip.Prefix{cgnat, netip.MustParsePrefix("fd68:6564:6765::/48")}

func inMesh(a netip.Addr) bool {
	return slices.ContainsFunc(meshPrefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// example is a value that the condition holds of, if it is as simple as that.
func (c condition) example() string {
	switch c.op {
	case "==", "IN", "<=", ">=":
		return c.vals[0]
	case ">":
		return c.vals[0] + ".1"
	case "<":
		return "0"
	}
	return "other"
}

func (s *sampler) selector(sel selector) {
	switch sel.kind {
	case selUser:
		s.user(sel.text)
	case selTag:
		s.tag(sel.text)
	case selUserDomain:
		s.user("someone@" + sel.arg)
	case selRole:
		login := sel.arg + "@hedge.invalid"
		if _, known := s.users[login]; !known {
			s.user(login)
			s.inv.Users[len(s.inv.Users)-1].Roles = []string{sel.arg}
		}
	case selMember:
		if len(s.users) == 0 {
			s.user("someone@hedge.invalid")
		}
	}
}

// both adds a device for a source with &: of its user, and with its tags.
func (s *sampler) both(p *Policy, src source) {
	n := Node{}
	for _, t := range src {
		switch {
		case t.not:
		case t.kind == selTag:
			n.Tags = append(n.Tags, t.text)
		case t.kind == selUser:
			n.User = t.text
		case t.kind == selGroup && len(p.groups[t.text]) > 0 && n.User == "":
			n.User = p.groups[t.text][0]
		}
	}
	if len(n.Tags)+min(1, len(n.User)) > 1 {
		slices.Sort(n.Tags)
		key := n.Identity()
		if _, ok := s.tags[key]; !ok {
			s.tags[key] = len(s.inv.Nodes)
			s.device(local(n.User)+"-"+strings.TrimPrefix(strings.Join(n.Tags, "-"), "tag:"), n)
		}
	}
}

func (s *sampler) user(login string) {
	if _, ok := s.users[login]; ok {
		return
	}
	s.users[login] = len(s.inv.Nodes)
	s.inv.Users = append(s.inv.Users, User{Login: login})
	s.device(localpart(login), Node{User: login})
}

func (s *sampler) tag(t string) {
	if _, ok := s.tags[t]; ok {
		return
	}
	s.tags[t] = len(s.inv.Nodes)
	s.device(strings.TrimPrefix(t, "tag:"), Node{Tags: []string{t}})
}

func local(login string) string {
	if login == "" {
		return "node"
	}
	return localpart(login)
}

// device adds a node by a name like the one wanted.
func (s *sampler) device(name string, n Node) {
	name = strings.Map(func(r rune) rune {
		if r == '-' || '0' <= r && r <= '9' || 'a' <= r|0x20 && r|0x20 <= 'z' {
			return r
		}
		return '-'
	}, name)
	n.Name = name
	for i := 2; s.taken[n.Name]; i++ {
		n.Name = fmt.Sprintf("%s-%d", name, i)
	}
	s.taken[n.Name] = true
	n.Attrs = s.attrs
	s.inv.Nodes = append(s.inv.Nodes, n)
}

// carry gives routes to the devices that may be approved for them, and to those that a via names.
func (s *sampler) carry(p *Policy) {
	give := func(i int, r netip.Prefix) {
		if n := &s.inv.Nodes[i]; !slices.Contains(n.Routes, r) {
			n.Routes = append(n.Routes, r)
		}
	}
	first := func(owners []selector, r netip.Prefix) {
		for _, o := range owners {
			who := o.text
			if o.kind == selGroup && len(p.groups[o.text]) > 0 {
				who = p.groups[o.text][0]
			}
			for _, m := range []map[string]int{s.tags, s.users} {
				if i, ok := m[who]; ok {
					give(i, r)
					return
				}
			}
		}
	}
	for _, a := range p.routes {
		first(a.owners, a.prefix)
	}
	for _, r := range []netip.Prefix{all4, all6} {
		first(p.exitNode, r)
	}
	for _, r := range p.rows {
		for _, via := range r.via {
			for _, d := range r.dst {
				pfxs := p.ipsets[d.text]
				switch {
				case d.prefix.IsValid():
					pfxs = []netip.Prefix{d.prefix}
				case d.kind == selInternet:
					pfxs = []netip.Prefix{all4, all6}
				}
				for _, x := range pfxs {
					give(s.tags[via], x)
				}
			}
		}
	}
}
