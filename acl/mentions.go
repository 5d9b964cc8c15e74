package acl

import (
	"slices"
	"strconv"
	"strings"
)

// findPeople picks one login, with roles, for each way in which the file's selectors tell people apart.
func (pr *prover) findPeople() {
	p := pr.p
	var sels []selector
	logins := []string{"someone@hedge.invalid"}
	named := map[string]bool{}
	see := func(s selector) {
		switch {
		case people&(1<<s.kind) == 0 || slices.Contains(sels, s):
			return
		case s.kind == selUser:
			logins = append(logins, s.text)
			named[s.text] = true
		case s.kind == selUserDomain:
			logins = append(logins, "someone@"+s.arg)
		case s.kind == selGroup:
			for _, l := range p.groups[s.text] {
				logins = append(logins, l)
				named[l] = true
			}
		}
		sels = append(sels, s)
	}
	p.mentions(see)
	roles := [][]string{nil}
	var every []string
	for _, s := range sels {
		if s.kind == selRole {
			roles = append(roles, []string{s.arg})
			every = append(every, s.arg)
		}
	}
	if len(every) > 1 {
		roles = append(roles, every)
	}
	for l := range named {
		if rs := pr.rolesOf(l, every); !slices.ContainsFunc(roles, func(o []string) bool { return slices.Equal(o, rs) }) {
			roles = append(roles, rs)
		}
	}
	if pr.work = len(logins) * len(roles) * len(sels) / 10; pr.work > maxWork {
		return
	}
	seen := map[string]bool{}
	for _, login := range logins {
		for _, rs := range roles {
			if named[login] && !slices.Equal(rs, pr.rolesOf(login, every)) {
				continue
			}
			key := strings.Join(rs, ",")
			for _, s := range sels {
				key += strconv.FormatBool(p.isUser(s, login, rs))[:1]
			}
			if !seen[key] {
				seen[key] = true
				pr.people = append(pr.people, User{Login: login, Roles: rs})
			}
		}
	}
}

// mentions yields every selector that says who somebody is.
func (p *Policy) mentions(yield func(selector)) {
	sources := func(ss []source) {
		for _, s := range ss {
			for _, t := range s {
				yield(t.selector)
			}
		}
	}
	dests := func(ds []dest) {
		for _, d := range ds {
			yield(d.selector)
		}
	}
	owners := func(ss []selector) {
		for _, s := range ss {
			yield(s)
		}
	}
	for _, r := range p.rows {
		sources(r.src)
		dests(r.dst)
	}
	for _, n := range p.nevers {
		sources(n.src)
		dests(n.dst)
	}
	for _, t := range p.Tags() {
		owners(p.tagOwners[t])
	}
	for _, a := range p.routes {
		owners(a.owners)
	}
	owners(p.exitNode)
}

// rolesOf are those of a user's roles that the file tells apart, in its order.
func (pr *prover) rolesOf(login string, every []string) []string {
	return slices.DeleteFunc(slices.Clone(every), func(r string) bool { return !slices.Contains(pr.roles[login], r) })
}
