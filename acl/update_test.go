package acl

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// wideDrafts are policies with every kind of selector, deny, via, postures and autogroup:self.
var wideDrafts = rapid.Custom(func(t *rapid.T) string {
	type row map[string]any
	pick := func(what string, n int, from ...string) []string {
		return rapid.SliceOfN(rapid.SampledFrom(from), 1, n).Draw(t, what)
	}
	srcs := []string{"*", "alice@example.com", "bob@other.org", "user:*@example.com", "group:a", "group:b", "tag:web", "tag:router", "autogroup:member", "autogroup:tagged",
		"autogroup:admin", "autogroup:danger-all", "h", "half", "net", "ipset:x", "group:a & tag:web", "!group:b", "autogroup:admin & !tag:web"}
	plain := srcs[:len(srcs)-3]
	dsts := []string{"*", "bob@other.org", "user:*@example.com", "group:a", "tag:web", "tag:db", "autogroup:member", "autogroup:tagged", "autogroup:admin", "h", "half", "net", "ipset:x", "autogroup:internet"}
	acls, grants := []row{}, []row{}
	for range rapid.IntRange(0, 5).Draw(t, "rows") {
		r := row{"action": rapid.SampledFrom([]string{"accept", "accept", "accept", "deny"}).Draw(t, "action")}
		ports := rapid.SampledFrom([]string{":*", ":22"}).Draw(t, "ports")
		r["src"] = pick("src", 3, srcs...)
		if r["action"] == "accept" && rapid.IntRange(0, 3).Draw(t, "posture") == 0 {
			r["srcPosture"] = []string{"posture:linux"}
		}
		var to []string
		if rapid.IntRange(0, 2).Draw(t, "self") == 0 {
			r["src"] = pick("src of self", 2, "alice@example.com", "group:a", "group:b", "autogroup:member", "user:*@example.com")
			to = append(to, "autogroup:self"+ports)
		}
		for _, d := range pick("dst", 3, dsts...) {
			to = append(to, d+ports)
		}
		r["dst"] = to
		acls = append(acls, r)
	}
	for range rapid.IntRange(0, 1).Draw(t, "grants") {
		grants = append(grants, row{"src": pick("src", 2, plain...), "dst": pick("dst", 2, "net", "h", "autogroup:internet", "tag:db"), "ip": []string{"*"}, "via": pick("via", 2, "tag:router", "tag:exit")})
	}
	for range rapid.IntRange(0, 1).Draw(t, "relays") {
		g := row{"src": pick("src of relay", 3, plain...), "dst": pick("relay", 2, dsts[:len(dsts)-1]...), "app": row{CapRelay: []any{}}}
		if rapid.IntRange(0, 2).Draw(t, "own relay") == 0 {
			g = row{"src": pick("src of own relay", 2, "alice@example.com", "group:a", "autogroup:member"), "dst": []string{"autogroup:self"}, "app": row{CapRelay: []any{}}}
		}
		if rapid.IntRange(0, 3).Draw(t, "healthy") == 0 {
			g["srcPosture"] = []string{"posture:linux"}
		}
		grants = append(grants, g)
	}
	b, err := json.Marshal(map[string]any{
		"groups":    map[string][]string{"group:a": {"alice@example.com", "bob@other.org"}, "group:b": {"alice@example.com", "carol@example.com"}},
		"hosts":     map[string]string{"h": "100.64.0.6", "net": "10.33.0.0/16", "half": "100.64.0.0/29"},
		"ipsets":    map[string][]string{"ipset:x": {"100.64.0.2/31", "10.33.4.0/24"}},
		"tagOwners": map[string][]string{"tag:web": {}, "tag:db": {}, "tag:router": {}, "tag:exit": {}},
		"postures":  map[string][]string{"posture:linux": {"node:os == 'linux'"}},
		"acls":      acls, "grants": grants,
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
})

// drawNode is a node of so many, as it might be.
func drawNode(t *rapid.T, id NodeID) Node {
	n := Node{ID: id, Name: fmt.Sprintf("n%d", id), Attrs: map[string]string{"node:os": rapid.SampledFrom([]string{"linux", "windows"}).Draw(t, "os")}}
	n.User = rapid.SampledFrom([]string{"", "alice@example.com", "bob@other.org", "carol@example.com", "dave@example.com"}).Draw(t, "user")
	if n.User == "" || rapid.IntRange(0, 4).Draw(t, "keeps its user") == 0 {
		n.Tags = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"tag:web", "tag:db", "tag:router", "tag:exit"}), 0, 2, rapid.ID).Draw(t, "tags")
		slices.Sort(n.Tags)
	}
	n.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, byte(id)}), netip.MustParseAddr(fmt.Sprintf("fd68:6564:6765::%x", uint64(id)))}
	if rapid.IntRange(0, 5).Draw(t, "family") == 0 {
		n.Addrs = n.Addrs[:1]
	}
	n.Routes = rapid.SampledFrom([][]netip.Prefix{nil, nil, nil, {netip.MustParsePrefix("10.33.0.0/16")}, {all4, all6}, {netip.MustParsePrefix("10.33.4.0/25"), all4}}).Draw(t, "routes")
	return n
}

// people are the users, some with roles.
func drawUser(t *rapid.T) User {
	return User{Login: rapid.SampledFrom([]string{"alice@example.com", "bob@other.org", "carol@example.com"}).Draw(t, "login"),
		Roles: rapid.SampledFrom([][]string{nil, {"admin"}}).Draw(t, "roles")}
}

var sameAsCompiled = gocmp.Options{cmpopts.EquateEmpty(), gocmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), gocmp.Comparer(func(a, b netip.Addr) bool { return a == b })}

// A program that is made of another is the one that Compile makes, and Change says of every node what its view says.
func TestWithIsCompile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := wideDrafts.Draw(t, "policy")
		p, err := Parse("acl.hujson", []byte(text), Options{})
		if err != nil {
			t.Fatalf("%s\n%s", text, Of(err).Render())
		}
		nodes, users := map[NodeID]Node{}, map[string]User{}
		inventory := func() *Inventory {
			return &Inventory{Nodes: slices.Collect(maps.Values(nodes)), Users: slices.Collect(maps.Values(users))}
		}
		for range rapid.IntRange(0, 8).Draw(t, "nodes") {
			id := NodeID(rapid.IntRange(1, 14).Draw(t, "id"))
			nodes[id] = drawNode(t, id)
		}
		c, err := Compile(p, inventory())
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			u := Update{}
			for range rapid.IntRange(1, 2).Draw(t, "changes") {
				id := NodeID(rapid.IntRange(1, 14).Draw(t, "id"))
				switch rapid.SampledFrom([]string{"put", "put", "put", "remove", "user"}).Draw(t, "change") {
				case "put":
					n := drawNode(t, id)
					nodes[id] = n
					u.Gone = slices.DeleteFunc(u.Gone, func(x NodeID) bool { return x == id })
					u.Nodes = append(slices.DeleteFunc(u.Nodes, func(x Node) bool { return x.ID == id }), n)
				case "remove":
					delete(nodes, id)
					u.Nodes = slices.DeleteFunc(u.Nodes, func(x Node) bool { return x.ID == id })
					u.Gone = append(u.Gone, id)
				case "user":
					x := drawUser(t)
					users[x.Login] = x
					u.Users = append(u.Users, x)
				}
			}
			next, ch, err := c.With(u)
			if err != nil {
				t.Fatal(err)
			}
			want, err := Compile(p, inventory())
			if err != nil {
				t.Fatal(err)
			}
			samePrograms(t, text, want, next)
			changesRight(t, text, c, next, ch)
			c = next
		}
	})
}

func samePrograms(t *rapid.T, text string, want, got *Program) {
	fail := func(what string, a, b any) {
		if diff := gocmp.Diff(a, b, sameAsCompiled); diff != "" {
			t.Fatalf("%s (-compiled +made)\n%s\n%s", what, diff, text)
		}
	}
	fail("nodes", want.Nodes(), got.Nodes())
	fail("rules", want.Rules(), got.Rules())
	if want.Classes() != got.Classes() {
		t.Fatalf("%d classes, not %d\n%s", got.Classes(), want.Classes(), text)
	}
	dsts := []netip.Addr{netip.MustParseAddr("10.33.4.1"), netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("2001:4860::8")}
	for _, n := range want.Nodes() {
		dsts = append(dsts, n.Addrs...)
	}
	for _, n := range want.Nodes() {
		fail("view of "+n.Name, want.View(n.ID), got.View(n.ID))
		fail("peers of "+n.Name, want.Peers(n.ID), got.Peers(n.ID))
		fail("routes of "+n.Name, want.Routes(n.ID), got.Routes(n.ID))
		for _, dst := range dsts {
			a, aok := want.Check(n.ID, dst, 22, protoTCP)
			b, bok := got.Check(n.ID, dst, 22, protoTCP)
			x, _ := want.Why(n.ID, dst, 22, protoTCP, noon)
			y, _ := got.Why(n.ID, dst, 22, protoTCP, noon)
			if aok != bok || (a == nil) != (b == nil) || a != nil && a.Path != b.Path || x.String() != y.String() {
				t.Fatalf("%s to %s: compiled %v by %v (%s), made %v by %v (%s)\n%s", n.Name, dst, aok, a, x, bok, b, y, text)
			}
		}
	}
	for _, name := range []string{"alice@example.com", "autogroup:member", "tag:web", "*"} {
		a, _, _ := want.Find(name)
		b, _, _ := got.Find(name)
		fail("who is "+name, a, b)
	}
	for _, a := range want.Nodes() {
		for _, b := range want.Nodes() {
			if !want.Sees(a.ID, b.ID) { // nodes that do not know each other are not asked: a deny of everything hides them
				continue
			}
			x, y := want.View(a.ID), got.View(b.ID)
			if r, s := MayRelay(x.Rules, x.Sets, &a, &b, noon), MayRelay(y.Rules, y.Sets, &a, &b, noon); (r == nil) != (s == nil) {
				t.Fatalf("%s says that it may use %s as a relay by %v, and that says %v\n%s", a.Name, b.Name, r, s, text)
			}
		}
	}
	fail("difference", []Delta(nil), Diff(want, got, noon))
}

// changesRight holds a change to the views before and after.
func changesRight(t *rapid.T, text string, before, after *Program, ch *Change) {
	concerned := ch.Concerned()
	for _, n := range after.Nodes() {
		was, is := before.View(n.ID), after.View(n.ID)
		_, in := slices.BinarySearch(concerned, n.ID)
		v := ch.Of(n.ID)
		if !in {
			if diff := gocmp.Diff(was, is, sameAsCompiled); diff != "" {
				t.Fatalf("%s is not concerned, and its view is another\n%s\n%s", n.Name, diff, text)
			}
			if !v.Anew && !v.Empty() {
				t.Fatalf("%s is not concerned, and yet %+v\n%s", n.Name, v, text)
			}
			continue
		}
		if v.Anew {
			continue
		}
		got := View{Rules: was.Rules, Sets: map[string]Set{}, Peers: edit(was.Peers, v.New, v.Gone)}
		for _, l := range []struct {
			ids       []NodeID
			was, kept bool
		}{{v.New, false, true}, {v.Kept, true, true}, {v.Gone, true, false}} {
			for _, id := range l.ids {
				if slices.Contains(was.Peers, id) != l.was || slices.Contains(is.Peers, id) != l.kept {
					t.Fatalf("%s: node %d in %+v\n%s", n.Name, id, v, text)
				}
			}
		}
		for name, s := range was.Sets {
			got.Sets[name] = s
		}
		for _, x := range v.Sets {
			s, ok := got.Sets[x.Set]
			for _, id := range x.Remove {
				ok = ok && slices.Contains(s.Nodes, id)
			}
			if !ok {
				t.Fatalf("%s: %+v does not fit %+v\n%s", n.Name, x, was.Sets[x.Set], text)
			}
			s.Nodes = edit(s.Nodes, x.Add, x.Remove)
			got.Sets[x.Set] = s
		}
		if diff := gocmp.Diff(is, got, sameAsCompiled); diff != "" {
			t.Fatalf("the change of %s (-view +view before and change)\n%s\n%+v\n%s", n.Name, diff, v, text)
		}
	}
	for _, id := range ch.Gone() {
		if after.Node(id).ID != 0 || before.Node(id).ID == 0 {
			t.Fatalf("node %d is said to have gone", id)
		}
	}
}

func edit(ids, add, remove []NodeID) []NodeID {
	out := slices.DeleteFunc(slices.Concat(ids, add), func(id NodeID) bool { return slices.Contains(remove, id) })
	slices.Sort(out)
	return slices.Compact(out)
}

// Who only sees a node that comes is told of it, and nothing else.
func TestChangeIsSmall(t *testing.T) {
	inv := &Inventory{}
	for i := range 40 {
		inv.Nodes = append(inv.Nodes, Node{ID: NodeID(i + 1), Name: fmt.Sprintf("n%d", i), Tags: []string{"tag:web", "tag:db"}[i%2 : i%2+1],
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, byte(i)})}})
	}
	c := mustCompile(t, mustParse(t, `"acls": [{"action": "accept", "src": ["group:eng", "tag:db"], "dst": ["tag:web:22"]}, {"action": "deny", "src": ["*"], "dst": ["tag:web:23"]},
		{"action": "accept", "src": ["*"], "dst": ["autogroup:self:*"]}]`), inv)
	bob := Node{ID: 50, Name: "bob", User: "bob@example.com", Addrs: []netip.Addr{netip.MustParseAddr("100.64.1.1")}}
	c, ch, err := c.With(Update{Nodes: []Node{bob}})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(ch.Concerned()); n != 21 {
		t.Errorf("%d nodes are concerned by a new one of 20 peers", n)
	}
	var one *ViewChange
	for _, id := range c.Peers(bob.ID) {
		v := ch.Of(id)
		want := &ViewChange{New: []NodeID{50}, Sets: []SetChange{{Set: "group:eng", Add: []NodeID{50}}}}
		if diff := gocmp.Diff(want, v); diff != "" {
			t.Fatalf("node %d (-want +got)\n%s", id, diff)
		}
		if one == nil {
			one = v
		}
		if v != one {
			t.Error("the same is made twice")
		}
	}
}

func TestWithRefuses(t *testing.T) {
	c := mustCompile(t, mustParse(t, `"acls": []`), mesh())
	for name, u := range map[string]Update{
		"no number":     {Nodes: []Node{{Name: "x"}}},
		"same address":  {Nodes: []Node{{ID: 50, Name: "x", Addrs: mesh().Nodes[0].Addrs}}},
		"in one update": {Nodes: []Node{{ID: 50, Addrs: []netip.Addr{netip.MustParseAddr("100.64.1.1")}}, {ID: 51, Addrs: []netip.Addr{netip.MustParseAddr("100.64.1.1")}}}},
	} {
		if _, _, err := c.With(u); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	// An address may change hands at once.
	first, second := mesh().Nodes[0], mesh().Nodes[1]
	first.Addrs, second.Addrs = second.Addrs, first.Addrs
	next, _, err := c.With(Update{Nodes: []Node{first, second}})
	if err != nil {
		t.Fatal(err)
	}
	if got := next.Node(1).Addrs; !slices.Equal(got, first.Addrs) {
		t.Errorf("node 1 has %v", got)
	}
	if got := c.Node(1).Addrs; !slices.Equal(got, second.Addrs) {
		t.Errorf("the program before changed: node 1 has %v", got)
	}
}

// A program that has seen many nodes come and go holds what one holds that has not.
func TestWithForgets(t *testing.T) {
	p, inv := large(t, 200, 50)
	c := mustCompile(t, p, inv)
	for i := range 2000 {
		n := Node{ID: NodeID(1000 + i), Name: "x", User: fmt.Sprintf("u%d@example.com", i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{100, 65, byte(i >> 8), byte(i)})}}
		var err error
		if c, _, err = c.With(Update{Nodes: []Node{n}}); err != nil {
			t.Fatal(err)
		}
		if c, _, err = c.With(Update{Gone: []NodeID{n.ID}}); err != nil {
			t.Fatal(err)
		}
	}
	if places, most := len(c.w.nodes), 2*200+64+1; places > most {
		t.Errorf("%d places, more than %d", places, most)
	}
	if n := len(c.plan.classes); n > 2*len(c.w.nodes)+1025 {
		t.Errorf("%d classes", n)
	}
	if len(c.Nodes()) != 200 {
		t.Errorf("%d nodes", len(c.Nodes()))
	}
}

// Programs of one line may be made and asked at the same time.
func TestWithConcurrent(t *testing.T) {
	p, inv := large(t, 300, 100)
	c := mustCompile(t, p, inv)
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			c := c
			for i := range 50 {
				n := Node{ID: NodeID(1000 + 100*k + i), Name: "x", Tags: []string{"tag:s1"}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{100, 65, byte(k), byte(i)})}}
				next, ch, err := c.With(Update{Nodes: []Node{n}})
				if err != nil {
					t.Error(err)
					return
				}
				for _, id := range ch.Concerned() {
					ch.Of(id)
				}
				c.View(1)
				c.Check(1, inv.Nodes[3].Addrs[0], 22, protoTCP)
				c = next
			}
		})
	}
	wg.Wait()
}
