package udp

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CanTTL is whether sockets of the system have WriteTTL.
const CanTTL = true

// WriteTTL sends one datagram with a time to live, by ancillary data (ip(7)), so that others keep theirs. IPv4 only.
func (s *Socket) WriteTTL(b []byte, to netip.AddrPort, ttl int) error {
	if s.udp == nil {
		return syscall.EOPNOTSUPP
	}
	oob := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_TTL
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(oob[unix.CmsgLen(0):], uint32(ttl))
	_, _, err := s.udp.WriteMsgUDPAddrPort(b, oob, to)
	return err
}

// DontFragment has the kernel send packets whole or not at all, whatever it believes of the path (ip(7),
// IP_PMTUDISC_PROBE). It is for net.ListenConfig.Control.
func DontFragment(c syscall.RawConn) {
	c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
	})
}

// Mark puts a firewall mark on a socket's packets (socket(7), SO_MARK).
func Mark(c syscall.RawConn, mark uint32) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	}); e != nil {
		return e
	}
	return err
}
