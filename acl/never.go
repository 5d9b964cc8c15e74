package acl

import (
	"strconv"
	"strings"
)

// never is one entry of never: no source may reach any destination, whatever nodes there are or may come.
//
//	{"src": ["group:contractors"], "dst": ["tag:db:*"], "proto": "tcp", "through": ["ssh", "tagOwners"]}
type never struct {
	off    int
	path   string
	src    []source
	dst    []dest
	protos []uint8 // nil for all
	// through are the ways over which a source may get on, beyond what it reaches itself: all, unless the file says.
	through pivots
}

// pivots is a set of the ways in which one node becomes, or speaks as, another.
type pivots uint8

const (
	overSSH    pivots = 1 << iota // log in on a node that it reaches on tcp/22
	overRouter                    // speak as what lies behind a router: by reaching it, or by carrying the route
	overExit                      // carry the internet
	overOwners                    // become what has a tag, by the tags that it owns
	overAll    = overSSH | overRouter | overExit | overOwners
)

var pivotNames = map[string]pivots{"ssh": overSSH, "router": overRouter, "exit": overExit, "tagOwners": overOwners}

func (p *parser) nevers(v value) {
	if !p.want(v, '[', "never") {
		return
	}
	for i, e := range v.elems {
		r := &row{}
		n := &never{off: e.off, path: "never[" + strconv.Itoa(i) + "]", through: overAll}
		p.object(e, n.path, map[string]func(value){
			"src": func(v value) { p.sources(r, v, inACLSrc) },
			"dst": func(v value) {
				p.list(v, "dst", func(off int, s string) {
					d, ok := p.aclDest(off, s)
					if ok && d.kind == selSelf {
						p.fail(off, ClassNotAllowedHere, "name users, groups or tags", "%s: autogroup:self cannot be forbidden", n.path)
					} else if ok {
						n.dst = append(n.dst, d)
					}
				})
			},
			"proto": func(v value) {
				if s, ok := p.text(v, "proto"); ok {
					num, err := parseProto(strings.TrimSpace(s))
					if err != nil {
						p.word(v.off, err)
						return
					}
					n.protos = []uint8{num}
				}
			},
			"through": func(v value) {
				n.through = 0
				p.list(v, "through", func(off int, s string) {
					way, ok := pivotNames[s]
					if !ok {
						p.fail(off, ClassBadSelector, "name any of "+strings.Join(names(pivotNames), ", ")+"; or none, for one step alone", "%s: through %q is no way to get on", n.path, s)
					}
					n.through |= way
				})
			},
		}, nil)
		if n.src = r.src; len(n.src) == 0 || len(n.dst) == 0 {
			p.fail(e.off, ClassEmptyRule, "", "%s needs a src and a dst", n.path)
		}
		p.pol.nevers = append(p.pol.nevers, n)
	}
}
