package netstack

import (
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// stillness holds writes to a connection that is full and sends and receives nothing.
//
// Each write makes gVisor set its timer for the next probe or retransmission anew, two round trips from then, also one
// that sends nothing because the window is full (RFC 8985 section 7.2 sets it when data is sent). A program that writes
// more often than that keeps what was lost from ever being sent again, until the buffer is full, which takes seconds.
//
//	lost, window full ─ write ─ write ─ write ─ stillAfter ─ write waits ── probe or timeout ──▶ it goes on
type stillness struct {
	stats *tcp.Stats
	moved atomic.Uint64 // segments sent and received, as of the write before
	since atomic.Int64  // nanoseconds: the first write that found as many
}

const (
	stillAfter = 100 * time.Millisecond // a path that is alive has acknowledged something meanwhile, or what is lost waits
	stillMost  = time.Second            // that a write waits, its deadline notwithstanding
	stillTick  = 10 * time.Millisecond
)

// wait returns at once, unless several writes have moved nothing.
func (s *stillness) wait(closed *atomic.Bool) {
	if s.stats == nil {
		return
	}
	now, n := time.Now().UnixNano(), s.count()
	if s.moved.Load() != n {
		s.moved.Store(n)
		s.since.Store(now)
		return
	}
	if now-s.since.Load() < int64(stillAfter) {
		return
	}
	tick := time.NewTicker(stillTick)
	defer tick.Stop()
	for range stillMost / stillTick {
		if <-tick.C; closed.Load() || s.count() != n {
			return
		}
	}
}

func (s *stillness) count() uint64 {
	return s.stats.SegmentsSent.Value() + s.stats.SegmentsReceived.Value()
}
