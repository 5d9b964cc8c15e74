package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// Accept decides what becomes of an inbound TCP connection or UDP flow that nobody listens for. network is
// "tcp" or "udp", local is our address, remote the peer's true one. It returns the connection to splice with;
// an error refuses (RST, or ICMP port unreachable). ctx ends with the Stack or when the decision takes too long.
type Accept func(ctx context.Context, network string, local, remote netip.AddrPort) (net.Conn, error)

// Options configure a [Stack]. The zero value of every field but Addrs is a sane default.
type Options struct {
	Addrs  []netip.Addr // own addresses, IPv4 or IPv6
	MTU    int          // bytes, 1280 when 0
	Name   string       // what Name returns, "netstack" when empty
	Accept Accept       // nil refuses everything nobody listens for

	MaxConns   int           // spliced TCP connections, pending ones included; 4096 when 0
	MaxPending int           // TCP connections waiting for Accept or the handshake; 256 when 0
	MaxFlows   int           // spliced UDP flows; 1024 when 0
	UDPIdle    time.Duration // a spliced UDP flow ends after so much silence; 2 minutes when 0 (RFC 4787 REQ-5)
}

// Stats are counters since New and gauges of now.
type Stats struct {
	Conns, Pending, Flows int    // gauges
	Dropped               uint64 // packets that found the outbound queue full
	Refused               uint64 // connections and flows refused by a limit
}

// Stack is a gVisor stack that is a wireguard tun.Device on its lower side and dials and listens on its upper.
type Stack struct{}

var _ tun.Device = (*Stack)(nil)

var errTODO = errors.New("netstack: not written yet")

// New starts a Stack.
func New(o Options) (*Stack, error) { return nil, errTODO }

// DialContext connects to addr; network is "tcp" or "udp".
func (s *Stack) DialContext(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
	return s.DialFrom(ctx, network, netip.AddrPort{}, addr)
}

// DialFrom is DialContext with a chosen local address; a zero address or port is chosen by the stack.
func (s *Stack) DialFrom(ctx context.Context, network string, local, addr netip.AddrPort) (net.Conn, error) {
	return nil, errTODO
}

// ListenTCP listens on addr. An unspecified address means every own address of both families.
func (s *Stack) ListenTCP(addr netip.AddrPort) (net.Listener, error) { return nil, errTODO }

// ListenUDP is ListenTCP for UDP.
func (s *Stack) ListenUDP(addr netip.AddrPort) (net.PacketConn, error) { return nil, errTODO }

// Ping sends one ICMP echo request to dst and waits for the reply.
func (s *Stack) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) { return 0, errTODO }

// SetAddrs replaces the own addresses. Connections of addresses that stay are not disturbed.
func (s *Stack) SetAddrs(addrs []netip.Addr) error { return errTODO }

// Stats returns counters and gauges.
func (s *Stack) Stats() Stats { return Stats{} }

// Read implements tun.Device.
func (s *Stack) Read(bufs [][]byte, sizes []int, offset int) (int, error) { return 0, os.ErrClosed }

// Write implements tun.Device.
func (s *Stack) Write(bufs [][]byte, offset int) (int, error) { return 0, os.ErrClosed }

// File implements tun.Device; there is none.
func (s *Stack) File() *os.File { return nil }

// MTU implements tun.Device.
func (s *Stack) MTU() (int, error) { return 0, errTODO }

// Name implements tun.Device.
func (s *Stack) Name() (string, error) { return "", errTODO }

// Events implements tun.Device.
func (s *Stack) Events() <-chan tun.Event { return nil }

// BatchSize implements tun.Device.
func (s *Stack) BatchSize() int { return 128 }

// Close ends everything and waits for it. It is safe to call more than once.
func (s *Stack) Close() error { return nil }
