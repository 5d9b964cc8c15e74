package acl

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// FuzzParse feeds the parser anything: it must not panic, and what it accepts must compile, and its views hold no
// node that is not there.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"{}", `{"acls": []}`, "{" + head + `"acls": [{"action": "accept", "src": ["group:eng", "!tag:web"], "dst": ["dbhost:22,80-90", "*:*", "autogroup:self:1"]}]}`,
		"{" + head + `"grants": [{"src": ["*"], "dst": ["tag:db"], "ip": ["tcp:22", "*"], "app": {"example.com/x": [{"a": [1]}]}, "via": ["tag:router"]}]}`,
		`{"ssh": [{"action": "check", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"], "checkPeriod": "1h"}], "acls": []}`,
		`{"ipsets": {"ipset:a": ["add 10.0.0.0/8", "remove 10.1.0.0/16"]}, "postures": {"posture:x": ["node:os == 'linux'"]}, "acls": [{"action":"accept","src":["ipset:a"],"dst":["*:*"],"srcPosture":["posture:x"]}]}`,
		"{\"acls\": /* [ */ [ // ]\n ], }", strings.Repeat("[", 100), `{"a": "\ud800"}`,
		`{"tagOwners": {"tag:a": []}, "acls": [{"action":"deny","src":["*"],"dst":["tag:a:*"]}], "tests": [{"src": "tag:a", "accept": ["tag:a:1"]}]}`,
	} {
		f.Add(s, false)
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, src string, compat bool) {
		p, err := Parse("acl.hujson", []byte(src), Options{Compat: compat})
		if err != nil {
			es := Of(err)
			if len(es) == 0 || len(es) > maxErrors {
				t.Fatalf("%d errors: %v", len(es), err)
			}
			for _, e := range es {
				if e.Class == "" || e.Msg == "" || e.Pos.Line < 1 || e.Pos.Col < 1 || len(e.Line) > 2*maxLine {
					t.Fatalf("bad error %+v", e)
				}
			}
			_ = es.Render()
			return
		}
		inv := mesh()
		c, err := Compile(p, inv)
		if err != nil {
			t.Fatal(err)
		}
		_ = p.Test(inv).Render()
		for _, n := range inv.Nodes {
			v := c.View(n.ID)
			for _, r := range v.Rules {
				for _, s := range r.Src {
					if _, ok := v.Sets[s]; !ok {
						t.Fatalf("set %q is not in the view", s)
					}
				}
				for _, d := range r.Dst {
					if _, ok := v.Sets[d.Set]; !ok || len(d.Ports) == 0 {
						t.Fatalf("target %+v is not in the view", d)
					}
				}
			}
		}
	})
}

// FuzzCompile compiles a policy of every kind of name against any inventory: it fails or means something, and what it
// makes of the inventory is what it makes of it in two steps.
func FuzzCompile(f *testing.F) {
	p, err := Parse("acl.hujson", []byte("{"+head+`"acls": [
		{"action": "accept", "src": ["group:eng", "autogroup:admin", "tag:web & !tag:db"], "dst": ["tag:db:22,80-90", "autogroup:self:1", "dbhost:*"]},
		{"action": "accept", "src": ["*"], "dst": ["office:443", "autogroup:internet:*", "fd68:6564:6765::/64:*"], "proto": "tcp"},
		{"action": "deny", "src": ["bob@example.com"], "dst": ["tag:db:*"]},
	], "grants": [{"src": ["user:*@example.com"], "dst": ["10.0.0.0/8"], "ip": ["udp:53"], "via": ["tag:router"]}]}`), Options{})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{
		"{}", `{"nodes": [{"name": "a", "user": "alice@example.com"}, {"name": "b", "tags": ["tag:db", "tag:web"], "addrs": ["100.64.0.6", "fd68:6564:6765::6"]}]}`,
		`{"users": [{"login": "bob@example.com", "roles": ["admin"]}], "nodes": [{"name": "r", "tags": ["tag:router"], "routes": ["10.33.0.0/16", "0.0.0.0/0", "::/0"]}, {"id": 9, "name": "c", "user": "bob@example.com"}]}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		inv, err := ParseInventory("nodes.hujson", []byte(src))
		if err != nil {
			return
		}
		c, err := Compile(p, inv)
		if err != nil {
			return // it contradicts itself
		}
		for i := range inv.Nodes {
			n := &inv.Nodes[i]
			v := c.View(n.ID)
			for _, peer := range v.Peers {
				if peer == n.ID || c.Node(peer).ID != peer {
					t.Fatalf("node %d sees %d", n.ID, peer)
				}
			}
			for _, a := range n.Addrs {
				c.Check(inv.Nodes[0].ID, a, 22, protoTCP)
			}
		}
		if len(inv.Nodes) == 0 {
			return
		}
		last := len(inv.Nodes) - 1
		less, err := Compile(p, &Inventory{Users: inv.Users, Nodes: inv.Nodes[:last]})
		if err != nil {
			t.Fatal(err)
		}
		step, _, err := less.With(Update{Nodes: inv.Nodes[last:]})
		if err != nil {
			t.Fatal(err)
		}
		for i := range inv.Nodes {
			if d := cmp.Diff(c.View(inv.Nodes[i].ID), step.View(inv.Nodes[i].ID), cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
				t.Fatalf("of node %d (at once, in two steps):\n%s", inv.Nodes[i].ID, d)
			}
		}
	})
}

// FuzzPorts checks that a port list means what it says, and reads back the same.
func FuzzPorts(f *testing.F) {
	for _, s := range []string{"*", "22", "0", "80,443", "8000-8099", "1-65535", "0-65535", "-1", "1-", ",", "00080", "65536", "9-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rs, err := parsePorts(s)
		if err != nil {
			return
		}
		var words []string
		for _, r := range rs {
			if r.First > r.Last {
				t.Fatalf("%q: %v runs backwards", s, r)
			}
			words = append(words, r.String())
		}
		again, err := parsePorts(strings.Join(words, ","))
		if err != nil || len(again) != len(rs) {
			t.Fatalf("%q became %v, which reads %v, %v", s, words, again, err)
		}
	})
}
