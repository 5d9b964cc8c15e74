package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestDiff(t *testing.T) {
	inv := mesh()
	name := map[NodeID]string{0: "-"}
	for _, n := range inv.Nodes {
		name[n.ID] = n.Name
	}
	for _, tt := range []struct {
		name, before, after string
		want                []string // IPv4 only
	}{
		{"nothing", `"acls": []`, `"grants": []`, nil},
		{"order", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:1", "dbhost:2"]}]`, `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["dbhost:2"]}, {"action": "accept", "src": ["tag:web"], "dst": ["tag:db:1"]}]`, nil},
		{"opened", `"acls": []`, `"acls": [{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["tag:db:5432"]}]`,
			[]string{"+ web1 db1 100.64.0.6 6/5432 acls[0]"}},
		{"shut", `"acls": [{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["tag:db:5432-5433"]}]`, `"acls": [{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["tag:db:5432"]}]`,
			[]string{"- web1 db1 100.64.0.6 6/5433 acls[0]"}},
		{"denied", `"acls": [{"action": "accept", "proto": "tcp", "src": ["group:eng"], "dst": ["tag:db:1-100"]}]`,
			`"acls": [{"action": "accept", "proto": "tcp", "src": ["group:eng"], "dst": ["tag:db:1-100"]}, {"action": "deny", "proto": "tcp", "src": ["bob@example.com"], "dst": ["*:50-60"]}]`,
			[]string{"- bob-laptop db1 100.64.0.6 6/50-60 acls[1]"}},
		{"behind a router", `"acls": []`, `"acls": [{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["office:443"]}]`,
			[]string{"+ web1 - 10.33.0.0 6/443 acls[0]"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, c := range Diff(mustCompile(t, mustParse(t, tt.before), inv), mustCompile(t, mustParse(t, tt.after), inv), 100) {
				if c.Addr.Is4() {
					sign := map[bool]string{true: "+", false: "-"}[c.Opened]
					got = append(got, fmt.Sprintf("%s %s %s %s %d/%s %s", sign, name[c.Src], name[c.Dst], c.Addr, c.Proto, c.Ports, c.Rule.Path))
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Diff finds nothing if and only if the meaning is the same.
func TestDiffFindsAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		texts := [2]string{drafts.Draw(t, "before").text(t), drafts.Draw(t, "after").text(t)}
		var c [2]*Program
		var flows [2][]string
		for i, s := range texts {
			p, err := Parse("acl.hujson", []byte(s), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if c[i], err = Compile(p, mesh()); err != nil {
				t.Fatal(err)
			}
			flows[i] = slices.DeleteFunc(strings.Split(meaning(t, s), "\n"), func(l string) bool {
				return !strings.Contains(l, " to 100.") || strings.HasSuffix(l, "/1")
			})
		}
		changes := Diff(c[0], c[1], 10000)
		if len(changes) == 0 && !slices.Equal(flows[0], flows[1]) {
			t.Fatalf("no change found between\n%s\n%s", texts[0], texts[1])
		}
		for _, x := range changes {
			_, was := c[0].Check(x.Src, x.Addr, x.Ports.First, x.Proto)
			_, is := c[1].Check(x.Src, x.Addr, x.Ports.Last, x.Proto)
			if was == is || is != x.Opened {
				t.Fatalf("%+v: was %v, is %v", x, was, is)
			}
		}
	})
}

func TestWho(t *testing.T) {
	c := mustCompile(t, mustParse(t, `"acls": [{"action": "accept", "src": ["tag:web", "group:eng"], "dst": ["tag:db:5432"]}, {"action": "deny", "src": ["bob@example.com"], "dst": ["tag:db:*"]}]`), mesh())
	if got := c.Who(netip.MustParseAddr("100.64.0.6"), 5432, protoTCP); !slices.Equal(got, []NodeID{1, 2, 4, 5}) {
		t.Errorf("%v may", got)
	}
}

func TestFormat(t *testing.T) {
	got, err := Format("acl.hujson", []byte("{// all\n\"acls\":[ ],}"))
	if want := "{ // all\n\t\"acls\": [],\n}\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if _, err := Format("acl.hujson", []byte("{")); len(Of(err)) != 1 {
		t.Errorf("error %v", err)
	}
}
