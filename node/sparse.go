package node

import (
	"time"

	"github.com/hedge-mesh/hedge/node/fair"
)

// sparse tells flows that send little, which may pass the rest, from those that would fill any queue. Flows are hashed
// to meters; two that meet in one are judged together, which can only be to the disadvantage of the smaller. Each has two
// levels, of long packets and of short ones:
//
//	level  0 │ sparse       │ sparseBurst: bulk, for sparseRest after the last packet above │ sparseMost
//	         └ falls by longRate, and by shortRate
//
// What fills a queue are packets as long as they may be. Short ones that come often are mostly requests, each sent when the
// answer to the last is there: the quicker the path, the more. A flood of them is none, so each counts as sparseLeast.
// Acknowledgements of TCP alone are not sparse: they are a transfer's. A flow is not sparse again before what it sent as bulk
// must have arrived, or its packets would overtake each other.
type sparse struct {
	meters [1024]meter
}

type meter struct {
	short, long int64 // levels, bytes
	at          int64 // when they were that, nanoseconds
	bulk        int64 // until when it is
}

const (
	longRate    = 640 << 10 // bytes a second: a call, a game, a terminal
	shortRate   = 16 << 20  // 16,000 requests of 1,000 bytes
	sparseShort = 1100      // bytes; a path's longest packets have more than 1,200
	sparseLeast = 512       // 32,000 packets a second
	sparseBurst = 8 << 10   // at once
	sparseMost  = 64 << 10  // no flow takes longer than 0.1 s of silence to be sparse again
	sparseRest  = 100 * time.Millisecond
)

// is reports whether a packet is of a sparse flow, and counts it.
func (s *sparse) is(pkt []byte, now int64) bool {
	m := &s.meters[fair.Flow(pkt)*0x9e3779b1>>22]
	if d := min(now-m.at, int64(time.Second)); d > 0 {
		m.short = max(0, m.short-d*shortRate/int64(time.Second))
		m.long = max(0, m.long-d*longRate/int64(time.Second))
		m.at = now
	}
	level := &m.short
	if len(pkt) > sparseShort {
		level = &m.long
	}
	if *level = min(*level+max(sparseLeast, int64(len(pkt))), sparseMost); *level > sparseBurst {
		m.bulk = now + int64(sparseRest)
	}
	return now >= m.bulk && !fair.Bare(pkt)
}
