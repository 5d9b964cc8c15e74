package node

import (
	"sync/atomic"
	"time"
)

// company is whether flows that send little are under way, from here or to here. What keeps their packets from place to
// place are a transfer's batches: before a core, which somebody has for as long as a batch takes. So in their company
// batches are short.
//
//	flows that send little │ a batch
//	───────────────────────┼────────────
//	none                   │ 128 packets
//	some                   │  32
type company struct {
	sent  atomic.Int64 // when a packet of such a flow last left, Unix nanoseconds
	heard func() bool  // whether peers have sent such; may be nil
}

const (
	companyBatch = 32 // packets
	// companyStays is for how long such a flow is expected to go on.
	companyStays = 100 * time.Millisecond
)

// some reports whether there are any.
func (c *company) some(now time.Time) bool {
	return now.UnixNano()-c.sent.Load() < int64(companyStays) || c.heard != nil && c.heard()
}

// batch is how many of so many packets may be moved at once.
func (c *company) batch(n int) int {
	if n > companyBatch && c.some(time.Now()) {
		return companyBatch
	}
	return n
}
