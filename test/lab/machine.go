package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Machine is a host of an [Internet].
type Machine struct {
	net     *Internet
	seg     *segment
	wire    *wire
	addrs   []netip.Addr
	sockets map[netip.AddrPort]*Socket // the address is that of the family's wildcard
	ports   uint16
}

// Machine adds a host with an address of each family that the segment has.
func (s *segment) Machine() *Machine {
	n := s.net
	n.mu.Lock()
	defer n.mu.Unlock()
	m := &Machine{net: n, sockets: map[netip.AddrPort]*Socket{}, ports: 40000 + uint16(n.hosts)*16}
	n.hosts++
	m.join(s)
	return m
}

func (m *Machine) join(s *segment) {
	m.seg, m.wire, m.addrs = s, m.net.wire(m, s.linkDefault()), nil
	if s.up == nil || !s.up.cfg.NoIPv4 {
		m.addrs = append(m.addrs, s.next())
	}
	if s.up != nil && s.up.cfg.IPv6 {
		m.addrs = append(m.addrs, s.next6())
	}
	for _, a := range m.addrs {
		if a.Is6() || s.up != nil && s.up.cfg.Routed {
			s.route(a, m.wire)
		} else {
			s.routes[a] = m.wire
		}
	}
}

// Both adds an address of IPv6 to a machine in the core, which has none otherwise.
func (m *Machine) Both() *Machine {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	m.net.hosts++
	a := netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, byte(m.net.hosts), 15: 1})
	m.addrs = append(m.addrs, a)
	m.seg.route(a, m.wire)
	return m
}

// Move takes the machine to another place, nil for the core, where it has other addresses. Its sockets stay open.
func (m *Machine) Move(to *Router) {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	m.leave()
	if to == nil {
		m.join(&m.net.segment)
	} else {
		m.join(&to.segment)
	}
}

// IPv6 takes the machine's address of IPv6 away, or gives it another one where its router has some.
func (m *Machine) IPv6(on bool) {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	m.addrs = slices.DeleteFunc(m.addrs, func(a netip.Addr) bool {
		if a.Is6() {
			m.seg.unroute(a, m.wire)
		}
		return a.Is6()
	})
	if on && m.seg.up != nil && m.seg.up.cfg.IPv6 {
		a := m.seg.next6()
		m.addrs = append(m.addrs, a)
		m.seg.route(a, m.wire)
	}
}

// Readdress gives the machine other addresses where it is.
func (m *Machine) Readdress() {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	m.leave()
	m.join(m.seg)
}

func (m *Machine) leave() {
	for _, a := range m.addrs {
		m.seg.unroute(a, m.wire)
	}
}

// Links replaces the directions of the machine's link.
func (m *Machine) Links(up, down Link) {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	m.wire.up.Link, m.wire.down.Link = up, down
}

// Interfaces are the machine's addresses.
func (m *Machine) Interfaces() ([]netip.Addr, error) {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	return slices.Clone(m.addrs), nil
}

// Addr is the machine's address of one family; the zero Addr if it has none.
func (m *Machine) Addr(six bool) netip.Addr {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	return m.addr(six)
}

func (m *Machine) addr(six bool) netip.Addr {
	for _, a := range m.addrs {
		if a.Is6() == six {
			return a
		}
	}
	return netip.Addr{}
}

// Listen opens a socket: network is "udp4" or "udp6", and address ":port", port 0 for any.
func (m *Machine) Listen(_ context.Context, network, address string) (net.PacketConn, error) {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil || network != "udp4" && network != "udp6" {
		return nil, fmt.Errorf("lab: cannot listen on %s %s", network, address)
	}
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	wild := netip.IPv4Unspecified()
	if network == "udp6" {
		wild = netip.IPv6Unspecified()
	}
	at := netip.AddrPortFrom(wild, uint16(port))
	for port == 0 && (at.Port() == 0 || m.sockets[at] != nil) {
		m.ports++
		at = netip.AddrPortFrom(wild, m.ports)
	}
	if m.sockets[at] != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: syscall.EADDRINUSE}
	}
	s := &Socket{m: m, at: at, in: make(chan packet, 4096), closed: make(chan struct{}), wake: make(chan struct{})}
	m.sockets[at] = s
	return s, nil
}

// Beside opens another socket of the same machine and family, at any port.
func (s *Socket) Beside() (net.PacketConn, error) {
	network := "udp4"
	if s.at.Addr().Is6() {
		network = "udp6"
	}
	return s.m.Listen(context.Background(), network, ":0")
}

func (m *Machine) receive(p packet) {
	if !slices.Contains(m.addrs, p.dst.Addr()) {
		return
	}
	wild := netip.IPv4Unspecified()
	if p.dst.Addr().Is6() {
		wild = netip.IPv6Unspecified()
	}
	if s := m.sockets[netip.AddrPortFrom(wild, p.dst.Port())]; s != nil {
		select {
		case s.in <- p:
		default: // a full socket buffer
		}
	}
}

// Socket is a net.PacketConn of a machine. Its writes never block.
type Socket struct {
	m  *Machine
	at netip.AddrPort
	in chan packet

	closed chan struct{}
	wake   chan struct{} // closed when the read deadline passes; under the Internet's lock
	timer  *time.Timer
}

var _ net.PacketConn = (*Socket)(nil)

// ReadFrom implements net.PacketConn.
func (s *Socket) ReadFrom(b []byte) (int, net.Addr, error) {
	s.m.net.mu.Lock()
	wake := s.wake
	s.m.net.mu.Unlock()
	select {
	case <-wake:
		return 0, nil, os.ErrDeadlineExceeded
	case <-s.closed:
		return 0, nil, net.ErrClosed
	default:
	}
	select {
	case p := <-s.in:
		return copy(b, p.data), net.UDPAddrFromAddrPort(p.src), nil
	case <-wake:
		return 0, nil, os.ErrDeadlineExceeded
	case <-s.closed:
		return 0, nil, net.ErrClosed
	}
}

// WriteTo implements net.PacketConn.
func (s *Socket) WriteTo(b []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("lab: cannot send to %T", to)
	}
	return s.WriteTTL(b, u.AddrPort(), 64)
}

// WriteTTL is WriteTo with a time to live: how many routers the packet may cross before it is dropped, plus one.
func (s *Socket) WriteTTL(b []byte, to netip.AddrPort, ttl int) (int, error) {
	m := s.m
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	select {
	case <-s.closed:
		return 0, net.ErrClosed
	default:
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	src := m.addr(s.at.Addr().Is6())
	if !src.IsValid() || to.Addr().Is6() != s.at.Addr().Is6() {
		return 0, &net.OpError{Op: "write", Net: "udp", Err: syscall.ENETUNREACH}
	}
	p := packet{netip.AddrPortFrom(src, s.at.Port()), to, ttl, slices.Clone(b)}
	if slices.Contains(m.addrs, to.Addr()) {
		m.receive(p)
	} else {
		m.net.cross(&m.wire.up, p, m.seg.forward)
	}
	return len(b), nil
}

// Close implements net.PacketConn.
func (s *Socket) Close() error {
	s.m.net.mu.Lock()
	defer s.m.net.mu.Unlock()
	if s.m.sockets[s.at] != s {
		return net.ErrClosed
	}
	delete(s.m.sockets, s.at)
	close(s.closed)
	if s.timer != nil {
		s.timer.Stop()
	}
	return nil
}

// SetReadDeadline implements net.PacketConn.
func (s *Socket) SetReadDeadline(t time.Time) error {
	s.m.net.mu.Lock()
	defer s.m.net.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
	}
	select {
	case <-s.wake:
		s.wake = make(chan struct{})
	default:
	}
	wake := s.wake
	switch d := time.Until(t); {
	case t.IsZero():
	case d <= 0:
		close(wake)
	default:
		s.timer = time.AfterFunc(d, func() {
			s.m.net.mu.Lock()
			defer s.m.net.mu.Unlock()
			if s.wake == wake {
				close(wake)
			}
		})
	}
	return nil
}

// LocalAddr implements net.PacketConn.
func (s *Socket) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(s.at) }

// SetDeadline implements net.PacketConn.
func (s *Socket) SetDeadline(t time.Time) error { return s.SetReadDeadline(t) }

// SetWriteDeadline implements net.PacketConn.
func (s *Socket) SetWriteDeadline(time.Time) error { return nil }
