package node

import (
	"runtime"
	"runtime/debug"
	"time"
)

// rest decides when a node that has fallen silent gives its memory back to the system. A load leaves tens of megabytes
// in pools, which the collector would empty only minutes later, when it next runs of itself, twice.
type rest struct {
	seen  uint64    // packets, at the last tick
	since time.Time // when that changed
	moved uint64    // packets since memory was last given back
}

const (
	restAfter = 30 * time.Second
	restWorth = 10_000 // packets: fewer leave nothing that is worth a collection
)

// tick takes how many packets have passed in all, and reports whether now is the time.
func (r *rest) tick(packets uint64, now time.Time) bool {
	if packets != r.seen || r.since.IsZero() {
		r.moved += packets - r.seen
		r.seen, r.since = packets, now
		return false
	}
	if r.moved < restWorth || now.Sub(r.since) < restAfter {
		return false
	}
	r.moved = 0
	return true
}

// giveBack empties pools, which takes two collections, and gives free memory back.
func giveBack() {
	runtime.GC()
	debug.FreeOSMemory()
}
