package node

import (
	"time"

	"github.com/hedge-mesh/hedge/node/fair"
)

// sparse tells flows that send little, which may pass the rest, from those that would fill any queue. Flows are hashed
// to meters; two that meet in one are judged together, which can only be to the disadvantage of the smaller.
//
//	level  0 │ sparse       │ sparseBurst: bulk, for sparseRest after the last packet above │ sparseMost
//	         └ falls by sparseRate
//
// Requests one after the other are sparse however soon their answers come, and what is sent at once is not: a transfer's
// segments are longer than sparseBurst. A short packet counts as sparseLeast, or a flood of them would be sparse.
// Acknowledgements of TCP alone are not: they are a transfer's. A flow is not sparse again before what it sent as bulk must
// have arrived, or its packets would overtake each other.
type sparse struct {
	meters [1024]meter
}

type meter struct {
	level int64 // bytes
	at    int64 // when it was that, nanoseconds
	bulk  int64 // until when it is
}

const (
	sparseRate  = 16 << 20 // bytes a second: a call, a game, a terminal, 8,000 requests of 2 KB
	sparseBurst = 8 << 10  // at once
	sparseLeast = 512      // a packet: 32,000 a second
	sparseMost  = 64 << 10 // 4 ms of silence, sparseRest apart
	sparseRest  = 100 * time.Millisecond
)

// is reports whether a packet is of a sparse flow, and counts it.
func (s *sparse) is(pkt []byte, now int64) bool {
	m := &s.meters[fair.Flow(pkt)*0x9e3779b1>>22]
	if d := now - m.at; d > 0 {
		m.level = max(0, m.level-min(d, int64(time.Second))*sparseRate/int64(time.Second))
		m.at = now
	}
	m.level = min(m.level+max(sparseLeast, int64(len(pkt))), sparseMost)
	if m.level > sparseBurst {
		m.bulk = now + int64(sparseRest)
	}
	return now >= m.bulk && !fair.Bare(pkt)
}
