package acl

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Options say which language a file is read as.
type Options struct {
	// Compat reads the file as Tailscale's service would: no extra language, and a file that says nothing allows
	// everything. Only offline tools use it; what a mesh enforces is never parsed so.
	Compat bool
	// Domains are the mail domains of the mesh, for "user:*@domain". Without any, every domain but the shared ones
	// (gmail.com and the like) may be named; under Compat, none may.
	Domains []string
	// Mesh are the prefixes that nodes have their addresses in, if not those of a new mesh.
	Mesh []netip.Prefix
}

// Policy is a parsed and valid ACL file. It does not change, and may be used by many goroutines.
type Policy struct {
	doc       *document
	opt       Options
	allowAll  bool // no rules at all, and the file (or Compat) says that this allows everything
	groups    map[string][]string
	hosts     map[string]netip.Prefix
	ipsets    map[string][]netip.Prefix
	tagOwners map[string][]selector
	postures  map[string][]condition
	// defaultPosture is asked of the source of every rule without its own.
	defaultPosture []string
	rows           []*row // grants before acls
	ssh            []*sshRow
	tests          []*test
	sshTests       []*sshTest
	nevers         []*never
	attrs          []*attrRow
	routes         []approver
	exitNode       []selector
	randomizePort  bool
}

// row is one entry of acls or grants.
type row struct {
	off      int
	pos      Pos
	path     string // "acls[3]"
	grant    bool
	action   Action
	src      []source
	srcOff   []int // where each source stands
	dst      []dest
	protos   []uint8  // of an acl
	ip       []ipSpec // of a grant
	app      []capability
	via      []string // tags
	postures []string // any of them must hold of the source; never nil when the file gave some
	expires  time.Time
	window   Window
}

// timed reports whether the row is not always in force.
func (r *row) timed() bool { return !r.expires.IsZero() || r.window != "" }

// dest is one entry of dst; a grant's has no ports of its own.
type dest struct {
	selector
	ports []PortRange
}

// ipSpec is one entry of a grant's ip.
type ipSpec struct {
	protos []uint8
	ports  []PortRange
}

// capability is one entry of a grant's app. The values mean something to the application only.
type capability struct {
	name   string
	values []any
}

// approver lets owners carry a prefix and what lies inside it.
type approver struct {
	prefix netip.Prefix
	owners []selector
}

// attrRow is one entry of nodeAttrs.
type attrRow struct {
	off    int
	target []selector
	attrs  []string
}

// MayTag reports whether who, a login or a tag, may give a node the tag, by tagOwners. Roles are not known of a
// mere login; see [Policy.UserMayTag].
func (p *Policy) MayTag(who, tag string) bool { return p.UserMayTag(User{Login: who}, tag) }

// UserMayTag is MayTag for a user whose roles are known. A tag without owners belongs to admins.
func (p *Policy) UserMayTag(u User, tag string) bool {
	owners, ok := p.tagOwners[tag]
	if !ok {
		return false
	}
	if len(owners) == 0 {
		return slices.Contains(u.Roles, "owner") || slices.Contains(u.Roles, "admin") || slices.Contains(u.Roles, "network-admin")
	}
	return slices.ContainsFunc(owners, func(s selector) bool { return p.owns(s, u.Login, u.Roles) })
}

// HasTag reports whether the file declares the tag, in tagOwners.
func (p *Policy) HasTag(tag string) bool { _, ok := p.tagOwners[tag]; return ok }

// Tags are the tags that the file declares, sorted.
func (p *Policy) Tags() []string { return names(p.tagOwners) }

// owns reports whether an owner names who, a login or a tag.
func (p *Policy) owns(s selector, who string, roles []string) bool {
	isTag := strings.HasPrefix(who, "tag:")
	switch s.kind {
	case selTag:
		return s.text == who
	case selTagged:
		return isTag
	case selMember:
		return !isTag && who != ""
	}
	return !isTag && who != "" && p.isUser(s, who, roles)
}

// isUser reports whether a selector of people names the login.
func (p *Policy) isUser(s selector, login string, roles []string) bool {
	switch s.kind {
	case selUser:
		return s.text == login
	case selUserDomain:
		return strings.HasSuffix(login, "@"+s.arg)
	case selGroup:
		return slices.Contains(p.groups[s.text], login)
	case selMember:
		return true
	case selRole:
		return slices.Contains(roles, s.arg)
	}
	return false
}

// Approves reports whether autoApprovers lets the node carry the route without an admin's word. owner is the
// record of the node's user, and may be nil. Only exitNode approves a /0.
func (p *Policy) Approves(n *Node, owner *User, route netip.Prefix) bool {
	if route.Bits() == 0 {
		return p.anyApprover(p.exitNode, n, owner)
	}
	for _, a := range p.routes {
		if a.prefix.Bits() <= route.Bits() && a.prefix.Contains(route.Addr()) && p.anyApprover(a.owners, n, owner) {
			return true
		}
	}
	return false
}

func (p *Policy) anyApprover(owners []selector, n *Node, owner *User) bool {
	whos := n.Tags
	var roles []string
	if len(whos) == 0 {
		whos = []string{n.User}
		if owner != nil && owner.Login == n.User {
			roles = owner.Roles
		}
	}
	for _, s := range owners {
		for _, who := range whos {
			if p.owns(s, who, roles) {
				return true
			}
		}
	}
	return false
}
