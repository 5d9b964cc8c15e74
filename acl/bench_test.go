package acl

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// large is a mesh of n nodes, most of them people's, and a policy of so many rules over their teams and services.
func large(tb testing.TB, nodes, rules int) (*Policy, *Inventory) {
	inv := &Inventory{}
	const teams, services = 500, 200
	var groups, tags, acls []string
	members := make([][]string, teams)
	for i := range nodes {
		n := Node{ID: NodeID(i + 1), Name: fmt.Sprintf("n%d", i), Addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 0x68, 14: byte(i >> 8), 15: byte(i)}),
		}}
		if i%3 == 0 {
			n.Tags = []string{fmt.Sprintf("tag:s%d", i%services)}
		} else {
			u := fmt.Sprintf("u%d@example.com", i/2)
			n.User = u
			members[i/2%teams] = append(members[i/2%teams], `"`+u+`"`)
			inv.Users = append(inv.Users, User{Login: u})
		}
		inv.Nodes = append(inv.Nodes, n)
	}
	for i, m := range members {
		groups = append(groups, fmt.Sprintf(`"group:t%d": [%s]`, i, strings.Join(m, ",")))
	}
	for i := range services {
		tags = append(tags, fmt.Sprintf(`"tag:s%d": []`, i))
	}
	for i := range rules {
		src, dst := fmt.Sprintf("group:t%d", i%teams), fmt.Sprintf("tag:s%d", i*7%services)
		switch i % 10 {
		case 0:
			src = fmt.Sprintf("tag:s%d", i*3%services)
		case 1:
			dst = fmt.Sprintf("100.64.%d.0/24", i%40)
		case 2:
			src, dst = fmt.Sprintf("u%d@example.com", i), "autogroup:self"
		}
		acls = append(acls, fmt.Sprintf(`{"action": "accept", "src": ["%s"], "dst": ["%s:%d"]}`, src, dst, 1000+i))
	}
	src := "{\"groups\": {" + strings.Join(groups, ",") + "},\n\"tagOwners\": {" + strings.Join(tags, ",") + "},\n\"acls\": [" + strings.Join(acls, ",\n") + "]}"
	p, err := Parse("acl.hujson", []byte(src), Options{})
	if err != nil {
		tb.Fatal(err)
	}
	return p, inv
}

func BenchmarkCompile(b *testing.B) {
	p, inv := large(b, 10000, 2000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(p, inv); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOneNode is what one node costs that comes, goes, or gets other tags: the program, who is concerned, and what
// each of them is told. The named baseline is to compile all anew, and to tell nobody.
func BenchmarkOneNode(b *testing.B) {
	narrow, inv := large(b, 10000, 2000)
	text := strings.TrimSuffix(string(narrow.doc.src), "]}")
	parse := func(more string) *Policy {
		p, err := Parse("acl.hujson", []byte(text+","+more+"]}"), Options{})
		if err != nil {
			b.Fatal(err)
		}
		return p
	}
	person := Node{ID: 20000, Name: "new", User: "u4@example.com", Addrs: []netip.Addr{netip.MustParseAddr("100.64.99.1"), netip.MustParseAddr("fd68::99:1")}}
	web := Node{ID: 20000, Name: "new", Tags: []string{"tag:s1"}, Addrs: person.Addrs}
	old := inv.Nodes[30]
	old.Tags = []string{"tag:s2"}
	for _, p := range []struct {
		name string
		*Policy
	}{
		{"segments", narrow},
		{"services of all", parse(`{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:s1:443"]}`)},
		{"everyone", parse(`{"action": "accept", "src": ["*"], "dst": ["*:*"]}`)},
		{"everyone but", parse(`{"action": "accept", "src": ["*"], "dst": ["*:*"]}, {"action": "deny", "src": ["*"], "dst": ["tag:s1:22"]}`)},
	} {
		c := mustCompile(b, p.Policy, inv)
		b.Run(p.name+"/compile", func(b *testing.B) {
			for b.Loop() {
				mustCompile(b, p.Policy, inv)
			}
		})
		for _, u := range []struct {
			name string
			Update
		}{{"person comes", Update{Nodes: []Node{person}}}, {"server comes", Update{Nodes: []Node{web}}},
			{"server goes", Update{Gone: []NodeID{inv.Nodes[30].ID}}}, {"server gets other tags", Update{Nodes: []Node{old}}}} {
			b.Run(p.name+"/"+u.name, func(b *testing.B) {
				b.ReportAllocs()
				told := 0
				for b.Loop() {
					_, ch, err := c.With(u.Update)
					if err != nil {
						b.Fatal(err)
					}
					told = 0
					for _, id := range ch.Concerned() {
						ch.Of(id)
						told++
					}
				}
				b.ReportMetric(float64(told), "concerned")
			})
		}
	}
}

func BenchmarkView(b *testing.B) {
	p, inv := large(b, 10000, 2000)
	c, err := Compile(p, inv)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		c.View(inv.Nodes[i%len(inv.Nodes)].ID)
		i++
	}
}

func BenchmarkCheck(b *testing.B) {
	p, inv := large(b, 10000, 2000)
	c, err := Compile(p, inv)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c.Check(2, inv.Nodes[3].Addrs[0], 1000, protoTCP)
	}
}

// BenchmarkProve parses a large policy with a few nevers, each of which must look at every rule.
func BenchmarkProve(b *testing.B) {
	p, _ := large(b, 10000, 2000)
	src := strings.TrimSuffix(string(p.doc.src), "}") + `, "never": [
		{"src": ["autogroup:tagged"], "dst": ["u7@example.com:22"]}, {"src": ["u9999@example.com"], "dst": ["tag:s1:*"]}]}`
	for b.Loop() {
		if _, err := Parse("acl.hujson", []byte(src), Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkProvePaths proves nevers over whole paths of a policy of 2,000 rules, in which people and services log in on
// others here and there; the work is that of the proof alone.
func BenchmarkProvePaths(b *testing.B) {
	p, _ := large(b, 10000, 2000)
	text := strings.TrimSuffix(string(p.doc.src), "]}")
	for i := range 40 {
		text += fmt.Sprintf(",\n"+`{"action": "accept", "src": ["group:t%d"], "dst": ["tag:s%d:22"]}`, i, 60+i)
		text += fmt.Sprintf(",\n"+`{"action": "accept", "src": ["tag:s%d"], "dst": ["tag:s%d:22"]}`, 60+i, 61+i)
	}
	p, err := Parse("acl.hujson", []byte(text+`], "never": [{"src": ["group:t1", "group:t2"], "dst": ["tag:s199:22"]}, {"src": ["autogroup:member"], "dst": ["tag:s198:23"]}]}`), Options{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if errs := p.Prove(nil); len(errs) > 0 {
			b.Fatal(errs)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	p, _ := large(b, 10000, 2000)
	for b.Loop() {
		if _, err := Parse("acl.hujson", p.doc.src, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkQuestions is what the offline verbs ask of a large mesh, parsing and compiling aside.
func BenchmarkQuestions(b *testing.B) {
	p, inv := large(b, 10000, 2000)
	c := mustCompile(b, p, inv)
	text := string(p.doc.src)
	widen := func(last string) *Program {
		q, err := Parse("acl.hujson", []byte(strings.TrimSuffix(text, "]}")+",\n"+last+"]}"), Options{})
		if err != nil {
			b.Fatal(err)
		}
		return mustCompile(b, q, inv)
	}
	one, all := widen(`{"action": "accept", "src": ["group:t7"], "dst": ["tag:s3:9"]}`), widen(`{"action": "accept", "src": ["*"], "dst": ["*:9"]}`)
	none := mustCompile(b, func() *Policy {
		q, err := Parse("acl.hujson", []byte(`{"acls": []}`), Options{})
		if err != nil {
			b.Fatal(err)
		}
		return q
	}(), inv)
	for _, q := range []struct {
		name string
		ask  func() int
	}{
		{"why", func() int { a, _ := c.Why(2, inv.Nodes[3].Addrs[0], 1, protoTCP, noon); return len(a.Missing) }},
		{"who", func() int { return len(c.WhoReaches([]NodeID{4}, noon)) }},
		{"reach", func() int { return len(c.Reach([]NodeID{1}, noon)) }},
		{"diff/same", func() int { return 1 + len(Diff(c, c, noon)) }},
		{"diff/one rule", func() int { return len(Diff(c, one, noon)) }},
		{"diff/everyone", func() int { return len(Diff(c, all, noon)) }},
		{"diff/every rule", func() int { return len(Diff(none, c, noon)) }},
	} {
		b.Run(q.name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				n = q.ask()
			}
			if n == 0 {
				b.Error("no answer")
			}
			b.ReportMetric(float64(n), "rows")
		})
	}
}
