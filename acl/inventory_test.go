package acl

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestParseInventory(t *testing.T) {
	inv, err := ParseInventory("nodes.hujson", []byte(`{
	// who exists
	"users": [{"login": "alice@example.com", "roles": ["admin"]}],
	"nodes": [
		{"name": "laptop", "user": "bob@example.com", "attrs": {"node:os": "linux", "custom:n": 3}},
		{"id": 1, "name": "router", "tags": ["tag:b", "tag:a"], "addrs": ["100.127.0.1"], "routes": ["10.33.0.0/16"]},
	],
}`))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(*inv)
	want := "{[{alice@example.com [admin]} {bob@example.com []}] [{2 laptop bob@example.com [] [100.127.0.2 fd68:6564:6765:ff::1] [] map[custom:n:3 node:os:linux]} {1 router  [tag:a tag:b] [100.127.0.1] [10.33.0.0/16] map[]}]}"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	_, err = ParseInventory("nodes.hujson", []byte(`{
	"users": [{"login": "alice"}, {"login": "a@b", "roles": ["admn"]}, {"login": "a@b"}],
	"nodes": [
		{"name": "a", "addrs": ["100.64.0.1", "100.64.0.x"]},
		{"name": "a", "addrs": ["100.64.0.1"], "routes": ["10.0.0.0/40"], "id": 0},
		{"tags": ["web"], "color": "red"},
	],
	"extra": 1
}`))
	for _, w := range []string{"nodes.hujson:2:12: users[0] has no login", `no role "admn"`, `did you mean "admin"?`, `"a@b" is here twice`, `5:24: nodes[1]: 100.64.0.1 is the address of a already`, `"100.64.0.x" is not an address`,
		`another node is called "a"`, "/40 is not a prefix length", "id is a whole number", "nodes[2] has no name", `has no field "color"`, `must start with a letter`, `an inventory has no field "extra"`} {
		if !strings.Contains(fmt.Sprint(err), strings.TrimPrefix(w, "5:24: ")) {
			t.Errorf("%q is not said in\n%v", w, err)
		}
	}
	if _, err := ParseInventory("nodes.hujson", nil); err == nil {
		t.Error("an empty file is an inventory")
	}
}

func TestSample(t *testing.T) {
	p := mustParse(t, `"postures": {"posture:ok": ["node:os == 'linux'", "node:osVersion > '6.1'"]},
"autoApprovers": {"routes": {"10.33.0.0/16": ["tag:router"]}, "exitNode": ["tag:exit"]},
"acls": [
	{"action": "accept", "src": ["alice@example.com"], "dst": ["office:443"]},
	{"action": "accept", "src": ["group:eng & tag:web"], "dst": ["dbhost:22"], "srcPosture": ["posture:ok"]},
	{"action": "accept", "src": ["autogroup:admin"], "dst": ["autogroup:internet:*"]},
]`)
	inv := Sample(p)
	c := mustCompile(t, p, inv)
	id := map[string]NodeID{}
	for _, n := range inv.Nodes {
		id[n.Name] = n.ID
	}
	for _, tt := range []struct {
		src, dst string
		port     uint16
		want     bool
	}{
		{"alice", "10.33.0.1", 443, true}, {"bob", "10.33.0.1", 443, false}, {"alice-web", "100.64.0.6", 22, true}, {"web", "100.64.0.6", 22, false}, {"admin", "8.8.8.8", 53, true},
	} {
		if _, ok := c.Check(id[tt.src], netip.MustParseAddr(tt.dst), tt.port, protoTCP); ok != tt.want || id[tt.src] == 0 {
			t.Errorf("%s (%d) to %s: %v\n%+v", tt.src, id[tt.src], tt.dst, ok, inv.Nodes)
		}
	}
}

func TestFind(t *testing.T) {
	c := mustCompile(t, mustParse(t, `"acls": []`), mesh())
	for _, tt := range []struct{ name, want string }{
		{"web1", "[4] invalid IP <nil>"}, {"100.64.0.6", "[6] 100.64.0.6 <nil>"}, {"10.33.1.1", "[] 10.33.1.1 <nil>"}, {"[fd68:6564:6765::6]", "[6] fd68:6564:6765::6 <nil>"},
		{"alice@example.com", "[1 2] invalid IP <nil>"}, {"group:eng", "[1 2 3] invalid IP <nil>"}, {"tag:web", "[4 5] invalid IP <nil>"}, {"dbhost", "[6] 100.64.0.6 <nil>"},
		{"office", "[] invalid IP host \"office\" is a network; ask about one address of it, such as 10.33.0.1"},
		{"wbe1", `[] invalid IP no node is called "wbe1" (did you mean "web1"?)`}, {"tag:wbe", `[] invalid IP tag "tag:wbe" is not defined (did you mean "tag:web"?)`},
		{"zoe@example.com", `[] invalid IP "zoe@example.com" has no node in this inventory (did you mean "bob@example.com"?)`},
	} {
		ids, a, err := c.Find(tt.name)
		if got := fmt.Sprint(ids, " ", a, " ", err); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// An inventory may be larger than a policy, and is bounded too.
func TestInventorySize(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"nodes": [`)
	for i := range 20_000 {
		fmt.Fprintf(&b, "{\"name\": \"n%d\", \"user\": \"u%d@example.com\", \"attrs\": {\"node:os\": \"linux\"}},\n", i, i/2)
	}
	b.WriteString(`]}`)
	inv, err := ParseInventory("inventory.hujson", []byte(b.String()))
	if err != nil || len(inv.Nodes) != 20_000 || b.Len() < MaxSize {
		t.Errorf("%d bytes: %v", b.Len(), err)
	}
	if _, err := ParseInventory("inventory.hujson", []byte(`{"nodes": [`+strings.Repeat(" ", maxInventory)+`]}`)); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a huge one: %v", err)
	}
}
