package coordinator

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/store"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

var (
	testMesh = mesh{v4: netip.MustParsePrefix("100.64.0.0/10"), v6: netip.MustParsePrefix("fd68:6564:6765::/48"), lifetime: 180 * 24 * time.Hour}
	testTime = time.Unix(1_800_000_000, 0)
)

// commitTo makes a change in a store and a state, as Server.commit does.
func commitTo(t interface{ Fatal(...any) }, db store.Store, st *state, c change) *state {
	txn, err := st.txn(c)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := db.Commit(context.Background(), txn)
	if err != nil {
		t.Fatal(err)
	}
	return st.apply(c, txn, rev)
}

func withKey(t *testing.T, db store.Store, st *state, k joinKey) (*state, string) {
	id, secret, hash := newSecret()
	k.ID, k.Hash = id, hash
	if k.Expires.IsZero() {
		k.Expires = testTime.Add(time.Hour)
	}
	c := change{keys: map[string]*joinKey{id: &k}}
	if k.User != "" {
		c.users = map[string]*user{k.User: {Login: k.User}}
	}
	return commitTo(t, db, st, c), id + "." + secret
}

func hello(name, enrol string) *wire.Hello {
	return &wire.Hello{Version: wire.Version, Node: key.ExchangePublic(key.NewNode()), Name: name, Enrol: enrol}
}

func machine() key.MachinePublic { return key.PublicOf(key.NewMachine()) }

func TestNames(t *testing.T) {
	db, st := store.NewMemory(), newState()
	st, k := withKey(t, db, st, joinKey{User: alice, Reusable: true})
	long := strings.Repeat("x", 63)
	for _, c := range []struct {
		ask   string
		exact bool
		want  string // "" is a refusal
	}{
		{"Web", false, "web"}, {"web", false, "web-2"}, {"web", false, "web-3"}, {"web", true, ""}, {"web-2", false, "web-2-2"},
		{"db.example.com", false, "db"}, {"", false, "node"}, {"...", false, "node-2"}, {"--a_b--", false, "a-b"}, {"Ünïcode", false, "n-code"},
		{long, false, long}, {long + "y", false, long[:61] + "-2"}, {"fine", true, "fine"}, {"Not Fine", true, ""}, {"x.y", true, ""},
	} {
		h := hello(c.ask, k)
		h.Exact = c.exact
		n, ch, no := st.admit(testMesh, machine(), h, testTime)
		if no != nil {
			if c.want != "" || no.Code != wire.RefusedName {
				t.Errorf("%q: %v", c.ask, no)
			}
			continue
		}
		if n.Name != c.want {
			t.Errorf("%q became %q, want %q", c.ask, n.Name, c.want)
		}
		st = commitTo(t, db, st, *ch)
	}
}

func TestKeys(t *testing.T) {
	for name, c := range map[string]struct {
		key  joinKey
		at   time.Time
		want wire.RefusalCode
	}{
		"good":          {joinKey{User: alice}, testTime, ""},
		"tagged":        {joinKey{Tags: []string{"tag:web"}}, testTime, ""},
		"expired":       {joinKey{User: alice}, testTime.Add(2 * time.Hour), wire.RefusedKeyEnded},
		"expiring":      {joinKey{User: alice}, testTime.Add(time.Hour), wire.RefusedKeyEnded},
		"used":          {joinKey{User: alice, Uses: 1}, testTime, wire.RefusedKeyUsed},
		"reusable":      {joinKey{User: alice, Uses: 1, Reusable: true}, testTime, ""},
		"revoked":       {joinKey{User: alice, Revoked: true}, testTime, wire.RefusedKeyEnded},
		"used, expired": {joinKey{User: alice, Uses: 1}, testTime.Add(2 * time.Hour), wire.RefusedKeyUsed},
	} {
		st, k := withKey(t, store.NewMemory(), newState(), c.key)
		n, ch, no := st.admit(testMesh, machine(), hello("a", k), c.at)
		if c.want == "" {
			if no != nil || n.User != c.key.User || !slices.Equal(n.Tags, c.key.Tags) || len(ch.keys) != 1 {
				t.Errorf("%s: %+v, %v", name, n, no)
			}
		} else if no == nil || no.Code != c.want {
			t.Errorf("%s: %v, want %s", name, no, c.want)
		}
	}
}

// Addresses are given until there are none, are unique, and are given again last.
func TestAddresses(t *testing.T) {
	m := testMesh
	m.v4, m.v6 = netip.MustParsePrefix("10.0.0.16/29"), netip.MustParsePrefix("fd00::/64")
	db := store.NewMemory()
	st, k := withKey(t, db, newState(), joinKey{User: alice, Reusable: true})
	var got []string
	for range 6 {
		n, ch, no := st.admit(m, machine(), hello("a", k), testTime)
		if no != nil {
			t.Fatal(no)
		}
		got = append(got, n.Addrs[0].String())
		st = commitTo(t, db, st, *ch)
	}
	want := []string{"10.0.0.17", "10.0.0.18", "10.0.0.19", "10.0.0.20", "10.0.0.21", "10.0.0.22"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, _, no := st.admit(m, machine(), hello("a", k), testTime); no == nil || !strings.Contains(no.Message, "no address left") {
		t.Errorf("a seventh: %v", no)
	}
	st = commitTo(t, db, st, change{nodes: map[acl.NodeID]*node{3: nil}})
	if n, _, no := st.admit(m, machine(), hello("a", k), testTime); no != nil || n.Addrs[0].String() != want[2] || n.ID != 7 {
		t.Errorf("after one has left: %+v, %v", n, no)
	}
}

// After any sequence of changes, the state in memory is what the store would load, and nothing is held twice.
func TestStateIsWhatIsStored(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		db, st := store.NewMemory(), newState()
		id, secret, hash := newSecret()
		st = commitTo(t, db, st, change{users: map[string]*user{alice: {Login: alice}},
			keys: map[string]*joinKey{id: {ID: id, Hash: hash, User: alice, Reusable: true, Expires: testTime.Add(time.Hour)}}})
		var machines []key.MachinePublic
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			var c *change
			switch what := rapid.SampledFrom([]string{"join", "rotate", "remove", "tag"}).Draw(t, "what"); {
			case what == "join" || st.nodes.len() == 0:
				machines = append(machines, machine())
				_, c, _ = st.admit(testMesh, machines[len(machines)-1], hello(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name"), id+"."+secret), testTime)
			case what == "rotate":
				_, c, _ = st.admit(testMesh, rapid.SampledFrom(machines).Draw(t, "machine"), hello("a", ""), testTime)
			default:
				ids := slices.Sorted(maps.Keys(maps.Collect(st.nodes.all())))
				n := *st.nodes.get(rapid.SampledFrom(ids).Draw(t, "node"))
				c = &change{nodes: map[acl.NodeID]*node{n.ID: nil}, gone: map[key.MachinePublic]*tombstone{n.Machine: {Name: n.Name, When: testTime}}}
				if what == "tag" {
					n.Tags, n.User = []string{"tag:web"}, ""
					c = &change{nodes: map[acl.NodeID]*node{n.ID: &n}}
				}
			}
			if c != nil {
				st = commitTo(t, db, st, *c)
			}
		}
		snap, err := db.Load(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		loaded, err := load(snap)
		if err != nil {
			t.Fatal(err)
		}
		opts := []cmp.Option{cmp.AllowUnexported(state{}, policyRecord{}), cmp.Comparer(func(a, b key.NodePublic) bool { return a == b }),
			cmp.Comparer(func(a, b key.MachinePublic) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
			cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }),
			plain[acl.NodeID, *node](), plain[key.MachinePublic, *node](), plain[key.NodePublic, *node](), plain[string, *node](), plain[netip.Addr, *node](),
			plain[due, *node](), plain[store.Key, uint64]()}
		if d := cmp.Diff(loaded, st, opts...); d != "" {
			t.Fatalf("memory and store differ (-store +memory):\n%s", d)
		}
		if st.byName.len() != st.nodes.len() || st.byKey.len() != st.nodes.len() || st.byMachine.len() != st.nodes.len() || st.byAddr.len() != 2*st.nodes.len() {
			t.Fatal("something is held twice, or by nobody")
		}
	})
}

// plain compares tables as the maps they are.
func plain[K comparable, V any]() cmp.Option {
	return cmp.Transformer("rows", func(t table[K, V]) []string {
		var out []string
		for k, v := range t.all() {
			out = append(out, fmt.Sprintf("%v %+v", k, v))
		}
		return out
	})
}

// Whatever changes, the world that is made of the one before is the one that would be built anew; and nodes that are
// woken, or hear of several changes late, are told what takes their map to that world's. Who is not woken has it.
func TestStepsTell(t *testing.T) {
	const policy = `{
	"groups": {"group:eng": ["alice@example.com"]},
	"tagOwners": {"tag:web": ["alice@example.com"], "tag:db": ["alice@example.com"]},
	"autoApprovers": {"routes": {"10.0.0.0/8": ["tag:web", "autogroup:admin"]}, "exitNode": ["tag:db"]},
	"acls": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
		{"action": "accept", "src": ["group:eng"], "dst": ["tag:web:80", "10.33.0.0/16:80"]},
		{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432", "autogroup:internet:*"]},
		{"action": "deny", "src": ["tag:db"], "dst": ["tag:web:*"]},
		{"action": "accept", "src": ["bob@example.com"], "dst": ["100.64.0.3:22"]},
		{"action": "accept", "src": ["autogroup:admin"], "dst": ["tag:db:22"]},
		{"action": "accept", "src": ["tag:db"], "dst": ["tag:db:*"]},
	],
}`
	p, err := acl.Parse("acl.hujson", []byte(policy), acl.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rec := &policyRecord{parsed: p}
	s := &Server{cfg: Config{Domain: "d", Prefixes: []netip.Prefix{testMesh.v4, testMesh.v6}}}
	type session struct {
		has  *wire.Map
		sent *world
		told uint64
		late bool // woken, and has not looked yet
	}
	rapid.Check(t, func(t *rapid.T) {
		db, st, now := store.NewMemory(), newState(), testTime
		st = commitTo(t, db, st, change{users: map[string]*user{alice: {Login: alice}, bob: {Login: bob}}})
		st.policy = rec
		w, _, _, err := build(nil, st, dirt{}, now)
		if err != nil {
			t.Fatal(err)
		}
		open := map[acl.NodeID]*session{}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			c := drawChange(t, now)
			if rapid.IntRange(0, 5).Draw(t, "hours") == 0 {
				now = now.Add(time.Hour)
			}
			if e := st.apply(c, store.Txn{}, 0).election(now, w.carriers, func(acl.NodeID) bool { return true }); e != nil {
				c.carriers = e.carriers
			}
			var reg register
			reg.store(st, &change{})
			st = commitTo(t, db, st, c)
			st.policy = rec
			reg.store(st, &c)
			_, d := reg.take()
			next, wake, all, err := build(w, st, d, now)
			if err != nil || all {
				t.Fatal("built anew", err)
			}
			anew, _, _, err := build(nil, st, dirt{}, now)
			if err != nil {
				t.Fatal(err)
			}
			for id := range st.nodes.all() {
				want := s.mapFor(anew, id)
				x := open[id]
				if want == nil {
					if _, woken := slices.BinarySearch(wake, id); x != nil && !x.late && !woken {
						t.Fatalf("node %d is out, and is not told", id)
					}
					delete(open, id)
					continue
				}
				if x == nil { // it connects
					open[id] = &session{has: want, sent: next, told: want.Revision}
					continue
				}
				if _, woken := slices.BinarySearch(wake, id); woken {
					x.late = true
				}
				if x.late && rapid.IntRange(0, 2).Draw(t, "looks") > 0 {
					d, ok := x.sent.delta(next, id, x.told)
					if !ok {
						d = wire.Diff(s.mapFor(x.sent, id), s.mapFor(next, id))
						d.From = x.told
					}
					if !d.Empty() {
						if x.has, err = x.has.Apply(d); err != nil {
							t.Fatalf("node %d cannot apply %+v: %v", id, d, err)
						}
						x.told = d.Revision
					}
					x.sent, x.late = next, false
				}
				if h := fmt.Sprint(must(x.has.Hashes())); !x.late && h != fmt.Sprint(must(want.Hashes())) {
					t.Fatalf("node %d has\n%+v\nand should have\n%+v", id, x.has, want)
				}
			}
			for id := range open {
				if st.nodes.get(id) == nil {
					if _, woken := slices.BinarySearch(wake, id); !woken && !open[id].late {
						t.Fatalf("node %d is gone, and is not told", id)
					}
					delete(open, id)
				}
			}
			w = next
		}
	})
}

// drawChange changes one node or two, or a user.
func drawChange(t *rapid.T, now time.Time) change {
	if rapid.IntRange(0, 5).Draw(t, "a user") == 0 {
		return change{users: map[string]*user{alice: {Login: alice, Roles: rapid.SampledFrom([][]string{nil, {"admin"}}).Draw(t, "roles")}}}
	}
	c := change{nodes: map[acl.NodeID]*node{}}
	for range rapid.IntRange(1, 2).Draw(t, "nodes at once") {
		id := acl.NodeID(rapid.IntRange(1, 8).Draw(t, "node"))
		c.nodes[id] = nil
		owner := rapid.SampledFrom([]string{"", alice, bob, "tag:web", "tag:db"}).Draw(t, "owner")
		if owner == "" {
			continue
		}
		n := &node{ID: id, Name: fmt.Sprintf("n%d", id), User: owner, Machine: machine(), Key: key.ExchangePublic(key.NewNode()),
			Addrs: []netip.Addr{offset(testMesh.v4, uint64(id)), offset(testMesh.v6, uint64(id))}}
		if strings.HasPrefix(owner, "tag:") {
			n.User, n.Tags = "", []string{owner}
		}
		n.Expires = rapid.SampledFrom([]time.Time{{}, {}, now, now.Add(time.Hour)}).Draw(t, "expires")
		n.Advertised = prefixes(rapid.SampledFrom([]string{"", "", "", "10.33.0.0/16", "10.33.0.0/16 10.34.0.0/16", "0.0.0.0/0"}).Draw(t, "routes"))
		c.nodes[id] = n
	}
	return c
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestStarterPolicy(t *testing.T) {
	src := StarterPolicy(alice)
	p, err := acl.Parse("acl.hujson", []byte(src), acl.Options{})
	if err != nil {
		t.Fatal(acl.Of(err).Render())
	}
	inv := &acl.Inventory{Users: []acl.User{{Login: alice}, {Login: bob}}}
	for i, login := range []string{alice, alice, bob} {
		inv.Nodes = append(inv.Nodes, acl.Node{ID: acl.NodeID(i + 1), Name: fmt.Sprint("n", i), User: login, Addrs: []netip.Addr{offset(testMesh.v4, uint64(i+1))}})
	}
	prog, err := acl.Compile(p, inv)
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[acl.NodeID][]acl.NodeID{1: {2}, 2: {1}, 3: nil} {
		if got := prog.View(id).Peers; !slices.Equal(got, want) {
			t.Errorf("node %d sees %v, want %v", id, got, want)
		}
	}
	// The examples are right as they stand, once they are taken out of their comments.
	var full []string
	for line := range strings.Lines(src) {
		if trimmed := strings.TrimSpace(line); strings.HasPrefix(trimmed, `// "`) || strings.HasPrefix(trimmed, `// {`) {
			line = strings.Replace(line, "// ", "", 1)
		}
		full = append(full, line)
	}
	if p, err := acl.Parse("acl.hujson", []byte(strings.Join(full, "")), acl.Options{}); err != nil {
		t.Error(acl.Of(err).Render())
	} else if errs := p.Test(inv); len(errs) > 0 && !slices.Contains(errs.Classes(), acl.ClassTestFailed) {
		t.Error(errs.Render())
	}
}
