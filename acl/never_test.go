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
		{"holds", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}], "never": [{"src": ["autogroup:member"], "dst": ["tag:db:*"], "through": []}]`, ""},
		{"plain", `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432"]}], "never": [{"src": ["bob@example.com"], "dst": ["tag:db:*"]}]`,
			"never[0] does not hold: a node of bob@example.com at 100.64.0.1 would reach a node with tag:db at 100.64.0.2 on tcp port 5432"},
		{"another port", `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432"]}], "never": [{"src": ["bob@example.com"], "dst": ["tag:db:22"]}]`, ""},
		{"another protocol", `"acls": [{"action": "accept", "proto": "tcp", "src": ["group:eng"], "dst": ["tag:db:53"]}], "never": [{"src": ["group:eng"], "dst": ["tag:db:53"], "proto": "udp"}]`, ""},
		{"ping counts", `"acls": [{"action": "accept", "proto": "tcp", "src": ["group:eng"], "dst": ["tag:db:53"]}], "never": [{"src": ["group:eng"], "dst": ["tag:db:*"], "proto": "icmp"}]`,
			"on icmp"},
		{"nodes have one tag", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}], "never": [{"src": ["tag:exit"], "dst": ["tag:db:*"]}]`, ""},
		{"or what the file names together", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}, {"action": "accept", "src": ["tag:exit & tag:web"], "dst": ["tag:web:80"]}], "never": [{"src": ["tag:exit"], "dst": ["tag:db:*"]}]`,
			"a node with tag:exit, tag:web at 100.64.0.1 would reach a node with tag:db"},
		{"another tag's service", `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:web:443"]}], "never": [{"src": ["group:eng"], "dst": ["tag:db:*"]}]`, ""},
		{"a network that no node is in", `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["office:443"]}], "never": [{"src": ["group:eng"], "dst": ["tag:db:*"]}]`, ""},
		{"an address that any node could have", `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["dbhost:443"]}], "never": [{"src": ["group:eng"], "dst": ["tag:db:*"]}]`, "a node with tag:db at 100.64.0.6"},
		{"from behind a router", `"acls": [{"action": "accept", "src": ["office"], "dst": ["tag:db:443"]}], "never": [{"src": ["10.33.7.0/24"], "dst": ["tag:db:*"]}]`, "10.33.7.0 would reach a node with tag:db"},
		{"a deny keeps it", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}, {"action": "deny", "src": ["tag:web & tag:router"], "dst": ["tag:db:*"]}], "never": [{"src": ["tag:web & tag:router"], "dst": ["tag:db:*"]}]`, ""},
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
		{"the roles of some member", `"acls": [{"action": "accept", "src": ["autogroup:admin"], "dst": ["tag:db:22"]}], "never": [{"src": ["autogroup:member"], "dst": ["tag:db:*"]}]`, "with role admin"},
		{"no roles of those named", `"acls": [{"action": "accept", "src": ["autogroup:admin"], "dst": ["tag:db:22"]}], "never": [{"src": ["bob@example.com"], "dst": ["tag:db:*"]}]`, ""},
		{"not", `"acls": [{"action": "accept", "src": ["!group:eng"], "dst": ["tag:db:22"]}], "never": [{"src": ["group:eng"], "dst": ["tag:db:*"], "through": ["ssh"]}]`, ""},
		{"grants", `"grants": [{"src": ["*"], "dst": ["tag:db"], "ip": ["tcp:22"]}], "never": [{"src": ["tag:web"], "dst": ["tag:db:*"]}]`, "grants[0]"},
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

// What sources get to be over others counts, unless the file says which ways do.
func TestNeverThrough(t *testing.T) {
	const (
		jump  = `{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:jump:22"]}`
		onJmp = `{"action": "accept", "src": ["tag:jump"], "dst": ["tag:db:5432"]}`
		web   = `{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}`
		app   = `{"action": "accept", "src": ["tag:app"], "dst": ["tag:db:5432"]}`
		out   = `{"action": "accept", "src": ["bob@example.com"], "dst": ["office:443"]}`
		in    = `{"action": "accept", "src": ["office"], "dst": ["tag:db:5432"]}`
		noDB  = `"never": [{"src": ["bob@example.com"], "dst": ["tag:db:*"]}]`
	)
	for _, tt := range []struct{ name, rules, rest, want string }{
		{"ssh", jump + "," + onJmp, noDB, "a node of bob@example.com at 100.64.0.1 may log in on a node with tag:jump at 100.64.0.3 by ssh (acls[0], line 9), and a node with tag:jump at 100.64.0.3 would reach a node with tag:db at 100.64.0.2 on tcp port 5432"},
		{"ssh, and no further", jump, noDB, ""},
		{"ssh to another", jump + "," + app, noDB, ""},
		{"ssh twice", jump + `,{"action": "accept", "src": ["tag:jump"], "dst": ["tag:app:22"]},` + app, noDB, "a node with tag:jump at 100.64.0.3 may log in on a node with tag:app at 100.64.0.4 by ssh (acls[1], line 9), and a node with tag:app"},
		{"ssh with a deny of it", jump + "," + onJmp + `,{"action": "deny", "src": ["group:eng"], "dst": ["tag:jump:22"]}`, noDB, ""},
		{"ssh with a deny behind it", jump + "," + onJmp + `,{"action": "deny", "src": ["tag:jump"], "dst": ["tag:db:*"]}`, noDB, ""},
		{"not ssh", strings.Replace(jump, ":22", ":443", 1) + "," + onJmp, noDB, ""},
		{"ssh over UDP", strings.Replace(jump, `"src"`, `"proto": "udp", "src"`, 1) + "," + onJmp, noDB, ""},
		{"ssh to whoever", `{"action": "accept", "src": ["bob@example.com"], "dst": ["autogroup:member:22"]}, {"action": "accept", "src": ["alice@example.com"], "dst": ["tag:db:22"]}`, noDB, "log in on a node of alice@example.com"},
		{"ssh does not count", jump + "," + onJmp, `"never": [{"src": ["bob@example.com"], "dst": ["tag:db:*"], "through": ["tagOwners", "router", "exit"]}]`, ""},
		{"ssh in IPv6", strings.ReplaceAll(jump, "bob@example.com", "fd68:6564:6765::9") + "," + onJmp, `"never": [{"src": ["bob@example.com"], "dst": ["tag:db:*"]}]`, "at fd68:6564:6765::9 may log in on a node with tag:jump at fd68:6564:6765::3"},

		{"a host behind a router", out + "," + in, noDB, "a node of bob@example.com at 100.64.0.1 reaches 10.33.0.0 behind its router (acls[0], line 9), and 10.33.0.0 would reach a node with tag:db"},
		{"hosts of two networks", out + "," + strings.Replace(in, "office", "10.44.0.0/16", 1), noDB, ""},
		{"a host behind a router, and a network behind another", out + `,{"action": "accept", "src": ["office"], "dst": ["10.44.0.0/16:*"]}`, `"never": [{"src": ["bob@example.com"], "dst": ["10.44.0.0/16:*"]}]`, "and 10.33.0.0 would reach 10.44.0.0"},
		{"whoever is the router", in, `"autoApprovers": {"routes": {"10.0.0.0/8": ["tag:jump"]}}, "never": [{"src": ["tag:jump"], "dst": ["tag:db:*"]}]`, "a node with tag:jump at 100.64.0.1 may carry 10.0.0.0/8, and 10.33.0.0 would reach"},
		{"whoever gets on the router", jump, `"autoApprovers": {"routes": {"10.33.0.0/16": ["tag:jump"]}}, "never": [{"src": ["bob@example.com"], "dst": ["office:443"]}]`, "by ssh (acls[0], line 9), and a node with tag:jump would reach 10.33.0.0"},
		{"routers do not count", out + "," + in, `"never": [{"src": ["bob@example.com"], "dst": ["tag:db:*"], "through": ["ssh"]}]`, ""},

		{"whoever gets on the exit", jump, `"autoApprovers": {"exitNode": ["tag:jump"]}, "never": [{"src": ["bob@example.com"], "dst": ["autogroup:internet:*"]}]`, "a node with tag:jump would reach 1.1.1.1"},
		{"an exit is no way into a network", jump, `"autoApprovers": {"exitNode": ["tag:jump"]}, "never": [{"src": ["bob@example.com"], "dst": ["office:*"]}]`, ""},

		{"a tag that one owns", web, noDB, "never[0] does not hold: bob@example.com may give tag:web, and a node with tag:web at 100.64.0.3 would reach a node with tag:db"},
		{"a tag that one does not own", onJmp, noDB, ""},
		{"a tag that one's tag owns", `{"action": "accept", "src": ["tag:exit"], "dst": ["tag:db:5432"]}`, `"never": [{"src": ["alice@example.com"], "dst": ["tag:db:*"]}]`,
			"alice@example.com may give tag:router, and a node with tag:router may give tag:exit, and a node with tag:exit"},
		{"a tag of whoever has a tag", `{"action": "accept", "src": ["tag:exit"], "dst": ["tag:db:5432"]}`, `"never": [{"src": ["tag:router"], "dst": ["tag:db:*"]}]`, "a node with tag:router may give tag:exit, and a node with tag:exit at"},
		{"a tag of whoever is at an address", web, `"never": [{"src": ["100.64.9.0/24"], "dst": ["tag:db:5432"]}]`, "does not hold"},
		{"a tag of whoever one may log in as", `{"action": "accept", "src": ["carol@example.com"], "dst": ["alice@example.com:22"]},` + web, `"never": [{"src": ["carol@example.com"], "dst": ["tag:db:5432"]}]`, "log in on a node of alice@example.com at 100.64.0.3 by ssh (acls[0], line 9), and alice@example.com may give tag:web, and"},
		{"tags do not count", web, `"never": [{"src": ["bob@example.com"], "dst": ["tag:db:*"], "through": []}]`, ""},
		{"no such way", "", `"never": [{"src": ["tag:router"], "dst": ["tag:db:*"], "through": ["sssh"]}]`, `through "sssh" is no way to get on`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := `{"groups": {"group:eng": ["alice@example.com", "bob@example.com"]},
"hosts": {"office": "10.33.0.0/16"},
"tagOwners": {
	"tag:web":    ["group:eng"],
	"tag:router": ["alice@example.com"],
	"tag:exit":   ["tag:router"],
	"tag:app": [], "tag:db": [], "tag:jump": [],
}, "acls": [
` + tt.rules + "],\n" + tt.rest + "}"
			_, err := Parse("acl.hujson", []byte(file), Options{})
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// A mesh can break a never that the file alone keeps: by tags that a node has together, or by a user's role.
func TestNeverOfInventory(t *testing.T) {
	p := mustParse(t, `"acls": [{"action": "accept", "src": ["tag:web", "autogroup:admin"], "dst": ["tag:db:5432"]}],
		"never": [{"src": ["tag:exit"], "dst": ["tag:db:*"]}, {"src": ["bob@example.com"], "dst": ["tag:db:*"], "through": []}]`)
	web := Node{ID: 1, Name: "web", Tags: []string{"tag:web"}, Addrs: []netip.Addr{netip.MustParseAddr("100.64.0.1")}}
	both := Node{ID: 2, Name: "both", Tags: []string{"tag:exit", "tag:web"}, Addrs: []netip.Addr{netip.MustParseAddr("100.64.0.2")}}
	for _, tt := range []struct {
		name, want string
		inv        Inventory
	}{
		{"nothing new", "", Inventory{Nodes: []Node{web}, Users: []User{{Login: "bob@example.com", Roles: []string{"auditor"}}}}},
		{"two tags", "a node with tag:exit, tag:web", Inventory{Nodes: []Node{web, both}}},
		{"a role", "a node of bob@example.com, with role admin", Inventory{Nodes: []Node{web}, Users: []User{{Login: "bob@example.com", Roles: []string{"admin"}}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			es := p.Test(&tt.inv)
			if (tt.want == "") != (len(es) == 0) || tt.want != "" && !strings.Contains(es.Error(), tt.want) {
				t.Errorf("errors %v, want %q", es, tt.want)
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
		if len(p.Prove(inv)) > 0 {
			return
		}
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
