package netstack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// End ends the TCP connection between one of our addresses, or of those that we carry, and another, as an RST does, and
// reports whether there was one. An RST need not be believed: it has to be at the very place where the next byte is expected,
// which only this end knows. One that is being opened is not ended.
func (s *Stack) End(local, remote netip.AddrPort) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return false
	}
	id := stack.TransportEndpointID{
		LocalAddress: tcpip.AddrFromSlice(local.Addr().AsSlice()), LocalPort: local.Port(),
		RemoteAddress: tcpip.AddrFromSlice(remote.Addr().AsSlice()), RemotePort: remote.Port(),
	}
	network := tcpip.NetworkProtocolNumber(ipv4.ProtocolNumber)
	if local.Addr().Is6() {
		network = ipv6.ProtocolNumber
	}
	ips := []*stack.Stack{s.ip}
	if c := s.carrier.Load(); c != nil {
		ips = append(ips, c.fwd.ip)
	}
	for _, ip := range ips {
		if e, ok := ip.FindTransportEndpoint(network, tcp.ProtocolNumber, id, nicID).(*tcp.Endpoint); ok && connected(e) {
			e.Abort()
			return true
		}
	}
	return false
}

// connected reports whether e is a connection, and neither listens nor is being opened or gone.
func connected(e *tcp.Endpoint) bool {
	switch e.EndpointState() {
	case tcp.StateEstablished, tcp.StateFinWait1, tcp.StateFinWait2, tcp.StateCloseWait, tcp.StateLastAck, tcp.StateClosing:
		return true
	}
	return false
}
