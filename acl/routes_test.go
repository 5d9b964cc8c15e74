package acl

import (
	"fmt"
	"net/netip"
	"testing"
)

// What of the router's 10.33.0.0/16 and of the exit's /0 a node is told of, under one rule or two.
func TestRoutes(t *testing.T) {
	for _, tt := range []struct {
		acls string
		node string
		want string
	}{
		{`{"action": "accept", "src": ["bob@example.com"], "dst": ["10.33.7.0/24:22"]}`, "bob-laptop", "router 10.33.0.0/16"},
		{`{"action": "accept", "src": ["bob@example.com"], "dst": ["10.0.0.0/8:22"]}`, "bob-laptop", "router 10.33.0.0/16"},
		{`{"action": "accept", "src": ["bob@example.com"], "dst": ["office:22"]}`, "alice-laptop", ""},
		{`{"action": "accept", "src": ["bob@example.com"], "dst": ["10.34.0.0/16:*"]}`, "bob-laptop", ""},
		{`{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:router:*", "tag:exit:*"]}`, "bob-laptop", ""}, // the devices alone
		{`{"action": "accept", "src": ["bob@example.com"], "dst": ["autogroup:internet:*"]}`, "bob-laptop", "exit 0.0.0.0/0 ::/0"},
		{`{"action": "accept", "src": ["bob@example.com"], "dst": ["*:443"]}`, "bob-laptop", "router 10.33.0.0/16 exit 0.0.0.0/0 ::/0"},
		{`{"action": "accept", "src": ["office"], "dst": ["tag:web:80"]}`, "web1", "router 10.33.0.0/16"}, // the other way
		{`{"action": "accept", "src": ["office"], "dst": ["tag:web:80"]}`, "bob-laptop", ""},
		{`{"action": "accept", "src": ["*"], "dst": ["tag:web:80"]}`, "web1", "router 10.33.0.0/16"}, // "*" takes in approved routes, and no exits
		{`{"action": "deny", "src": ["bob@example.com"], "dst": ["office:*"]}`, "bob-laptop", ""},
		{`{"action": "accept", "src": ["*"], "dst": ["*:*"]}`, "router", "exit 0.0.0.0/0 ::/0"}, // not its own
	} {
		inv := mesh()
		c := mustCompile(t, mustParse(t, `"acls": [`+tt.acls+`]`), inv)
		got := ""
		for _, n := range inv.Nodes {
			if n.Name == tt.node {
				got = routesText(inv, c.Routes(n.ID))
			}
		}
		if got != tt.want {
			t.Errorf("%s\n%s is told of %q, want %q", tt.acls, tt.node, got, tt.want)
		}
	}
}

func routesText(inv *Inventory, routes map[NodeID][]netip.Prefix) (s string) {
	for _, n := range inv.Nodes {
		if rs := routes[n.ID]; len(rs) > 0 {
			if s != "" {
				s += " "
			}
			s += n.Name
			for _, r := range rs {
				s += fmt.Sprintf(" %v", r)
			}
		}
	}
	return s
}

// With via, a route is shown by the routers with the tag alone.
func TestRoutesVia(t *testing.T) {
	inv := mesh()
	inv.Nodes[5].Routes = []netip.Prefix{netip.MustParsePrefix("10.33.0.0/16")} // db1
	c := mustCompile(t, mustParse(t, `"grants": [{"src": ["bob@example.com"], "dst": ["office"], "ip": ["22"], "via": ["tag:db"]}]`), inv)
	if got := routesText(inv, c.Routes(3)); got != "db1 10.33.0.0/16" {
		t.Errorf("bob is told of %q", got)
	}
}
