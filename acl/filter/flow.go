package filter

import (
	"math/bits"
	"net/netip"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// The two sides of a flow, and the two directions a packet goes, named by who sends it.
const (
	ours   = 0 // Out
	theirs = 1 // In
)

// tuple names a flow, the same from both directions. It holds no peer: within one snapshot an address belongs to one
// peer only, and across snapshots a flow whose peer is no longer the owner of remote is not found alive (see
// [Filter.current]). ICMP echo has its identifier as both ports, and who asks, for both may with one identifier.
type tuple struct {
	local, remote addr
	// rest is the local port, the remote port, 0, who asks (ours+1 or theirs+1) and the protocol.
	rest uint64
}

func (t *tuple) name() name { return name{&t.local, &t.remote, t.rest} }

// name is a tuple whose addresses are read where they lie, in a packet or in a flow. They go word by word: a wider read
// of words that were just written, as of a struct copied or compared whole, stalls the processor for longer than all
// else that is done to a packet.
type name struct {
	local, remote *addr
	rest          uint64
}

// nameOf is the name of p's flow when p goes in direction d.
func nameOf(p *packet, d int) name {
	asks := uint64(0)
	if p.icmp != icmpOther {
		asks = p.asks(d) << 8
	}
	if d == theirs {
		return name{&p.dst, &p.src, uint64(p.dport)<<48 | uint64(p.sport)<<32 | uint64(p.proto) | asks}
	}
	return name{&p.src, &p.dst, uint64(p.sport)<<48 | uint64(p.dport)<<32 | uint64(p.proto) | asks}
}

// asks is who asks, plus one, if p is an echo.
func (p *packet) asks(d int) uint64 {
	if p.icmp == icmpReply {
		d = 1 - d
	}
	return uint64(d) + 1
}

func (n name) to(t *tuple) {
	t.local.hi, t.local.lo = n.local.hi, n.local.lo
	t.remote.hi, t.remote.lo = n.remote.hi, n.remote.lo
	t.rest = n.rest
}

func (n name) is(t *tuple) bool {
	return t.remote.lo == n.remote.lo && t.rest == n.rest && t.local.lo == n.local.lo &&
		t.remote.hi == n.remote.hi && t.local.hi == n.local.hi
}

func (n name) hash(k *seed) uint64 {
	a, b := bits.Mul64(n.local.lo^k[0], n.remote.lo^k[1])
	c, d := bits.Mul64(n.local.hi^bits.RotateLeft64(n.remote.hi, 29)^k[2], n.rest^k[3])
	return a ^ b ^ bits.RotateLeft64(c^d, 32)
}

// seed keeps others from choosing tuples that fall into one place of the table.
type seed [4]uint64

func (t *tuple) lport() uint16 { return uint16(t.rest >> 48) }
func (t *tuple) rport() uint16 { return uint16(t.rest >> 32) }
func (t *tuple) proto() uint8  { return uint8(t.rest) }

// flow is what a rule admitted. All of it is under its shard's lock. It fills two cache lines, of which a verdict needs
// both: a search reads the first and deadline, so that in a table too large for the cache the processor waits for the two
// at once. What is TCP's alone lies elsewhere.
type flow struct {
	tuple   tuple
	rule    *acl.Rule
	expires int64 // when it must be judged again, Unix ns
	opened  int64 // ns since snapshot.base, as is deadline

	deadline  int64 // the last packet and idle()
	peer      *peer
	inbound   bool // opened by the peer
	state     state
	loose     bool
	crossed   bool
	hash      uint32
	bytes     [2]uint64
	*sides    // of TCP
	challenge uint32
	_         [12]byte
}

// sides are those of a TCP connection, by who it is.
type sides struct{ side [2]tcpSide }

func (f *flow) opener() int {
	if f.inbound {
		return theirs
	}
	return ours
}

// ends are the flow's source and destination as its opener sees them.
func (f *flow) ends() (src, dst addr, sport, dport uint16) {
	if f.inbound {
		return f.tuple.remote, f.tuple.local, f.tuple.rport(), f.tuple.lport()
	}
	return f.tuple.local, f.tuple.remote, f.tuple.lport(), f.tuple.rport()
}

func (f *flow) addrPorts() (src, dst netip.AddrPort) {
	s, d, sp, dp := f.ends()
	return netip.AddrPortFrom(s.netip(), sp), netip.AddrPortFrom(d.netip(), dp)
}

// idle is how long a flow lives without a packet.
func (f *flow) idle() int64 {
	if f.state != replied {
		return idleTimes[f.state]
	}
	return f.idleReplied()
}

func (f *flow) idleReplied() int64 {
	switch f.tuple.proto() {
	case protoICMP, protoICMPv6:
		return int64(30 * time.Second)
	case protoSCTP:
		return int64(2 * time.Hour)
	}
	return idleTimes[replied]
}

// RFC 4787 section 4.3, RFC 5382 section 5: at least 2 minutes and 2 hours 4 minutes. A half-closed connection may
// still carry a long download.
var idleTimes = [stateCount]int64{
	fresh:       int64(30 * time.Second),
	replied:     int64(3 * time.Minute),
	synSent:     int64(2 * time.Minute),
	synReceived: int64(1 * time.Minute),
	established: int64(24 * time.Hour),
	closing:     int64(1 * time.Hour),
	timeWait:    int64(1 * time.Minute),
	closed_:     int64(10 * time.Second),
}
