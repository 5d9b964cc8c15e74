package bind

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/hedge-mesh/hedge/node/udp"
)

const longest = 65535 // what the length field of an IPv4 header can say

// systemMTU asks a socket that is connected and never used.
func systemMTU() func(netip.AddrPort) int {
	return func(to netip.AddrPort) int {
		const usual = 1500
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return usual
		}
		defer c.Close()
		rc, err := c.SyscallConn()
		if err != nil {
			return usual
		}
		level, opt := unix.IPPROTO_IP, unix.IP_MTU
		if to.Addr().Is6() {
			level, opt = unix.IPPROTO_IPV6, unix.IPV6_MTU
		}
		udp.DontFragment(rc) // else it is what ICMP said
		n := usual
		if err := rc.Control(func(fd uintptr) {
			if v, err := unix.GetsockoptInt(int(fd), level, opt); err == nil {
				n = min(v, longest)
			}
		}); err != nil {
			return usual
		}
		return n
	}
}
