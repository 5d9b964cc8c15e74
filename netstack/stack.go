package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const nicID = 1

// Accept decides what becomes of an inbound TCP connection or UDP flow that nobody listens for. network is
// "tcp" or "udp", local is our address, remote the peer's true one. It returns the connection to splice with;
// an error refuses (RST, or ICMP port unreachable). ctx ends with the Stack or when the decision takes longer
// than 15 seconds; Accept must then return, for Close waits for it.
type Accept func(ctx context.Context, network string, local, remote netip.AddrPort) (net.Conn, error)

// Options configure a [Stack]. The zero value of every field but Addrs is a sane default. One peer (remote
// address) may take up a quarter of each limit.
type Options struct {
	Addrs  []netip.Addr // own addresses, IPv4 or IPv6
	MTU    int          // bytes, 1280 when 0; at least 1280, the IPv6 minimum
	Name   string       // what Name returns, "netstack" when empty
	Accept Accept       // nil refuses everything nobody listens for
	Echo   Echo         // nil answers no pings of carried addresses, see Carry

	// PathMTU, if set, says what size of packet reaches an address now, 0 if that is not known, and whether the address is
	// the very end of the tunnel. TCP is cut to that size, below MTU and, at the end of the tunnel, above it, whatever
	// segment size was agreed on: connections follow their path. It is called for every packet and must not block.
	PathMTU func(netip.Addr) (mtu int, end bool)

	// Readable, if set, is called whenever there is something to Read that was not there before. It must not block.
	Readable func()

	MaxConns   int           // spliced TCP connections, pending ones included; 1024 when 0
	MaxPending int           // TCP connections waiting for Accept or the handshake; 256 when 0
	MaxFlows   int           // spliced UDP flows; 512 when 0
	UDPIdle    time.Duration // a spliced UDP flow ends after so much silence; 2 minutes when 0 (RFC 4787 REQ-5)
}

// Stats are gauges of now and counters since New.
type Stats struct {
	Conns, Pending, Flows int    // gauges
	Dropped               uint64 // packets that found the outbound queue full
	Refused               uint64 // connections and flows refused because a limit was reached
}

// Stack is a gVisor stack that is a wireguard tun.Device on its lower side and dials and listens on its upper.
type Stack struct {
	ip      *stack.Stack
	link    *link
	name    string
	mtu     int
	events  chan tun.Event
	fwd     forwarder
	pings   pings
	inboxes inboxes

	own     atomic.Pointer[[]netip.Addr]
	carrier atomic.Pointer[carrier] // nil until there is something to carry
	opt     Options

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	once   sync.Once

	mu     sync.RWMutex // read: making endpoints and injecting packets; write: closing
	closed bool

	addrMu sync.Mutex // serialises SetAddrs
}

var _ tun.Device = (*Stack)(nil)

// New starts a Stack; end it with Close.
func New(o Options) (*Stack, error) {
	if o.MTU == 0 {
		o.MTU = header.IPv6MinimumMTU
	}
	if o.MTU < header.IPv6MinimumMTU || o.MTU > 65535 {
		return nil, fmt.Errorf("netstack: mtu %d is not between %d and 65535", o.MTU, header.IPv6MinimumMTU)
	}
	if o.Name == "" {
		o.Name = "netstack"
	}
	s := &Stack{
		ip:     newIP(true), // own addresses are reached without leaving, and are no source of packets from outside
		link:   newLink(o.MTU, o.PathMTU),
		name:   o.Name,
		mtu:    o.MTU,
		opt:    o,
		events: make(chan tun.Event, 1),
	}
	s.link.readable = o.Readable
	s.own.Store(new([]netip.Addr))
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.fwd.init(s, s.ip, o)
	err := setUp(s.ip, s.link, s.link)
	if err == nil {
		err = s.SetAddrs(o.Addrs)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	s.events <- tun.EventUp
	return s, nil
}

func newIP(handleLocal bool) *stack.Stack {
	return stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
		HandleLocal:        handleLocal,
	})
}

const (
	// maxRTO is the longest that TCP waits before it sends again. RFC 6298 (section 2.4) has a minute at least, which nobody
	// has the patience for: nothing tells TCP that a path is back, so after an outage it stands for as long again.
	maxRTO = 1500 * time.Millisecond
	// maxRetries of them are a quarter of an hour (RFC 1122 section 4.2.3.5 wants 100 seconds at least).
	maxRetries = 600
)

// setUp configures the protocols and the interface, whose packets come in by l and go out by out.
//
// Congestion control stays Reno and loss detection RACK, gVisor's defaults. With one packet in a hundred lost they move 1.4 to
// 3 times what Cubic does (BenchmarkLoss), with one in a thousand 0.4 to 1.4 times; after an outage (BenchmarkOutage) Cubic
// takes seconds to begin again. Either without RACK has a tenth or less.
func setUp(ip *stack.Stack, l, out *link) error {
	sack := tcpip.TCPSACKEnabled(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 512 << 10, Max: 4 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 512 << 10, Max: 4 << 20}
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	reuse := tcpip.TCPTimeWaitReuseOption(tcpip.TCPTimeWaitReuseGlobal)
	syns := tcpip.TCPSynRetriesOption(5) // gives up after a minute
	rto, retries := tcpip.TCPMaxRTOOption(maxRTO), tcpip.TCPMaxRetriesOption(maxRetries)
	for _, opt := range []tcpip.SettableTransportProtocolOption{&sack, &receive, &send, &moderate, &reuse, &syns, &rto, &retries} {
		if err := ip.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("netstack: tcp option %T: %s", opt, err)
		}
	}
	if err := ip.CreateNICWithOptions(nicID, l, stack.NICOptions{QDisc: out}); err != nil {
		return fmt.Errorf("netstack: create the interface: %s", err)
	}
	var err4, err6 tcpip.Error
	l.ip4, err4 = ip.GetNetworkEndpoint(nicID, ipv4.ProtocolNumber)
	l.ip6, err6 = ip.GetNetworkEndpoint(nicID, ipv6.ProtocolNumber)
	if err4 != nil || err6 != nil {
		return errors.New("netstack: the interface has no IPv4 or IPv6") // cannot be: New asks for both
	}
	ip.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}, {Destination: header.IPv6EmptySubnet, NIC: nicID}})
	return nil
}

// SetAddrs replaces the own addresses. Connections of addresses that stay are not disturbed; those of addresses
// that go are ended at once.
func (s *Stack) SetAddrs(addrs []netip.Addr) error {
	s.addrMu.Lock()
	defer s.addrMu.Unlock()
	want := make(map[tcpip.Address]bool, len(addrs))
	own := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		a = a.Unmap()
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("netstack: %v cannot be an own address", a)
		}
		want[tcpip.AddrFromSlice(a.AsSlice())] = true
		own = append(own, a)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return os.ErrClosed
	}
	s.own.Store(&own)
	have := make(map[tcpip.Address]bool)
	gone := make(map[tcpip.Address]bool)
	for _, pa := range s.ip.AllAddresses()[nicID] {
		a := pa.AddressWithPrefix.Address
		have[a] = true
		if !want[a] {
			gone[a] = true
			s.ip.RemoveAddress(nicID, a)
		}
	}
	var errs []error
	for a := range want {
		if have[a] {
			continue
		}
		pa := tcpip.ProtocolAddress{Protocol: ipv6.ProtocolNumber, AddressWithPrefix: a.WithPrefix()}
		if a.Len() == header.IPv4AddressSize {
			pa.Protocol = ipv4.ProtocolNumber
		}
		if err := s.ip.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
			errs = append(errs, fmt.Errorf("netstack: add %v: %s", a, err))
		}
	}
	if len(gone) > 0 {
		for _, e := range s.ip.RegisteredEndpoints() {
			ep, ok := e.(tcpip.Endpoint)
			if !ok {
				continue
			}
			if at, err := ep.GetLocalAddress(); err == nil && gone[at.Addr] {
				e.Abort()
			}
		}
	}
	return errors.Join(errs...)
}

// Stats returns gauges and counters.
func (s *Stack) Stats() Stats {
	st := s.fwd.stats()
	if c := s.carrier.Load(); c != nil {
		st = st.plus(c.fwd.stats())
	}
	st.Dropped = s.link.drops()
	return st
}

// Lends says that Read and Poll replace a buffer that is nil by memory of their own, which is good until the next call of
// either. Behind each packet there is room for what WireGuard adds.
func (s *Stack) Lends() bool { return true }

// Read waits for packets and fills as many bufs as there are packets. It returns os.ErrClosed after Close.
func (s *Stack) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return s.link.read(bufs, sizes, offset, true)
}

// Poll is Read that does not wait: it returns 0 when there is nothing.
func (s *Stack) Poll(bufs [][]byte, sizes []int, offset int) (int, error) {
	return s.link.read(bufs, sizes, offset, false)
}

// Write hands packets to the stack. It does not block, may change the bytes in bufs, does not keep them, and
// ignores what is not IP. It returns os.ErrClosed after Close.
func (s *Stack) Write(bufs [][]byte, offset int) (int, error) {
	n, crowded, err := s.write(bufs, offset)
	if crowded {
		// Who is to read is ready, but runs only when another processor is idle, or this one: datagrams would be lost until then.
		runtime.Gosched()
	}
	return n, err
}

// write is Write. It reports whether a socket has so much that its reader is to have the processor.
func (s *Stack) write(bufs [][]byte, offset int) (n int, crowded bool, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0, false, os.ErrClosed
	}
	carrier := s.carrier.Load()
	for rest := bufs; len(rest) > 0; {
		if len(rest[0]) <= offset {
			rest = rest[1:]
			continue
		}
		to := s.link
		if carrier != nil && !s.isOwn(rest[0][offset:]) {
			to = carrier.link
		}
		if r := findRun(rest, offset); r.n > 0 {
			to.injectRun(r, rest, offset)
			rest = rest[r.n:]
			continue
		}
		pkt := rest[0][offset:]
		rest = rest[1:]
		if ok, much := s.deliver(pkt); ok {
			crowded = crowded || much
			continue
		}
		if to != s.link && carrier.ping(pkt) {
			continue
		}
		s.normaliseICMP(pkt)
		to.inject(pkt)
	}
	return len(bufs), crowded, nil
}

// Inject makes Read return packets that the stack did not make: whole IP packets, not longer than the MTU, copied. As
// of any, those that find the queue full are lost.
func (s *Stack) Inject(pkts [][]byte) {
	for _, b := range pkts {
		if len(b) == 0 || len(b) > s.mtu {
			continue
		}
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
		_ = s.link.WritePacket(p)
		p.DecRef()
	}
}

// File implements tun.Device; there is none.
func (s *Stack) File() *os.File { return nil }

// MTU implements tun.Device.
func (s *Stack) MTU() (int, error) { return s.mtu, nil }

// Name implements tun.Device.
func (s *Stack) Name() (string, error) { return s.name, nil }

// Events gives tun.EventUp, and is closed by Close.
func (s *Stack) Events() <-chan tun.Event { return s.events }

// BatchSize implements tun.Device.
func (s *Stack) BatchSize() int { return batchSize }

// Close ends everything: Read and Write return os.ErrClosed, connections are reset, listeners and pending dials
// and Accept calls return. It waits for all goroutines and may be called more than once, each call waiting; but
// not from inside Accept, which it waits for.
func (s *Stack) Close() error {
	s.once.Do(func() {
		s.mu.Lock() // after this no packet is under way into the stack and no new endpoint appears in it
		s.closed = true
		s.mu.Unlock()
		s.cancel()
		s.link.shut()
		s.fwd.end()
		if c := s.carrier.Load(); c != nil {
			c.fwd.end()
			c.echoes.Wait()
		}
		close(s.events)
	})
	return nil
}
