package filter

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// A port's cell is that of the last interval that begins at or before it, whatever the intervals are.
func TestPortTable(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		first, span := []int32{0}, 1+r.Int32N(65535)
		for range r.IntN(1 << r.IntN(12)) {
			first = append(first, 1+(65535-span)/2+r.Int32N(span))
		}
		slices.Sort(first)
		first = slices.Compact(first)
		var cells []cell
		for i := range first {
			cells = append(cells, cell{int32(i), noRule})
		}
		table, want := newPortTable(first, cells), 0
		for port := range int32(65536) {
			if want+1 < len(first) && first[want+1] == port {
				want++
			}
			if got := table.at(uint16(port)); got != cells[want] {
				t.Fatalf("seed %d: port %d is in interval %d, want %d of %v", seed, port, got.accept, want, first)
			}
		}
	}
}
