package ostun

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// splitter cuts one packet of the kernel after the other to what goes on the wire. TCP hands down up to 64 KiB at once,
// UDP as many datagrams as a program has sent in one message (UDP_SEGMENT), and with them the work of the checksums:
//
//	vnet │ IP │ TCP │ a │ b │ c                          a and b of one size
//	                  ▼
//	IP │ TCP │ a    IP │ TCP │ b    IP │ TCP │ c          each with its length, sequence number and checksums;
//	                                                      FIN and PSH on the last only, CWR on the first (RFC 3168)
//
// A TCP segment is as long as the path to its destination carries at that moment, which may be more or less than what
// the kernel has taken from the MTU of the route. Datagrams stay as long as they are, but see toobig_linux.go, and
// fragment_linux.go.
type splitter struct {
	pkt    []byte // the packet; nil when all of it is out
	at     int    // where the payload starts that is left
	size   int    // bytes of payload in each, 0: one packet, complete
	frags  bool   // each is a fragment (RFC 791 section 3.2, RFC 8200 section 4.5)
	ip, n  int    // bytes of the IP header, and of that and the TCP or UDP header
	proto  byte
	seq    uint32
	id     uint16
	pseudo uint16 // checksum of the addresses and the protocol
}

// start takes what was read, a vnet and a packet, until next has returned all of it. It reports whether there is
// anything: what makes no sense is lost. fits is [Options.PathMTU].
func (s *splitter) start(b []byte, fits func(netip.Addr) (int, bool)) bool {
	*s = splitter{}
	var v vnet
	if v.decode(b) != nil {
		return false
	}
	p := b[vnetLen:]
	if len(p) == 0 || len(p) > maxPacket {
		return false
	}
	if v.gso == gsoNone {
		return s.single(p, v, fits)
	}
	if !s.parse(p, v) {
		return false
	}
	s.pkt, s.at = p, s.n
	s.fit(fits)
	return true
}

// single takes one packet, which is cut only if it is a TCP segment that the path does not carry.
func (s *splitter) single(p []byte, v vnet, fits func(netip.Addr) (int, bool)) bool {
	if v.flags&needsSum == 0 {
		s.pkt = p
		s.shorten(fits)
		return true
	}
	if v.sumAtField == tcpSum {
		v.gso, v.segment = gsoTCP4, uint16(len(p))
		if p[0]>>4 == 6 {
			v.gso = gsoTCP6
		}
		if s.parse(p, v) {
			s.pkt, s.at = p, s.n
			s.fit(fits)
			if s.size < len(p)-s.n {
				return true
			}
		}
	}
	*s = splitter{pkt: p}
	if !finish(p, int(v.sumFrom), int(v.sumAtField)) {
		*s = splitter{}
		return false
	}
	return true
}

// fit makes segments as long as the path carries.
func (s *splitter) fit(fits func(netip.Addr) (int, bool)) {
	if fits == nil || s.proto != unix.IPPROTO_TCP {
		return
	}
	_, dst := ends(s.pkt)
	to, _ := netip.AddrFromSlice(dst)
	// The far end takes longer segments than it has asked for; a host behind it could not be sent them.
	if mtu, end := fits(to); mtu > s.n && (end || mtu-s.n < s.size) {
		s.size = min(mtu, maxPacket) - s.n
	}
}

// parse finds the headers of a packet that stands for many. The kernel's length of them cannot be relied on: for
// packets that it forwards it may be that of the whole first one.
func (s *splitter) parse(p []byte, v vnet) bool {
	s.ip, s.size = int(v.sumFrom), int(v.segment)
	six := p[0]>>4 == 6
	least := ip4Len
	if six {
		least = ip6Len
	}
	if s.ip < least || s.size == 0 || !six && (p[0]>>4 != 4 || int(p[0]&15)*4 != s.ip) {
		return false
	}
	switch {
	case v.gso&^gsoECN == gsoTCP4 && !six, v.gso&^gsoECN == gsoTCP6 && six:
		if len(p) < s.ip+tcpLen {
			return false
		}
		h := int(p[s.ip+12]>>4) * 4
		if h < tcpLen {
			return false
		}
		s.proto, s.n, s.seq = unix.IPPROTO_TCP, s.ip+h, binary.BigEndian.Uint32(p[s.ip+4:])
	case v.gso == gsoUDP:
		s.proto, s.n = unix.IPPROTO_UDP, s.ip+udpLen
	default:
		return false
	}
	if len(p) <= s.n {
		return false
	}
	if !six {
		s.id = binary.BigEndian.Uint16(p[4:])
	}
	src, dst := ends(p)
	s.pseudo = checksum.Checksum(dst, checksum.Checksum(src, uint16(s.proto)))
	return true
}

// more reports whether there is a next packet.
func (s *splitter) more() bool { return s.pkt != nil }

// length is how long the next packet is.
func (s *splitter) length() int {
	if s.size == 0 {
		return len(s.pkt)
	}
	return s.n + min(s.size, len(s.pkt)-s.at)
}

// next writes the next packet to dst and returns its length. It is 0 if dst is too small: the rest is then lost.
func (s *splitter) next(dst []byte) int {
	p := s.pkt
	if s.size == 0 {
		s.pkt = nil
		if len(p) > len(dst) {
			return 0
		}
		return copy(dst, p)
	}
	size := min(s.size, len(p)-s.at)
	if s.n+size > len(dst) {
		s.pkt = nil
		return 0
	}
	dst = dst[:s.n+size]
	copy(dst, p[:s.n])
	copy(dst[s.n:], p[s.at:s.at+size])
	first := s.at == s.n
	s.at += size
	last := s.at == len(p)
	if last {
		s.pkt = nil
	}
	if s.frags {
		fragmented(dst, p, s.at-size-s.n, last)
	} else {
		s.finish(dst, first, last)
	}
	return len(dst)
}

// finish makes the headers right.
func (s *splitter) finish(dst []byte, first, last bool) {
	h := dst[s.ip:]
	if dst[0]>>4 == 4 {
		binary.BigEndian.PutUint16(dst[2:], uint16(len(dst)))
		binary.BigEndian.PutUint16(dst[4:], s.id)
		s.id++
		sumIP4(dst[:s.ip])
	} else {
		binary.BigEndian.PutUint16(dst[4:], uint16(len(dst)-ip6Len))
	}
	at := udpSum
	if s.proto == unix.IPPROTO_TCP {
		at = tcpSum
		binary.BigEndian.PutUint32(h[4:], s.seq)
		s.seq += uint32(len(dst) - s.n)
		if !last {
			h[tcpFlags] &^= fin | psh
		}
		if !first {
			h[tcpFlags] &^= cwr
		}
	} else {
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)))
	}
	h[at], h[at+1] = 0, 0
	sum := ^checksum.Checksum(h, checksum.Combine(s.pseudo, uint16(len(h))))
	if sum == 0 && s.proto == unix.IPPROTO_UDP {
		sum = 0xffff // 0 would say that there is none (RFC 768)
	}
	binary.BigEndian.PutUint16(h[at:], sum)
}

// finish computes the checksum of a single packet, which has the sum of the pseudo header in its field. It reports
// whether that was within the packet.
func finish(p []byte, from, field int) bool {
	at := from + field
	if at+2 > len(p) {
		return false
	}
	sum := ^checksum.Checksum(p[from:], 0)
	if sum == 0 {
		sum = 0xffff // the same number, and no "none" for UDP
	}
	binary.BigEndian.PutUint16(p[at:], sum)
	return true
}

// ends are the addresses of a packet whose IP header is complete.
func ends(p []byte) (src, dst []byte) {
	if p[0]>>4 == 4 {
		return p[12:16], p[16:20]
	}
	return p[8:24], p[24:40]
}

// sumIP4 sets the checksum of an IPv4 header.
func sumIP4(h []byte) {
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], ^checksum.Checksum(h, 0))
}
