package bind

import (
	"bytes"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
)

// Packets that were taken stay as they are, whatever comes meanwhile, until more are taken; then their slots are of use again.
func TestRingLends(t *testing.T) {
	r := &ring{ready: make(chan struct{}, 1)}
	small, big := bytes.Repeat([]byte{1}, 100), bytes.Repeat([]byte{2}, slotSize+1)
	bufs, sizes, eps := make([][]byte, 4), make([]int, 4), make([]conn.Endpoint, 4)
	pop := func(want ...[]byte) {
		t.Helper()
		n, err := r.pop(nil, bufs, sizes, eps)
		if err != nil || n != len(want) {
			t.Fatalf("%d packets, %v; want %d", n, err, len(want))
		}
		for i, w := range want {
			if !bytes.Equal(bufs[i][:sizes[i]], w) {
				t.Errorf("packet %d is of %d bytes, or others than were pushed", i, sizes[i])
			}
		}
	}
	for range 3 {
		r.push(small, nil)
		r.push(big, nil)
		pop(small, big)
		lent := [2][]byte{bufs[0], bufs[1]}
		for range 2 * ringSize {
			r.push(bytes.Repeat([]byte{3}, 100), nil)
		}
		if !bytes.Equal(lent[0], small) || !bytes.Equal(lent[1], big) {
			t.Fatal("what was lent has changed")
		}
		for range ringSize / len(bufs) {
			pop(bytes.Repeat([]byte{3}, 100), bytes.Repeat([]byte{3}, 100), bytes.Repeat([]byte{3}, 100), bytes.Repeat([]byte{3}, 100))
		}
		if len(r.lent) != len(bufs) {
			t.Fatalf("%d packets are lent, want the last %d", len(r.lent), len(bufs))
		}
	}
}
