package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var noon = time.Date(2026, 7, 6, 12, 0, 0, 0, time.UTC) // a Monday

func deltaLines(ds []Delta) []string {
	var out []string
	for _, d := range ds {
		for _, l := range []struct {
			sign string
			ss   []Service
		}{{"+", d.Gained}, {"-", d.Lost}} {
			if len(l.ss) == 0 {
				continue
			}
			s := fmt.Sprintf("%s %v -> %v", l.sign, d.Src, d.Dst)
			if d.Family != 0 {
				s += fmt.Sprintf(" v%d", d.Family)
			}
			for _, x := range l.ss {
				s += " " + x.String()
				if !x.From.IsZero() {
					s += " from " + x.From.Format(time.RFC3339)
				}
			}
			out = append(out, s)
		}
	}
	return out
}

func TestDiff(t *testing.T) {
	const eng = `{"action": "accept", "proto": "tcp", "src": ["group:eng"], "dst": ["tag:db:1-100"]%s}`
	rules := func(rs ...string) string { return `"acls": [` + strings.Join(rs, ",") + `]` }
	for _, tt := range []struct {
		name, before, after string
		want                []string
	}{
		{"nothing", `"acls": []`, `"grants": []`, nil},
		{"order", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:1", "dbhost:2"]}]`, `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["dbhost:2"]}, {"action": "accept", "src": ["tag:web"], "dst": ["tag:db:1"]}]`, nil},
		{"opened", `"acls": []`, `"acls": [{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["tag:db:5432"]}]`,
			[]string{"+ [tag:web (2 nodes)] -> [db1 (tag:db)] icmp tcp/5432 ipv6-icmp"}},
		{"one port", `"acls": [{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["tag:db:5432-5433"]}]`, `"acls": [{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["tag:db:5432"]}]`,
			[]string{"- [tag:web (2 nodes)] -> [db1 (tag:db)] tcp/5433"}},
		{"denied", rules(fmt.Sprintf(eng, "")), rules(fmt.Sprintf(eng, ""), `{"action": "deny", "proto": "tcp", "src": ["bob@example.com"], "dst": ["*:50-60"]}`),
			[]string{"- [bob-laptop (bob@example.com)] -> [db1 (tag:db)] tcp/50-60"}},
		{"one family", `"acls": []`, `"acls": [{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["dbhost:22"]}]`,
			[]string{"+ [tag:web (2 nodes)] -> [db1 (tag:db)] v4 icmp tcp/22"}},
		{"behind a router", `"acls": []`, `"acls": [{"action": "accept", "proto": "gre", "src": ["tag:web"], "dst": ["office:*"]}]`,
			[]string{"+ [tag:web (2 nodes)] -> [10.33.0.0/16 behind router] v4 icmp gre"}},
		{"behind nobody yet", `"acls": []`, `"acls": [{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["172.16.0.0/12:22"]}]`,
			[]string{"+ [tag:web (2 nodes)] -> [172.16.0.0/12 (behind no node)] v4 icmp tcp/22"}},
		{"the internet", `"acls": []`, `"acls": [{"action": "accept", "proto": "tcp", "src": ["dbhost"], "dst": ["autogroup:internet:443"]}]`,
			[]string{"+ [db1 (tag:db)] -> [autogroup:internet behind exit] v4 icmp tcp/443"}},
		{"all there is", `"acls": []`, `"acls": [{"action": "accept", "proto": "tcp", "src": ["dbhost"], "dst": ["*:443"]}]`,
			[]string{"+ [db1 (tag:db)] -> [alice@example.com (2 nodes) bob-laptop (bob@example.com) exit (tag:exit) router (tag:router) tag:web (2 nodes) autogroup:internet behind exit 10.33.0.0/16 behind router] v4 icmp tcp/443"}},
		{"self", `"acls": []`, `"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:22"]}]`,
			[]string{"+ [alice@example.com (2 nodes)] -> [alice@example.com (2 nodes)] icmp tcp/22 udp/22 ipv6-icmp"}},
		{"an end put off", rules(fmt.Sprintf(eng, `, "expires": "2026-08-01T00:00:00Z"`)), rules(fmt.Sprintf(eng, `, "expires": "2026-09-01T00:00:00Z"`)),
			[]string{"+ [alice@example.com (2 nodes) bob-laptop (bob@example.com)] -> [db1 (tag:db)] icmp from 2026-08-01T00:00:00Z tcp/1-100 from 2026-08-01T00:00:00Z ipv6-icmp from 2026-08-01T00:00:00Z"}},
		{"an end that has been", rules(fmt.Sprintf(eng, `, "expires": "2026-01-01T00:00:00Z"`)), rules(), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inv := mesh()
			got := deltaLines(Diff(mustCompile(t, mustParse(t, tt.before), inv), mustCompile(t, mustParse(t, tt.after), inv), noon))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// flowsOf lists the flows of one kind that deltas tell of, of those that are tried.
func flowsOf(accs []Access, inv *Inventory) map[string]bool {
	out := map[string]bool{}
	for _, a := range accs {
		for _, src := range a.Src {
			for _, from := range src.Nodes {
				for _, dst := range a.Dst {
					var addrs []netip.Addr
					for _, n := range inv.Nodes {
						if slices.Contains(dst.Nodes, n.Name) && n.Name != from {
							addrs = append(addrs, n.Addrs...)
						}
					}
					for _, b := range beyond {
						if dst.Carrier != "" && dst.Carrier != from && slices.ContainsFunc(dst.Addrs, func(p netip.Prefix) bool { return p.Contains(b) }) {
							addrs = append(addrs, b)
						}
					}
					for _, at := range addrs {
						if a.Family == 4 && at.Is6() || a.Family == 6 && at.Is4() {
							continue
						}
						for _, s := range a.Services {
							for _, k := range kindsTried {
								if k.proto == s.Proto && s.Ports.Contains(k.port) && !(k.proto == 1 && at.Is6() || k.proto == 58 && at.Is4()) {
									out[fmt.Sprint(from, " ", at, " ", k)] = true
								}
							}
						}
					}
				}
			}
		}
	}
	return out
}

type kindTried struct {
	proto uint8
	port  uint16
}

var (
	kindsTried []kindTried
	beyond     = []netip.Addr{netip.MustParseAddr("10.33.1.1"), netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("2001:4860::8"), netip.MustParseAddr("10.44.0.1")}
)

func init() {
	for _, n := range []uint8{6, 17, 1, 58, 47} {
		for _, p := range []uint16{0, 1, 22, 23, 79, 80, 443, 1024, 1025, 65535} {
			kindsTried = append(kindsTried, kindTried{n, p})
		}
	}
}

// checked lists the flows that Check admits, of those that are tried.
func checked(c *Program, inv *Inventory) map[string]bool {
	out := map[string]bool{}
	for _, from := range inv.Nodes {
		addrs := slices.Clone(beyond)
		for _, n := range inv.Nodes {
			if n.ID != from.ID {
				addrs = append(addrs, n.Addrs...)
			}
		}
		for _, at := range addrs {
			for _, k := range kindsTried {
				if k.proto == 1 && at.Is6() || k.proto == 58 && at.Is4() {
					continue
				}
				if _, ok := c.Check(from.ID, at, k.port, k.proto); ok {
					out[fmt.Sprint(from.Name, " ", at, " ", k)] = true
				}
			}
		}
	}
	return out
}

// Diff tells all that changes and nothing else; who and reach tell all that is, and nothing else.
func TestDiffIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inv := mesh()
		var c [2]*Program
		var admits [2]map[string]bool
		var texts [2]string
		for i, name := range []string{"before", "after"} {
			texts[i] = drafts.Draw(t, name).text(t)
			p, err := Parse("acl.hujson", []byte(texts[i]), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if c[i], err = Compile(p, inv); err != nil {
				t.Fatal(err)
			}
			admits[i] = checked(c[i], inv)
		}
		var gained, lost []Access
		for _, d := range Diff(c[0], c[1], noon) {
			gained = append(gained, Access{d.Src, d.Dst, d.Family, d.Gained})
			lost = append(lost, Access{d.Src, d.Dst, d.Family, d.Lost})
		}
		var reached, who []Access
		for _, n := range inv.Nodes {
			reached = append(reached, c[1].Reach([]NodeID{n.ID}, noon)...)
			who = append(who, c[1].WhoReaches([]NodeID{n.ID}, noon)...)
		}
		for _, b := range beyond {
			who = append(who, c[1].WhoReachesAddr(b, noon)...)
		}
		g, l, r, w := flowsOf(gained, inv), flowsOf(lost, inv), flowsOf(reached, inv), flowsOf(who, inv)
		keys := map[string]bool{}
		for _, m := range []map[string]bool{admits[0], admits[1], g, l, r, w} {
			for k := range m {
				keys[k] = true
			}
		}
		for k := range keys {
			was, is := admits[0][k], admits[1][k]
			if g[k] != (is && !was) || l[k] != (was && !is) || r[k] != is || w[k] != is {
				t.Fatalf("%s: was %v, is %v; gained %v, lost %v, reach %v, who %v\n%s\n%s", k, was, is, g[k], l[k], r[k], w[k], texts[0], texts[1])
			}
		}
		if d := Diff(c[1], c[1], noon); len(d) > 0 {
			t.Fatalf("a policy differs from itself: %v", deltaLines(d))
		}
	})
}

// Why says what Check says; where it denies for want of a rule it says what is missing.
func TestWhyAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inv := mesh()
		text := drafts.Draw(t, "policy").text(t)
		p, err := Parse("acl.hujson", []byte(text), Options{})
		if err != nil {
			t.Fatal(err)
		}
		c, err := Compile(p, inv)
		if err != nil {
			t.Fatal(err)
		}
		accepts := slices.ContainsFunc(p.rows, func(r *row) bool { return r.action == Accept })
		admits := checked(c, inv)
		for _, from := range inv.Nodes {
			dsts := slices.Clone(beyond)
			for _, n := range inv.Nodes {
				if n.ID != from.ID {
					dsts = append(dsts, n.Addrs...)
				}
			}
			for _, at := range dsts {
				for _, k := range kindsTried {
					if k.proto == 1 && at.Is6() || k.proto == 58 && at.Is4() {
						continue
					}
					a, err := c.Why(from.ID, at, k.port, k.proto, noon)
					if err != nil {
						t.Fatal(err)
					}
					if want := admits[fmt.Sprint(from.Name, " ", at, " ", k)]; a.Allow != want || a.Allow && len(a.Rules) == 0 {
						t.Fatalf("%s to %s %v: %v, but Check says %v\n%s", from.Name, at, k, a, want, text)
					}
					if accepts && !a.Allow && len(a.Rules) == 0 && len(a.Missing) == 0 {
						t.Fatalf("%s to %s %v: %v: nothing is missing\n%s", from.Name, at, k, a, text)
					}
				}
			}
		}
	})
}

func TestWhy(t *testing.T) {
	const rules = `"postures": {"posture:linux": ["node:os == 'linux'"]},
"acls": [
	{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["tag:db:5432"]},
	{"action": "accept", "src": ["group:eng"], "dst": ["office:443", "autogroup:internet:*"]},
	{"action": "accept", "src": ["carol@example.com"], "dst": ["10.44.0.0/16:22"]},
	{"action": "deny", "src": ["bob@example.com"], "dst": ["tag:web:*"]},
	{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:web:80"]},
	{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:web:80"], "expires": "2026-01-01T00:00:00Z"},
	{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:web:443"], "srcPosture": ["posture:linux"]},
	{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:22"]},
]`
	inv := mesh()
	inv.Nodes = append(inv.Nodes, Node{ID: 9, Name: "carol-pc", User: "carol@example.com", Addrs: []netip.Addr{netip.MustParseAddr("100.64.0.9")}})
	c := mustCompile(t, mustParse(t, rules), inv)
	for _, tt := range []struct {
		src   NodeID
		dst   string
		port  uint16
		proto uint8
		want  []string
	}{
		{4, "100.64.0.6", 5432, 6, []string{"allowed: web1 may reach db1 on tcp/5432", "by acls[0] (acl.hujson:6:2)"}},
		{4, "100.64.0.6", 5433, 6, []string{"acls[0] (acl.hujson:6:2) matches but for one thing: port 5433 is not among its ports for tag:db (5432)"}},
		{4, "100.64.0.6", 5432, 17, []string{"udp is not among its protocols (tcp)"}},
		{4, "100.64.0.7", 5432, 6, []string{"matches but for one thing: tag:router is not in its dst"}},
		{7, "100.64.0.6", 5432, 6, []string{"matches but for one thing: tag:router is not in its src"}},
		{7, "100.64.0.6", 5431, 6, []string{"no rule comes near; acls[0] (acl.hujson:6:2) is nearest, but port 5431 is not among its ports for tag:db (5432), and tag:router is not in its src"}},
		{1, "10.33.1.1", 443, 6, []string{"allowed: alice-laptop may reach 10.33.1.1 behind router", "acls[1]"}},
		{9, "10.44.1.1", 22, 6, []string{"no router has an approved route to 10.44.1.1, and an exit carries only the internet"}},
		{1, "8.8.8.8", 22, 6, []string{"8.8.8.8 behind exit"}},
		{3, "100.64.0.4", 80, 6, []string{"by acls[3] (acl.hujson:9:2), a deny"}},
		{1, "100.64.0.4", 80, 6, []string{"it ended on 2026-01-01T00:00:00Z"}},
		{1, "100.64.0.4", 443, 6, []string{"posture:linux does not hold of alice-laptop"}},
		{1, "100.64.0.2", 22, 6, []string{"allowed", "acls[7]"}},
		{9, "100.64.0.2", 22, 6, []string{"acls[2] (acl.hujson:8:2) matches but for one thing: alice@example.com is not in its dst"}},
		{1, "100.64.0.1", 22, 6, []string{"itself"}},
	} {
		a, err := c.Why(tt.src, netip.MustParseAddr(tt.dst), tt.port, tt.proto, noon)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range tt.want {
			if !strings.Contains(a.String(), w) {
				t.Errorf("%d to %s %d/%d: %s\nwant %q", tt.src, tt.dst, tt.port, tt.proto, a, w)
			}
		}
	}
}

// "*" through an exit is the internet: what is private takes a router of its own, for every question that is asked.
func TestExitCarriesNothingPrivate(t *testing.T) {
	c := mustCompile(t, mustParse(t, `"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]`), mesh())
	for dst, want := range map[string]bool{"8.8.8.8": true, "2606:4700::1": true, "10.33.1.1": true, "10.44.1.1": false, "192.168.1.1": false,
		"172.16.0.1": false, "100.127.0.1": false, "169.254.169.254": false, "127.0.0.1": false, "224.0.0.1": false, "fd00::1": false, "::1": false} {
		a := netip.MustParseAddr(dst)
		why, err := c.Why(3, a, 443, 6, noon)
		if err != nil || why.Allow != want || !want && !strings.Contains(why.String(), "an exit carries only the internet") {
			t.Errorf("%s: %v, %v", dst, why, err)
		}
		if _, ok := c.Check(3, a, 443, 6); ok != want {
			t.Errorf("%s: Check says %v", dst, ok)
		}
		if got := len(c.WhoReachesAddr(a, noon)) > 0; got != want {
			t.Errorf("%s: who reaches it: %v", dst, got)
		}
		reached := slices.ContainsFunc(c.Reach([]NodeID{3}, noon), func(x Access) bool {
			return slices.ContainsFunc(x.Dst, func(p Party) bool {
				return slices.ContainsFunc(p.Addrs, func(p netip.Prefix) bool { return p.Contains(a) })
			})
		})
		if reached != want {
			t.Errorf("%s: reached %v", dst, reached)
		}
	}
}

func TestWho(t *testing.T) {
	c := mustCompile(t, mustParse(t, `"acls": [{"action": "accept", "src": ["tag:web", "group:eng"], "dst": ["tag:db:5432"]}, {"action": "deny", "src": ["bob@example.com"], "dst": ["tag:db:*"]}]`), mesh())
	got := fmt.Sprint(c.WhoReachesAddr(netip.MustParseAddr("100.64.0.6"), noon))
	if want := "[{[alice@example.com (2 nodes) tag:web (2 nodes)] [db1 (tag:db)] 0 [icmp tcp/5432 udp/5432 ipv6-icmp]}]"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
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
	rapid.Check(t, func(t *rapid.T) { // once is enough, and means the same
		text := drafts.Draw(t, "policy").text(t)
		once, err := Format("acl.hujson", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := Format("acl.hujson", once); err != nil || string(twice) != string(once) {
			t.Fatalf("%v: %s then %s", err, once, twice)
		}
		if a, b := meaning(t, text), meaning(t, string(once)); a != b {
			t.Fatalf("%s means %s, and formatted %s", text, a, b)
		}
	})
}
