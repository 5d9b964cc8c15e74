package netstack

import (
	"encoding/binary"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// goBack keeps a connection of gVisor's TCP from crawling after an outage.
//
// After a retransmission timeout TCP goes back: it sends again from the first byte that is not acknowledged, at first one
// segment, and more with each acknowledgment (RFC 5681 section 3.1). gVisor's RACK spoils that: with the first acknowledgment it
// enters fast recovery. There what is on its way is reckoned from SACK blocks alone (RFC 6675 section 4), of which there are
// none, so that everything counts, and more than the congestion window allows. Nothing goes until the next timeout: two
// segments in 200 ms, for minutes.
//
//	sent   1 2 3 4 5 6 7 8 9 …       all lost
//	timeout 1 ──▶ ack 2 ──▶ RACK: 2 to 9 are lost; pipe: 2 to 9 are on their way ──▶ 2, and nothing more
//
// There are two reasons for it. By the acknowledgment of what went again, all that was sent before the timeout is lost (RFC
// 8985 section 6.2). RACK heeds no acknowledgment that may be for the first of two transmissions, being one whose echoed
// timestamp is older than the second (step 1 there). So while a connection goes back, its timestamps are some milliseconds
// in the past. They still grow, for there was nothing sent for longer than that before the timeout (RFC 7323 section 5.3).
//
// And what RACK took for lost before the timeout, and has not been sent again since, counts as lost at each acknowledgment.
// Where few are lost, SACK blocks say so and it does no harm. Where it does, there is another timeout and only two segments
// went since the last, as when nothing is heard at all. Then the connection has no SACK, and so no RACK, until it sends
// something new: by then all has been sent again. Nobody but the endpoint ever looks at its SACKPermitted, under its lock,
// which it holds when it hands down a segment.
//
// RFC 5681 (section 3.1) has the slow start threshold stay as it is when what has timed out times out again. gVisor makes it
// half of what it thinks is on its way, which is next to nothing then: a connection over a long path that had two timeouts
// would grow by a segment in each round trip from two. So when it is heard again it begins as a new one does.
//
// While the other end keeps sending, another trap is in the way of the timeout itself: with each segment that comes gVisor sets its
// timer for the next probe anew, two round trips from then, also where the congestion window lets it send nothing (RFC 8985
// section 7.2 sets it when data is sent). Who lost a whole window, and hears more often than that, would wait for ever. Probes
// are for connections with SACK: one that has acknowledged new data, and sent none for a while, has it no more until something
// goes. It costs one acknowledgment its blocks, for at the first that is repeated it has SACK again.
//
//	b  lost, window full │ ◀─ data, ack ─▶ ◀─ data, ack ─▶ … stillSends: no SACK ─▶ a timeout
//
// It is the owner of the connection's packets, which is how a link gets at it.
type goBack struct {
	ep       *tcp.Endpoint
	timeouts func() uint64 // of the connection, so far
	known    uint64        // of which this many are looked at
	any      bool          // something has been sent
	top      uint32        // the sequence number after the last byte sent
	back     bool          // it goes back: what it sends again, it sends after a timeout
	heard    bool          // and what went first has arrived
	from     uint32        // where it went back to
	segments int           // sent since
	bare     bool          // it has no SACK,
	still    bool          // neither for this reason,
	sack     bool          // but will have again
	acked    uint32        // by the last acknowledgment that went alone
	at       time.Time     // when it last sent something
	anew     atomic.Bool   // the reader of the link is to have it begin anew
}

const (
	goBackBy    = 4       // units of gVisor's timestamps, which are milliseconds
	goBackLeast = 4 << 10 // bytes on their way: fewer take two timeouts
	goBackFew   = 4       // segments from one timeout to the next
	stillSends  = 300 * time.Millisecond
	// goBackRest without a segment of ours is when all are acknowledged, or a timer would have run out.
	goBackRest = maxRTO + maxRTO/2
)

// newGoBack takes care of an endpoint, if it is TCP's.
func newGoBack(e tcpip.Endpoint) {
	ep, ok := e.(*tcp.Endpoint)
	if !ok {
		return
	}
	g := &goBack{ep: ep, timeouts: ep.Stats().(*tcp.Stats).SendErrors.Timeouts.Value}
	ep.LockUser()
	ep.SetOwner(g)
	ep.UnlockUser()
}

// KUID and KGID implement tcpip.PacketOwner, for packet filters that there are none of.
func (*goBack) KUID() uint32 { return 0 }
func (*goBack) KGID() uint32 { return 0 }

// sends is told of each segment that the endpoint hands down, by the endpoint.
func (g *goBack) sends(p *stack.PacketBuffer) {
	h := header.TCP(p.TransportHeader().Slice())
	n, was, now := p.Data().Size(), g.bare || g.still, time.Now()
	g.rests(n, h.AckNumber(), now)
	g.see(h.SequenceNumber(), n, now)
	if g.back && n > 0 {
		stamp(h)
	}
	switch is := g.bare || g.still; {
	case is && !was:
		g.sack, g.ep.SACKPermitted = g.ep.SACKPermitted, false
	case was && !is:
		g.ep.SACKPermitted = g.sack
	}
}

// rests looks whether the other end's segments are all that happens.
func (g *goBack) rests(n int, ack uint32, now time.Time) {
	if n > 0 {
		g.still = false
		return
	}
	g.still = g.any && ack != g.acked && now.Sub(g.at) > stillSends
	g.acked = ack
}

// see takes note of a segment with so many bytes of payload.
func (g *goBack) see(seq uint32, n int, now time.Time) {
	end := seq + uint32(n)
	switch {
	case n == 0:
		if g.back && now.Sub(g.at) > goBackRest {
			g.back, g.bare = false, false
		}
		return
	case !g.any || int32(end-g.top) > 0: // something new
		g.any, g.top, g.back, g.bare = true, end, false, false
	case g.timeouts() != g.known:
		g.known = g.timeouts()
		g.bare = g.bare || g.back && g.segments <= goBackFew
		g.back, g.heard, g.from, g.segments = int32(g.top-seq) > goBackLeast, false, seq, 1
		g.bare = g.bare && g.back
	case g.back:
		if g.segments++; !g.heard && int32(seq-g.from) > 0 {
			g.heard = true
			g.anew.Store(true)
		}
	}
	g.at = now
}

// stamp makes the timestamp of a TCP header older.
func stamp(tcp header.TCP) {
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

// slowest is a slow start threshold, in segments, that only repeated timeouts make: it is less than a new connection sends.
const slowest = tcp.InitialCwnd

// begin has the congestion control begin anew, if timeouts have left nothing of it. It waits for the endpoint, which must
// not be the caller.
func (g *goBack) begin() {
	var info tcpip.TCPInfoOption
	var control tcpip.CongestionControlOption
	if g.ep.GetSockOpt(&info) != nil || g.ep.GetSockOpt(&control) != nil {
		return
	}
	// In fast recovery it would end with a burst.
	if info.CcState != tcpip.SACKRecovery && info.CcState != tcpip.FastRecovery && info.SndSsthresh < slowest {
		_ = g.ep.SetSockOpt(&control) // to what it is
	}
}
