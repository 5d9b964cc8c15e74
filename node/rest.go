package node

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// rest decides when a node that has fallen silent gives its memory back to the system. A load leaves tens of megabytes
// in pools, which the collector would empty only minutes later, when it next runs of itself, twice.
type rest struct {
	seen  uint64    // packets, at the last tick
	since time.Time // when those were more than a few
	moved uint64    // packets since memory was last given back
	gave  time.Time // when that was, for a Map
}

const (
	restAfter = 20 * time.Second
	restFew   = 100    // packets between two ticks, which is silence: some connection always says that it is there
	restWorth = 10_000 // packets: fewer leave nothing that is worth a collection
	restPeers = 1000   // of a Map: the same
	restMaps  = time.Minute
)

// tick takes how many packets have passed in all, and reports whether now is the time.
func (r *rest) tick(packets uint64, now time.Time) bool {
	n := packets - r.seen
	r.moved, r.seen = r.moved+n, packets
	if n > restFew || r.since.IsZero() {
		r.since = now
		return false
	}
	if r.moved < restWorth || now.Sub(r.since) < restAfter {
		return false
	}
	r.moved = 0
	return true
}

// made takes how many a Map has that is enforced anew, and reports whether now is the time: to decode one and to make
// what a node needs of it takes several times as much memory as stays. It does not wait for silence, and comes seldom.
func (r *rest) made(peers int, now time.Time) bool {
	if peers < restPeers || !r.gave.IsZero() && now.Sub(r.gave) < restMaps {
		return false
	}
	r.gave = now
	return true
}

// tidy collects the garbage of a Map of so many peers, if it is worth it: it is called between the steps of enforcing one,
// since the collector would let each leave its own on top of that before.
func tidy(peers int) {
	if peers < restPeers {
		return
	}
	if inUse, now := heap(); now > inUse+litterLeast {
		runtime.GC()
	}
}

// giveBack empties pools, which takes two collections, and gives free memory back.
func giveBack() {
	runtime.GC()
	debug.FreeOSMemory()
}

// litter decides when what packets leave behind is to be collected. The collector lets garbage grow to as much as is in
// use, which for a node that knows 10,000 peers is 60 MB.
type litter struct{ at time.Time }

const (
	litterEvery = 1 << 14                // packets, after which it is worth a look
	litterLeast = 24 << 20               // bytes that may lie
	litterRest  = 200 * time.Millisecond // between collections
)

// due takes how much was in use after the last collection, and how much there is since, in bytes, and reports whether it
// is time for another. Where a program has much else in use, it may leave more.
func (l *litter) due(inUse, now uint64, at time.Time) bool {
	if now < inUse+max(litterLeast, inUse/16) || at.Sub(l.at) < litterRest {
		return false
	}
	l.at = at
	return true
}

// heap is how much of it was in use after the last collection, and how much is taken now.
func heap() (inUse, now uint64) {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64(), s[1].Value.Uint64()
}
