package acl

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (p *parser) acls(v value) {
	if !p.want(v, '[', "acls") {
		return
	}
	for i, e := range v.elems {
		if r := p.acl(e, "acls["+strconv.Itoa(i)+"]"); r != nil {
			p.pol.rows = append(p.pol.rows, r)
		}
	}
}

// acl reads one entry of acls:
//
//	{"action": "accept", "src": […], "dst": ["HOST:PORTS", …], "proto": "tcp"}
func (p *parser) acl(v value, path string) *row {
	r := &row{off: v.off, pos: p.pos(v.off), path: path}
	var proto value
	acted := false
	readers := map[string]func(value){
		"action": func(v value) { acted = true; r.action = p.action(v) },
		"src":    func(v value) { p.sources(r, v, inACLSrc) },
		"dst": func(v value) {
			v.shape.at(inACLDst)
			p.list(v, "dst", func(off int, s string) {
				if d, ok := p.aclDest(off, s); ok {
					r.dst = append(r.dst, d)
				}
			})
		},
		"proto":      func(v value) { proto = v },
		"srcPosture": func(v value) { r.postures = p.postureRefs(v, "srcPosture") },
	}
	p.extras(r, readers)
	p.object(v, path, readers, map[string]string{"users": "src", "ports": "dst"})
	if !acted {
		p.fail(v.off, ClassBadAction, `write "action": "accept"`, "%s has no action", path)
	}
	if s, ok := "", proto.kind != 0; ok {
		if s, ok = p.text(proto, "proto"); ok {
			n, err := parseProto(strings.TrimSpace(s))
			if err != nil {
				p.word(proto.off, err)
			} else {
				r.protos = []uint8{n}
			}
		}
	}
	for _, d := range r.dst {
		for _, n := range r.protos {
			if err := checkProtoPorts(n, d.ports); err != nil {
				p.word(proto.off, err)
			}
		}
	}
	p.checkSelf(r)
	if r.action == Deny && (len(r.postures) > 0 || len(p.pol.defaultPosture) > 0) {
		p.fail(v.off, ClassUnsupportedFeature, "deny the device itself, or accept only with a posture", "%s denies by posture", path)
	}
	return r
}

func (p *parser) action(v value) Action {
	s, ok := p.text(v, "action")
	switch {
	case !ok:
	case s == "accept":
		return Accept
	case s == "deny" && !p.opt.Compat:
		return Deny
	default:
		p.fail(v.off, ClassBadAction, `write "accept" or "deny"`, "%q is not an action", s)
	}
	return 0
}

// extras adds the fields that Hedge has beyond Tailscale's language.
func (p *parser) extras(r *row, readers map[string]func(value)) {
	if p.opt.Compat {
		return
	}
	readers["expires"] = func(v value) {
		s, ok := p.text(v, "expires")
		if !ok {
			return
		}
		t, err := time.Parse(time.RFC3339, s)
		if err != nil || t.IsZero() {
			p.fail(v.off, ClassSyntax, "write a date and time such as 2026-12-31T18:00:00Z (RFC 3339)", "%q is not a time", s)
			return
		}
		r.expires = t.UTC()
	}
	readers["window"] = func(v value) { r.window = p.window(v) }
}

func (p *parser) sources(r *row, v value, at place) {
	v.shape.at(at)
	p.list(v, "src", func(off int, s string) {
		if src, ok := p.source(off, s, at); ok {
			r.src, r.srcOff = append(r.src, src), append(r.srcOff, off)
		}
	})
}

// aclDest reads HOST:PORTS, split at the last colon; an IPv6 host may stand in brackets, its prefix length after them.
func (p *parser) aclDest(off int, s string) (dest, bool) {
	host, ports, err := splitDest(s)
	if err != nil {
		p.word(off, err)
		return dest{}, false
	}
	rs, err := parsePorts(ports)
	if err != nil {
		p.word(off, err)
	}
	sel, ok := p.selector(off, host, inACLDst)
	return dest{sel, rs}, ok && err == nil
}

func splitDest(s string) (host, ports string, err error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", &wordError{class: ClassBadPort, msg: fmt.Sprintf("%q has no port", s), hint: fmt.Sprintf("write %q for every port", s+":*")}
	}
	host, ports = strings.TrimSpace(s[:i]), s[i+1:]
	if !strings.HasPrefix(host, "[") {
		return host, ports, nil
	}
	addr, rest, ok := strings.Cut(host[1:], "]")
	pfx, isAddr, _ := parsePrefix(addr)
	if !ok || !isAddr || !pfx.IsSingleIP() || !pfx.Addr().Is6() || rest != "" && rest[0] != '/' {
		return "", "", &wordError{class: ClassBadSelector, msg: fmt.Sprintf("%q: brackets stand round an IPv6 address only", s), hint: "write [fd68::1]:22 or [fd68::]/64:22"}
	}
	return addr + rest, ports, nil
}

// checkSelf refuses sources that have no devices of their own beside autogroup:self.
func (p *parser) checkSelf(r *row) {
	if !slices.ContainsFunc(r.dst, func(d dest) bool { return d.kind == selSelf }) {
		return
	}
	for i, s := range r.src {
		ok := !s.plain() || people&(1<<s[0].kind) != 0 || s[0].kind == selAny && !r.grant
		if !ok {
			p.fail(r.srcOff[i], ClassSelfSource, "give the others a rule of their own", "%s: autogroup:self can only be used with users, groups or autogroup:member as sources, not %q", r.path, s.text())
		}
	}
}

func (p *parser) grants(v value) {
	if !p.want(v, '[', "grants") {
		return
	}
	for i, e := range v.elems {
		p.pol.rows = append(p.pol.rows, p.grant(e, "grants["+strconv.Itoa(i)+"]"))
	}
}

// grant reads one entry of grants:
//
//	{"src": […], "dst": […], "ip": ["tcp:443", "*"], "app": {NAME: […]}, "via": ["tag:router"]}
func (p *parser) grant(v value, path string) *row {
	r := &row{off: v.off, pos: p.pos(v.off), path: path, grant: true, action: Accept}
	said := false
	readers := map[string]func(value){
		"src": func(v value) { p.sources(r, v, inGrantSrc) },
		"dst": func(v value) { r.dst = p.grantDests(v) },
		"ip": func(v value) {
			said = said || len(v.elems) > 0
			p.list(v, "ip", func(off int, s string) {
				if spec, err := parseIPSpec(s); err != nil {
					p.word(off, err)
				} else {
					r.ip = append(r.ip, spec)
				}
			})
		},
		"app":        func(v value) { said = said || len(v.fields) > 0; r.app = p.capabilities(v) },
		"via":        func(v value) { r.via = p.via(v) },
		"srcPosture": func(v value) { r.postures = p.postureRefs(v, "srcPosture") },
	}
	p.extras(r, readers)
	p.object(v, path, readers, nil)
	if !said {
		p.fail(v.off, ClassEmptyRule, `add "ip": ["*"] for all traffic, or the ports`, "%s has neither ip nor app", path)
	}
	if len(r.app) > 0 && slices.ContainsFunc(r.dst, func(d dest) bool { return d.kind == selInternet }) {
		p.fail(v.off, ClassInternetWithApp, "", "%s: autogroup:internet has no applications to grant", path)
	}
	p.checkSelf(r)
	return r
}

func (p *parser) grantDests(v value) []dest {
	var out []dest
	v.shape.at(inGrantDst)
	p.list(v, "dst", func(off int, s string) {
		sel, ok := p.selector(off, s, inGrantDst)
		if ok && sel.prefix.IsValid() && sel.prefix.Bits() == 0 {
			p.fail(off, ClassDefaultRouteDst, `use "*" or "autogroup:internet"`, "destination %q is every address there is", s)
			return
		}
		if ok {
			out = append(out, dest{selector: sel})
		}
	})
	return out
}

// parseIPSpec reads an entry of a grant's ip: "*", ports, or PROTO:PORTS. A bare number is a port.
func parseIPSpec(s string) (ipSpec, error) {
	proto, ports, has := strings.Cut(s, ":")
	if !has {
		rs, err := parsePorts(s)
		return ipSpec{ports: rs}, err
	}
	if strings.Contains(ports, ":") {
		return ipSpec{}, &wordError{class: ClassBadPort, msg: fmt.Sprintf("%q has more than one colon", s), hint: "write PROTO:PORTS, such as tcp:443; hosts belong in dst"}
	}
	n, err := parseProto(proto)
	if err != nil {
		return ipSpec{}, err
	}
	rs, err := parsePorts(ports)
	if err != nil {
		return ipSpec{}, err
	}
	return ipSpec{protos: []uint8{n}, ports: rs}, checkProtoPorts(n, rs)
}

func (p *parser) via(v value) []string {
	var out []string
	p.list(v, "via", func(off int, s string) {
		if !strings.HasPrefix(s, "tag:") {
			p.fail(off, ClassNotAllowedHere, "", "via can only be a tag, not %q", s)
			return
		}
		if sel, ok := p.tagRef(off, s); ok {
			out = append(out, sel.text)
		}
	})
	return out
}

// tailscaleCaps are the capabilities in Tailscale's own domain that a policy may grant.
var tailscaleCaps = []string{"drive", "relay", "webui", "kubernetes", "tsidp", "secrets", "tsql", "golink", "pam"}

func (p *parser) capabilities(v value) []capability {
	if !p.want(v, '{', "app") {
		return nil
	}
	var out []capability
	for _, f := range v.fields {
		name := f.name.str
		domain, path, ok := strings.Cut(name, "/")
		switch {
		case domain == "" || !ok || path == "" || strings.Contains(name, "://") || strings.ContainsAny(name, " \t\r\n"):
			p.fail(f.name.off, ClassCapability, "write it as in example.com/cap/name", "capability %q does not have the form domain/path", name)
			continue
		case (domain == "tailscale.com" || strings.HasSuffix(domain, ".tailscale.com")) && !slices.Contains(tailscaleCaps, strings.TrimPrefix(name, "tailscale.com/cap/")):
			p.fail(f.name.off, ClassCapability, "use a domain of your own", "capability %q is in the tailscale.com domain", name)
			continue
		}
		c := capability{name: name, values: []any{}}
		if p.want(f.val, '[', "capability "+name) {
			for _, e := range f.val.elems {
				c.values = append(c.values, e.plain())
			}
		}
		if name == CapRelay && len(c.values) > 0 && !p.opt.Compat {
			p.fail(f.val.off, ClassCapability, `write "`+CapRelay+`": []`, "capability %q takes no values", name)
			continue
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b capability) int { return strings.Compare(a.name, b.name) })
	return out
}

// plain is the value as encoding/json would have it.
func (v value) plain() any {
	switch v.kind {
	case '{':
		m := make(map[string]any, len(v.fields))
		for _, f := range v.fields {
			m[f.name.str] = f.val.plain()
		}
		return m
	case '[':
		s := make([]any, len(v.elems))
		for i, e := range v.elems {
			s[i] = e.plain()
		}
		return s
	case '"':
		return v.str
	case '0':
		return json.Number(v.str)
	case 'n':
		return nil
	}
	return v.kind == 't'
}
