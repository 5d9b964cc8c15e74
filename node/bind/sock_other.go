//go:build !linux

package bind

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

const batchSize = 16

func newBatcher(_ string, pc net.PacketConn) batcher {
	if c, ok := pc.(*net.UDPConn); ok {
		const size = 7 << 20
		c.SetReadBuffer(size)
		c.SetWriteBuffer(size)
	}
	return single{pc}
}

const systemTTL = false

func writeTTL(net.PacketConn, []byte, netip.AddrPort, int) error { return errors.ErrUnsupported }

// systemMTU is nil: packets are fragmented as the system likes.
func systemMTU() func(netip.AddrPort) int { return nil }

func tune(syscall.RawConn) {}

func setMark(syscall.RawConn, uint32) error {
	return errors.New("bind: firewall marks exist on Linux only")
}
