package acl

import (
	"slices"
	"strings"
)

// runSSH judges one entry of sshTests: accept is by a rule of either kind, check by a rule that checks, deny by none.
func (r *tester) runSSH(t *sshTest) {
	srcs := r.nodesOf(t.src)
	if len(srcs) == 0 {
		r.fail(t.off, "", "%s: nobody is %q", t.path, t.src.text)
		return
	}
	for _, d := range t.dst {
		dsts := r.nodesOf(d)
		if d.kind == selSelf {
			for _, s := range srcs {
				if n := r.c.w.nodes[s]; len(n.Tags) == 0 {
					dsts = append(dsts, r.c.w.devices(n.User)...)
				}
			}
		}
		if len(dsts) == 0 {
			r.fail(t.off, "", "%s: nothing is %q", t.path, d.text)
			continue
		}
		for _, s := range r.oneOfEach(r.c, srcs) {
			for _, n := range r.oneOfEach(r.c, dsts) {
				r.reachSSH(t, d, s, n)
			}
		}
	}
}

func (r *tester) reachSSH(t *sshTest, d selector, src, dst int32) {
	from := r.c.w.nodes[src].Name
	for _, u := range t.accept {
		if accept, check := r.c.ssh(src, dst, u); !accept && !check {
			r.fail(t.off, "", "%s: %s should log in to %s as %q, but no ssh rule lets it", t.path, from, d.text, u)
		}
	}
	for _, u := range t.check {
		if _, check := r.c.ssh(src, dst, u); !check {
			r.fail(t.off, "", "%s: %s should log in to %s as %q after a check, but no ssh rule says so", t.path, from, d.text, u)
		}
	}
	for _, u := range t.deny {
		if accept, check := r.c.ssh(src, dst, u); accept || check {
			r.fail(t.off, "", "%s: %s should not log in to %s as %q, but an ssh rule lets it", t.path, from, d.text, u)
		}
	}
}

// ssh reports whether a rule lets a node log in to another as a user, and whether one lets it after a check.
func (c *Program) ssh(src, dst int32, login string) (accept, check bool) {
	w := c.w
	from, to := &w.nodes[src].Node, &w.nodes[dst].Node
	for _, r := range w.policy.ssh {
		postures := r.postures
		if postures == nil {
			postures = w.policy.defaultPosture
		}
		named := slices.ContainsFunc(r.src, func(s selector) bool {
			return w.healthy(w.of(s), postures).has(src)
		})
		reached := slices.ContainsFunc(r.dst, func(d selector) bool {
			if d.kind == selSelf {
				return len(from.Tags)+len(to.Tags) == 0 && from.User == to.User
			}
			return w.of(d).has(dst)
		})
		if named && reached && sshAllows(r.users, login, from) {
			accept, check = accept || !r.check, check || r.check
		}
	}
	return accept, check
}

func sshAllows(users []string, login string, from *Node) bool {
	return slices.ContainsFunc(users, func(u string) bool {
		if d, ok := strings.CutPrefix(u, "localpart:*@"); ok {
			return len(from.Tags) == 0 && strings.HasSuffix(from.User, "@"+d) && localpart(from.User) == login
		}
		return u == login || u == "autogroup:nonroot" && login != "root"
	})
}
