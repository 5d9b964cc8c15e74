package ostun

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Packets that are longer than their path come in fragments: of IPv4 (the kernel was told less a moment ago, see
// toobig_linux.go), and those that are fragments already. The kernel makes them of 1280 bytes of IPv6 and 576 of IPv4, the
// least of routes, also where a path carries less. The long ones would go by relay, the last directly, and come first, when
// nobody knows yet which flow it is of.
//
//	IPv4  │ … id │ flags 3 offset 13 │ …                                a header for each, with its own offset
//	IPv6  IP │ next │ 0 │ offset 13  0 0  more 1 │ id 4 │ a b │         and so is the fragment header
const fragLen = 8

// fragment has the packet come in fragments, if it may be: IPv4 without options, that does not forbid it.
func (s *splitter) fragment(mtu int) bool {
	p := s.pkt
	if s.size != 0 || p[0] != 0x45 || p[6]&0x40 != 0 || int(binary.BigEndian.Uint16(p[2:])) != len(p) {
		return false
	}
	s.cutInto(ip4Len, mtu)
	return true
}

// shorten has a fragment come in as many as the path needs.
func (s *splitter) shorten(fits func(netip.Addr) (int, bool)) {
	headers := fragmentHeaders(s.pkt)
	if fits == nil || headers == 0 {
		return
	}
	_, dst := ends(s.pkt)
	to, _ := netip.AddrFromSlice(dst)
	if mtu, _ := fits(to); len(s.pkt) > mtu && mtu >= headers+fragLen {
		s.cutInto(headers, mtu)
	}
}

// fragmentHeaders is how much of a fragment each of its own has to have, 0 if p is none that may be cut.
func fragmentHeaders(p []byte) int {
	switch {
	case len(p) > ip4Len && p[0] == 0x45 && p[6]&0x40 == 0 && p[6]&0x3f|p[7] != 0 && int(binary.BigEndian.Uint16(p[2:])) == len(p):
		return ip4Len
	case p[0]>>4 == 6 && len(p) > ip6Len+fragLen && p[6] == unix.IPPROTO_FRAGMENT && int(binary.BigEndian.Uint16(p[4:])) == len(p)-ip6Len:
		return ip6Len + fragLen
	}
	return 0
}

// cutInto makes fragments of no more than mtu bytes, of a packet whose headers that each has are so many.
func (s *splitter) cutInto(headers, mtu int) {
	s.frags, s.n, s.at, s.size = true, headers, headers, (mtu-headers)&^7
}

// fragmented makes b, the headers of p with some of its payload, the fragment that starts so many bytes into that. p may be
// a fragment itself: what comes before its last is not the last.
func fragmented(b, p []byte, at int, last bool) {
	if p[0]>>4 == 6 {
		off := binary.BigEndian.Uint16(p[ip6Len+2:]) + uint16(at)
		if !last {
			off |= 1
		}
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ip6Len))
		binary.BigEndian.PutUint16(b[ip6Len+2:], off)
		return
	}
	off := binary.BigEndian.Uint16(p[6:]) + uint16(at/8)
	if !last {
		off |= 0x2000
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], off)
	sumIP4(b[:ip4Len])
}
