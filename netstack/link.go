package netstack

import (
	"os"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// queueLen is how many packets wait at most for Read. It holds a whole default send window of small segments;
// the packets share their payload with TCP's retransmission queue, so a full queue costs little beside it.
const queueLen = 4096

// batchSize is what wireguard-go's conn.IdealBatchSize is: the most packets one Read or Write moves.
const batchSize = 128

// link is the lower edge of the gVisor stack: a bounded ring of packets going out, an injector for those coming in.
//
// Writing never blocks. A packet that finds the ring full is dropped, as a device's queue would: the writer may be
// the very goroutine that delivers inbound packets, and two stacks that wait for each other's queues would stop.
// A UDP socket is held back before that by its own send buffer, which a queued packet still occupies.
type link struct {
	mu      sync.Mutex
	more    sync.Cond // something to read, or closed
	ring    [queueLen]*stack.PacketBuffer
	head, n int
	closed  bool
	dropped uint64

	dmu sync.RWMutex
	up  stack.NetworkDispatcher // nil when detached
	mtu uint32
}

var _ stack.LinkEndpoint = (*link)(nil)

func newLink(mtu int) *link {
	l := &link{mtu: uint32(mtu)}
	l.more.L = &l.mu
	return l
}

// WritePackets implements stack.LinkWriter: it queues references and wakes the reader.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	pkts := list.AsSlice()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return 0, &tcpip.ErrClosedForSend{}
	}
	n := min(len(pkts), queueLen-l.n)
	for _, p := range pkts[:n] {
		l.ring[(l.head+l.n)%queueLen] = p.IncRef()
		l.n++
	}
	l.dropped += uint64(len(pkts) - n)
	l.mu.Unlock()
	if n == 0 && len(pkts) > 0 {
		return 0, &tcpip.ErrNoBufferSpace{}
	}
	l.more.Signal()
	return n, nil
}

// read waits for packets and copies as many as there are, and fit, into bufs.
//
// This is the place that will split the segments of a HostGSO link (pkt.GSOOptions) into MTU-sized packets.
func (l *link) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	var batch [batchSize]*stack.PacketBuffer
	limit := min(len(bufs), len(sizes), batchSize)
	for {
		l.mu.Lock()
		for l.n == 0 && !l.closed {
			l.more.Wait()
		}
		if l.closed {
			l.mu.Unlock()
			return 0, os.ErrClosed
		}
		n := min(l.n, limit)
		for i := range n {
			batch[i] = l.ring[l.head]
			l.ring[l.head] = nil
			l.head = (l.head + 1) % queueLen
		}
		l.n -= n
		l.mu.Unlock()

		out := 0
		for _, p := range batch[:n] {
			if size := copyPacket(bufs[out][min(offset, len(bufs[out])):], p); size > 0 { // else the buffer is too small for it
				sizes[out] = size
				out++
			}
			p.DecRef()
		}
		if out > 0 || limit == 0 {
			return out, nil
		}
	}
}

// copyPacket copies p to dst and returns its length, 0 if it does not fit.
func copyPacket(dst []byte, p *stack.PacketBuffer) int {
	if p.Size() > len(dst) {
		return 0
	}
	views, skip := p.AsViewList()
	n := 0
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		n += copy(dst[n:], b[skip:])
		skip = 0
	}
	return n
}

// inject hands one IP packet to the stack. Anything that is not IP is ignored.
func (l *link) inject(packet []byte) {
	var proto tcpip.NetworkProtocolNumber
	switch header.IPVersion(packet) { // -1 when empty
	case 4:
		proto = header.IPv4ProtocolNumber
	case 6:
		proto = header.IPv6ProtocolNumber
	default:
		return
	}
	l.dmu.RLock()
	up := l.up
	l.dmu.RUnlock()
	if up == nil {
		return
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
	up.DeliverNetworkPacket(proto, p)
	p.DecRef()
}

// shut makes read return os.ErrClosed from now on and lets go of what is queued.
func (l *link) shut() {
	l.mu.Lock()
	l.closed = true
	for ; l.n > 0; l.n-- {
		l.ring[l.head].DecRef()
		l.ring[l.head] = nil
		l.head = (l.head + 1) % queueLen
	}
	l.mu.Unlock()
	l.more.Broadcast()
}

func (l *link) drops() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

// Attach implements stack.NetworkLinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.dmu.Lock()
	l.up = d
	l.dmu.Unlock()
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (l *link) IsAttached() bool {
	l.dmu.RLock()
	defer l.dmu.RUnlock()
	return l.up != nil
}

// MTU implements stack.NetworkLinkEndpoint.
func (l *link) MTU() uint32 { return l.mtu }

// Capabilities implements stack.NetworkLinkEndpoint: none, so every checksum is computed and verified in software.
func (l *link) Capabilities() stack.LinkEndpointCapabilities { return stack.CapabilityNone }

// The rest of stack.LinkEndpoint: a link without headers, addresses or goroutines of its own.

func (*link) SetMTU(uint32)                           {}
func (*link) MaxHeaderLength() uint16                 { return 0 }
func (*link) LinkAddress() tcpip.LinkAddress          { return "" }
func (*link) SetLinkAddress(tcpip.LinkAddress)        {}
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (*link) AddHeader(*stack.PacketBuffer)           {}
func (*link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (*link) Wait()                                   {}
func (*link) Close()                                  {}
func (*link) SetOnCloseAction(func())                 {}
