package acl

import (
	"net/netip"
	"strings"
)

// maxIPSetPrefixes bounds the prefixes of all ipsets together: sets may hold sets.
const maxIPSetPrefixes = 1 << 13

// maxIPSetLines bounds the lines of one ipset.
const maxIPSetLines = 4096

// ipsets reads the sets of addresses. They hold nothing that depends on who exists, and so are resolved at once.
func (p *parser) ipsets(v value) {
	if !p.want(v, '{', "ipsets") {
		return
	}
	raw := map[string]field{}
	for _, f := range v.fields {
		if n, ok := strings.CutPrefix(f.name.str, "ipset:"); !ok || n == "" {
			p.fail(f.name.off, ClassBadSelector, "write ipset:NAME", "%q: an ipset's name must start with \"ipset:\"", f.name.str)
			continue
		}
		raw[f.name.str] = f
		p.pol.ipsets[f.name.str] = nil
	}
	r := ipsetResolver{p: p, raw: raw, done: map[string]ranges{}, open: map[string]bool{}}
	for _, f := range v.fields {
		if _, ok := raw[f.name.str]; ok {
			p.pol.ipsets[f.name.str] = r.resolve(f.name.str).prefixes()
		}
	}
}

type ipsetResolver struct {
	p     *parser
	raw   map[string]field
	done  map[string]ranges
	open  map[string]bool
	total int
}

func (r *ipsetResolver) resolve(name string) ranges {
	if s, ok := r.done[name]; ok {
		return s
	}
	f := r.raw[name]
	if len(r.open) > MaxDepth {
		r.p.fail(f.name.off, ClassRecursiveGroup, "", "ipset %q: sets in each other deeper than %d levels", name, MaxDepth)
		return nil
	}
	r.open[name] = true
	defer delete(r.open, name)
	if len(f.val.elems) > maxIPSetLines {
		r.p.fail(f.val.off, ClassBadSelector, "join neighbouring prefixes", "ipset %q has more than %d lines", name, maxIPSetLines)
		return nil
	}
	removes := false
	for _, e := range f.val.elems {
		removes = removes || strings.HasPrefix(strings.TrimSpace(e.str), "remove ")
	}
	var out ranges
	r.p.list(f.val, name, func(off int, s string) {
		op, target, ok := strings.Cut(s, " ")
		if !ok {
			op, target = "add", s
			if removes {
				r.p.fail(off, ClassBadSelector, `write "add `+s+`"`, "%s: a set that removes must say add for what it adds", name)
				return
			}
		}
		t, ok := r.target(off, strings.TrimSpace(target))
		switch {
		case !ok:
		case op == "add":
			out = union(append(out[:len(out):len(out)], t...))
		case op == "remove":
			out = out.minus(t)
		default:
			r.p.fail(off, ClassBadSelector, `write "add" or "remove"`, "%s: %q is not an operation", name, op)
		}
	})
	if r.total += len(out); r.total > maxIPSetPrefixes {
		r.p.fail(f.name.off, ClassBadSelector, "", "ipsets hold more than %d ranges together", maxIPSetPrefixes)
		out = nil
	}
	r.done[name] = out
	return out
}

func (r *ipsetResolver) target(off int, s string) (ranges, bool) {
	switch {
	case s == "autogroup:internet":
		return internetRanges, true
	case strings.HasPrefix(s, "ipset:"):
		if _, ok := r.raw[s]; !ok {
			r.p.fail(off, ClassUndefined, r.p.near(s, names(r.raw)), "ipset %q is not defined", s)
			return nil, false
		}
		if r.open[s] {
			r.p.fail(off, ClassRecursiveGroup, "", "ipset %q holds itself", s)
			return nil, false
		}
		return r.resolve(s), true
	case strings.HasPrefix(s, "host:"):
		pfx, ok := r.p.pol.hosts[s[len("host:"):]]
		if !ok {
			r.p.fail(off, ClassUndefined, r.p.near(s[len("host:"):], names(r.p.pol.hosts)), "host %q is not defined", s[len("host:"):])
		}
		return rangesOf(pfx), ok
	}
	pfx, ok, why := parsePrefix(s)
	if !ok {
		r.p.fail(off, ClassNotAllowedHere, orElse(why, "an ipset holds addresses, CIDRs, host:NAME, autogroup:internet and other ipsets"), "%q may not be in an ipset", s)
	}
	return rangesOf(pfx), ok
}

func rangesOf(pfx netip.Prefix) ranges {
	if !pfx.IsValid() {
		return nil
	}
	return ranges{rangeOf(pfx)}
}
