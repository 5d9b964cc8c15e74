package netstack

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport"

	"github.com/hedge-mesh/hedge/node/fair"
)

// datagrams is how a socket with an address of its own sends to peers: by the link, where gVisor's endpoint would allocate
// for each, and cut it to 1280 bytes also where the path carries more.
//
//	udpConn.Write ─┬─ to a peer ─▶ │ IP │ UDP │ payload │ ─▶ link ─▶ whole, or in fragments
//	               └─ to an own address, or from no certain one ─▶ gVisor's endpoint, which is also asked whether it lives
type datagrams struct {
	link   *link
	s      *Stack
	from   netip.AddrPort // zero: not certain
	queued atomic.Int64   // bytes that wait for Read
}

const (
	// datagramRoom is how many bytes of a socket's may wait before it has to; the last may be more.
	datagramRoom = 64 << 10
	maxDatagram  = 65535 - header.IPv4MinimumSize - header.UDPMinimumSize
)

// can reports whether a datagram of n bytes can be sent to an address this way.
func (d *datagrams) can(n int, to netip.AddrPort) bool {
	a := to.Addr()
	return d.from.IsValid() && a.Is4() == d.from.Addr().Is4() && a.IsGlobalUnicast() && to.Port() != 0 && n <= maxDatagram && !d.s.owns(a)
}

// send queues a datagram for Read.
func (c *udpConn) send(b []byte, to netip.AddrPort) tcpip.Error {
	if !c.lives() {
		return &tcpip.ErrInvalidEndpointState{}
	}
	if err := c.ep.LastError(); err != nil {
		return err
	}
	if c.dgrams.queued.Load() >= datagramRoom {
		return &tcpip.ErrWouldBlock{}
	}
	v := encodeDatagram(b, c.dgrams.from, to, uint16(c.dgrams.link.ids.Add(1)))
	r := newReceipt(c, v.Size())
	c.dgrams.queued.Add(r.n)
	flow := fair.Flow(v.AsSlice())
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v), OnRelease: r.release})
	p.Hash = max(flow, 1) // 0 is none
	err := c.dgrams.link.WritePacket(p)
	p.DecRef()
	return err
}

// lives reports whether the endpoint is bound or connected still. One whose address has gone is not.
func (c *udpConn) lives() bool {
	state := transport.DatagramEndpointState(c.ep.State())
	return state == transport.DatagramEndpointStateBound || state == transport.DatagramEndpointStateConnected
}

// receipt is of a datagram that is queued.
type receipt struct {
	c       *udpConn
	n       int64
	release func() // give, which would else be made anew for each
}

var receipts sync.Pool

func newReceipt(c *udpConn, n int) *receipt {
	r, _ := receipts.Get().(*receipt)
	if r == nil {
		r = new(receipt)
		r.release = r.give
	}
	r.c, r.n = c, int64(n)
	return r
}

// give says that the datagram does not wait any more.
func (r *receipt) give() {
	c, n := r.c, r.n
	r.c = nil
	receipts.Put(r)
	c.dgrams.queued.Add(-n)
	c.out.wake()
}

// encodeDatagram makes an IP packet, complete; id is IPv4's. It is the caller's to release.
func encodeDatagram(payload []byte, from, to netip.AddrPort, id uint16) *buffer.View {
	const ttl = 64
	ip, length := header.IPv4MinimumSize, header.UDPMinimumSize+len(payload)
	if to.Addr().Is6() {
		ip = header.IPv6MinimumSize
	}
	v := buffer.NewViewSize(ip + length)
	p := v.AsSlice()
	src, dst := gAddr(from.Addr()), gAddr(to.Addr())
	if to.Addr().Is4() {
		h := header.IPv4(p)
		h.Encode(&header.IPv4Fields{TotalLength: uint16(len(p)), ID: id, TTL: ttl, Protocol: uint8(header.UDPProtocolNumber), SrcAddr: src, DstAddr: dst})
		h.SetChecksum(^h.CalculateChecksum())
	} else {
		header.IPv6(p).Encode(&header.IPv6Fields{PayloadLength: uint16(length), TransportProtocol: header.UDPProtocolNumber, HopLimit: ttl, SrcAddr: src, DstAddr: dst})
	}
	h := header.UDP(p[ip:])
	h.Encode(&header.UDPFields{SrcPort: from.Port(), DstPort: to.Port(), Length: uint16(length)})
	copy(h[header.UDPMinimumSize:], payload)
	sum := ^checksum.Checksum(h, header.PseudoHeaderChecksum(header.UDPProtocolNumber, src, dst, uint16(length)))
	if sum == 0 {
		sum = 0xffff // 0 would say that there is none (RFC 768)
	}
	h.SetChecksum(sum)
	return v
}

func gAddr(a netip.Addr) tcpip.Address {
	if a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	}
	return tcpip.AddrFrom16(a.As16())
}
