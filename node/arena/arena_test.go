package arena

import "testing"

// A batch ends when the next packet has no room, none of it reaches into another, and the next batch has the same memory.
func TestLend(t *testing.T) {
	const offset, longest = 16, 1 << 16
	for _, c := range []struct{ size, least int }{{0, 128}, {64, 128}, {1440, 128}, {1500, 128}, {8928, 28}, {65535, 4}, {longest, 4}} {
		var a Arena
		var first *byte
		for range 3 {
			a.Reset()
			n := 0
			var last []byte
			for b := a.Lend(offset, c.size); b != nil; b = a.Lend(offset, c.size) {
				if len(b) != offset+c.size || cap(b) != len(b)+After {
					t.Fatalf("%d bytes of %d for a packet of %d", len(b), cap(b), c.size)
				}
				b = b[:cap(b)]
				for i := range b {
					b[i] = byte(n)
				}
				if last != nil && last[len(last)-1] != byte(n-1) {
					t.Fatalf("of %d bytes each, number %d reaches into the one before", c.size, n)
				}
				if n == 0 && first == nil {
					first = &b[0]
				} else if n == 0 && first != &b[0] {
					t.Error("a batch has other memory than the one before")
				}
				last = b
				n++
			}
			if n < c.least {
				t.Errorf("%d packets of %d bytes, want %d at least", n, c.size, c.least)
			}
		}
		if n := testing.AllocsPerRun(10, func() { a.Reset(); a.Lend(offset, c.size) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}
