package netstack

import (
	"encoding/binary"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// goBack keeps gVisor's TCP from crawling after an outage.
//
// After a retransmission timeout TCP goes back: it sends again from the first byte that is not acknowledged, at first one
// segment, and more with each acknowledgment (RFC 5681 section 3.1). gVisor's RACK spoils that. By the acknowledgment of
// what went again, all that was sent before the timeout is lost (RFC 8985 section 6.2), so that it enters fast recovery; there what is
// on its way is reckoned from SACK blocks alone (RFC 6675 section 4), of which there are none, so that everything counts, and
// more than the congestion window allows. Nothing goes until the next timeout: two segments in 200 ms, for minutes.
//
//	sent   1 2 3 4 5 6 7 8 9 …       all lost
//	timeout 1 ──▶ ack 2 ──▶ RACK: 2 to 9 are lost; pipe: 2 to 9 are on their way ──▶ 2, and nothing more
//
// RACK heeds no acknowledgment that may be for the first of two transmissions, being one whose echoed timestamp is older
// than the second (RFC 8985 section 6.2, step 1). So while a connection goes back, its timestamps are some milliseconds in
// the past. They still grow, for there was nothing sent for longer than that before the timeout (RFC 7323 section 5.3).
//
// RFC 5681 (section 3.1) has the slow start threshold stay as it is when what has timed out times out again. gVisor makes it
// half of what it thinks is on its way, which is next to nothing then: a connection over a long path that had two timeouts
// would grow by a segment in each round trip from two. So when it is heard again it begins as a new one does.
type goBack struct {
	timeouts func() uint64             // of all connections, so far
	anew     func(*stack.PacketBuffer) // the connection of this segment begins anew; nil does nothing
	flows    [goBackFlows]goBackFlow
}

// goBackFlow is a connection. Of two that meet in one place the latest is remembered.
type goBackFlow struct {
	hash     uint32
	top      uint32 // the sequence number after the last byte sent
	back     bool   // what is sent again is sent after a timeout
	heard    bool   // and what went first has arrived
	from     uint32 // where it went back to
	timeouts uint64 // when it last sent
	at       int64  // the same, nanoseconds
}

const (
	goBackFlows = 1024
	goBackPause = 100 * time.Millisecond // what surely precedes a timeout: gVisor's least is 200 ms
	goBackBy    = 4                      // units of gVisor's timestamps, which are milliseconds
	goBackLeast = 16 << 10               // bytes
)

// see takes note of a segment with payload, and reports whether it is one of a connection that goes back, and whether it is
// the first that such a one sends since it is heard again.
func (g *goBack) see(hash, seq uint32, n int, now int64) (back, heard bool) {
	f := &g.flows[hash%goBackFlows]
	timeouts, end := g.timeouts(), seq+uint32(n)
	switch {
	case f.hash != hash || f.at == 0:
		*f = goBackFlow{hash: hash, top: end}
	case int32(end-f.top) > 0: // something new
		f.top, f.back = end, false
	case timeouts != f.timeouts && now-f.at >= int64(goBackPause):
		f.back, f.heard, f.from = int(f.top-seq) > goBackLeast, false, seq
	case f.back && !f.heard && int32(seq-f.from) > 0:
		f.heard, heard = true, true
	}
	f.timeouts, f.at = timeouts, now
	return f.back, heard
}

// stamp makes the timestamp of a TCP header older.
func (g *goBack) stamp(tcp header.TCP) {
	for opts := tcp.Options(); len(opts) > 0; {
		switch kind := opts[0]; {
		case kind == header.TCPOptionNOP:
			opts = opts[1:]
			continue
		case kind == header.TCPOptionEOL || len(opts) < 2 || opts[1] < 2 || int(opts[1]) > len(opts):
			return
		case kind == header.TCPOptionTS && opts[1] == header.TCPOptionTSLength:
			binary.BigEndian.PutUint32(opts[2:], binary.BigEndian.Uint32(opts[2:])-goBackBy)
			return
		}
		opts = opts[opts[1]:]
	}
}
