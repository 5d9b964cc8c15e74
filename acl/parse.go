package acl

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

const emptyHint = `an empty policy is never meant: write "acls": [] to deny everything, or "defaultAccess": "allow" to allow it`

// Parse reads an ACL file. The error, if any, is an [Errors] that holds everything wrong with the file; file is
// its name as errors and rules should show it.
func Parse(file string, src []byte, opt Options) (*Policy, error) {
	p := newParser(file, src, opt)
	p.pol = &Policy{
		doc: p.document, opt: opt,
		groups: map[string][]string{}, hosts: map[string]netip.Prefix{}, ipsets: map[string][]netip.Prefix{},
		tagOwners: map[string][]selector{}, postures: map[string][]condition{},
	}
	if root, ok := p.parse(); ok {
		p.policy(root)
		if len(p.errs) == 0 {
			p.errs = p.pol.Prove(nil)
		}
	}
	if err := p.result(); err != nil {
		return nil, err
	}
	return p.pol, nil
}

// sections are the parts of a file, in the order they are read: what is named before what names it.
var sections = []struct {
	name string
	read func(*parser, value)
}{
	{"groups", (*parser).groups},
	{"hosts", (*parser).hosts},
	{"tagOwners", (*parser).tagOwners},
	{"ipsets", (*parser).ipsets},
	{"postures", (*parser).postures},
	{"attrConfig", (*parser).attrConfig},
	{"defaultSrcPosture", func(p *parser, v value) { p.pol.defaultPosture = p.postureRefs(v, "defaultSrcPosture") }},
	{"autoApprovers", (*parser).autoApprovers},
	{"grants", (*parser).grants},
	{"acls", (*parser).acls},
	{"ssh", (*parser).sshRows},
	{"nodeAttrs", (*parser).nodeAttrs},
	{"tests", (*parser).testRows},
	{"sshTests", (*parser).sshTestRows},
	{"randomizeClientPort", func(p *parser, v value) {
		p.pol.randomizePort = v.kind == 't'
		p.setting("randomizeClientPort", v)
	}},
	{"derpMap", func(p *parser, v value) { p.setting("derpMap", v) }},
	{"disableIPv4", func(p *parser, v value) { p.setting("disableIPv4", v) }},
	{"OneCGNATRoute", func(p *parser, v value) { p.setting("OneCGNATRoute", v) }},
	{"never", (*parser).nevers},
}

// policy reads the whole file.
func (p *parser) policy(root value) {
	if root.kind != '{' {
		p.fail(root.off, ClassSyntax, "", "a policy must be an object {…}, not %s", kindNames[root.kind])
		return
	}
	found := map[string]value{}
	readers := map[string]func(value){}
	for _, s := range sections {
		readers[s.name] = func(v value) { found[s.name] = v }
	}
	if p.opt.Compat {
		delete(readers, "never")
	} else {
		readers["defaultAccess"] = func(v value) { found["defaultAccess"] = v }
	}
	p.object(root, "a policy", readers, nil)
	for _, s := range sections {
		if v, ok := found[s.name]; ok {
			s.read(p, v)
		}
	}
	_, acls := found["acls"]
	_, grants := found["grants"]
	p.defaultAccess(root, found["defaultAccess"], acls || grants)
}

// defaultAccess settles what a file without rules means: nothing, unless it says so.
func (p *parser) defaultAccess(root, v value, rules bool) {
	switch {
	case v.kind == 0 && p.opt.Compat:
		p.pol.allowAll = !rules
	case v.kind == 0 && !rules:
		p.fail(root.off, ClassEmptyRule, emptyHint, "policy has neither acls nor grants")
	case v.kind == 0:
	case v.kind != '"' || v.str != "allow" && v.str != "deny":
		p.fail(v.off, ClassBadAction, "", `defaultAccess must be "allow" or "deny"`)
	case v.str == "allow" && rules:
		p.fail(v.off, ClassBadAction, `remove it, or remove the rules, which would mean nothing beside it`, `"defaultAccess": "allow" stands beside rules`)
	case v.str == "allow":
		p.pol.allowAll = true
		off := v.off
		p.pol.rows = append(p.pol.rows, &row{off: off, pos: p.pos(off), path: "defaultAccess", action: Accept,
			src: []source{{{selector: selector{kind: selAny, text: "*"}}}},
			dst: []dest{{selector{kind: selAny, text: "*"}, []PortRange{AllPorts}}}})
	}
}

// setting refuses a tailnet-wide setting of Tailscale that Hedge does not have, unless it asks for nothing.
func (p *parser) setting(name string, v value) {
	if p.opt.Compat || v.kind == 'f' || v.kind == '"' && v.str == "" {
		return
	}
	p.unsupported(v, name, "this is no setting of a policy here; relays, ports and addresses are set on the coordinator")
}

func (p *parser) unsupported(v value, what, why string) {
	p.fail(v.off, ClassUnsupportedFeature, why, "%s is not supported", what)
}

func (p *parser) groups(v value) {
	if !p.want(v, '{', "groups") {
		return
	}
	for _, f := range v.fields {
		name := f.name.str
		if n, ok := strings.CutPrefix(name, "group:"); !ok || n == "" {
			p.fail(f.name.off, ClassBadSelector, "write group:NAME", "%q: a group's name must start with \"group:\"", name)
			continue
		}
		members := []string{}
		p.list(f.val, name, func(off int, s string) {
			switch {
			case strings.HasPrefix(s, "group:"):
				p.fail(off, ClassRecursiveGroup, "list its members instead", "%q is in %q: a group may not hold a group", s, name)
			case !strings.Contains(s, "@") || strings.ContainsAny(s, " \t\r\n*&|<>\"") || !p.opt.Compat && (strings.HasPrefix(s, "!") || strings.Contains(s, ":")):
				p.fail(off, ClassBadSelector, "a member is a login such as alice@example.com", "%q in %q is not a login", s, name)
			case !slices.Contains(members, s):
				members = append(members, s)
			}
		})
		p.pol.groups[name] = members
	}
}

func (p *parser) hosts(v value) {
	if !p.want(v, '{', "hosts") {
		return
	}
	for _, f := range v.fields {
		name := f.name.str
		_, isAddr, why := parsePrefix(name)
		if name == "" || name == "*" || isAddr || why != "" || strings.TrimSpace(name) != name || strings.ContainsAny(name, "@:") ||
			!p.opt.Compat && strings.ContainsAny(name, "&!") {
			p.fail(f.name.off, ClassBadSelector, "use letters, digits and dashes", "%q cannot be the name of a host", name)
			continue
		}
		s, ok := p.text(f.val, "host "+name)
		if !ok {
			if f.val.kind == 'n' {
				p.fail(f.val.off, ClassBadSelector, "write an address or a CIDR", "host %q has no address", name)
			}
			continue
		}
		pfx, ok, why := parsePrefix(strings.TrimSpace(s))
		if !ok {
			p.fail(f.val.off, ClassBadSelector, orElse(why, "write an address such as 100.64.0.7, or a CIDR such as 10.0.0.0/8"), "host %q: %q is not an address", name, s)
			continue
		}
		p.pol.hosts[name] = pfx
	}
}

func (p *parser) tagOwners(v value) {
	if !p.want(v, '{', "tagOwners") {
		return
	}
	for _, f := range v.fields { // all names first: a tag may own another
		if p.tagName(f.name.off, f.name.str) {
			p.pol.tagOwners[f.name.str] = nil
		}
	}
	for _, f := range v.fields {
		if _, ok := p.pol.tagOwners[f.name.str]; !ok {
			continue
		}
		p.pol.tagOwners[f.name.str] = p.selectors(f.val, "owners of "+f.name.str, inOwner)
	}
}

// selectors reads a list of names.
func (p *parser) selectors(v value, what string, at place) []selector {
	var out []selector
	v.shape.at(at)
	p.list(v, what, func(off int, s string) {
		if sel, ok := p.selector(off, s, at); ok {
			out = append(out, sel)
		}
	})
	return out
}

func (p *parser) autoApprovers(v value) {
	p.object(v, "autoApprovers", map[string]func(value){
		"routes": func(v value) {
			if !p.want(v, '{', "routes") {
				return
			}
			for _, f := range v.fields {
				pfx, ok, why := parsePrefix(strings.TrimSpace(f.name.str))
				if !ok {
					p.fail(f.name.off, ClassBadSelector, orElse(why, "write a CIDR such as 10.0.0.0/8"), "%q is not a prefix", f.name.str)
					continue
				}
				p.pol.routes = append(p.pol.routes, approver{pfx, p.selectors(f.val, "approvers of "+f.name.str, inApprover)})
			}
		},
		"exitNode": func(v value) { p.pol.exitNode = p.selectors(v, "exitNode", inApprover) },
		"services": func(v value) {
			if !p.opt.Compat && len(v.fields) > 0 {
				p.unsupported(v, "services", "Hedge has no services")
			}
		},
		"appConnectors": func(v value) {
			if !p.opt.Compat && len(v.fields) > 0 {
				p.unsupported(v, "appConnectors", "Hedge has no app connectors")
			}
		},
	}, nil)
}

func (p *parser) nodeAttrs(v value) {
	if !p.want(v, '[', "nodeAttrs") {
		return
	}
	for i, e := range v.elems {
		a := &attrRow{off: e.off}
		path := "nodeAttrs[" + strconv.Itoa(i) + "]"
		p.object(e, path, map[string]func(value){
			"target": func(v value) { a.target = p.selectors(v, "target", inAttrTarget) },
			"attr": func(v value) {
				p.list(v, "attr", func(_ int, s string) { a.attrs = append(a.attrs, s) })
			},
			"ipPool": p.ipPool,
			"app":    func(v value) { p.want(v, '{', "app") },
		}, nil)
		p.pol.attrs = append(p.pol.attrs, a)
	}
}

var (
	cgnat    = netip.MustParsePrefix("100.64.0.0/10")
	chromeOS = netip.MustParsePrefix("100.115.92.0/23")
	reserved = []netip.Prefix{netip.MustParsePrefix("100.100.100.0/24"), chromeOS}
)

func (p *parser) ipPool(v value) {
	p.list(v, "ipPool", func(off int, s string) {
		pfx, ok, why := parsePrefix(s)
		switch {
		case !ok:
			p.fail(off, ClassIPPool, why, "%q is not a prefix", s)
		case pfx.Bits() < cgnat.Bits() || !cgnat.Contains(pfx.Addr()):
			p.fail(off, ClassIPPool, "", "ipPool %s is not inside %s", s, cgnat)
		case slices.ContainsFunc(reserved, pfx.Overlaps):
			p.fail(off, ClassIPPool, "", "ipPool %s overlaps a reserved range", s)
		}
	})
}
