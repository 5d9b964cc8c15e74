package acl

import (
	"fmt"
	"net/netip"
	"testing"
)

// mesh is the inventory of most tests: three people, five servers.
func mesh() *Inventory {
	n := func(id int, name, user string, tags ...string) Node {
		return Node{ID: NodeID(id), Name: name, User: user, Tags: tags, Addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{100, 64, 0, byte(id)}), netip.MustParseAddr(fmt.Sprintf("fd68:6564:6765::%x", id)),
		}}
	}
	inv := &Inventory{
		Users: []User{{Login: "alice@example.com", Roles: []string{"admin"}}, {Login: "bob@example.com"}, {Login: "carol@example.com"}},
		Nodes: []Node{
			n(1, "alice-laptop", "alice@example.com"), n(2, "alice-phone", "alice@example.com"), n(3, "bob-laptop", "bob@example.com"),
			n(4, "web1", "", "tag:web"), n(5, "web2", "", "tag:web"), n(6, "db1", "", "tag:db"), n(7, "router", "", "tag:router"),
			n(8, "exit", "", "tag:exit"),
		},
	}
	inv.Nodes[6].Routes = []netip.Prefix{netip.MustParsePrefix("10.33.0.0/16")}
	inv.Nodes[7].Routes = []netip.Prefix{all4, all6}
	return inv
}

const head = `"groups": {"group:eng": ["alice@example.com", "bob@example.com"]},
"hosts": {"dbhost": "100.64.0.6", "office": "10.33.0.0/16"},
"tagOwners": {"tag:web": ["group:eng"], "tag:db": [], "tag:router": ["alice@example.com"], "tag:exit": ["tag:router"]},
`

func mustParse(t testing.TB, rest string) *Policy {
	t.Helper()
	p, err := Parse("acl.hujson", []byte("{"+head+rest+"}"), Options{})
	if err != nil {
		t.Fatalf("%s\n%s", rest, Of(err).Render())
	}
	return p
}

func mustCompile(t testing.TB, p *Policy, inv *Inventory) *Program {
	t.Helper()
	c, err := Compile(p, inv)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCheck(t *testing.T) {
	const webToDB = `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}]`
	const webToDBTCP = `"acls": [{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["tag:db:53"]}]`
	const all = `{"action": "accept", "src": ["*"], "dst": ["*:*"]}`
	const grant = `"grants": [{"src": ["autogroup:tagged"], "dst": ["tag:db"], "ip": ["tcp:5432", "udp:53", "9000-9010"]}]`
	const self = `"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]`
	const internet = `"acls": [{"action": "accept", "src": ["*"], "dst": ["autogroup:internet:*"]}]`
	const toDBHost = `"acls": [{"action": "accept", "users": ["group:eng"], "ports": ["dbhost:22"]}]`
	from := func(src string) string {
		return `"acls": [{"action": "accept", "src": ["` + src + `"], "dst": ["tag:db:*"]}]`
	}
	for _, tt := range []struct {
		name, policy, src, dst string // "6:NAME" is the node's IPv6 address
		port                   uint16
		proto                  uint8
		want                   string // the rule's path, "!" before it if it denies, "" for none
	}{
		{"tag", webToDB, "web1", "db1", 5432, 6, "acls[0]"},
		{"other port", webToDB, "web1", "db1", 5433, 6, ""},
		{"other way", webToDB, "db1", "web1", 5432, 6, ""},
		{"udp by default", webToDB, "web1", "db1", 5432, 17, "acls[0]"},
		{"tcp only", webToDBTCP, "web1", "db1", 53, 17, ""},
		{"ping follows", webToDBTCP, "web1", "db1", 0, 1, "acls[0]"},
		{"gre wants *", `"acls": [{"action": "accept", "proto": "gre", "src": ["tag:web"], "dst": ["tag:db:*"]}]`, "web1", "db1", 0, 47, "acls[0]"},
		{"gre is not a default", from("tag:web"), "web1", "db1", 0, 47, ""},
		{"old field names", toDBHost, "bob-laptop", "db1", 22, 6, "acls[0]"},
		{"host is one family", toDBHost, "bob-laptop", "6:db1", 22, 6, ""},
		{"deny wins", `"acls": [` + all + `, {"action": "deny", "src": ["bob@example.com"], "dst": ["tag:db:*"]}]`, "bob-laptop", "db1", 22, 6, "!acls[1]"},
		{"deny one port", `"acls": [{"action": "deny", "src": ["*"], "dst": ["tag:db:22"]}, ` + all + `]`, "bob-laptop", "db1", 23, 6, "acls[1]"},
		{"deny one port leaves ping", `"acls": [{"action": "deny", "src": ["*"], "dst": ["tag:db:22"]}, ` + all + `]`, "bob-laptop", "db1", 0, 1, "acls[1]"},
		{"deny stops any protocol", `"acls": [{"action": "deny", "src": ["*"], "dst": ["tag:db:*"]}, {"action": "accept", "proto": "gre", "src": ["*"], "dst": ["*:*"]}]`, "bob-laptop", "db1", 0, 47, "!acls[0]"},
		{"self", self, "alice-laptop", "alice-phone", 22, 6, "acls[0]"},
		{"self is not others", self, "bob-laptop", "alice-phone", 22, 6, ""},
		{"grant udp", grant, "web2", "db1", 53, 17, "grants[0]"},
		{"grant not tcp", grant, "web2", "db1", 53, 6, ""},
		{"grant any", grant, "web2", "db1", 9003, 6, "grants[0]"},
		{"role", from("autogroup:admin"), "alice-phone", "db1", 1, 6, "acls[0]"},
		{"no role", from("autogroup:admin"), "bob-laptop", "db1", 1, 6, ""},
		{"domain", from("user:*@example.com"), "bob-laptop", "db1", 1, 6, "acls[0]"},
		{"not", from("autogroup:member & !bob@example.com"), "bob-laptop", "db1", 1, 6, ""},
		{"not others", from("autogroup:member & !bob@example.com"), "alice-phone", "db1", 1, 6, "acls[0]"},
		{"and", from("group:eng & autogroup:admin"), "alice-phone", "db1", 1, 6, "acls[0]"},
		{"and both", from("group:eng & autogroup:admin"), "bob-laptop", "db1", 1, 6, ""},
		{"behind a router", `"acls": [{"action": "accept", "src": ["*"], "dst": ["office:443"]}]`, "bob-laptop", "10.33.4.5", 443, 6, "acls[0]"},
		{"internet", internet, "bob-laptop", "1.1.1.1", 443, 6, "acls[0]"},
		{"internet is not private", internet, "bob-laptop", "10.0.0.1", 443, 6, ""},
		{"internet is not the exit node", internet, "bob-laptop", "exit", 443, 6, ""},
		{"no rules", `"acls": []`, "alice-laptop", "alice-phone", 22, 6, ""},
		{"default deny", `"defaultAccess": "deny"`, "alice-laptop", "alice-phone", 22, 6, ""},
		{"default allow", `"defaultAccess": "allow"`, "alice-laptop", "db1", 22, 6, "defaultAccess"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inv := mesh()
			c := mustCompile(t, mustParse(t, tt.policy), inv)
			var src NodeID
			dst, _ := netip.ParseAddr(tt.dst)
			for _, n := range inv.Nodes {
				switch {
				case n.Name == tt.src:
					src = n.ID
				case n.Name == tt.dst:
					dst = n.Addrs[0]
				case "6:"+n.Name == tt.dst:
					dst = n.Addrs[1]
				}
			}
			r, ok := c.Check(src, dst, tt.port, tt.proto)
			got := ""
			if r != nil {
				if got = r.Path; !ok {
					got = "!" + got
				}
			}
			if got != tt.want {
				t.Errorf("%s to %s port %d proto %d: %q, want %q", tt.src, tt.dst, tt.port, tt.proto, got, tt.want)
			}
		})
	}
}
