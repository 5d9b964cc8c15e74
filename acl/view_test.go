package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// render shows a view as the tests below write it.
func (v View) render(inv *Inventory) string {
	names := map[NodeID]string{}
	for _, n := range inv.Nodes {
		names[n.ID] = n.Name
	}
	var b strings.Builder
	list := func(ids []NodeID) string {
		var s []string
		for _, id := range ids {
			s = append(s, names[id])
		}
		return strings.Join(s, " ")
	}
	fmt.Fprintf(&b, "peers: %s\n", list(v.Peers))
	for _, r := range v.Rules {
		act := map[Action]string{Accept: "accept", Deny: "deny", Relay: "relay"}[r.Action]
		var dst []string
		for _, t := range r.Dst {
			var ports []string
			for _, p := range t.Ports {
				ports = append(ports, p.String())
			}
			dst = append(dst, t.Set+":"+strings.Join(ports, ","))
		}
		fmt.Fprintf(&b, "%s: %s %v -> %v\n", r.Path, act, r.Src, dst)
	}
	var sets []string
	for name := range v.Sets {
		sets = append(sets, name)
	}
	slices.Sort(sets)
	for _, name := range sets {
		s := v.Sets[name]
		fmt.Fprintf(&b, "%s = %s", name, list(s.Nodes))
		if s.Any {
			b.WriteString("any")
		}
		if len(s.Prefixes) > 0 {
			fmt.Fprintf(&b, "%v", s.Prefixes)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestView(t *testing.T) {
	for _, tt := range []struct{ name, policy, node, want string }{
		{
			"a source knows its targets, and not the other sources",
			`"acls": [{"action": "accept", "src": ["tag:web", "bob@example.com"], "dst": ["tag:db:5432", "tag:exit:22"]}]`, "web1",
			"peers: db1 exit\nacls[0]: accept [tag:web] -> [tag:db:5432 tag:exit:22]\ntag:db = db1\ntag:exit = exit\ntag:web = web1\n",
		},
		{
			"a destination knows its sources, and not the other targets",
			`"acls": [{"action": "accept", "src": ["tag:web", "bob@example.com"], "dst": ["tag:db:5432", "tag:exit:22"]}]`, "db1",
			"peers: bob-laptop web1 web2\nacls[0]: accept [tag:web bob@example.com] -> [tag:db:5432]\nbob@example.com = bob-laptop\ntag:db = db1\ntag:web = web1 web2\n",
		},
		{
			"who may use a relay knows the relay, and which of its peers may use it too",
			`"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["bob@example.com:22"]}], "grants": [{"src": ["tag:web", "bob@example.com", "tag:db"], "dst": ["tag:exit"], "app": {"tailscale.com/cap/relay": []}}]`, "web1",
			"peers: bob-laptop exit\ngrants[0]: relay [tag:web bob@example.com tag:db] -> [tag:exit:]\nacls[0]: accept [tag:web] -> [bob@example.com:22]\nbob@example.com = bob-laptop\ntag:db = \ntag:exit = exit\ntag:web = web1\n",
		},
		{
			"a relay knows all who may use it",
			`"acls": [], "grants": [{"src": ["tag:web", "tag:db"], "dst": ["tag:exit", "bob@example.com"], "app": {"tailscale.com/cap/relay": []}}]`, "exit",
			"peers: web1 web2 db1\ngrants[0]: relay [tag:web tag:db] -> [tag:exit:]\ntag:db = db1\ntag:exit = exit\ntag:web = web1 web2\n",
		},
		{
			"a relay is not seen where a deny stops everything",
			`"acls": [{"action": "deny", "src": ["tag:web"], "dst": ["tag:db:*"]}], "grants": [{"src": ["tag:web"], "dst": ["tag:db"], "app": {"tailscale.com/cap/relay": []}}]`, "db1",
			"peers: \ngrants[0]: relay [tag:web] -> [tag:db:]\ntag:db = db1\ntag:web = \n",
		},
		{
			"nobody else knows anything",
			`"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}]`, "alice-phone",
			"peers: \n",
		},
		{
			"self is the owner's devices",
			`"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*", "tag:db:22"]}]`, "alice-phone",
			"peers: alice-laptop db1\nacls[0]: accept [autogroup:member] -> [tag:db:22]\nacls[0]: accept [self:alice@example.com] -> [self:alice@example.com:*]\n" +
				"autogroup:member = alice-laptop alice-phone\nself:alice@example.com = alice-laptop alice-phone\ntag:db = db1\n",
		},
		{
			"self is nothing to a tagged node",
			`"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]`, "web1",
			"peers: \n",
		},
		{
			"who carries a route is a destination",
			`"acls": [{"action": "accept", "src": ["bob@example.com"], "dst": ["10.33.4.0/24:443"]}]`, "router",
			"peers: bob-laptop\nacls[0]: accept [bob@example.com] -> [10.33.4.0/24:443]\n10.33.4.0/24 = [10.33.4.0/24]\nbob@example.com = bob-laptop\n",
		},
		{
			"who is behind a router is a source",
			`"acls": [{"action": "accept", "src": ["office"], "dst": ["tag:db:443"]}]`, "db1",
			"peers: router\nacls[0]: accept [office] -> [tag:db:443]\noffice = [10.33.0.0/16]\ntag:db = db1\n",
		},
		{
			"an exit's routes make it no destination of addresses",
			`"acls": [{"action": "accept", "src": ["bob@example.com"], "dst": ["10.33.4.0/24:443"]}]`, "exit",
			"peers: \n",
		},
		{
			"via names the routers",
			`"grants": [{"src": ["tag:web"], "dst": ["10.33.0.0/16", "tag:db"], "ip": ["*"], "via": ["tag:exit"]}]`, "web1",
			"peers: \ngrants[0]: accept [tag:web] -> [10.33.0.0/16:*]\n10.33.0.0/16 = [10.33.0.0/16]\ntag:web = web1\n",
		},
		{
			"a deny of everything hides",
			`"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:db:*", "tag:web:*"]}, {"action": "deny", "src": ["bob@example.com"], "dst": ["tag:db:*"]}]`, "bob-laptop",
			"peers: web1 web2\nacls[0]: accept [autogroup:member] -> [tag:db:* tag:web:*]\nautogroup:member = bob-laptop\ntag:db = \ntag:web = web1 web2\n",
		},
		{
			"a deny of something is enforced at both ends",
			`"acls": [{"action": "accept", "src": ["bob@example.com"], "dst": ["*:*"]}, {"action": "deny", "src": ["*"], "dst": ["tag:db:22"]}]`, "db1",
			"peers: bob-laptop\nacls[0]: accept [bob@example.com] -> [*:*]\nacls[1]: deny [*] -> [tag:db:22]\n* = any\nbob@example.com = bob-laptop\ntag:db = db1\n",
		},
		{
			"a posture cuts the source",
			`"postures": {"posture:linux": ["node:os == 'linux'"]}, "acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:db:22"], "srcPosture": ["posture:linux"]}]`, "db1",
			"peers: alice-laptop\nacls[0]: accept [autogroup:member [posture:linux]] -> [tag:db:22]\nautogroup:member [posture:linux] = alice-laptop\ntag:db = db1\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inv := mesh()
			inv.Nodes[0].Attrs = map[string]string{"node:os": "linux"}
			inv.Nodes[2].Attrs = map[string]string{"node:os": "windows"}
			c := mustCompile(t, mustParse(t, tt.policy), inv)
			for _, n := range inv.Nodes {
				if n.Name == tt.node {
					if diff := cmp.Diff(tt.want, c.View(n.ID).render(inv)); diff != "" {
						t.Errorf("(-want +got)\n%s", diff)
					}
				}
			}
		})
	}
}

// Peers are symmetric: if a node is told of another, the other is told of it.
func TestViewSymmetric(t *testing.T) {
	inv := mesh()
	c := mustCompile(t, mustParse(t, `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:web:443", "autogroup:self:*"]}, {"action": "accept", "src": ["office"], "dst": ["tag:db:443"]},
		{"action": "accept", "src": ["*"], "dst": ["autogroup:internet:*"]}, {"action": "deny", "src": ["bob@example.com"], "dst": ["tag:web:*"]}]`), inv)
	for _, a := range inv.Nodes {
		for _, b := range c.View(a.ID).Peers {
			if !slices.Contains(c.View(b).Peers, a.ID) {
				t.Errorf("%d sees %d, and not the reverse", a.ID, b)
			}
		}
	}
	if v := c.View(99); len(v.Rules)+len(v.Sets)+len(v.Peers) > 0 {
		t.Errorf("an unknown node sees %+v", v)
	}
}

// The order of the inventory, and of what is in it, means nothing.
func TestDeterministic(t *testing.T) {
	policy := mustParse(t, `"acls": [{"action": "accept", "src": ["group:eng", "autogroup:tagged", "10.0.0.0/8"], "dst": ["*:*"]}, {"action": "accept", "src": ["*"], "dst": ["autogroup:self:22"]}]`)
	a, b := mesh(), mesh()
	slices.Reverse(b.Nodes)
	slices.Reverse(b.Users)
	ca, cb := mustCompile(t, policy, a), mustCompile(t, policy, b)
	opt := cmp.Comparer(func(x, y netip.Prefix) bool { return x == y })
	for _, n := range a.Nodes {
		if diff := cmp.Diff(ca.View(n.ID), cb.View(n.ID), opt); diff != "" {
			t.Errorf("node %d: %s", n.ID, diff)
		}
	}
	if diff := cmp.Diff(ca.Rules(), cb.Rules(), opt); diff != "" {
		t.Error(diff)
	}
}

func TestCompileRefusesBadInventory(t *testing.T) {
	p := mustParse(t, `"acls": []`)
	for name, change := range map[string]func(*Inventory){
		"same id":      func(inv *Inventory) { inv.Nodes[1].ID = inv.Nodes[0].ID },
		"no id":        func(inv *Inventory) { inv.Nodes[1].ID = 0 },
		"same address": func(inv *Inventory) { inv.Nodes[1].Addrs = inv.Nodes[0].Addrs },
	} {
		inv := mesh()
		change(inv)
		if _, err := Compile(p, inv); err == nil {
			t.Errorf("%s: compiled", name)
		}
	}
}

func TestClasses(t *testing.T) {
	c := mustCompile(t, mustParse(t, `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}]`), mesh())
	if got := c.Classes(); got != 3 {
		t.Errorf("%d classes, want 3: web, db, the rest", got)
	}
}
