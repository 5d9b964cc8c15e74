package acl

import (
	"slices"
	"strconv"
	"strings"
)

// test is one entry of tests: from src, every accept is open and every deny is shut.
type test struct {
	off    int
	path   string
	src    selector
	protos []uint8 // nil for the default ones, any of which will do
	accept []testDest
	deny   []testDest
	attrs  map[string]string // of the source, for postures
}

// testDest is one thing that a test reaches for.
type testDest struct {
	off  int
	text string
	sel  selector
	port uint16
}

func (p *parser) testRows(v value) {
	if !p.want(v, '[', "tests") {
		return
	}
	for i, e := range v.elems {
		p.pol.tests = append(p.pol.tests, p.test(e, "tests["+strconv.Itoa(i)+"]"))
	}
}

func (p *parser) test(v value, path string) *test {
	t := &test{off: v.off, path: path}
	var accept, deny value
	source := ""
	p.object(v, path, map[string]func(value){
		"src": func(v value) {
			source, _ = p.text(v, "src")
			if source = strings.TrimSpace(source); source == "" {
				return
			}
			if sel, ok := p.selector(v.off, source, inTest); ok {
				t.src = sel
				if sel.kind == selSelf || sel.kind == selPrefix && !sel.prefix.IsSingleIP() || sel.kind == selHost && !sel.prefix.IsSingleIP() {
					p.fail(v.off, ClassTestShape, "name one user, group, tag or address", "%s: a test cannot come from %q", path, source)
				}
			}
		},
		"proto": func(v value) {
			s, ok := p.text(v, "proto")
			if !ok {
				return
			}
			n, err := parseProto(strings.TrimSpace(s))
			if err != nil {
				p.word(v.off, err)
				return
			}
			t.protos = []uint8{n}
		},
		"accept":          func(v value) { accept = v },
		"deny":            func(v value) { deny = v },
		"srcPostureAttrs": func(v value) { t.attrs = p.testAttrs(v) },
	}, map[string]string{"user": "src", "allow": "accept"})
	if source == "" {
		p.fail(v.off, ClassTestShape, "", "%s has no src", path)
	}
	t.accept, t.deny = p.testDests(accept, t), p.testDests(deny, t)
	if len(accept.elems)+len(deny.elems) == 0 {
		p.fail(v.off, ClassTestShape, "", "%s has neither accept nor deny", path)
	}
	return t
}

func (p *parser) testAttrs(v value) map[string]string {
	attrs := map[string]string{}
	if p.want(v, '{', "srcPostureAttrs") {
		for _, f := range v.fields {
			if f.val.kind == '{' || f.val.kind == '[' || f.val.kind == 'n' {
				p.fail(f.val.off, ClassTestShape, "", "attribute %q must be a string, number or true or false", f.name.str)
				continue
			}
			attrs[f.name.str] = f.val.str
		}
	}
	return attrs
}

func (p *parser) testDests(v value, t *test) []testDest {
	var out []testDest
	if v.kind == 0 {
		return nil
	}
	p.list(v, "a test's list", func(off int, s string) {
		host, ports, err := splitDest(s)
		if err != nil {
			p.word(off, err)
			return
		}
		port, ok := parsePort(ports)
		portless := len(t.protos) > 0 && !hasPorts(t.protos[0])
		switch {
		case portless && (!ok || port != 0):
			p.fail(off, ClassTestShape, "write port 0", "%s: protocol %s has no ports to test", t.path, protoName(t.protos[0]))
			return
		case !portless && (!ok || port == 0):
			p.fail(off, ClassTestShape, "a test reaches for exactly one port", "%s: %q is not a port", t.path, ports)
			return
		}
		if strings.Contains(host, "/") {
			p.fail(off, ClassTestShape, "name one address", "%s: a test cannot reach for the prefix %q", t.path, host)
			return
		}
		sel, ok := p.selector(off, host, inTest)
		if !ok {
			return
		}
		if sel.kind == selHost && !sel.prefix.IsSingleIP() {
			p.fail(off, ClassTestShape, "name one address", "%s: host %q has more than one address", t.path, host)
			return
		}
		if sel.kind == selSelf && people&(1<<t.src.kind) == 0 {
			p.fail(off, ClassTestShape, "", "%s: autogroup:self wants a user as the source, not %q", t.path, t.src.text)
			return
		}
		out = append(out, testDest{off, s, sel, port})
	})
	return out
}

// sshTest is one entry of sshTests.
type sshTest struct {
	off                 int
	path                string
	src                 selector
	dst                 []selector
	accept, deny, check []string
}

func (p *parser) sshTestRows(v value) {
	if !p.want(v, '[', "sshTests") {
		return
	}
	for i, e := range v.elems {
		t := &sshTest{off: e.off, path: "sshTests[" + strconv.Itoa(i) + "]"}
		users := func(to *[]string) func(value) {
			return func(v value) {
				p.list(v, "users", func(off int, s string) {
					if s == "" || s == "*" {
						p.fail(off, ClassTestShape, "name a login", "%s: user %q is not valid", t.path, s)
					}
					*to = append(*to, s)
				})
			}
		}
		p.object(e, t.path, map[string]func(value){
			"src": func(v value) {
				if s, ok := p.text(v, "src"); ok {
					t.src, _ = p.selector(v.off, strings.TrimSpace(s), inSSHTest)
				}
			},
			"dst": func(v value) {
				p.list(v, "dst", func(off int, s string) {
					sel, ok := p.selector(off, s, inSSHTest)
					if ok && sel.prefix.IsValid() && (!sel.prefix.IsSingleIP() || p.opt.Compat && sel.kind == selPrefix && sel.prefix.Addr().Is6()) {
						p.fail(off, ClassTestShape, "name a user, a tag, or one address", "%s: dst contains disallowed element %q", t.path, s)
					}
					t.dst = append(t.dst, sel)
				})
			},
			"accept": users(&t.accept), "deny": users(&t.deny), "check": users(&t.check),
			"srcPostureAttrs": func(v value) { p.testAttrs(v) },
		}, nil)
		if t.src.kind == selNone && !slices.ContainsFunc(p.errs, func(e Error) bool { return e.Pos.Line >= p.pos(t.off).Line }) {
			p.fail(e.off, ClassTestShape, "", "%s has no src", t.path)
		}
		if len(t.accept)+len(t.deny)+len(t.check) == 0 || len(t.dst) == 0 {
			p.fail(e.off, ClassTestShape, "", "%s needs a dst, and an accept, deny or check", t.path)
		}
		p.pol.sshTests = append(p.pol.sshTests, t)
	}
}
