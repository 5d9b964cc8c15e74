package acl

import (
	"encoding/json"
	"net/netip"
	"slices"
)

// shape is what the parser wants of one value. It is found by reading a file that is nothing but questions: each
// reader says which kind of value and which fields it takes, and so the schema is the parser's own word.
type shape struct {
	kind   byte              // as of value; 0 for anything
	fields map[string]*shape // of an object with known names
	old    map[string]string // other spellings of fields
	extra  *shape            // of an object's other names
	items  *shape
	place  place // of names in a list
	placed bool
}

// at notes where the names of a list stand; a nil shape does not care.
func (s *shape) at(p place) {
	if s != nil {
		s.place, s.placed = p, true
	}
}

// probeNames stand for whatever names a section takes: the readers pass over those they refuse.
var probeNames = []string{"group:x", "tag:x", "posture:x", "ipset:x", "x", "10.0.0.0/8", "example.com/cap/x"}

// probe makes the value that asks.
func (s *shape) probe(depth int) value {
	v := value{kind: '?', shape: s}
	if depth > 0 {
		s.items, s.extra = &shape{}, &shape{}
		v.elems = []value{s.items.probe(depth - 1)}
		inner := s.extra.probe(depth - 1)
		for _, n := range probeNames {
			v.fields = append(v.fields, field{name: value{kind: '"', str: n}, val: inner})
		}
	}
	return v
}

// describe notes the fields of an object and asks the reader of each.
func (s *shape) describe(readers map[string]func(value), aliases map[string]string) {
	s.kind, s.fields, s.old = '{', map[string]*shape{}, aliases
	for _, name := range names(readers) {
		f := &shape{}
		s.fields[name] = f
		readers[name](f.probe(3))
	}
}

// about is what a schema says of a field beyond its kind, by its path.
var about = map[string]map[string]any{
	"":                        {"description": "A Hedge policy: who may reach what. Nothing is allowed unless a rule says so."},
	"defaultAccess":           {"enum": []string{"allow", "deny"}, "description": "What a file without acls and grants means."},
	"groups":                  {"description": "group:NAME: the logins in it. A group holds no group."},
	"hosts":                   {"description": "NAME: an address or a network."},
	"ipsets":                  {"description": "ipset:NAME: addresses, added and removed in order."},
	"tagOwners":               {"description": "tag:NAME: who may give it to a node. An empty list means admins."},
	"acls":                    {"description": "Rules: sources may reach destinations on ports. A deny wins over every accept."},
	"acls[].action":           {"enum": []string{"accept", "deny"}},
	"acls[].dst":              {"description": "HOST:PORTS, such as tag:web:80,443 or *:*."},
	"acls[].expires":          {"description": "When the rule ends, such as 2026-12-31T18:00:00Z."},
	"acls[].srcPosture":       {"description": "Postures, one of which must hold of the source."},
	"grants":                  {"description": "Rules with hosts and ports apart: dst has no ports, ip has."},
	"grants[].ip":             {"description": "*, ports such as 80,443, or PROTO:PORTS such as udp:53."},
	"grants[].via":            {"description": "Tags: only routers with one of them carry what the rule allows."},
	"ssh[].action":            {"enum": []string{"accept", "check"}},
	"tests":                   {"description": "What must hold: one that fails refuses the whole file."},
	"never":                   {"description": "What must hold of all nodes that could be: proved when the file is read."},
	"never[].through":         {"description": "The ways over which a source may get on; all count if it is not there."},
	"autoApprovers.routes":    {"description": "CIDR: whose nodes carry it without an admin's word."},
	"autoApprovers.exitNode":  {"description": "Whose nodes are exits without an admin's word."},
	"postures":                {"description": "posture:NAME: conditions such as node:os == 'linux', all of which must hold."},
	"tests[].srcPostureAttrs": {"description": "Attributes that the source is taken to have."},
}

// Schema is the JSON Schema (draft 2020-12) of a policy file, for editors. It describes the form of a file; what
// names mean, and whether they are defined, only [Parse] says. Field names are in their usual case.
func Schema() []byte {
	root := &shape{}
	p := newParser("", nil, Options{})
	p.pol = &Policy{
		doc: p.document, groups: map[string][]string{}, hosts: map[string]netip.Prefix{}, ipsets: map[string][]netip.Prefix{},
		tagOwners: map[string][]selector{}, postures: map[string][]condition{},
	}
	v := root.probe(3)
	v.kind = '{'
	p.policy(v)
	for _, s := range sections { // policy only sorts its sections; their readers know what is in them
		f := &shape{}
		root.fields[s.name] = f
		s.read(p, f.probe(3))
	}
	m := root.schema("")
	m["$schema"], m["title"] = "https://json-schema.org/draft/2020-12/schema", "Hedge policy"
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		panic(err) // maps of strings
	}
	return append(b, '\n')
}

func (s *shape) schema(path string) map[string]any {
	m := map[string]any{}
	switch s.kind {
	case '{':
		m["type"] = "object"
		sub := path + "."
		if path == "" {
			sub = ""
		}
		if s.fields == nil {
			m["additionalProperties"] = s.extra.schema(sub + "*")
			break
		}
		props := map[string]any{}
		for name, f := range s.fields {
			props[name] = f.schema(sub + name)
		}
		for old, name := range s.old {
			o := s.fields[name].schema(sub + name)
			o["deprecated"], o["description"] = true, "An old name of "+name+"."
			props[old] = o
		}
		m["properties"], m["additionalProperties"] = props, false
	case '[':
		m["type"] = "array"
		m["items"] = s.items.schema(path + "[]")
		if s.placed {
			m["items"] = map[string]any{"anyOf": []any{map[string]any{"enum": completions(s.place)}, map[string]any{"type": "string"}}}
		}
	case '"':
		m["type"] = "string"
		if len(path) > 6 && path[len(path)-6:] == ".proto" {
			m["anyOf"] = []any{map[string]any{"enum": names(protoNames)}, map[string]any{"type": "string"}}
		}
	}
	for k, v := range about[path] {
		m[k] = v
	}
	return m
}

// completions are the names that every policy has and that may stand at a place.
func completions(at place) []string {
	var out []string
	suffix := ""
	if at == inACLDst {
		suffix = ":*"
	}
	if allowed[at]&(1<<selAny) != 0 {
		out = append(out, "*"+suffix)
	}
	for _, n := range names(autogroups) {
		k := autogroups[n]
		if allowed[at]&(1<<k) != 0 && n != "members" && k != selShared {
			out = append(out, "autogroup:"+n+suffix)
		}
	}
	slices.Sort(out)
	return out
}
