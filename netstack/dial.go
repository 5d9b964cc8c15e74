package netstack

import (
	"context"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// backlog is how many TCP connections wait for a listener's Accept; past it gVisor answers with SYN cookies.
const backlog = 512

// DialContext connects to addr; network is "tcp" or "udp".
//
// Errors are those of package net: syscall.ECONNREFUSED for a RST, syscall.EHOSTUNREACH when an ICMP message says
// that the host cannot be reached or that it is prohibited, the context's error when that ends first. A connected
// UDP socket reports an ICMP error as ECONNREFUSED from its next Read.
func (s *Stack) DialContext(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
	return s.DialFrom(ctx, network, netip.AddrPort{}, addr)
}

// DialFrom is DialContext with a chosen local address; a zero address or port is chosen by the stack.
func (s *Stack) DialFrom(ctx context.Context, network string, local, addr netip.AddrPort) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		e := &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(addr), Err: err}
		if local.IsValid() {
			e.Source = net.TCPAddrFromAddrPort(local)
		}
		return nil, e
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	if !addr.IsValid() || addr.Addr().IsUnspecified() || addr.Port() == 0 {
		return fail(net.InvalidAddrError("no address to dial"))
	}
	if ctx.Err() != nil {
		return fail(gone(ctx))
	}
	var c net.Conn
	var err error
	switch network {
	case "tcp", "tcp4", "tcp6":
		c, err = s.dialTCP(ctx, local, addr)
	case "udp", "udp4", "udp6":
		c, err = s.dialUDP(local, addr)
	default:
		err = net.UnknownNetworkError(network)
	}
	if err != nil {
		return fail(err)
	}
	return c, nil
}

func (s *Stack) dialTCP(ctx context.Context, local, addr netip.AddrPort) (net.Conn, error) {
	wq := new(waiter.Queue)
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)

	ep, terr := s.connect(tcp.ProtocolNumber, wq, local, addr)
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ready:
		case <-ctx.Done():
			ep.Close()
			return nil, gone(ctx)
		case <-s.ctx.Done():
			ep.Close()
			return nil, net.ErrClosed
		}
		terr = ep.LastError()
		if _, ok := terr.(*tcpip.ErrNetworkUnreachable); ok {
			terr = &tcpip.ErrHostUnreachable{} // somebody said so, see normaliseICMP; no route of our own would have failed at once
		}
	}
	if terr != nil {
		if ep != nil {
			ep.Close()
		}
		return nil, errno(terr)
	}
	return newTCPConn(wq, ep), nil
}

func (s *Stack) dialUDP(local, addr netip.AddrPort) (net.Conn, error) {
	wq := new(waiter.Queue)
	ep, terr := s.connect(udp.ProtocolNumber, wq, local, addr)
	if terr != nil {
		if ep != nil {
			ep.Close()
		}
		return nil, errno(terr)
	}
	return newUDPConn(s, wq, ep, true, addr.Addr().Is6()), nil
}

// connect makes an endpoint and starts connecting it, all before Close or all after.
func (s *Stack) connect(proto tcpip.TransportProtocolNumber, wq *waiter.Queue, local, addr netip.AddrPort) (tcpip.Endpoint, tcpip.Error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, &tcpip.ErrInvalidEndpointState{}
	}
	to, family := fullAddr(addr)
	ep, err := s.ip.NewEndpoint(proto, family, wq)
	if err != nil {
		return nil, err
	}
	if local.Addr().IsValid() || local.Port() != 0 {
		from, _ := fullAddr(local)
		if err := ep.Bind(from); err != nil {
			return ep, err
		}
	}
	return ep, ep.Connect(to)
}

// ListenTCP listens on addr. An unspecified or zero address means every own address of both families; port 0 is
// chosen by the stack.
func (s *Stack) ListenTCP(addr netip.AddrPort) (net.Listener, error) {
	wq := new(waiter.Queue)
	ep, terr := s.bind(tcp.ProtocolNumber, wq, addr)
	if terr == nil {
		terr = ep.Listen(backlog)
	}
	if terr != nil {
		if ep != nil {
			ep.Close()
		}
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: net.TCPAddrFromAddrPort(addr), Err: errno(terr)}
	}
	return newListener(wq, ep), nil
}

// ListenUDP is ListenTCP for UDP. The returned net.PacketConn takes and gives *net.UDPAddr; what it gives may be given
// again, and is not to be changed.
func (s *Stack) ListenUDP(addr netip.AddrPort) (net.PacketConn, error) {
	wq := new(waiter.Queue)
	ep, terr := s.bind(udp.ProtocolNumber, wq, addr)
	if terr != nil {
		if ep != nil {
			ep.Close()
		}
		return nil, &net.OpError{Op: "listen", Net: "udp", Addr: net.UDPAddrFromAddrPort(addr), Err: errno(terr)}
	}
	return newUDPConn(s, wq, ep, false, !addr.Addr().Is4() || addr.Addr().IsUnspecified()), nil
}

func (s *Stack) bind(proto tcpip.TransportProtocolNumber, wq *waiter.Queue, addr netip.AddrPort) (tcpip.Endpoint, tcpip.Error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, &tcpip.ErrInvalidEndpointState{}
	}
	at, family := fullAddr(addr)
	if !addr.Addr().IsValid() || addr.Addr().IsUnspecified() {
		at.Addr, family = tcpip.Address{}, ipv6.ProtocolNumber // a dual-stack socket
	}
	ep, err := s.ip.NewEndpoint(proto, family, wq)
	if err != nil {
		return nil, err
	}
	return ep, ep.Bind(at)
}

// keepAlive makes TCP notice a peer that is gone without a word: after a minute of silence, five probes.
func keepAlive(ep tcpip.Endpoint) {
	idle, interval := tcpip.KeepaliveIdleOption(time.Minute), tcpip.KeepaliveIntervalOption(15*time.Second)
	ep.SetSockOpt(&idle)
	ep.SetSockOpt(&interval)
	ep.SetSockOptInt(tcpip.KeepaliveCountOption, 5)
	ep.SocketOptions().SetKeepAlive(true)
}

// fullAddr turns Go's address into gVisor's. An IPv4-mapped address is an IPv4 one.
func fullAddr(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	ip := a.Addr().Unmap()
	family := ipv6.ProtocolNumber
	if ip.Is4() {
		family = ipv4.ProtocolNumber
	}
	full := tcpip.FullAddress{NIC: nicID, Port: a.Port()}
	if ip.IsValid() {
		full.Addr = tcpip.AddrFromSlice(ip.AsSlice())
	}
	return full, family
}
