package acl

import (
	"fmt"
	"slices"
	"strings"
)

// The classes of remarks: what is valid, and may not be meant.
const (
	RemarkNoEffect    = "no-effect"    // part of the language that grants nothing in Hedge
	RemarkUnknownUser = "unknown-user" // a login that nobody has
	RemarkShadowed    = "shadowed"     // an accept that a deny always overrules
	RemarkLiteral     = "literal-login"
)

// Lint returns remarks about a valid policy: what has no effect here, or none at all. inv may be nil; without it,
// nothing is said of who exists. A policy with remarks may be put into force.
func (p *Policy) Lint(inv *Inventory) Errors {
	l := &linter{p: p, said: map[string]bool{}}
	l.noEffect()
	l.shadowed()
	if inv != nil && len(inv.Users) > 0 {
		l.users(inv)
	}
	l.errs.sort()
	if len(l.errs) > maxErrors {
		l.errs = l.errs[:maxErrors]
	}
	return l.errs
}

type linter struct {
	p    *Policy
	errs Errors
	said map[string]bool
}

func (l *linter) say(off int, class, hint, format string, args ...any) {
	l.errs = append(l.errs, l.p.doc.error(off, class, hint, fmt.Sprintf(format, args...)))
}

func (l *linter) noEffect() {
	for _, r := range l.p.rows {
		switch some := slices.ContainsFunc(r.app, func(c capability) bool { return c.name != CapRelay }); {
		case some:
			l.say(r.off, RemarkNoEffect, "", "%s: no application of this mesh asks for capabilities, so app grants nothing but %s", r.path, CapRelay)
		case len(r.app) > 0 && !r.relays():
			l.say(r.off, RemarkNoEffect, "leave out via", "%s: a grant with via grants no capability", r.path)
		}
		if len(r.src) == 0 || len(r.dst) == 0 {
			l.say(r.off, RemarkNoEffect, "", "%s has no src or no dst, and so matches nothing", r.path)
		}
	}
	for i, r := range l.p.ssh {
		if i == 0 {
			l.say(r.off, RemarkNoEffect, "allow port 22 in acls to let a node's own ssh server decide", "nodes run no ssh server, so ssh rules grant nothing")
		}
		for _, u := range r.users {
			if strings.Contains(u, ":") && u != "autogroup:nonroot" && !strings.HasPrefix(u, "localpart:*@") {
				l.say(r.off, RemarkLiteral, "", "%s: %q is taken as a login of that very name", r.path, u)
			}
		}
	}
	for i, a := range l.p.attrs {
		if i == 0 && len(a.attrs) > 0 {
			l.say(a.off, RemarkNoEffect, "", "nodes have no settings that nodeAttrs could change")
		}
	}
}

// shadowed reports the pairs of an accept that a deny always overrules.
func (l *linter) shadowed() {
	for _, a := range l.p.rows {
		if a.action != Accept {
			continue
		}
		for _, d := range l.p.rows {
			if d.action != Deny || d.timed() || len(d.protos) > 0 && !slices.Equal(d.protos, a.protos) {
				continue
			}
			l.shadows(d, a)
		}
	}
}

func (l *linter) shadows(d, a *row) {
	for i, s := range a.src {
		if !slices.ContainsFunc(d.src, func(x source) bool { return l.p.sourceWithin(s, x) }) {
			continue
		}
		for _, t := range a.dst {
			over := func(x dest) bool {
				return l.p.within(t.selector, x.selector) && (slices.Contains(x.ports, AllPorts) || len(a.protos) > 0 && !a.grant && portsWithin(t.ports, x.ports))
			}
			if slices.ContainsFunc(d.dst, over) {
				l.say(a.srcOff[i], RemarkShadowed, "", "%s: %s to %s is always denied by %s (line %d)", a.path, s.text(), t.text, d.path, d.pos.Line)
			}
		}
	}
}

func portsWithin(in, out []PortRange) bool {
	return !slices.ContainsFunc(in, func(r PortRange) bool {
		return !slices.ContainsFunc(out, func(o PortRange) bool { return o.First <= r.First && r.Last <= o.Last })
	})
}

// sourceWithin reports whether whatever a matches, b does; false when it cannot tell.
func (p *Policy) sourceWithin(a, b source) bool {
	if a.text() == b.text() {
		return true
	}
	if !b.plain() {
		return false
	}
	return slices.ContainsFunc(a, func(t term) bool { return !t.not && p.within(t.selector, b[0].selector) })
}

// within reports whether whatever a names, b does; false when it cannot tell.
func (p *Policy) within(a, b selector) bool {
	switch {
	case a == b || b.kind == selAny && a.kind != selDangerAll:
		return true
	case a.prefix.IsValid() && b.prefix.IsValid():
		return b.prefix.Bits() <= a.prefix.Bits() && b.prefix.Contains(a.prefix.Addr())
	case b.kind == selMember:
		return people&(1<<a.kind) != 0
	case b.kind == selTagged:
		return a.kind == selTag
	case a.kind == selUser:
		return p.isUser(b, a.text, nil)
	case a.kind == selGroup && (b.kind == selGroup || b.kind == selUserDomain):
		return !slices.ContainsFunc(p.groups[a.text], func(u string) bool { return !p.isUser(b, u, nil) })
	}
	return false
}

// users reports logins that rules name and nobody has: a deny or an exception for one protects from nobody.
func (l *linter) users(inv *Inventory) {
	known := map[string]bool{}
	for _, u := range inv.Users {
		known[u.Login] = true
	}
	for _, r := range l.p.rows {
		for i, s := range r.src {
			for _, t := range s {
				if t.kind == selUser && !known[t.text] && !l.said[t.text] {
					l.said[t.text] = true
					l.say(r.srcOff[i], RemarkUnknownUser, didYouMean(t.text, names(known)), "%s: no user of this mesh is %q", r.path, t.text)
				}
			}
		}
	}
}
