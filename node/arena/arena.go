// Package arena lends memory to the packets that a batch is read into, one behind the other:
//
//	│ offset │ packet │ After │ … │ offset │ packet │ After │ …       one block, which the next batch has anew
//	          ▲ of a message's own length      └ padding, tag and a mark; each begins at a line of the cache
//
// With a buffer of 64 KiB for each of 128 packets, as WireGuard's device has them, those of 1,440 bytes take a page each and
// have to share a part of the cache, and those of 64 KiB take 8 MiB, for good.
package arena

const (
	// After is the room behind a packet: 15 bytes of padding, 16 of the tag, and one that says whose the packet is.
	After = 32
	// Bytes is how long the block is: four packets of the longest.
	Bytes = 264 << 10

	line = 64
)

// Arena is what the packets of one batch at a time lie in. It is for one goroutine at a time.
type Arena struct {
	block []byte // nil until something is lent
	at    int    // where the next packet begins
}

// Reset takes back what was lent.
func (a *Arena) Reset() { a.at = 0 }

// Lend returns memory for offset bytes and a packet, with After more of capacity, or nil if there is no room in this batch.
// In an empty one there always is for up to 64 KiB.
func (a *Arena) Lend(offset, size int) []byte {
	n := offset + size
	if a.at+n+After > Bytes {
		return nil
	}
	if a.block == nil {
		a.block = make([]byte, Bytes)
	}
	b := a.block[a.at : a.at+n : a.at+n+After]
	a.at = (a.at + n + After + line - 1) &^ (line - 1)
	return b
}

// Holds reports whether there is room for n such packets.
func (a *Arena) Holds(n, offset, size int) bool {
	return a.at+n*((offset+size+After+line-1)&^(line-1)) <= Bytes
}
