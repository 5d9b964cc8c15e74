//go:build !linux

package udp

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// Batch is how many datagrams it pays to have buffers for.
const Batch = 16

// CanTTL is whether sockets of the system have WriteTTL.
const CanTTL = false

// WriteTTL sends one datagram with a time to live.
func (s *Socket) WriteTTL([]byte, netip.AddrPort, int) error { return errors.ErrUnsupported }

// DontFragment does nothing: packets are fragmented as the system likes.
func DontFragment(syscall.RawConn) {}

// Mark puts a firewall mark on a socket's packets.
func Mark(syscall.RawConn, uint32) error {
	return errors.New("udp: firewall marks exist on Linux only")
}

// Beside opens a second socket on the port of this one, for datagrams that are not to wait behind its.
func (s *Socket) Beside(func(network, address string, c syscall.RawConn) error) (*Socket, error) {
	return nil, errors.ErrUnsupported
}

type sender struct{}

func newSender(c *net.UDPConn) *sender {
	_ = c.SetReadBuffer(bufferBytes) // best effort
	_ = c.SetWriteBuffer(bufferBytes)
	return nil
}

func (*sender) write([][]byte, []byte, int, netip.AddrPort) error { return errors.ErrUnsupported }

type receiver struct{}

func newReceiver(*net.UDPConn) *receiver { return nil }

func (*receiver) more() bool                          { return false }
func (*receiver) wait() error                         { return errors.ErrUnsupported }
func (*receiver) rest()                               {}
func (*receiver) poll() error                         { return errors.ErrUnsupported }
func (*receiver) next() ([]byte, int, netip.AddrPort) { return nil, 0, netip.AddrPort{} }
