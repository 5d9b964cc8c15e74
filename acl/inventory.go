package acl

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ParseInventory reads who exists, for those who ask about a policy without a network. The error, if any, is an
// [Errors] that holds everything wrong with the file.
//
//	{
//	  "users": [{"login": "alice@example.com", "roles": ["admin"]}],   // the owners of nodes need not be listed
//	  "nodes": [
//	    {"name": "laptop", "user": "alice@example.com", "attrs": {"node:os": "linux"}},
//	    {"name": "router", "tags": ["tag:router"], "addrs": ["100.64.0.7"], "routes": ["10.33.0.0/16"]},
//	  ],
//	}
//
// A node without addresses is given one of each family; routes are those approved for it.
func ParseInventory(file string, src []byte) (*Inventory, error) {
	p := newParser(file, src, Options{})
	r := &inventoryReader{parser: p, inv: &Inventory{}, logins: map[string]bool{}, names: map[string]bool{}, ids: map[NodeID]bool{}, addrs: map[netip.Addr]string{}}
	p.most = maxInventory
	if len(bytes.TrimSpace(src)) == 0 {
		p.fail(0, ClassInventory, `write {"nodes": []} for nobody`, "file is empty")
	} else if root, ok := p.parse(); ok {
		p.object(root, "an inventory", map[string]func(value){"users": r.users, "nodes": r.nodes}, nil)
		r.fill()
	}
	if err := p.result(); err != nil {
		return nil, err
	}
	return r.inv, nil
}

type inventoryReader struct {
	*parser
	inv    *Inventory
	logins map[string]bool
	names  map[string]bool
	ids    map[NodeID]bool
	addrs  map[netip.Addr]string
}

func (r *inventoryReader) users(v value) {
	if !r.want(v, '[', "users") {
		return
	}
	for i, e := range v.elems {
		u := User{}
		what := "users[" + strconv.Itoa(i) + "]"
		r.object(e, what, map[string]func(value){
			"login": func(v value) { u.Login, _ = r.text(v, "login") },
			"roles": func(v value) {
				r.list(v, "roles", func(off int, s string) {
					if autogroups[s] != selRole {
						r.fail(off, ClassInventory, r.near(s, roleNames()), "there is no role %q", s)
					}
					u.Roles = append(u.Roles, s)
				})
			},
		}, nil)
		switch {
		case !strings.Contains(u.Login, "@"):
			r.fail(e.off, ClassInventory, "a login is such as alice@example.com", "%s has no login", what)
		case r.logins[u.Login]:
			r.fail(e.off, ClassInventory, "", "%s: user %q is here twice", what, u.Login)
		}
		r.logins[u.Login] = true
		r.inv.Users = append(r.inv.Users, u)
	}
}

func roleNames() []string {
	return slices.DeleteFunc(names(autogroups), func(s string) bool { return autogroups[s] != selRole })
}

func (r *inventoryReader) nodes(v value) {
	if !r.want(v, '[', "nodes") {
		return
	}
	for i, e := range v.elems {
		r.node(e, "nodes["+strconv.Itoa(i)+"]")
	}
}

func (r *inventoryReader) node(v value, what string) {
	n := Node{}
	r.object(v, what, map[string]func(value){
		"id": func(v value) {
			id, err := strconv.ParseUint(v.str, 10, 64)
			if v.kind != '0' || err != nil || id == 0 || r.ids[NodeID(id)] {
				r.fail(v.off, ClassInventory, "leave it out to have it numbered", "%s: id is a whole number from 1, of no other node", what)
				return
			}
			n.ID = NodeID(id)
			r.ids[n.ID] = true
		},
		"name": func(v value) { n.Name, _ = r.text(v, "name") },
		"user": func(v value) { n.User, _ = r.text(v, "user") },
		"tags": func(v value) {
			r.list(v, "tags", func(off int, s string) {
				if r.tagName(off, s) {
					n.Tags = append(n.Tags, s)
				}
			})
			slices.Sort(n.Tags)
			n.Tags = slices.Compact(n.Tags)
		},
		"addrs": func(v value) {
			r.list(v, "addrs", func(off int, s string) {
				a, err := netip.ParseAddr(s)
				switch {
				case err != nil || a.Zone() != "" || a.Is4In6():
					r.fail(off, ClassInventory, "write an address such as 100.64.0.7", "%s: %q is not an address", what, s)
				case r.addrs[a] != "":
					r.fail(off, ClassInventory, "", "%s: %s is the address of %s already", what, a, r.addrs[a])
				default:
					r.addrs[a] = orElse(n.Name, what)
					n.Addrs = append(n.Addrs, a)
				}
			})
		},
		"routes": func(v value) {
			r.list(v, "routes", func(off int, s string) {
				pfx, ok, why := parsePrefix(s)
				if !ok {
					r.fail(off, ClassInventory, orElse(why, "write a CIDR such as 10.33.0.0/16"), "%s: %q is not a route", what, s)
					return
				}
				n.Routes = append(n.Routes, pfx)
			})
		},
		"attrs": func(v value) { n.Attrs = r.testAttrs(v) },
	}, nil)
	switch {
	case n.Name == "" || strings.ContainsAny(n.Name, " \t:@/"):
		r.fail(v.off, ClassInventory, "a name is one word, such as web1", "%s has no name", what)
	case r.names[n.Name]:
		r.fail(v.off, ClassInventory, "", "%s: another node is called %q", what, n.Name)
	}
	r.names[n.Name] = true
	r.inv.Nodes = append(r.inv.Nodes, n)
}

// fill gives numbers and addresses to those without, and users to the nodes that name others than are listed.
func (r *inventoryReader) fill() {
	id := NodeID(0)
	for i := range r.inv.Nodes {
		n := &r.inv.Nodes[i]
		for n.ID == 0 {
			if id++; !r.ids[id] {
				n.ID = id
			}
		}
		if n.User != "" && !r.logins[n.User] {
			r.logins[n.User] = true
			r.inv.Users = append(r.inv.Users, User{Login: n.User})
		}
	}
	giveAddrs(r.inv, func(a netip.Addr) bool { return r.addrs[a] != "" })
}

// giveAddrs gives an address of each family to the nodes without any, in a corner of the mesh's prefixes.
func giveAddrs(inv *Inventory, taken func(netip.Addr) bool) {
	next := [2]netip.Addr{netip.MustParseAddr("100.127.0.1"), netip.MustParseAddr("fd68:6564:6765:ff::1")}
	for i := range inv.Nodes {
		if len(inv.Nodes[i].Addrs) > 0 {
			continue
		}
		for k := range next {
			for taken(next[k]) {
				next[k] = next[k].Next()
			}
			inv.Nodes[i].Addrs = append(inv.Nodes[i].Addrs, next[k])
			next[k] = next[k].Next()
		}
	}
}

// Find resolves a name that a person uses for nodes: a node's own name, its address, or a user, group, tag or
// autogroup. An address that is no node's comes back as addr. The order of nodes is theirs.
func (c *Program) Find(name string) (nodes []NodeID, addr netip.Addr, err error) {
	w := c.w
	for i := range w.nodes {
		if w.nodes[i].Name == name {
			return []NodeID{w.nodes[i].ID}, netip.Addr{}, nil
		}
	}
	if a, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		if i, own := w.owner(a); own {
			return []NodeID{w.nodes[i].ID}, a, nil
		}
		return nil, a, nil
	}
	if pfx, ok := w.policy.hosts[name]; ok {
		if !pfx.IsSingleIP() {
			return nil, netip.Addr{}, fmt.Errorf("host %q is a network; ask about one address of it, such as %s", name, pfx.Addr().Next())
		}
		return c.Find(pfx.Addr().String())
	}
	p := newParser("", nil, w.policy.opt)
	p.pol = w.policy
	l := w.lists()
	known := append(names(l.byUser), names(l.byTag)...)
	for _, i := range w.byID.all() {
		known = append(known, w.nodes[i].Name)
	}
	if !strings.ContainsAny(name, "@:*") {
		return nil, netip.Addr{}, fmt.Errorf("no node is called %q%s", name, parenthesis(didYouMean(name, known)))
	}
	sel, ok := p.name(0, name)
	if !ok {
		return nil, netip.Addr{}, fmt.Errorf("%s%s", p.errs[0].Msg, parenthesis(p.errs[0].Hint))
	}
	if sel.kind == selAny {
		for id := range w.byID.all() {
			nodes = append(nodes, id)
		}
		return nodes, netip.Addr{}, nil
	}
	if devices&(1<<sel.kind) == 0 {
		return nil, netip.Addr{}, fmt.Errorf("%q does not name nodes", name)
	}
	for _, i := range w.named(sel) {
		nodes = append(nodes, w.nodes[i].ID)
	}
	slices.Sort(nodes)
	if nodes = slices.Compact(nodes); len(nodes) == 0 {
		return nil, netip.Addr{}, fmt.Errorf("%q has no node in this inventory%s", name, parenthesis(didYouMean(name, known)))
	}
	return nodes, netip.Addr{}, nil
}

func parenthesis(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// Node is the program's record of a node; its name is empty for one it does not know.
func (c *Program) Node(id NodeID) Node {
	if i, ok := c.w.at(id); ok {
		return c.w.nodes[i].Node
	}
	return Node{}
}

// Nodes are the program's records of all nodes, sorted by number.
func (c *Program) Nodes() []Node {
	out := make([]Node, 0, c.w.live)
	for _, i := range c.w.byID.all() {
		out = append(out, c.w.nodes[i].Node)
	}
	return out
}
