package filter

import (
	"math/rand/v2"
	"testing"
)

// tableModel does to a shard and to a map what a script says, two bytes a time, and compares them. With weak hashes
// groups fill up and searches go on past them, and so do graves.
func tableModel(t *testing.T, script []byte) {
	const tuples = 256
	var sh shard
	have := map[uint64]uint64{} // rest → what opened says
	weak := uint64(0)
	hash := func(rest uint64) uint64 { return rest * 0x9e3779b97f4a7c15 >> 40 & (weak | 0x3ff) }
	of := func(rest uint64) name { return name{&addr{1, rest}, &addr{2, 0}, rest} }
	if len(script) > 0 && script[0]&1 != 0 {
		weak = ^uint64(0)
	}
	for i := 0; i+1 < len(script); i += 2 {
		op, rest := script[i]%8, uint64(script[i+1])
		f := sh.find(of(rest), hash(rest))
		if opened, ok := have[rest]; ok != (f != nil) || ok && (uint64(f.opened) != opened || f.tuple.rest != rest) {
			t.Fatalf("step %d: tuple %d is %+v, want %v", i, rest, f, ok)
		}
		switch {
		case op < 4 && f == nil:
			f = sh.insert(of(rest), hash(rest))
			f.peer, f.opened, f.sides = nil, int64(i), nil
			if have[rest] = uint64(i); op == 0 {
				sh.connect(f)
			}
		case op < 6 && f != nil:
			sh.remove(f)
			delete(have, rest)
		case op == 7: // every third goes
			sh.sweep(len(sh.flows), func(f *flow) bool {
				if f.tuple.rest%3 != rest%3 {
					return false
				}
				delete(have, f.tuple.rest)
				return true
			})
		}
		if sh.n != len(have) || 4*(sh.n+sh.buried) > 3*len(sh.flows) {
			t.Fatalf("step %d: %d flows and %d graves in %d places, want %d", i, sh.n, sh.buried, len(sh.flows), len(have))
		}
	}
	for rest := range uint64(tuples) {
		f := sh.find(of(rest), hash(rest))
		if _, ok := have[rest]; ok != (f != nil) {
			t.Fatalf("at the end tuple %d is %+v, want %v", rest, f, ok)
		}
	}
}

func TestTable(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		script := make([]byte, 2+r.IntN(8000))
		for i := range script {
			if script[i] = byte(r.Uint32()); i%2 == 0 && script[i]%8 == 7 && r.IntN(50) > 0 {
				script[i] = 1 // seldom many at once
			}
		}
		tableModel(t, script)
	}
}

// FuzzTable looks for a script of insertions and removals after which the table is not what it should be.
func FuzzTable(f *testing.F) {
	f.Add([]byte{1, 1, 1, 2, 5, 1, 1, 1, 7, 2, 1, 2})
	f.Fuzz(tableModel)
}
