package netstack

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	acceptTimeout    = 15 * time.Second // for Options.Accept to decide
	handshakeTimeout = 15 * time.Second // for the peer to answer our SYN-ACK
	flowBacklog      = 128              // datagrams kept of a UDP flow while Accept decides: as many as WireGuard keeps
	flowKept         = 32 << 10         // for its session, which then come at once; and bytes: a UDP endpoint's buffer
)

// forwarder offers what nobody listens for to Options.Accept.
//
//	SYN ─ quotas ─ Accept ──┬─ error: RST
//	                        └─ conn: SYN-ACK, ACK ─ splice
//	datagram ─ quotas ─ Accept ─┬─ error: ICMP port unreachable
//	                            └─ conn: splice
type forwarder struct {
	s      *Stack
	ip     *stack.Stack          // its own, or what it carries for others by
	takes  func(netip.Addr) bool // whether an address is one to accept for
	accept Accept
	idle   time.Duration
	tcp    *tcp.Forwarder
	wg     sync.WaitGroup // one for each connection and flow

	mu      sync.Mutex
	closed  bool
	conns   quota
	pending quota
	flows   quota
	syns    map[stack.TransportEndpointID]struct{} // being accepted
	udp     map[stack.TransportEndpointID]*flow
	refused uint64
}

// flow is a UDP flow. Until Accept has decided it keeps the first datagrams.
type flow struct {
	id   stack.TransportEndpointID
	kept []*stack.PacketBuffer
	size int            // bytes of kept
	ep   tcpip.Endpoint // nil until accepted
}

func (f *forwarder) init(s *Stack, ip *stack.Stack, o Options) {
	f.s, f.ip, f.accept, f.idle = s, ip, o.Accept, o.UDPIdle
	f.takes = func(netip.Addr) bool { return true } // what the stack delivers is to an own address
	if f.idle == 0 {
		f.idle = 2 * time.Minute
	}
	f.conns = newQuota(o.MaxConns, 1024)
	f.pending = newQuota(o.MaxPending, 256)
	f.flows = newQuota(o.MaxFlows, 512)
	f.syns = make(map[stack.TransportEndpointID]struct{})
	f.udp = make(map[stack.TransportEndpointID]*flow)
	if f.accept == nil {
		return // gVisor then answers with RST and port unreachable by itself
	}
	// Our own limit is the tighter one, so that whatever passes it is sure to reach handleTCP.
	f.tcp = tcp.NewForwarder(ip, 0, f.pending.max+1, f.handleTCP)
	ip.SetTransportProtocolHandler(tcp.ProtocolNumber, f.synPacket)
	ip.SetTransportProtocolHandler(udp.ProtocolNumber, f.udpPacket)
}

func (f *forwarder) stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Stats{Conns: f.conns.n, Pending: f.pending.n, Flows: f.flows.n, Refused: f.refused}
}

// end refuses everything from now on, ends what there is and its gVisor stack, and waits for all of it.
func (f *forwarder) end() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.ip.Close()
	f.wg.Wait()
	for _, e := range f.ip.RegisteredEndpoints() { // what handshakes had not yet registered when Close looked
		e.Abort()
	}
	f.ip.Wait()
}

// synPacket sees TCP packets for no known endpoint; false makes gVisor answer with a RST.
func (f *forwarder) synPacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize || h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn ||
		!f.takes(address(id.LocalAddress)) {
		return false
	}
	peer := address(id.RemoteAddress)
	f.mu.Lock()
	if _, again := f.syns[id]; again || f.closed {
		f.mu.Unlock()
		return true
	}
	if !f.pending.take(peer) { // say nothing: the peer will try again
		f.refused++
		f.mu.Unlock()
		return true
	}
	if !f.conns.take(peer) {
		f.pending.give(peer)
		f.refused++
		f.mu.Unlock()
		return false
	}
	f.syns[id] = struct{}{}
	f.wg.Add(1)
	f.mu.Unlock()
	if !f.tcp.HandlePacket(id, pkt) { // a bad checksum or malformed options
		f.accepted(id)
		f.ended(id)
		f.wg.Done()
		return false
	}
	return true
}

func (f *forwarder) accepted(id stack.TransportEndpointID) {
	f.mu.Lock()
	delete(f.syns, id)
	f.pending.give(address(id.RemoteAddress))
	f.mu.Unlock()
}

func (f *forwarder) ended(id stack.TransportEndpointID) {
	f.mu.Lock()
	f.conns.give(address(id.RemoteAddress))
	f.mu.Unlock()
}

// handleTCP runs in a goroutine of its own for each SYN that synPacket let through.
func (f *forwarder) handleTCP(r *tcp.ForwarderRequest) {
	id := r.ID()
	defer f.wg.Done()
	defer f.ended(id)
	conn, backend := f.establish(r, id)
	f.accepted(id)
	if conn != nil {
		splice(f.s.ctx, conn, backend)
	}
}

// establish asks Accept and completes the handshake. It returns nil if either fails.
func (f *forwarder) establish(r *tcp.ForwarderRequest, id stack.TransportEndpointID) (*tcpConn, net.Conn) {
	backend := f.ask("tcp", id)
	if backend == nil {
		r.Complete(true)
		return nil, nil
	}
	// CreateEndpoint waits for the handshake. Waking it by hand makes it give up: on Close, or when the peer is
	// silent. It may be woken before it waits and so is woken until it returns.
	wq, done := new(waiter.Queue), make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		ctx, cancel := context.WithTimeout(f.s.ctx, handshakeTimeout)
		defer cancel()
		select {
		case <-done:
			return
		case <-ctx.Done():
		}
		for tick := time.NewTicker(10 * time.Millisecond); ; {
			wq.Notify(waiter.WritableEvents)
			select {
			case <-done:
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	})
	ep, err := r.CreateEndpoint(wq)
	close(done)
	watch.Wait()
	r.Complete(err != nil)
	if err != nil {
		abort(backend)
		return nil, nil
	}
	return newTCPConn(wq, ep), backend
}

// ask calls Accept and returns nil if it refuses.
func (f *forwarder) ask(network string, id stack.TransportEndpointID) net.Conn {
	ctx, cancel := context.WithTimeout(f.s.ctx, acceptTimeout)
	defer cancel()
	c, err := f.accept(ctx, network,
		netip.AddrPortFrom(address(id.LocalAddress), id.LocalPort), netip.AddrPortFrom(address(id.RemoteAddress), id.RemotePort))
	if c != nil && (err != nil || ctx.Err() != nil) {
		c.Close()
		c = nil
	}
	if err != nil {
		return nil
	}
	return c
}

// udpPacket sees UDP packets for no known endpoint; false makes gVisor answer with ICMP port unreachable.
func (f *forwarder) udpPacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h, ip := header.UDP(pkt.TransportHeader().Slice()), pkt.Network()
	length, sum := header.UDPValid(h, func() uint16 { return pkt.Data().Checksum() }, uint16(pkt.Data().Size()),
		pkt.NetworkProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), pkt.RXChecksumValidated)
	if !length || !sum {
		return true // dropped
	}
	if dst := address(id.LocalAddress); dst.IsMulticast() || pkt.NetworkPacketInfo.LocalAddressBroadcast || id.RemotePort == 0 {
		return true
	} else if !f.takes(dst) {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return true
	}
	if fl := f.udp[id]; fl != nil {
		switch {
		case fl.ep != nil: // registered while this packet was on its way here
			fl.ep.(stack.TransportEndpoint).HandlePacket(id, pkt)
		case len(fl.kept) < flowBacklog && fl.size < flowKept:
			fl.keep(pkt)
		}
		return true
	}
	if !f.flows.take(address(id.RemoteAddress)) {
		f.refused++
		return false
	}
	fl := &flow{id: id}
	fl.keep(pkt)
	f.udp[id] = fl
	f.wg.Add(1)
	go f.handleUDP(fl)
	return true
}

func (fl *flow) keep(pkt *stack.PacketBuffer) {
	fl.kept = append(fl.kept, pkt.Clone())
	fl.size += pkt.Size()
}

func (f *forwarder) handleUDP(fl *flow) {
	defer f.wg.Done()
	backend := f.ask("udp", fl.id)
	conn := f.open(fl, backend != nil)
	if conn != nil {
		spliceUDP(f.s.ctx, conn, backend, f.idle)
	} else if backend != nil {
		backend.Close()
	}
	f.mu.Lock()
	delete(f.udp, fl.id)
	f.flows.give(address(fl.id.RemoteAddress))
	f.mu.Unlock()
}

// open makes the endpoint of an accepted flow and gives it what was kept, or refuses the flow.
func (f *forwarder) open(fl *flow, accepted bool) *udpConn {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := fl.kept
	fl.kept = nil
	defer func() {
		for _, p := range kept {
			p.DecRef()
		}
	}()
	if f.closed {
		return nil
	}
	if !accepted {
		f.reject(kept[0])
		return nil
	}
	wq := new(waiter.Queue)
	ep, err := udp.NewForwarderRequest(f.ip, fl.id, kept[0]).CreateEndpoint(wq)
	if err != nil {
		return nil
	}
	for _, p := range kept[1:] {
		ep.(stack.TransportEndpoint).HandlePacket(fl.id, p)
	}
	fl.ep = ep
	return newUDPConn(f.s, wq, ep, true, fl.id.LocalAddress.Len() == header.IPv6AddressSize)
}

// reject answers pkt with ICMP port unreachable, within the stack's rate limit for ICMP.
func (f *forwarder) reject(pkt *stack.PacketBuffer) {
	switch p := f.ip.NetworkProtocolInstance(pkt.NetworkProtocolNumber).(type) {
	case stack.RejectIPv4WithHandler:
		p.SendRejectionError(pkt, stack.RejectIPv4WithICMPPortUnreachable, true)
	case stack.RejectIPv6WithHandler:
		p.SendRejectionError(pkt, stack.RejectIPv6WithICMPPortUnreachable, true)
	}
}

// address turns gVisor's address into Go's.
func address(a tcpip.Address) netip.Addr {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return ip
}

// quota is a limit on a number of things, of which one peer may hold a quarter.
type quota struct {
	max, n int
	peers  map[netip.Addr]int
}

func newQuota(n, fallback int) quota {
	if n <= 0 {
		n = fallback
	}
	return quota{max: n, peers: make(map[netip.Addr]int)}
}

func (q *quota) take(peer netip.Addr) bool {
	if q.n >= q.max || q.peers[peer] >= max(q.max/4, 1) {
		return false
	}
	q.n++
	q.peers[peer]++
	return true
}

func (q *quota) give(peer netip.Addr) {
	q.n--
	if q.peers[peer]--; q.peers[peer] == 0 {
		delete(q.peers, peer)
	}
}
