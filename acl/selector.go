package acl

import (
	"net/netip"
	"slices"
	"strings"
)

// selKind is what sort of thing a selector names.
type selKind uint8

const (
	selNone       selKind = iota
	selAny                // *
	selUser               // alice@example.com
	selUserDomain         // user:*@example.com
	selGroup              // group:eng
	selTag                // tag:web
	selHost               // a name in hosts
	selPrefix             // 10.0.0.0/8, 100.64.0.1
	selIPSet              // ipset:prod
	selService            // svc:db
	selMember             // autogroup:member
	selTagged             // autogroup:tagged
	selSelf               // autogroup:self
	selInternet           // autogroup:internet
	selDangerAll          // autogroup:danger-all
	selRole               // autogroup:admin and the other roles
	selShared             // autogroup:shared
	selNonroot            // autogroup:nonroot
)

// place is where in a file a selector stands; each place allows some kinds.
type place uint8

const (
	inACLSrc place = iota
	inACLDst
	inGrantSrc
	inGrantDst
	inSSHSrc
	inSSHDst
	inAttrTarget
	inApprover
	inOwner
	inTest
	inSSHTest
)

var placeNames = [...]string{
	"an acls source", "an acls destination", "a grants source", "a grants destination", "an ssh source",
	"an ssh destination", "a nodeAttrs target", "an auto-approver", "a tag owner", "a test", "an ssh test",
}

func kinds(ks ...selKind) (mask uint32) {
	for _, k := range ks {
		mask |= 1 << k
	}
	return mask
}

var (
	people  = kinds(selUser, selUserDomain, selGroup, selMember, selRole)
	devices = people | kinds(selTag, selTagged)
	numbers = kinds(selHost, selPrefix, selIPSet)

	// allowed is the table of what may stand where.
	allowed = [...]uint32{
		inACLSrc:     devices | numbers | kinds(selAny, selDangerAll, selShared),
		inACLDst:     devices | numbers | kinds(selAny, selSelf, selInternet, selService),
		inGrantSrc:   devices | numbers | kinds(selAny, selDangerAll, selShared),
		inGrantDst:   devices | numbers | kinds(selAny, selSelf, selInternet, selService),
		inSSHSrc:     devices,
		inSSHDst:     kinds(selUser, selTag, selMember, selTagged, selSelf, selRole),
		inAttrTarget: devices | numbers&^kinds(selIPSet) | kinds(selAny),
		inApprover:   devices,
		inOwner:      devices,
		inTest:       devices | kinds(selHost, selPrefix, selSelf),
		inSSHTest:    devices | kinds(selHost, selPrefix, selSelf),
	}
)

var autogroups = map[string]selKind{
	"member": selMember, "members": selMember, "tagged": selTagged, "self": selSelf, "internet": selInternet,
	"danger-all": selDangerAll, "shared": selShared, "nonroot": selNonroot,
	"owner": selRole, "admin": selRole, "it-admin": selRole, "network-admin": selRole, "billing-admin": selRole, "auditor": selRole,
}

// sharedDomains give anyone an address; nobody may be trusted for having one there.
var sharedDomains = []string{
	"gmail.com", "googlemail.com", "outlook.com", "hotmail.com", "live.com", "yahoo.com", "icloud.com", "me.com",
	"aol.com", "gmx.com", "gmx.de", "gmx.net", "web.de", "mail.ru", "yandex.ru", "qq.com", "163.com",
	"proton.me", "protonmail.com", "fastmail.com", "github", "passkey",
}

// selector is one name out of a file, resolved as far as the file goes. It is comparable.
type selector struct {
	kind selKind
	// text is the name as a set is called: hosts by their key, addresses in their canonical form.
	text   string
	arg    string       // the domain of user:*@, the role of a role autogroup
	prefix netip.Prefix // of a host or address
}

// term is a selector in a source, or its opposite.
type term struct {
	selector
	not bool
}

// source is what one string in src says: every term of it must hold of the device.
type source []term

// text is the source's name as a set is called.
func (s source) text() string {
	ws := make([]string, len(s))
	for i, t := range s {
		ws[i] = t.text
		if t.not {
			ws[i] = "!" + t.text
		}
	}
	return strings.Join(ws, " & ")
}

// plain reports whether the source is one selector as it is.
func (s source) plain() bool { return len(s) == 1 && !s[0].not }

// source reads one string of a src list, which may use & and ! unless the file is read as Tailscale's.
func (p *parser) source(off int, s string, at place) (source, bool) {
	if p.opt.Compat || !strings.Contains(s, "&") && !strings.HasPrefix(s, "!") {
		sel, ok := p.selector(off, s, at)
		return source{{selector: sel}}, ok
	}
	var out source
	good := true
	for _, w := range strings.Split(s, "&") {
		t := term{}
		w = strings.TrimSpace(w)
		if n, ok := strings.CutPrefix(w, "!"); ok {
			t.not, w = true, strings.TrimSpace(n)
		}
		var ok bool
		if t.selector, ok = p.selector(off, w, at); !ok {
			good = false
			continue
		}
		if devices&(1<<t.kind) == 0 {
			p.fail(off, ClassNotAllowedHere, "combine users, groups, tags and autogroups only", "%q cannot be combined with & or !", w)
			good = false
			continue
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b term) int { return strings.Compare(a.text, b.text) })
	return out, good && len(out) > 0
}

// selector reads a name that stands at a place, and fails if it is unknown or not allowed there.
func (p *parser) selector(off int, s string, at place) (selector, bool) {
	sel, ok := p.name(off, s)
	if !ok {
		return sel, false
	}
	if allowed[at]&(1<<sel.kind) != 0 {
		switch {
		case p.opt.Compat:
		case sel.kind == selService:
			p.fail(off, ClassUnsupportedFeature, "give the service's nodes a tag, and name the tag", "Hedge has no services, so %q would be nothing", s)
			return sel, false
		case sel.kind == selShared:
			p.fail(off, ClassUnsupportedFeature, "name the users", "Hedge shares no nodes between meshes, so %q would be nobody", s)
			return sel, false
		}
		return sel, true
	}
	class, hint := ClassNotAllowedHere, ""
	switch {
	case sel.kind == selSelf && (at == inACLSrc || at == inGrantSrc || at == inSSHSrc):
		class, hint = ClassSelfSource, "name users, groups or autogroup:member as the source; self is for the destination"
	case sel.kind == selAny:
		hint = "name users, groups or tags"
	case sel.kind == selDangerAll:
		hint = "autogroup:danger-all is only a source"
	case sel.kind == selInternet:
		hint = "autogroup:internet is only a destination"
	}
	p.fail(off, class, hint, "%q may not be %s", s, placeNames[at])
	return sel, false
}

// name reads a name wherever it may stand: address, *, user, group, tag, autogroup, ipset, service, host, in this order.
func (p *parser) name(off int, s string) (selector, bool) {
	if pfx, ok, err := parsePrefix(s); err != "" {
		p.fail(off, ClassBadSelector, "", "%q: %s", s, err)
		return selector{}, false
	} else if ok {
		return selector{kind: selPrefix, text: prefixText(pfx), prefix: pfx}, true
	}
	kind, rest, _ := strings.Cut(s, ":")
	switch {
	case s == "":
		p.fail(off, ClassBadSelector, "name a user, group, tag, host or address", "empty name")
	case s == "*":
		return selector{kind: selAny, text: "*"}, true
	case kind == "group" && strings.Contains(s, ":"):
		return p.groupRef(off, s)
	case kind == "user" && strings.HasPrefix(rest, "*@"):
		return p.userDomain(off, s, rest[len("*@"):])
	case strings.Contains(s, "@"):
		if strings.ContainsAny(s, " \t\r\n*&|<>\"") || !p.opt.Compat && strings.Contains(s, ":") {
			p.fail(off, ClassBadSelector, "write a login such as alice@example.com, or user:*@example.com for everyone there", "%q is not a login", s)
			return selector{}, false
		}
		return selector{kind: selUser, text: s}, true
	case kind == "tag" && strings.Contains(s, ":"):
		return p.tagRef(off, s)
	case kind == "autogroup" && strings.Contains(s, ":"):
		return p.autogroup(off, s, rest)
	case kind == "ipset" && strings.Contains(s, ":"):
		if _, ok := p.pol.ipsets[s]; !ok {
			p.fail(off, ClassUndefined, orElse(p.near(s, names(p.pol.ipsets)), "define it under ipsets"), "ipset %q is not defined", s)
			return selector{}, false
		}
		return selector{kind: selIPSet, text: s}, true
	case kind == "svc" && rest != "":
		return selector{kind: selService, text: s}, true
	default:
		return p.hostRef(off, s)
	}
	return selector{}, false
}

func (p *parser) groupRef(off int, s string) (selector, bool) {
	if _, ok := p.pol.groups[s]; !ok && (!p.opt.Compat || !strings.Contains(s, "@")) {
		p.fail(off, ClassUndefined, orElse(p.near(s, names(p.pol.groups)), "define it under groups"), "group %q is not defined", s)
		return selector{}, false
	}
	return selector{kind: selGroup, text: s}, true
}

func (p *parser) userDomain(off int, s, domain string) (selector, bool) {
	if !p.domain(off, domain) {
		return selector{}, false
	}
	return selector{kind: selUserDomain, text: s, arg: domain}, true
}

// domain checks that all logins of a mail domain may be named at once.
func (p *parser) domain(off int, domain string) bool {
	ok := slices.Contains(p.opt.Domains, domain)
	if !p.opt.Compat && len(p.opt.Domains) == 0 {
		ok = domain != "" && !strings.ContainsAny(domain, "*@ ") && !slices.Contains(sharedDomains, strings.ToLower(domain))
	}
	if !ok {
		p.fail(off, ClassUndefined, "use a mail domain whose every user you trust", "domain %q is not one of this mesh, and cannot be used in user:*@", domain)
	}
	return ok
}

func (p *parser) tagRef(off int, s string) (selector, bool) {
	if !p.tagName(off, s) {
		return selector{}, false
	}
	if _, ok := p.pol.tagOwners[s]; !ok {
		p.fail(off, ClassUndefined, orElse(p.near(s, names(p.pol.tagOwners)), "declare it under tagOwners"), "tag %q is not defined", s)
		return selector{}, false
	}
	return selector{kind: selTag, text: s}, true
}

// tagName checks the form of a tag.
func (p *parser) tagName(off int, s string) bool {
	n, ok := strings.CutPrefix(s, "tag:")
	if !ok || n == "" || !isLetter(n[0]) {
		p.fail(off, ClassBadSelector, "write tag:NAME", "%q: a tag's name must start with a letter a-z, after \"tag:\"", s)
		return false
	}
	return true
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func (p *parser) autogroup(off int, s, name string) (selector, bool) {
	k, ok := autogroups[name]
	if !ok {
		p.fail(off, ClassBadSelector, p.near(s, autogroupNames()), "there is no %q", s)
		return selector{}, false
	}
	if k == selMember {
		if p.member == "" {
			p.member = s
		} else if p.member != s {
			p.fail(off, ClassBadSelector, "write autogroup:member throughout", "file uses both %q and %q", p.member, s)
			return selector{}, false
		}
		s = "autogroup:member"
	}
	sel := selector{kind: k, text: s}
	if k == selRole {
		sel.arg = name
	}
	return sel, true
}

func autogroupNames() []string {
	ns := names(autogroups)
	for i := range ns {
		ns[i] = "autogroup:" + ns[i]
	}
	return ns
}

func (p *parser) hostRef(off int, s string) (selector, bool) {
	pfx, ok := p.pol.hosts[s]
	if !ok {
		class, msg := ClassUndefined, "host %q is not defined"
		if strings.Contains(s, ":") {
			class, msg = ClassBadSelector, "%q is neither an address nor a known kind of name"
		}
		known := append(names(p.pol.hosts), names(p.pol.tagOwners)...)
		known = append(append(known, names(p.pol.groups)...), autogroupNames()...)
		p.fail(off, class, orElse(p.near(s, known), "define it under hosts, or write a user (with @), group:, tag: or an address"), msg, s)
		return selector{}, false
	}
	return selector{kind: selHost, text: s, prefix: pfx}, true
}

// parsePrefix reads an address or CIDR. ok is false for what is neither; why says what is wrong with one that is.
func parsePrefix(s string) (pfx netip.Prefix, ok bool, why string) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return pfx, false, "an address in a policy has no zone"
		}
		pfx = netip.PrefixFrom(a, a.BitLen())
	} else if pfx, err = netip.ParsePrefix(s); err != nil {
		if a, bits, found := strings.Cut(s, "/"); found {
			if _, err := netip.ParseAddr(a); err == nil {
				return pfx, false, "/" + bits + " is not a prefix length of this address"
			}
		}
		return pfx, false, ""
	}
	if pfx.Addr().Is4In6() {
		return pfx, false, "write the IPv4 address itself"
	}
	return pfx.Masked(), true, ""
}

// prefixText is a prefix as people write it: a lone address without its length.
func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
