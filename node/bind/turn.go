package bind

import (
	"sync/atomic"
	"time"
)

// turns has the reader of the socket that transfers fill give way to whoever else wants the processor. A thread that
// goes on from batch to batch is taken off it by the kernel only after milliseconds, for which a packet of a flow that
// sends little waits wherever it then is: before a program, in WireGuard's device, at the interface.
//
//	flows that send little are heard │ gives way after
//	──────────────────────────────────┼──────────────────────────────────────────────────────
//	yes                              │ a batch: what is left waits in the socket, not before others
//	no                               │ a few long datagrams: more come by then, for one and the same work
//
// On a processor that nobody else wants this does nothing but ask.
type turns struct {
	sparse atomic.Int64 // when a flow that sends little was last heard
}

// turnFew is up to how many datagrams are few, and are no batch.
const turnFew = 8

// turnLong is how long a datagram of a transfer is, in bytes. Whoever waits for an answer waits for short ones mostly.
const turnLong = 1000

// hear notes that the companion brought something.
func (t *turns) hear(now int64) { t.sparse.Store(now) }

// over reports whether to give way after so many datagrams, the last of so many bytes.
func (t *turns) over(n, size int, now int64) bool {
	if t.heard(now) {
		return n > turnFew
	}
	return n > 0 && n <= turnFew && size >= turnLong
}

// turnHeard is for how long a flow that sends little is expected to go on.
const turnHeard = 100 * time.Millisecond

// heard reports whether there are flows that send little.
func (t *turns) heard(now int64) bool {
	last := t.sparse.Load()
	return last != 0 && now-last < int64(turnHeard)
}

// HearsSparse reports whether flows of peers that send little have been heard in the last tenth of a second.
func (b *Bind) HearsSparse() bool { return b.turns.heard(b.now()) }
