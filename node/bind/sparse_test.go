package bind

import (
	"testing"

	"github.com/hedge-mesh/hedge/node/arena"
	"github.com/hedge-mesh/hedge/node/device"
)

// buffer is a packet as the device has it after it was sealed, in a buffer of its own or in memory that was lent for it:
// with a number where the header and the tag are, and as long as one of 1 to 16 bytes.
func buffer(b byte, sparse bool) []byte {
	n, room := 1+int(b)%16, device.MaxMessageSize
	if b%2 == 0 {
		room = 16 + n + arena.After
	}
	buf := make([]byte, room)
	for i := range buf {
		buf[i] = sparseMark // of what was in it before
	}
	MarkSparse(buf, n, sparse)
	return append(append(buf[:0], b), make([]byte, wgOverhead+16-1)...)
}

func TestDivideSparse(t *testing.T) {
	for _, c := range []struct{ in, sparse, rest string }{ // upper case: sparse
		{"", "", ""},
		{"abc", "", "abc"},
		{"ABC", "ABC", ""},
		{"aBcDDe", "BDD", "ace"},
	} {
		var bufs [][]byte
		for _, b := range []byte(c.in) {
			bufs = append(bufs, buffer(b, b < 'a'))
		}
		sparse, rest := divideSparse(bufs)
		text := func(bufs [][]byte) (s string) {
			for _, b := range bufs {
				s += string(b[:1])
			}
			return s
		}
		if text(sparse) != c.sparse || text(rest) != c.rest {
			t.Errorf("%q is %q and %q, want %q and %q", c.in, text(sparse), text(rest), c.sparse, c.rest)
		}
		if n := testing.AllocsPerRun(10, func() { divideSparse(bufs) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// What is neither in one of the device's buffers nor lent, or fills it, is not sparse, whatever its last byte.
func TestMarkElsewhere(t *testing.T) {
	short := make([]byte, 100)
	MarkSparse(short, 100, true)
	for i := range short {
		short[i] = sparseMark
	}
	full := make([]byte, device.MaxMessageSize)
	MarkSparse(full, len(full), true)
	if isSparse(short) || isSparse(short[:50]) || isSparse(full) || isSparse(nil) {
		t.Error("sparse without being said to be")
	}
	again := buffer('a', true)
	MarkSparse(again[:cap(again)], 16, false)
	if isSparse(again) {
		t.Error("a mark stays for the next packet in the buffer")
	}
}
