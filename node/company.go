package node

import (
	"sync/atomic"
	"time"
)

// company is whether flows that send little are under way, from here or to here. What keeps their packets from place to
// place are a transfer's batches: in WireGuard's device, which works on one after the other, and before a core, which
// somebody has for as long as a batch takes. So in their company batches are short, and few are inside;
// not in user space, where floods of datagrams would be starved.
//
//	flows that send little │ a batch     │ inside, each way
//	───────────────────────┼─────────────┼────────────────────────────────────
//	none                   │ 128 packets │ less than 256 before the next
//	some                   │  32         │ less than 32, for who brings batches
type company struct {
	sent  atomic.Int64 // when a packet of such a flow last left, Unix nanoseconds
	heard func() bool  // whether peers have sent such; may be nil
	never bool         // it is not to be heeded
}

const (
	companyBatch  = 32 // packets
	companyInside = 32
	companyFew    = 8 // packets that are no batch
	// companyStays is for how long such a flow is expected to go on.
	companyStays = 100 * time.Millisecond
)

// some reports whether there are any.
func (c *company) some(now time.Time) bool {
	return !c.never && (now.UnixNano()-c.sent.Load() < int64(companyStays) || c.heard != nil && c.heard())
}

// batch is how many of so many packets may be moved at once.
func (c *company) batch(n int) int {
	if n > companyBatch && c.some(time.Now()) {
		return companyBatch
	}
	return n
}
