package acl

import (
	"net/netip"
	"strings"
	"testing"
)

func TestPolicyTests(t *testing.T) {
	const rules = `"acls": [
		{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"], "proto": "tcp"},
		{"action": "accept", "src": ["group:eng"], "dst": ["tag:web:443", "autogroup:self:*", "dbhost:22"]},
		{"action": "accept", "src": ["carol@example.com"], "dst": ["tag:web:443"]},
		{"action": "deny", "src": ["bob@example.com"], "dst": ["tag:web:*"]}],
		"ssh": [{"action": "check", "src": ["group:eng"], "dst": ["tag:web"], "users": ["autogroup:nonroot"]}],`
	for _, tt := range []struct{ name, test, want string }{
		{"holds", `"tests": [{"src": "tag:web", "accept": ["tag:db:5432", "100.64.0.6:5432"], "deny": ["tag:db:22", "tag:exit:1"]}]`, ""},
		{"old names", `"tests": [{"user": "tag:web", "allow": ["tag:db:5432"]}]`, ""},
		{"should reach", `"tests": [{"src": "tag:web", "accept": ["tag:db:22"]}]`, "tests[0]: web1 should reach tag:db:22, but no rule lets it"},
		{"should not reach", `"tests": [{"src": "tag:web", "deny": ["tag:db:5432"]}]`, "tests[0]: web1 should not reach tag:db:5432, but acls[0] (line 5) lets it"},
		{"denied", `"tests": [{"src": "bob@example.com", "accept": ["tag:web:443"]}]`, "tests[0]: bob-laptop should reach tag:web:443, but acls[3] (line 8) denies it"},
		{"one of a group", `"tests": [{"src": "group:eng", "accept": ["tag:web:443"]}]`, "bob-laptop should reach tag:web:443, but acls[3] (line 8) denies it"},
		{"another protocol", `"tests": [{"src": "tag:web", "proto": "udp", "accept": ["tag:db:5432"]}]`, "no rule lets it"},
		{"self", `"tests": [{"src": "alice@example.com", "accept": ["autogroup:self:22"], "deny": ["bob@example.com:22"]}]`, ""},
		{"no device yet", `"tests": [{"src": "carol@example.com", "accept": ["tag:web:443"], "deny": ["tag:db:5432"]}]`, ""},
		{"nobody", `"tests": [{"src": "ghost@example.com", "accept": ["tag:web:443"]}]`, `nobody is "ghost@example.com"`},
		{"an address of nobody", `"tests": [{"src": "100.99.0.1", "deny": ["tag:web:443"]}]`, ""},
		{"ssh", `"sshTests": [{"src": "alice@example.com", "dst": ["tag:web"], "accept": ["ubuntu"], "check": ["ubuntu"], "deny": ["root"]}]`, ""},
		{"ssh refused", `"sshTests": [{"src": "alice@example.com", "dst": ["tag:web"], "accept": ["root"]}]`, `sshTests[0]: alice-laptop should log in to tag:web as "root", but no ssh rule lets it`},
		{"ssh too open", `"sshTests": [{"src": "alice@example.com", "dst": ["tag:web"], "deny": ["ubuntu"]}]`, `an ssh rule lets it`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			es := mustParse(t, rules+tt.test).Test(mesh())
			switch {
			case tt.want == "" && len(es) > 0:
				t.Error(es.Render())
			case tt.want != "" && (len(es) == 0 || !strings.Contains(es[0].Error(), tt.want)):
				t.Errorf("errors %v, want %q", es, tt.want)
			}
		})
	}
}

// A mesh without a single node can have a policy with tests.
func TestPolicyTestsOfNewMesh(t *testing.T) {
	p := mustParse(t, `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432", "autogroup:self:22"]}],
		"tests": [{"src": "alice@example.com", "accept": ["tag:db:5432", "autogroup:self:22"], "deny": ["tag:web:80", "tag:db:22"]},
			{"src": "tag:web", "deny": ["tag:db:5432"]}, {"src": "autogroup:admin", "deny": ["tag:web:22"]}]`)
	if es := p.Test(&Inventory{}); len(es) > 0 {
		t.Error(es.Render())
	}
}

func TestMayTag(t *testing.T) {
	p := mustParse(t, `"acls": []`)
	for _, tt := range []struct {
		user  User
		tag   string
		allow bool
	}{
		{User{Login: "alice@example.com"}, "tag:web", true},
		{User{Login: "carol@example.com"}, "tag:web", false},
		{User{Login: "carol@example.com"}, "tag:db", false},
		{User{Login: "carol@example.com", Roles: []string{"network-admin"}}, "tag:db", true},
		{User{Login: "alice@example.com"}, "tag:exit", false},
		{User{Login: "tag:router"}, "tag:exit", true},
		{User{Login: "alice@example.com"}, "tag:none", false},
		{User{}, "tag:web", false},
	} {
		if got := p.UserMayTag(tt.user, tt.tag); got != tt.allow {
			t.Errorf("%+v %s: %v, want %v", tt.user, tt.tag, got, tt.allow)
		}
	}
}

func TestApproves(t *testing.T) {
	p := mustParse(t, `"acls": [], "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:router"], "0.0.0.0/0": ["tag:web"], "172.16.0.0/12": ["autogroup:admin"]}, "exitNode": ["tag:exit"]}`)
	inv := mesh()
	node := func(name string) *Node {
		for i := range inv.Nodes {
			if inv.Nodes[i].Name == name {
				return &inv.Nodes[i]
			}
		}
		t.Fatalf("no node %s", name)
		return nil
	}
	for _, tt := range []struct {
		node, route string
		want        bool
	}{
		{"router", "10.33.0.0/16", true},
		{"router", "10.0.0.0/8", true},
		{"router", "0.0.0.0/0", false},
		{"router", "192.168.0.0/16", false},
		{"router", "8.0.0.0/6", false},
		{"web1", "0.0.0.0/0", false}, // routes approve no exit
		{"web1", "192.168.0.0/16", true},
		{"exit", "0.0.0.0/0", true},
		{"exit", "::/0", true},
		{"alice-laptop", "172.16.4.0/24", true},
		{"bob-laptop", "172.16.4.0/24", false},
	} {
		n := node(tt.node)
		var owner *User
		for i := range inv.Users {
			if inv.Users[i].Login == n.User {
				owner = &inv.Users[i]
			}
		}
		if got := p.Approves(n, owner, netip.MustParsePrefix(tt.route)); got != tt.want {
			t.Errorf("%s %s: %v, want %v", tt.node, tt.route, got, tt.want)
		}
	}
}
