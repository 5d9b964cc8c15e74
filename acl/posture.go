package acl

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// condition is one line of a posture: ATTRIBUTE OPERATOR VALUE. A posture holds when all of its conditions do.
type condition struct {
	attr string
	op   string // == != < <= > >= IN "NOT IN" "IS SET" "NOT SET"
	vals []string
}

func (p *parser) postures(v value) {
	if !p.want(v, '{', "postures") {
		return
	}
	for _, f := range v.fields {
		name := f.name.str
		if n, ok := strings.CutPrefix(name, "posture:"); !ok || n == "" {
			p.fail(f.name.off, ClassBadSelector, "write posture:NAME", "%q: a posture's name must start with \"posture:\"", name)
			continue
		}
		cs := []condition{}
		p.list(f.val, name, func(off int, s string) {
			c, err := parseCondition(s)
			if err != nil {
				p.fail(off, ClassSyntax, `write such as "node:os == 'linux'", "node:osVersion >= '6.1'", "custom:tier IN ['a', 'b']" or "custom:x IS SET"`, "%s", err)
				return
			}
			cs = append(cs, c)
		})
		if len(f.val.elems) == 0 {
			p.fail(f.val.off, ClassEmptyRule, "", "posture %q has no conditions", name)
		}
		p.pol.postures[name] = cs
	}
}

// postureRefs reads a list of names of postures. An empty list asks for none, even where there is a default.
func (p *parser) postureRefs(v value, what string) []string {
	out := []string{}
	p.list(v, what, func(off int, s string) {
		if _, ok := p.pol.postures[s]; !ok {
			p.fail(off, ClassUndefined, orElse(p.near(s, names(p.pol.postures)), "define it under postures"), "posture %q is not defined", s)
			return
		}
		out = append(out, s)
	})
	return out
}

func (p *parser) attrConfig(v value) {
	if !p.want(v, '{', "attrConfig") {
		return
	}
	for _, f := range v.fields {
		p.object(f.val, "attrConfig "+f.name.str, map[string]func(value){
			"type":             func(v value) { p.want(v, '"', "type") },
			"allowSetByNode":   func(value) {},
			"broadcastToPeers": func(value) {},
		}, nil)
	}
}

var postureOps = []string{"IS SET", "NOT SET", "NOT IN", "IN", "==", "!=", "<=", ">=", "<", ">"}

// parseCondition reads ATTRIBUTE OPERATOR [VALUE], VALUE being 'text', "text", a number, true, false or a list.
func parseCondition(s string) (condition, error) {
	s = strings.TrimSpace(s)
	i := strings.IndexAny(s, " \t=!<>")
	if i <= 0 {
		return condition{}, fmt.Errorf("condition %q has no operator", s)
	}
	c := condition{attr: s[:i]}
	if scope, n, ok := strings.Cut(c.attr, ":"); !ok || scope == "" || n == "" {
		return condition{}, fmt.Errorf("condition %q: %q is not an attribute such as node:os", s, c.attr)
	}
	rest := strings.TrimSpace(s[i:])
	for _, op := range postureOps {
		if n := len(op); len(rest) >= n && strings.EqualFold(rest[:n], op) {
			c.op, rest = op, strings.TrimSpace(rest[n:])
			break
		}
	}
	switch c.op {
	case "":
		return condition{}, fmt.Errorf("condition %q has no operator", s)
	case "IS SET", "NOT SET":
		if rest != "" {
			return condition{}, fmt.Errorf("condition %q: nothing may follow %s", s, c.op)
		}
		return c, nil
	case "IN", "NOT IN":
		inner, opens := strings.CutPrefix(rest, "[")
		inner, closes := strings.CutSuffix(inner, "]")
		if !opens || !closes {
			return condition{}, fmt.Errorf("condition %q: %s wants a list", s, c.op)
		}
		for _, w := range strings.Split(inner, ",") {
			v, err := postureValue(w)
			if err != nil {
				return condition{}, fmt.Errorf("condition %q: %w", s, err)
			}
			c.vals = append(c.vals, v)
		}
		return c, nil
	}
	v, err := postureValue(rest)
	if err != nil {
		return condition{}, fmt.Errorf("condition %q: %w", s, err)
	}
	c.vals = []string{v}
	return c, nil
}

func postureValue(s string) (string, error) {
	s = strings.TrimSpace(s)
	if n := len(s); n >= 2 && (s[0] == '\'' || s[0] == '"') && s[n-1] == s[0] && !strings.Contains(s[1:n-1], s[:1]) {
		return s[1 : n-1], nil
	}
	if s == "true" || s == "false" {
		return s, nil
	}
	if _, err := strconv.ParseFloat(s, 64); err != nil {
		return "", fmt.Errorf("%q is not a value", s)
	}
	return s, nil
}

// holds judges the condition of a device's attributes. One that is not set fails everything but NOT SET.
func (c condition) holds(attrs map[string]string) bool {
	v, set := attrs[c.attr]
	switch c.op {
	case "IS SET":
		return set
	case "NOT SET":
		return !set
	}
	if !set {
		return false
	}
	switch c.op {
	case "IN":
		return slices.Contains(c.vals, v)
	case "NOT IN":
		return !slices.Contains(c.vals, v)
	case "==":
		return v == c.vals[0]
	case "!=":
		return v != c.vals[0]
	}
	d, ok := compareVersions(v, c.vals[0])
	if !ok {
		return false
	}
	switch c.op {
	case "<":
		return d < 0
	case "<=":
		return d <= 0
	case ">":
		return d > 0
	case ">=":
		return d >= 0
	}
	return false
}

// compareVersions orders dotted numbers; ok is false for what is neither number nor version.
func compareVersions(a, b string) (d int, ok bool) {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(as), len(bs)) {
		var x, y uint64
		var err error
		if i < len(as) {
			if x, err = strconv.ParseUint(as[i], 10, 64); err != nil {
				return 0, false
			}
		}
		if i < len(bs) {
			if y, err = strconv.ParseUint(bs[i], 10, 64); err != nil {
				return 0, false
			}
		}
		if d == 0 && x != y {
			d = 1
			if x < y {
				d = -1
			}
		}
	}
	return d, true
}

// postureHolds reports whether any of the postures holds of the attributes.
func (p *Policy) postureHolds(names []string, attrs map[string]string) bool {
	return slices.ContainsFunc(names, func(n string) bool {
		cs, ok := p.postures[n]
		return ok && !slices.ContainsFunc(cs, func(c condition) bool { return !c.holds(attrs) })
	})
}

// posturesOf are those that a rule asks of its source.
func (p *Policy) posturesOf(r *row) []string {
	if r.postures != nil {
		return r.postures
	}
	return p.defaultPosture
}
