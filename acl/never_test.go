package acl

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestNever(t *testing.T) {
	for _, tt := range []struct{ name, policy, want string }{
		{"holds", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}], "never": [{"src": ["autogroup:member"], "dst": ["tag:db:*"]}]`, ""},
		{"plain", `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432"]}], "never": [{"src": ["bob@example.com"], "dst": ["tag:db:*"]}]`,
			"never[0] does not hold: a node of bob@example.com at 100.64.0.1 would reach a node with tag:db at 100.64.0.2 on tcp port 5432"},
		{"another port", `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432"]}], "never": [{"src": ["bob@example.com"], "dst": ["tag:db:22"]}]`, ""},
		{"another protocol", `"acls": [{"action": "accept", "proto": "tcp", "src": ["group:eng"], "dst": ["tag:db:53"]}], "never": [{"src": ["group:eng"], "dst": ["tag:db:53"], "proto": "udp"}]`, ""},
		{"ping counts", `"acls": [{"action": "accept", "proto": "tcp", "src": ["group:eng"], "dst": ["tag:db:53"]}], "never": [{"src": ["group:eng"], "dst": ["tag:db:*"], "proto": "icmp"}]`,
			"on icmp"},
		{"two tags on one node", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}], "never": [{"src": ["tag:router"], "dst": ["tag:db:*"]}]`,
			"a node with tag:router, tag:web at 100.64.0.1 would reach a node with tag:db"},
		{"a deny keeps it", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}, {"action": "deny", "src": ["tag:router"], "dst": ["tag:db:*"]}], "never": [{"src": ["tag:router"], "dst": ["tag:db:*"]}]`, ""},
		{"a deny of a part", `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:1-100"]}, {"action": "deny", "src": ["group:eng"], "dst": ["tag:db:1-99"]}], "never": [{"src": ["group:eng"], "dst": ["tag:db:1-100"]}]`,
			"on tcp port 100"},
		{"a deny of one person", `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:22"]}, {"action": "deny", "src": ["alice@example.com"], "dst": ["tag:db:*"]}], "never": [{"src": ["group:eng"], "dst": ["tag:db:*"]}]`,
			"a node of bob@example.com"},
		{"a deny that expires", `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:22"]}, {"action": "deny", "src": ["*"], "dst": ["tag:db:*"], "expires": "2030-01-01T00:00:00Z"}], "never": [{"src": ["group:eng"], "dst": ["tag:db:*"]}]`,
			"does not hold"},
		{"an address anybody could get", `"acls": [{"action": "accept", "src": ["100.64.9.0/24"], "dst": ["tag:db:22"]}], "never": [{"src": ["tag:web"], "dst": ["tag:db:*"]}]`,
			"a node with tag:web at 100.64.9.0 would reach"},
		{"round a denied prefix", `"acls": [{"action": "accept", "src": ["*"], "dst": ["10.0.0.0/8:22"]}, {"action": "deny", "src": ["*"], "dst": ["10.0.0.0/9:*"]}], "never": [{"src": ["*"], "dst": ["10.0.0.0/8:*"]}]`,
			"a node of someone@hedge.invalid at 100.64.0.1 would reach 10.128.0.0 on tcp port 22"},
		{"self", `"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}], "never": [{"src": ["bob@example.com"], "dst": ["alice@example.com:*"]}]`, ""},
		{"self and oneself", `"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:22"]}], "never": [{"src": ["group:eng"], "dst": ["group:eng:22"]}]`, "does not hold"},
		{"the internet", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["autogroup:internet:*"]}], "never": [{"src": ["tag:web"], "dst": ["8.8.8.8:53"]}]`, "would reach 8.8.8.8 on tcp port 53"},
		{"roles", `"acls": [{"action": "accept", "src": ["autogroup:admin"], "dst": ["tag:db:22"]}], "never": [{"src": ["bob@example.com"], "dst": ["tag:db:*"]}]`, "a node of bob@example.com, with role admin"},
		{"not", `"acls": [{"action": "accept", "src": ["!group:eng"], "dst": ["tag:db:22"]}], "never": [{"src": ["group:eng"], "dst": ["tag:db:*"]}]`, ""},
		{"grants", `"grants": [{"src": ["*"], "dst": ["tag:db"], "ip": ["tcp:22"]}], "never": [{"src": ["tag:web"], "dst": ["tag:db:*"]}]`, "grants[0]"},
		{"a tag that one owns", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}], "never": [{"src": ["bob@example.com"], "dst": ["tag:db:*"], "through": ["tagOwners"]}]`,
			"never[0] does not hold: bob@example.com may give tag:web, and a node with tag:web at 100.64.0.1 would reach a node with tag:db"},
		{"a tag that one does not own", `"acls": [{"action": "accept", "src": ["tag:router"], "dst": ["tag:db:5432"]}], "never": [{"src": ["bob@example.com"], "dst": ["tag:db:*"], "through": ["tagOwners"]}]`, ""},
		{"a tag that one's tag owns", `"acls": [{"action": "accept", "src": ["tag:exit"], "dst": ["tag:db:5432"]}], "never": [{"src": ["alice@example.com"], "dst": ["tag:db:*"], "through": ["tagOwners"]}]`,
			"alice@example.com may give tag:router, which may give tag:exit, and a node with tag:exit"},
		{"a tag of whoever has a tag", `"acls": [{"action": "accept", "src": ["tag:exit"], "dst": ["tag:db:5432"]}], "never": [{"src": ["tag:router"], "dst": ["tag:db:*"], "through": ["tagOwners"]}]`,
			"a node with tag:exit, tag:router at"},
		{"a tag of whoever is at an address", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}], "never": [{"src": ["100.64.9.0/24"], "dst": ["tag:db:5432"], "through": ["tagOwners"]}]`,
			"does not hold"},
		{"another way through", `"acls": [], "never": [{"src": ["tag:router"], "dst": ["tag:db:*"], "through": ["ssh"]}]`, "through \"ssh\" is not supported"},
		{"default access", `"defaultAccess": "allow", "never": [{"src": ["tag:web"], "dst": ["tag:db:*"]}]`, "does not hold"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("acl.hujson", []byte("{"+head+tt.policy+"}"), Options{})
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// A never that is proved holds of every node there is.
func TestNeverIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, n := drafts.Draw(t, "policy"), drafts.Draw(t, "never")
		type entry struct {
			Src []string `json:"src"`
			Dst []string `json:"dst"`
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(d.text(t)), &m); err != nil {
			t.Fatal(err)
		}
		if len(n.rows) == 0 {
			return
		}
		e := entry{Src: n.rows[0].src}
		for _, s := range n.rows[0].dst {
			e.Dst = append(e.Dst, s+":"+n.rows[0].ports)
		}
		m["never"] = []entry{e}
		b, _ := json.Marshal(m)
		p, err := Parse("acl.hujson", b, Options{})
		if err != nil {
			for _, e := range Of(err) {
				if e.Class != ClassNeverBroken {
					t.Fatal(e)
				}
			}
			return // the counter-example has been checked by compiling it
		}
		inv := mesh()
		c, err := Compile(p, inv)
		if err != nil {
			t.Fatal(err)
		}
		nv := p.nevers[0]
		dsts := []netip.Addr{netip.MustParseAddr("10.33.1.1"), netip.MustParseAddr("8.8.8.8")}
		for _, x := range inv.Nodes {
			dsts = append(dsts, x.Addrs...)
		}
		owner := func(a netip.Addr) *Node {
			for i := range inv.Nodes {
				for _, o := range inv.Nodes[i].Addrs {
					if o == a {
						return &inv.Nodes[i]
					}
				}
			}
			return nil
		}
		roles := map[string][]string{}
		for _, u := range inv.Users {
			roles[u.Login] = u.Roles
		}
		for i := range inv.Nodes {
			for _, dst := range dsts {
				if to := owner(dst); to == &inv.Nodes[i] {
					continue
				}
				for _, port := range []uint16{22, 80, 443, 1000, 40000} {
					r, ok := c.Check(inv.Nodes[i].ID, dst, port, protoTCP)
					if !ok || !forbids(p, nv, &inv.Nodes[i], owner(dst), dst, port, roles) {
						continue
					}
					t.Fatalf("%s reaches %s port %d by %s, and %s was proved\n%s", inv.Nodes[i].Name, dst, port, r.Path, nv.path, b)
				}
			}
		}
	})
}

// forbids reports whether a never is about a flow.
func forbids(p *Policy, n *never, src, dst *Node, to netip.Addr, port uint16, roles map[string][]string) bool {
	for _, a := range src.Addrs {
		from := actor{node: src, roles: roles[src.User], addr: a}
		if a.BitLen() != to.BitLen() {
			continue
		}
		for _, s := range n.src {
			if !p.isSource(s, from) {
				continue
			}
			for _, d := range n.dst {
				x := actor{node: dst, addr: to}
				if dst != nil {
					x.roles = roles[dst.User]
				}
				for _, r := range d.ports {
					if p.isDest(d.selector, x, from) && r.Contains(port) {
						return true
					}
				}
			}
		}
	}
	return false
}
