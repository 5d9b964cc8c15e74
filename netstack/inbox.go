package netstack

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/waiter"
)

// inboxes is whose a datagram is that comes whole. gVisor's way to a socket allocates four to eight times for each; what is
// no such datagram, is damaged or nobody's goes it all the same, and so does what comes behind such: what is in an inbox came
// before all that its endpoint has.
//
//	Stack.Write ─ datagram ─┬─ of a connected socket: both addresses ─┐
//	                        ├─ to an own address: that and the port ──┼─▶ inbox ─▶ udpConn.Read
//	                        ├─ to an own address: the port ───────────┘
//	                        └─ else ─▶ gVisor ─▶ endpoint ─▶ udpConn.Read
type inboxes struct {
	mu sync.RWMutex
	m  map[ends]*udpConn
}

// ends are a socket's. An end that may be any is zero; of a local one that may be any address, that is.
type ends struct{ local, remote netip.AddrPort }

func (t *inboxes) add(e ends, c *udpConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = make(map[ends]*udpConn)
	}
	t.m[e] = c
}

func (t *inboxes) remove(e ends, c *udpConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[e] == c {
		delete(t.m, e)
	}
}

// find is whose a datagram is, and what room there is for what waits there; nil if gVisor is to say.
func (t *inboxes) find(e ends, own func(netip.Addr) bool) (*udpConn, int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if len(t.m) == 0 {
		return nil, 0
	}
	room := min(inboxRoom, max(inboxLeast, inboxesRoom/len(t.m)))
	if c := t.m[e]; c != nil {
		return c, room
	}
	if !own(e.local.Addr()) {
		return nil, 0
	}
	if c := t.m[ends{local: e.local}]; c != nil {
		return c, room
	}
	return t.m[ends{local: netip.AddrPortFrom(netip.Addr{}, e.local.Port())}], room
}

// deliver gives a packet to the socket that it is for, and reports whether it has, and whether so much waits there that its
// reader is to have the processor.
func (s *Stack) deliver(p []byte) (ok, crowded bool) {
	e, payload, ok := decodeDatagram(p)
	if !ok {
		return false, false
	}
	c, room := s.inboxes.find(e, s.owns)
	if c == nil {
		return false, false
	}
	if !c.lives() || c.ep.Readiness(waiter.ReadableEvents) != 0 {
		return false, false
	}
	left := c.inbox.put(payload, e.remote, room)
	c.in.wake()
	return true, left < room/2
}

// decodeDatagram takes apart an IP packet that is one datagram, whole and undamaged, without options. remote is its source.
//
//	IPv4  │ 45 │ tos │ length │ id │ no fragment │ ttl │ 17 │ sum │ source 4 │ destination 4 │ UDP 8 │ payload
//	IPv6  │ 6… │ length │ 17 │ hops │ source 16 │ destination 16 │ UDP 8 │ payload
func decodeDatagram(p []byte) (e ends, payload []byte, ok bool) {
	var src, dst netip.Addr
	var u header.UDP
	switch {
	case len(p) >= header.IPv4MinimumSize+header.UDPMinimumSize && p[0] == 0x45 && p[9] == uint8(header.UDPProtocolNumber):
		if binary.BigEndian.Uint16(p[6:])&0x3fff != 0 || int(binary.BigEndian.Uint16(p[2:])) != len(p) || !header.IPv4(p).IsChecksumValid() {
			return e, nil, false
		}
		src, dst, u = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), p[header.IPv4MinimumSize:]
	case len(p) >= header.IPv6MinimumSize+header.UDPMinimumSize && p[0]>>4 == 6 && p[6] == uint8(header.UDPProtocolNumber):
		if int(binary.BigEndian.Uint16(p[4:])) != len(p)-header.IPv6MinimumSize {
			return e, nil, false
		}
		src, dst, u = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), p[header.IPv6MinimumSize:]
	default:
		return e, nil, false
	}
	payload = u[header.UDPMinimumSize:]
	if int(u.Length()) != len(u) || u.SourcePort() == 0 || u.Checksum() == 0 || !src.IsGlobalUnicast() || !dst.IsGlobalUnicast() ||
		!u.IsChecksumValid(gAddr(src), gAddr(dst), checksum.Checksum(payload, 0)) {
		return e, nil, false // gVisor knows what of it to take
	}
	return ends{netip.AddrPortFrom(dst, u.DestinationPort()), netip.AddrPortFrom(src, u.SourcePort())}, payload, true
}

// inbox is what has come for a socket and was not read yet, in order.
type inbox struct {
	mu    sync.Mutex
	q     []letter
	at    int // of the first in q
	bytes int
}

type letter struct {
	text *buffer.View // nil: empty
	from netip.AddrPort
}

const (
	inboxRoom   = 256 << 10 // bytes, beyond which datagrams are lost: a batch of 128 is given before anybody can read
	inboxLeast  = 32 << 10  // the same where there are many sockets: as gVisor has it
	inboxesRoom = 16 << 20  // of all sockets, as long as each has that
	letterCost  = 64        // bytes that one counts for at least
)

// put copies a datagram, if less than room is taken, and returns what of it is left.
func (i *inbox) put(b []byte, from netip.AddrPort, room int) (left int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.bytes >= room {
		return 0
	}
	if i.at > 0 && len(i.q) == cap(i.q) {
		i.q, i.at = slices.Delete(i.q, 0, i.at), 0
	}
	l := letter{from: from}
	if len(b) > 0 {
		l.text = buffer.NewViewSize(len(b))
		copy(l.text.AsSlice(), b)
	}
	i.q = append(i.q, l)
	i.bytes += max(len(b), letterCost)
	return room - i.bytes
}

// take copies the first datagram to b, as much of it as fits.
func (i *inbox) take(b []byte) (n int, from netip.AddrPort, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.at == len(i.q) {
		return 0, from, false
	}
	l := i.q[i.at]
	i.q[i.at] = letter{}
	if i.at++; i.at == len(i.q) {
		i.q, i.at = i.q[:0], 0
	}
	size := 0
	if l.text != nil {
		size = l.text.Size()
		n = copy(b, l.text.AsSlice())
		l.text.Release()
	}
	i.bytes -= max(size, letterCost)
	return n, l.from, true
}
