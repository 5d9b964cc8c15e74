package acl

import (
	"encoding/binary"
	"slices"
	"strings"
)

// findPeople picks one login, with roles, for each way in which the file's selectors tell people apart, and notes whom
// each selector names.
func (pr *prover) findPeople() {
	var sels []selector
	at := map[selector]int32{}
	named := map[string][]int32{} // by login: the selectors that name it, sorted
	domains := map[string]int32{}
	var roleSels []int32
	pr.p.mentions(func(s selector) {
		if _, ok := at[s]; ok || people&(1<<s.kind) == 0 {
			return
		}
		i := int32(len(sels))
		at[s], sels = i, append(sels, s)
		switch s.kind {
		case selUser:
			named[s.text] = append(named[s.text], i)
		case selUserDomain:
			domains[s.arg] = i
		case selGroup:
			for _, l := range pr.p.groups[s.text] {
				named[l] = append(named[l], i)
			}
		case selRole:
			roleSels = append(roleSels, i)
		}
	})
	var every []string
	for _, i := range roleSels {
		every = append(every, sels[i].arg)
	}
	pr.byName = make(map[selector][]int32, len(sels))
	seen := map[string]bool{}
	add := func(login string, roles []string) {
		sig := slices.Clone(named[login])
		if _, domain, ok := strings.Cut(login, "@"); ok {
			if i, ok := domains[domain]; ok {
				sig = append(sig, i)
			}
		}
		for _, i := range roleSels {
			if slices.Contains(roles, sels[i].arg) {
				sig = append(sig, i)
			}
		}
		var key []byte
		for _, i := range sig {
			key = binary.AppendUvarint(key, uint64(i))
		}
		if seen[string(key)] {
			return
		}
		seen[string(key)] = true
		for _, i := range sig {
			pr.byName[sels[i]] = append(pr.byName[sels[i]], int32(len(pr.people)))
		}
		pr.people = append(pr.people, User{Login: login, Roles: roles})
	}
	unnamed := []string{"someone@hedge.invalid"}
	for _, d := range names(domains) {
		unnamed = append(unnamed, "someone@"+d)
	}
	for _, login := range unnamed {
		add(login, nil)
		for _, r := range every {
			add(login, []string{r})
		}
		if len(every) > 1 {
			add(login, every)
		}
	}
	for _, login := range names(named) {
		add(login, pr.rolesOf(login, every))
	}
}

// whoMay are the people that all of the sources may name, as far as is told by the selectors that do not negate.
func (pr *prover) whoMay(pair []source) []User {
	var in []int32
	all := true
	for _, s := range pair {
		for _, t := range s {
			switch kind := kinds(t.kind); {
			case t.not || t.kind == selMember:
			case kind&people != 0:
				l := pr.byName[t.selector]
				if !all {
					l = slices.DeleteFunc(slices.Clone(in), func(i int32) bool { _, ok := slices.BinarySearch(l, i); return !ok })
				}
				in, all = l, false
			case s.plain() && kind&devices != 0:
				return nil // a tag names nobody's device
			}
		}
	}
	if all {
		return pr.people
	}
	out := make([]User, len(in))
	for n, i := range in {
		out[n] = pr.people[i]
	}
	return out
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
