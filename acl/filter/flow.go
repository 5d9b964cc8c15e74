package filter

import (
	"math/bits"
	"net/netip"
	"sync"
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

// Words that were just written must be read back one by one: a wider read, as of a struct copied or compared whole,
// stalls the processor for longer than all else that is done to a packet. So the next three go word by word.

func (t *tuple) set(local, remote *addr, rest uint64) {
	t.local.hi, t.local.lo = local.hi, local.lo
	t.remote.hi, t.remote.lo = remote.hi, remote.lo
	t.rest = rest
}

func (t *tuple) equal(u *tuple) bool {
	return t.remote.lo == u.remote.lo && t.rest == u.rest && t.local.lo == u.local.lo &&
		t.remote.hi == u.remote.hi && t.local.hi == u.local.hi
}

func (t *tuple) hash(k *seed) uint64 {
	a, b := bits.Mul64(t.local.lo^k[0], t.remote.lo^k[1])
	c, d := bits.Mul64(t.local.hi^bits.RotateLeft64(t.remote.hi, 29)^k[2], t.rest^k[3])
	a, b = bits.Mul64(a^b^k[3], c^d^k[0])
	return a ^ b
}

func restOf(lport, rport uint16, asks, proto uint8) uint64 {
	return uint64(lport)<<48 | uint64(rport)<<32 | uint64(asks)<<8 | uint64(proto)
}

func (t *tuple) lport() uint16 { return uint16(t.rest >> 48) }
func (t *tuple) rport() uint16 { return uint16(t.rest >> 32) }
func (t *tuple) proto() uint8  { return uint8(t.rest) }

// flow is what a rule admitted. All of it is under its shard's lock. It fills three cache lines: what a search reads,
// what a verdict needs, and what is TCP's alone.
type flow struct {
	next     *flow
	hash     uint32
	inbound  bool // opened by the peer
	state    state
	loose    bool
	crossed  bool
	tuple    tuple
	deadline int64 // ns since snapshot.base, as is opened: the last packet and idle()

	peer      *peer
	rule      *acl.Rule
	expires   int64 // when it must be judged again, Unix ns
	opened    int64
	bytes     [2]uint64
	revision  uint64 // of the snapshot that judged it last
	epoch     uint32 // and its epoch
	challenge uint32

	side [2]tcpSide
}

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

// of makes t the name of p's flow when p goes in direction d.
func (t *tuple) of(p *packet, d int) {
	asks := uint8(0)
	if p.proto == protoICMP || p.proto == protoICMPv6 {
		asks = uint8(d) + 1
		if p.icmp == icmpReply {
			asks = uint8(1-d) + 1
		}
	}
	if d == theirs {
		t.set(&p.dst, &p.src, restOf(p.dport, p.sport, asks, p.proto))
	} else {
		t.set(&p.src, &p.dst, restOf(p.sport, p.dport, asks, p.proto))
	}
}

const shardBits = 6

// shard is a part of the flow table: a hash table with chains, whose flows come from chunks and return to a list.
type shard struct {
	mu      sync.Mutex
	buckets []*flow // a power of two
	free    *flow
	n       int
	hand    int                    // where the next partial sweep goes on
	passed  [2][reasonCount]uint64 // counters of the packets that found the lock held anyway
	_       [64]byte
}

// seed keeps others from choosing tuples that fall into one chain.
type seed [4]uint64

func (s *shard) find(t *tuple, hash uint64) *flow {
	if len(s.buckets) == 0 {
		return nil
	}
	for f := s.buckets[hash&uint64(len(s.buckets)-1)]; f != nil; f = f.next {
		if f.hash == uint32(hash) && f.tuple.equal(t) {
			return f
		}
	}
	return nil
}

// insert returns a new flow, of which only the tuple is set: the rest may be that of an old one.
func (s *shard) insert(t *tuple, hash uint64) *flow {
	if 2*s.n >= len(s.buckets) {
		s.grow()
	}
	if s.free == nil {
		chunk := make([]flow, 32)
		for i := range chunk[1:] {
			chunk[i].next = &chunk[i+1]
		}
		s.free = &chunk[0]
	}
	f := s.free
	s.free = f.next
	at := &s.buckets[hash&uint64(len(s.buckets)-1)]
	f.next, f.hash = *at, uint32(hash)
	f.tuple.set(&t.local, &t.remote, t.rest)
	*at = f
	s.n++
	return f
}

func (s *shard) grow() {
	old := s.buckets
	s.buckets = make([]*flow, max(16, 2*len(old)))
	for _, f := range old {
		for f != nil {
			next := f.next
			at := &s.buckets[f.hash&uint32(len(s.buckets)-1)]
			f.next, *at = *at, f
			f = next
		}
	}
}

// sweep goes through n buckets from the hand on and takes out each flow for which gone says so.
func (s *shard) sweep(n int, gone func(*flow) bool) {
	if n = min(n, len(s.buckets)); n == 0 {
		return
	}
	for range n {
		s.hand = (s.hand + 1) & (len(s.buckets) - 1)
		for at := &s.buckets[s.hand]; *at != nil; {
			if f := *at; gone(f) {
				s.unlink(at)
			} else {
				at = &f.next
			}
		}
	}
}

func (s *shard) unlink(at **flow) {
	f := *at
	*at = f.next
	f.peer, f.rule, f.next = nil, nil, s.free
	s.free = f
	s.n--
}

func (s *shard) remove(f *flow) {
	at := &s.buckets[f.hash&uint32(len(s.buckets)-1)]
	for *at != f {
		at = &(*at).next
	}
	s.unlink(at)
}
