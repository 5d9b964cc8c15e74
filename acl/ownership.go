package acl

import (
	"net/netip"
	"slices"
)

// escalate looks for a tag that a source may give to a node, itself or by way of tags that own tags, and for what a
// node with such tags and no others would reach. Tags without owners are for admins to give, who may change the
// policy as well.
func (pr *prover) escalate(n *never) *counter {
	gives := pr.ownership(n)
	for _, t := range names(gives) {
		as := *n
		as.src = []source{{{selector: selector{kind: selTag, text: t}}}}
		pr.only = gives
		c := pr.refute(&as)
		if pr.only = nil; c != nil {
			c.become = gives[t] + ", and "
			return c
		}
	}
	return nil
}

// ownership lists the tags that the sources of a never may give, and says for each by whom and over which tags.
func (pr *prover) ownership(n *never) map[string]string {
	pts := slices.Concat(srcDefaults, pr.srcPts)
	for _, s := range n.src {
		pts = append(pts, pr.p.edges(s[0].selector)...)
	}
	isSource := func(x actor) bool {
		return slices.ContainsFunc(pts, func(addr netip.Addr) bool {
			x.addr = addr
			pr.work++
			return slices.ContainsFunc(n.src, func(s source) bool { return pr.p.isSource(s, x) })
		})
	}
	gives := map[string]string{}
	var todo []string
	grow := func(who, how string, roles []string) {
		for _, t := range pr.p.Tags() {
			if gives[t] == "" && slices.ContainsFunc(pr.p.tagOwners[t], func(s selector) bool { return pr.p.owns(s, who, roles) }) {
				gives[t] = how + " may give " + t
				todo = append(todo, t)
			}
		}
	}
	for _, u := range pr.people {
		if isSource(actor{node: &Node{User: u.Login}, roles: u.Roles}) {
			grow(u.Login, u.Login, u.Roles)
		}
	}
	for _, t := range pr.p.Tags() {
		if isSource(actor{node: &Node{Tags: []string{t}}}) {
			grow(t, "a node with "+t, nil)
		}
	}
	for ; len(todo) > 0; todo = todo[1:] {
		grow(todo[0], gives[todo[0]]+", which", nil)
	}
	return gives
}
