package acl

import (
	"maps"
	"slices"
	"strings"
)

// flatSSH is an ssh rule in the flat form.
type flatSSH struct {
	Principals []string          `json:"principals"`
	SSHUsers   map[string]string `json:"sshUsers"`
	Action     string            `json:"action"`
	AcceptEnv  []string          `json:"acceptEnv"`
}

// sshOf are a node's ssh rules: those that check first.
func (f *flat) sshOf(i int32) []flatSSH {
	out := []flatSSH{}
	for _, check := range []bool{true, false} {
		for _, r := range f.p.ssh {
			if r.check == check {
				out = append(out, f.sshRow(r, i)...)
			}
		}
	}
	return out
}

// sshRow expands one row for one node. With a localpart among the users, each user has rules of their own, and a
// source that is no destination still has those about its own user.
func (f *flat) sshRow(r *sshRow, i int32) []flatSSH {
	n := f.w.nodes[i]
	srcs := f.sshSources(r)
	isDst, isSelf := false, false
	for _, d := range r.dst {
		if d.kind == selSelf {
			isSelf = isSelf || len(n.Tags) == 0
			continue
		}
		isDst = isDst || f.w.of(d).has(i)
	}
	common, domains := sshUsers(r.users)
	var out []flatSSH
	own := slices.DeleteFunc(slices.Clone(srcs), func(s int32) bool {
		return len(f.w.nodes[s].Tags) > 0 || f.w.nodes[s].User != n.User
	})
	switch {
	case isDst:
		out = f.sshRules(r, srcs, common, domains)
	case isSelf:
		out = f.sshRules(r, own, common, domains)
	case len(domains) > 0 && slices.Contains(srcs, i):
		if len(n.Tags) > 0 {
			own = slices.DeleteFunc(slices.Clone(srcs), func(s int32) bool { return s != i })
		}
		out = f.sshRules(r, own, common, domains)
	}
	return out
}

// sshSources lists the nodes that are sources, one with several tags as often as it is named.
func (f *flat) sshSources(r *sshRow) []int32 {
	var out []int32
	seen := map[int32]bool{}
	for _, s := range r.src {
		for _, i := range f.w.named(s) {
			if seen[i] {
				continue
			}
			seen[i] = true
			for range max(1, len(f.w.nodes[i].Tags)) {
				out = append(out, i)
			}
		}
	}
	return out
}

// sshUsers are the logins that a row allows to all its sources, and the domains of its localparts.
func sshUsers(users []string) (common map[string]string, domains []string) {
	common = map[string]string{"root": ""}
	for _, u := range users {
		d, ok := strings.CutPrefix(u, "localpart:*@")
		switch {
		case ok:
			domains = append(domains, d)
		case u == "autogroup:nonroot":
			common["*"] = "="
		default:
			common[u] = u
		}
	}
	return common, domains
}

func (f *flat) sshRules(r *sshRow, srcs []int32, common map[string]string, domains []string) []flatSSH {
	if len(srcs) == 0 {
		return nil
	}
	if len(domains) == 0 {
		return []flatSSH{f.sshRule(r, srcs, common)}
	}
	var out []flatSSH
	for _, login := range f.logins {
		var own []int32
		for _, s := range srcs {
			if n := f.w.nodes[s]; len(n.Tags) == 0 && n.User == login {
				own = append(own, s)
			}
		}
		if len(own) == 0 {
			continue
		}
		out = append(out, f.sshRule(r, own, common))
		for _, d := range domains {
			if strings.HasSuffix(login, "@"+d) {
				out = append(out, f.sshRule(r, own, map[string]string{localpart(login): localpart(login)}))
			}
		}
	}
	var tagged []int32
	for _, s := range srcs {
		if len(f.w.nodes[s].Tags) > 0 {
			tagged = append(tagged, s)
		}
	}
	if len(tagged) > 0 {
		out = append(out, f.sshRule(r, tagged, common))
	}
	return out
}

func (f *flat) sshRule(r *sshRow, srcs []int32, users map[string]string) flatSSH {
	out := flatSSH{SSHUsers: maps.Clone(users), Action: "accept", AcceptEnv: append([]string{}, r.acceptEnv...), Principals: []string{}}
	if r.check {
		out.Action = "check"
	}
	for _, s := range srcs {
		for _, a := range f.w.nodes[s].Addrs {
			out.Principals = append(out.Principals, a.String())
		}
	}
	slices.Sort(out.Principals)
	return out
}
