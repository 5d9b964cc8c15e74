package coordinator

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/store"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

// segmented is a mesh of n nodes in groups of 20, each group a user, and 51 rules and more.
func segmented(b *testing.B, n int) (*Server, *policyRecord, *world) {
	var src strings.Builder
	src.WriteString(`{"groups": {`)
	groups := max(50, n/20)
	for i := range groups {
		fmt.Fprintf(&src, "%q: [%q],\n", fmt.Sprintf("group:g%d", i), fmt.Sprintf("u%d@example.com", i))
	}
	src.WriteString(`}, "acls": [`)
	for i := range groups {
		fmt.Fprintf(&src, "{\"action\": \"accept\", \"src\": [\"group:g%d\"], \"dst\": [\"group:g%d:*\", \"group:g%d:443\"]},\n", i, i, (i+1)%groups)
	}
	src.WriteString(`]}`)
	p, err := acl.Parse("acl.hujson", []byte(src.String()), acl.Options{})
	if err != nil {
		b.Fatal(acl.Of(err).Render())
	}
	s := &Server{cfg: Config{Domain: "d", Prefixes: []netip.Prefix{testMesh.v4, testMesh.v6}}}
	st := newState()
	c := change{nodes: map[acl.NodeID]*node{}, users: map[string]*user{}}
	for i := range groups {
		login := fmt.Sprintf("u%d@example.com", i)
		c.users[login] = &user{Login: login}
	}
	for i := range n {
		c.nodes[acl.NodeID(i+1)] = benchNode(acl.NodeID(i+1), groups)
	}
	rec := &policyRecord{parsed: p}
	return s, rec, worldFor(b, rec, st.apply(c, store.Txn{}, 1))
}

func benchNode(id acl.NodeID, groups int) *node {
	var raw [32]byte
	copy(raw[:], fmt.Sprintf("%032d", id))
	return &node{ID: id, Name: fmt.Sprintf("n%d", id), User: fmt.Sprintf("u%d@example.com", int(id)%groups),
		Machine: key.MachinePublicFromRaw(raw), Key: key.NodePublicFromRaw(raw),
		Addrs: []netip.Addr{offset(testMesh.v4, uint64(id)), offset(testMesh.v6, uint64(id))}}
}

func worldFor(b *testing.B, p *policyRecord, st *state) *world {
	st.policy = p
	w, _, _, err := build(nil, st, dirt{}, testTime)
	if err != nil {
		b.Fatal(err)
	}
	return w
}

// A policy edit: compile, and the map and the difference of every node.
func BenchmarkPolicyEdit(b *testing.B) {
	for _, n := range []int{1000, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, p, w := segmented(b, n)
			b.ReportAllocs()
			for b.Loop() {
				next := worldFor(b, p, w.state)
				for id := range next.state.nodes.all() {
					was, is := s.mapFor(w, id), s.mapFor(next, id)
					if !wire.Diff(was, is).Empty() {
						b.Fatal("the same policy is another")
					}
				}
			}
		})
	}
}

// A join: the new state, the new world, and what is told to those concerned. The baseline compiles anew, and compares
// maps.
func BenchmarkJoin(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		s, p, w := segmented(b, n)
		id := acl.NodeID(n + 1)
		c := change{nodes: map[acl.NodeID]*node{id: benchNode(id, max(50, n/20))}}
		run := func(b *testing.B, step func(*state) (next *world, wake []acl.NodeID), delta func(next *world, id acl.NodeID) *wire.Delta) {
			b.ReportAllocs()
			bytes, told := 0, 0
			for b.Loop() {
				next, wake := step(w.state.apply(c, store.Txn{}, 2))
				for _, x := range wake {
					if x == id {
						s.mapFor(next, id)
						continue
					}
					msg, err := wire.Encode(delta(next, x))
					if err != nil {
						b.Fatal(err)
					}
					bytes += len(msg)
					told++
				}
			}
			b.ReportMetric(float64(bytes)/float64(max(told, 1)), "B/peer")
			b.ReportMetric(float64(told)/float64(b.N), "peers")
		}
		b.Run(fmt.Sprintf("%d/step", n), func(b *testing.B) {
			run(b, func(st *state) (*world, []acl.NodeID) {
				next, wake, all, err := build(w, st, dirt{nodes: map[acl.NodeID]struct{}{id: {}}}, testTime)
				if err != nil || all {
					b.Fatal("built anew", err)
				}
				return next, wake
			}, func(next *world, x acl.NodeID) *wire.Delta {
				d, ok := w.delta(next, x, 1)
				if !ok {
					d = wire.Diff(s.mapFor(w, x), s.mapFor(next, x))
				}
				return d
			})
		})
		b.Run(fmt.Sprintf("%d/anew", n), func(b *testing.B) {
			run(b, func(st *state) (*world, []acl.NodeID) {
				next := worldFor(b, p, st)
				return next, append(next.program.Peers(id), id)
			}, func(next *world, x acl.NodeID) *wire.Delta { return wire.Diff(s.mapFor(w, x), s.mapFor(next, x)) })
		})
	}
}

// An enrolment, durable.
func BenchmarkEnrol(b *testing.B) {
	db, err := store.OpenSQLite(b.TempDir() + "/state.db")
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	st := newState()
	id, secret, hash := newSecret()
	st = st.apply(change{users: map[string]*user{alice: {Login: alice}}, keys: map[string]*joinKey{id: {ID: id, Hash: hash, User: alice, Reusable: true}}}, store.Txn{}, 0)
	for b.Loop() {
		_, c, no := st.admit(testMesh, machine(), hello("a", id+"."+secret), testTime)
		if no != nil {
			b.Fatal(no)
		}
		txn, err := st.txn(*c)
		if err != nil {
			b.Fatal(err)
		}
		rev, err := db.Commit(context.Background(), txn)
		if err != nil {
			b.Fatal(err)
		}
		st = st.apply(*c, txn, rev)
	}
}
