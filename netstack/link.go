package netstack

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/hedge-mesh/hedge/node/arena"
)

// batchSize is what wireguard-go's conn.IdealBatchSize is: the most packets one Read or Write moves.
const batchSize = 128

// gsoMax bounds what TCP hands down at once, room for headers included, of which gVisor's TCP takes 161 bytes. It is to be
// cut to packets of one UDP message (64 KiB, see udp.Socket), or each would be a full message and the rest, a short one. And
// three are to fill a batch, for read cuts none in two:
//
//	path   │ packets, IPv4, IPv6 │ in a message │ in a batch
//	1,280  │ 47, 48              │ 49           │ 2 times
//	1,500  │ 42, 42              │ 44           │ 3 times
//	9,000  │ 7, 7                │ 7            │ 4 times, as much as is lent
const gsoMax = segmentMost + 161

// segmentMost is how much data there is in such.
const segmentMost = 42 * 1368

// packetMost is how long a packet may be: what an IPv4 header can say.
const packetMost = 1<<16 - 1

// link is the lower edge of the gVisor stack: a bounded queue of packets going out, an injector for those coming in.
//
// Writing never blocks. What finds the queue full costs a packet, as a device's queue would: the writer may be
// the very goroutine that delivers inbound packets, and two stacks that wait for each other's queues would stop.
// A UDP socket is held back before that by its own send buffer, which a queued packet still occupies.
type link struct {
	mu      sync.Mutex
	more    sync.Cond // something to read, or closed
	q       *queue
	closed  bool
	dropped uint64

	readable func() // Options.Readable

	rmu  sync.Mutex  // of the reader
	out  segmenter   // what it has taken from the queue last
	lent arena.Arena // where what it has read last lies, if it had no buffers

	dmu      sync.RWMutex
	up       stack.NetworkDispatcher // nil when detached
	ip4, ip6 stack.NetworkEndpoint   // of the interface; set before anything is written
	mtu      uint32
	fits     func(netip.Addr) (int, bool) // Options.PathMTU
	ids      atomic.Uint32                // of packets that may come in fragments
}

var (
	_ stack.LinkEndpoint       = (*link)(nil)
	_ stack.GSOEndpoint        = (*link)(nil)
	_ stack.QueueingDiscipline = (*link)(nil)
)

func newLink(mtu int, fits func(netip.Addr) (int, bool)) *link {
	l := &link{mtu: uint32(mtu), fits: fits}
	l.more.L = &l.mu
	l.ids.Store(rand.Uint32())
	l.q = newQueue(l.lose)
	return l
}

// WritePacket implements stack.QueueingDiscipline: it queues a reference and wakes the reader. gVisor's own discipline,
// which hands packets on to WritePackets, makes a list for each.
func (l *link) WritePacket(p *stack.PacketBuffer) tcpip.Error {
	if g, ok := p.Owner.(*goBack); ok {
		g.sends(p)
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return &tcpip.ErrClosedForSend{}
	}
	queued := l.q.Put(flowOf(p), p.Size(), p.IncRef())
	l.mu.Unlock()
	if !queued {
		return &tcpip.ErrNoBufferSpace{}
	}
	l.more.Signal()
	if l.readable != nil {
		l.readable()
	}
	return nil
}

// WritePackets implements stack.LinkWriter, for whoever has a list.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for i, p := range list.AsSlice() {
		if err := l.WritePacket(p); err != nil {
			return i, err
		}
	}
	return list.Len(), nil
}

// lose is told of what the queue had no room for.
func (l *link) lose(p *stack.PacketBuffer) {
	l.dropped++
	p.DecRef()
}

// read fills bufs with as many packets as there are, and waits for one if it is to; a buffer that is nil it replaces by one
// of its own, good until the next call. One caller at a time makes progress.
func (l *link) read(bufs [][]byte, sizes []int, offset int, wait bool) (int, error) {
	l.rmu.Lock()
	defer l.rmu.Unlock()
	l.lent.Reset()
	limit := min(len(bufs), len(sizes))
	if limit == 0 {
		return 0, l.err()
	}
	for {
		n := 0
		for n < limit {
			if l.out.pkt == nil {
				p, err := l.take(wait && n == 0)
				if err != nil {
					return 0, err
				}
				if p == nil {
					break
				}
				if g, ok := p.Owner.(*goBack); ok && g.anew.CompareAndSwap(true, false) {
					g.begin()
				}
				l.out.start(p, l)
				if k := l.out.count(); n > 0 && k <= limit && (n+k > limit || bufs[n] == nil && !l.lent.Holds(k, offset, l.out.size())) {
					break // it is first in the next batch, and one message
				}
			}
			b := bufs[n]
			if b == nil {
				if b = l.lent.Lend(offset, min(l.out.size(), packetMost)); b == nil {
					return n, nil // the rest is for the next call
				}
			}
			if size := l.out.next(b[min(offset, len(b)):]); size > 0 { // else the buffer is too small for it
				bufs[n], sizes[n] = b, size
				n++
			}
		}
		if n > 0 || !wait {
			return n, nil
		}
	}
}

// fit is how long packets to an address may be that are of so many bytes without being told more: longer, to the end of
// the tunnel, or shorter.
func (l *link) fit(dst []byte, usual int) int {
	if l.fits == nil {
		return usual
	}
	to, _ := netip.AddrFromSlice(dst)
	if mtu, end := l.fits(to); mtu >= fitsAlways && (end || mtu < usual) {
		return mtu
	}
	return usual
}

// err is os.ErrClosed after shut.
func (l *link) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return os.ErrClosed
	}
	return nil
}

// take returns the next packet, and the queue's reference to it. If there is none it waits, or returns nil.
func (l *link) take(wait bool) (*stack.PacketBuffer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.q.Len() == 0 && !l.closed && wait {
		l.more.Wait()
	}
	if l.closed {
		return nil, os.ErrClosed
	}
	p, _ := l.q.Get()
	return p, nil
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

// injectRun hands a run of segments to the stack as one packet. It goes to the network endpoint directly: the way
// through the interface would have the checksums verified again.
func (l *link) injectRun(r run, bufs [][]byte, offset int) {
	to := l.ip4
	if r.ip == header.IPv6MinimumSize {
		to = l.ip6
	}
	p := r.join(bufs, offset)
	to.HandlePacket(p)
	p.DecRef()
}

// shut makes read return os.ErrClosed from now on and lets go of what is queued. It waits for a read under way.
func (l *link) shut() {
	l.mu.Lock()
	l.closed = true
	for p, ok := l.q.Get(); ok; p, ok = l.q.Get() {
		p.DecRef()
	}
	l.mu.Unlock()
	l.more.Broadcast()
	l.rmu.Lock()
	l.out.end()
	l.rmu.Unlock()
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

// GSOMaxSize implements stack.GSOEndpoint.
func (l *link) GSOMaxSize() uint32 { return gsoMax }

// SupportedGSO implements stack.GSOEndpoint: TCP leaves cutting and checksums to the segmenter.
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// Capabilities implements stack.NetworkLinkEndpoint: none, so that what is not a run or a TCP segment has its checksums
// computed and verified by the stack.
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
