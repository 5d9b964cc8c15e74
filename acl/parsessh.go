package acl

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// sshRow is one entry of ssh.
type sshRow struct {
	off         int
	path        string
	check       bool
	src, dst    []selector
	users       []string
	checkPeriod *time.Duration
	acceptEnv   []string
	postures    []string
}

const maxCheckPeriod = 168 * time.Hour

func (p *parser) sshRows(v value) {
	if !p.want(v, '[', "ssh") {
		return
	}
	for i, e := range v.elems {
		p.pol.ssh = append(p.pol.ssh, p.sshRow(e, "ssh["+strconv.Itoa(i)+"]"))
	}
}

func (p *parser) sshRow(v value, path string) *sshRow {
	r := &sshRow{off: v.off, path: path}
	action := ""
	var users value
	p.object(v, path, map[string]func(value){
		"action": func(v value) {
			action, _ = p.text(v, "action")
			action = strings.TrimSpace(action)
			if action != "" && action != "accept" && action != "check" {
				p.fail(v.off, ClassBadAction, `write "accept" or "check"`, "%q is not an ssh action", action)
			}
		},
		"src":         func(v value) { r.src = p.selectors(v, "src", inSSHSrc) },
		"dst":         func(v value) { r.dst = p.selectors(v, "dst", inSSHDst) },
		"users":       func(v value) { users = v; r.users = p.sshUsers(v) },
		"checkPeriod": func(v value) { r.checkPeriod = p.checkPeriod(v) },
		"acceptEnv": func(v value) {
			p.list(v, "acceptEnv", func(off int, s string) {
				if s == "" {
					p.fail(off, ClassEmptyRule, "", "acceptEnv values cannot be empty")
				}
				r.acceptEnv = append(r.acceptEnv, s)
			})
		},
		"srcPosture":      func(v value) { r.postures = p.postureRefs(v, "srcPosture") },
		"recorder":        func(v value) { p.sshRecorder(v, "recorder") },
		"enforceRecorder": func(v value) { p.sshRecorder(v, "enforceRecorder") },
	}, nil)
	r.check = action == "check"
	if action == "" {
		p.fail(v.off, ClassBadAction, `write "action": "accept" or "check"`, "%s has no action", path)
	}
	if len(users.elems) == 0 {
		p.fail(v.off, ClassEmptyRule, `write such as "users": ["autogroup:nonroot"]`, "%s has no users", path)
	}
	if r.checkPeriod != nil && !r.check && action != "" {
		p.fail(v.off, ClassCheckPeriod, `use "action": "check"`, "%s: checkPeriod is only for check", path)
	}
	p.sshCombination(r)
	return r
}

func (p *parser) sshRecorder(v value, what string) {
	if !p.opt.Compat && v.kind != 'f' && len(v.elems) == 0 {
		p.unsupported(v, what, "Hedge does not record sessions")
	}
}

func (p *parser) sshUsers(v value) []string {
	var out []string
	p.list(v, "users", func(off int, s string) {
		if s == "" || s == "*" {
			p.fail(off, ClassEmptyRule, "name a login, or autogroup:nonroot", "user %q is not valid", s)
			return
		}
		if d, ok := strings.CutPrefix(s, "localpart:*@"); ok && !p.domain(off, d) {
			return
		}
		if d, ok := strings.CutPrefix(s, "user:*@"); ok && !p.domain(off, d) {
			return
		}
		out = append(out, s)
	})
	return out
}

func (p *parser) checkPeriod(v value) *time.Duration {
	s, ok := p.text(v, "checkPeriod")
	if !ok {
		return nil
	}
	d, err := time.ParseDuration(strings.TrimSpace(s))
	if s == "always" {
		d, err = 0, nil
	}
	if err != nil || d < 0 || d > maxCheckPeriod {
		p.fail(v.off, ClassCheckPeriod, "write a duration such as 12h, at most 168h", "%q is not a check period", s)
		return nil
	}
	return &d
}

// sshCombination refuses sources and destinations that may not meet.
func (p *parser) sshCombination(r *sshRow) {
	owned := kinds(selUser, selMember, selSelf, selRole)
	tagSrc := slices.ContainsFunc(r.src, func(s selector) bool { return s.kind == selTag || s.kind == selTagged })
	for _, d := range r.dst {
		switch {
		case tagSrc && owned&(1<<d.kind) != 0:
			p.fail(r.off, ClassSSHCombination, "let users reach users' devices, and tags reach tags", "%s: tagged devices cannot reach %q", r.path, d.text)
		case d.kind == selUser && slices.ContainsFunc(r.src, func(s selector) bool { return s != d }):
			p.fail(r.off, ClassSSHCombination, "use autogroup:self as the destination", "%s: only %q itself can reach its devices", r.path, d.text)
		}
	}
	if tagSrc && r.check {
		p.fail(r.off, ClassSSHCombination, `use "accept": a tagged device has no user to ask`, "%s: a tag cannot be checked", r.path)
	}
}
