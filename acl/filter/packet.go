package filter

import (
	"encoding/binary"
	"net/netip"
)

// IANA protocol numbers that mean something to this package.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoICMPv6   = 58
	protoNoNext   = 59
	protoDestOpts = 60
	protoSCTP     = 132
)

// addr is an IP address in two words, an IPv4 one as ::ffff:a.b.c.d. No IPv6 packet can hold such an address: parse
// refuses them.
type addr struct{ hi, lo uint64 }

const v4in6 = 0xffff << 32

func addrOf(a netip.Addr) addr {
	b := a.As16()
	return addr{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (a addr) is4() bool { return a.hi == 0 && a.lo>>32 == 0xffff }

func (a addr) netip() netip.Addr {
	if a.is4() {
		return netip.AddrFrom4([4]byte{byte(a.lo >> 24), byte(a.lo >> 16), byte(a.lo >> 8), byte(a.lo)})
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return netip.AddrFrom16(b)
}

// martian reports whether a may never be an end of a packet in a mesh, whatever routes and rules say: this network,
// loopback, link-local, multicast, reserved (RFC 6890), IPv4 inside IPv6.
func (a addr) martian() bool {
	if a.is4() {
		ip := uint32(a.lo)
		first := ip >> 24
		return first == 0 || first == 127 || first >= 224 || ip>>16 == 169<<8|254
	}
	if a.hi == 0 { // ::/64: unspecified, loopback, mapped and compatible addresses
		return true
	}
	return a.hi>>56 == 0xff || a.hi>>54 == 0xfe80>>6 // ff00::/8, fe80::/10
}

// An ICMP message is one of these to us, in both families.
type icmpKind uint8

const (
	icmpOther icmpKind = iota
	icmpRequest
	icmpReply
	icmpError
)

// packet is what a verdict needs of one packet. Ports of ICMP echo are its identifier, twice; of protocols without
// ports they are zero.
type packet struct {
	src, dst     addr
	sport, dport uint16
	proto        uint8
	v6           bool
	flags        uint8    // TCP
	icmp         icmpKind // ICMP, ICMPv6
	frag         bool     // one of several fragments
	more         bool     // and not the last
	off          uint16   // its offset in bytes
	fragProto    uint8    // what it says it is a fragment of
	fragLen      uint32   // its length in bytes
	id           uint32   // of the datagram
	win          uint16   // TCP
	seq, ack     uint32   // TCP
	data         uint32   // TCP, SCTP: bytes after the header
	size         int      // of the whole packet
	l4           []byte   // transport header and after; the fragment's data
}

// parse reads b strictly. The reason is only meaningful when it fails.
func (p *packet) parse(b []byte) (Reason, bool) {
	if len(b) < 20 {
		return Malformed, false
	}
	switch b[0] >> 4 {
	case 4:
		return p.parse4(b)
	case 6:
		return p.parse6(b)
	}
	return Malformed, false
}

// parse4 reads an IPv4 packet (RFC 791 section 3.1). Options are refused: what they can do (source routes, recording)
// a mesh has no use for. The checksum is left to the stack, which must check it anyway and may have it offloaded.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------+-------+---------------+-------------------------------+
//	|   4   |  IHL  |      TOS      |         total length          |  0
//	+-------+-------+---------------+-----+-------------------------+
//	|        identification         |0 D M|  fragment offset, 8 B   |  4
//	+---------------+---------------+-----+-------------------------+
//	|      TTL      |   protocol    |        header checksum        |  8
//	+---------------+---------------+-------------------------------+
//	|                            source                             | 12
//	|                          destination                          | 16
//	+---------------------------------------------------------------+
func (p *packet) parse4(b []byte) (Reason, bool) {
	hlen := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if hlen < 20 || total < hlen || total > len(b) {
		return Malformed, false
	}
	if hlen > 20 {
		return IPOptions, false
	}
	p.size = total
	p.v6 = false
	p.src = addr{0, v4in6 | uint64(binary.BigEndian.Uint32(b[12:]))}
	p.dst = addr{0, v4in6 | uint64(binary.BigEndian.Uint32(b[16:]))}
	p.proto = b[9]
	p.l4 = b[20:total]
	p.frag = false
	if ff := binary.BigEndian.Uint16(b[6:]); ff&0x3fff != 0 {
		return p.parseFragment(uint32(binary.BigEndian.Uint16(b[4:])), ff<<3, ff&0x2000 != 0)
	}
	return p.transport()
}

// parse6 reads an IPv6 packet (RFC 8200 section 3) and its extension headers. A payload length of 65,496 or more is
// refused: with the 40 bytes of header it exceeds 16 bits, and readers that add in 16 bits wrap around.
//
//	+-------+---------------+---------------------------------------+
//	|   6   | traffic class |              flow label               |  0
//	+-------+---------------+-------+---------------+---------------+
//	|        payload length         |  next header  |   hop limit   |  4
//	+-------------------------------+---------------+---------------+
//	|                       source, 16 bytes                        |  8
//	|                     destination, 16 bytes                     | 24
//	+---------------------------------------------------------------+
func (p *packet) parse6(b []byte) (Reason, bool) {
	if len(b) < 40 {
		return Malformed, false
	}
	total := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) || total > 65535 {
		return Malformed, false
	}
	p.size = total
	p.v6 = true
	p.src = addr{binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
	p.dst = addr{binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint64(b[32:])}
	switch { // an IPv4 address in an IPv6 header is nobody's, and must not be taken for the IPv4 address
	case p.src.is4():
		return SrcNotOwned, false
	case p.dst.is4():
		return DstNotOwned, false
	}
	p.proto = b[6]
	p.l4 = b[40:total]
	p.frag = false
	switch p.proto {
	case protoHopByHop, protoDestOpts, protoFragment, protoRouting:
		return p.extensions()
	}
	return p.transport()
}

// maxExtensions bounds a chain; a sane one has at most four (RFC 8200 section 4.1).
const maxExtensions = 4

// extensions walks the extension headers at p.l4. Hop-by-hop options come first or not at all; routing headers are
// refused (RFC 5095 for type 0; the others have no use here). AH, ESP, mobility and whatever else is no option or
// fragment header is an upper protocol like any other: it needs a rule that names it.
//
//	+---------------+---------------+-------------------------------+
//	|  next header  | length/8 - 1  |  options ...                  |  hop-by-hop, destination
//	+---------------+---------------+-------------------------+---+-+
//	|  next header  |   reserved    |  fragment offset, 8 B   |res|M|  fragment
//	+---------------+---------------+-------------------------+---+-+
//	|                        identification                         |
//	+---------------------------------------------------------------+
func (p *packet) extensions() (Reason, bool) {
	fragment := false
	for i := 0; ; i++ {
		b := p.l4
		switch p.proto {
		case protoRouting:
			return ExtHeader, false
		case protoHopByHop, protoDestOpts:
			if p.proto == protoHopByHop && i > 0 || i == maxExtensions {
				return ExtHeader, false
			}
			if len(b) < 8 {
				return fragmentOr(fragment, Malformed), false
			}
			n := (int(b[1]) + 1) * 8
			if n > len(b) {
				return fragmentOr(fragment, Malformed), false
			}
			if !optionsOK(b[2:n]) {
				return ExtHeader, false
			}
			p.proto, p.l4 = b[0], b[n:]
		case protoFragment:
			if fragment || i == maxExtensions {
				return ExtHeader, false
			}
			if len(b) < 8 {
				return Malformed, false
			}
			fragment = true
			ff := binary.BigEndian.Uint16(b[2:])
			p.proto, p.l4 = b[0], b[8:]
			off, more := ff&^7, ff&1 != 0
			if off == 0 && !more {
				continue // an atomic fragment is a whole packet (RFC 6946)
			}
			p.frag, p.off, p.more, p.id = true, off, more, binary.BigEndian.Uint32(b[4:])
			if r, ok := p.checkFragment(); !ok || off > 0 {
				return r, ok
			}
		default:
			return p.transport()
		}
	}
}

// fragmentOr is FragTiny for a header cut short by fragmentation (RFC 7112), r otherwise.
func fragmentOr(fragment bool, r Reason) Reason {
	if fragment {
		return FragTiny
	}
	return r
}

// optionsOK walks the options of a hop-by-hop or destination header (RFC 8200 section 4.2). Those that a receiver
// must discard if it does not know them are refused, jumbograms (RFC 2675) among them: only padding and what may be
// skipped is left.
func optionsOK(b []byte) bool {
	for len(b) > 0 {
		if b[0] == 0 { // Pad1
			b = b[1:]
			continue
		}
		if b[0]>>6 != 0 || len(b) < 2 || int(b[1])+2 > len(b) {
			return false
		}
		b = b[2+int(b[1]):]
	}
	return true
}

// parseFragment is the rest of parse4 for a fragment; ff is the offset in bytes.
func (p *packet) parseFragment(id uint32, off uint16, more bool) (Reason, bool) {
	p.frag, p.off, p.more, p.id = true, off, more, id
	if r, ok := p.checkFragment(); !ok || off > 0 {
		return r, ok
	}
	return p.transport()
}

// checkFragment checks what can be checked of one fragment alone. An offset that would put the fragment inside a
// transport header is refused outright (RFC 1858 section 4, RFC 3128).
func (p *packet) checkFragment() (Reason, bool) {
	n, most := len(p.l4), 65535-20
	if p.v6 {
		most = 65535
	}
	switch {
	case n == 0, p.more && n%8 != 0, int(p.off)+n > most:
		return Malformed, false
	case p.off > 0 && p.off < 24:
		return FragTiny, false
	}
	p.sport, p.dport = 0, 0
	p.fragLen, p.fragProto = uint32(n), p.proto
	return Unknown, true
}

// transport reads the transport header at p.l4, which a first fragment must hold whole.
//
//	TCP, RFC 9293                                   UDP, RFC 768
//	+---------------+---------------+               +---------------+---------------+
//	|  source port  | destination   |  0            |  source port  | destination   |  0
//	|            sequence           |  4            |    length     |   checksum    |  4
//	|         acknowledgment        |  8            +---------------+---------------+
//	|off|  flags    |    window     | 12            ICMP echo, RFC 792, RFC 4443
//	|   checksum    |    urgent     | 16            +-------+-------+---------------+
//	|           options ...         | 20            | type  | code  |   checksum    |  0
//	+---------------+---------------+               |  identifier   |   sequence    |  4
//	                                                +-------+-------+---------------+
func (p *packet) transport() (Reason, bool) {
	b := p.l4
	switch p.proto {
	case protoTCP:
		if len(b) < 20 {
			return fragmentOr(p.frag, Malformed), false
		}
		hlen := int(b[12]>>4) * 4
		if hlen < 20 {
			return Malformed, false
		}
		if hlen > len(b) {
			return fragmentOr(p.frag, Malformed), false
		}
		p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		p.seq, p.ack = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
		p.flags, p.win = b[13], binary.BigEndian.Uint16(b[14:])
		p.data = uint32(len(b) - hlen)
	case protoUDP:
		if len(b) < 8 {
			return fragmentOr(p.frag, Malformed), false
		}
		if n := int(binary.BigEndian.Uint16(b[4:])); n < 8 || n > len(b) && !p.frag || n <= len(b) && p.more {
			return Malformed, false
		}
		p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case protoSCTP:
		if len(b) < 16 {
			return fragmentOr(p.frag, Malformed), false
		}
		p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		p.data = uint32(len(b) - 12)
	case protoICMP, protoICMPv6:
		if p.v6 != (p.proto == protoICMPv6) {
			return Malformed, false
		}
		if len(b) < 8 {
			return fragmentOr(p.frag, Malformed), false
		}
		p.sport, p.dport = 0, 0
		p.icmp = kindOf(b[0], b[1], p.v6)
		if p.icmp == icmpRequest || p.icmp == icmpReply {
			id := binary.BigEndian.Uint16(b[4:])
			p.sport, p.dport = id, id
		}
	default:
		p.sport, p.dport = 0, 0
	}
	return Unknown, true
}

// kindOf sorts ICMP messages. Source quench (RFC 6633) and redirects are no errors of ours; an IPv6 "packet too big"
// below 1,280 is an attack (RFC 8021) and is refused where its value is read.
func kindOf(typ, code uint8, v6 bool) icmpKind {
	if v6 {
		switch {
		case typ == 128 && code == 0:
			return icmpRequest
		case typ == 129 && code == 0:
			return icmpReply
		case 1 <= typ && typ <= 4:
			return icmpError
		}
		return icmpOther
	}
	switch {
	case typ == 8 && code == 0:
		return icmpRequest
	case typ == 0 && code == 0:
		return icmpReply
	case typ == 3, typ == 11, typ == 12:
		return icmpError
	}
	return icmpOther
}

// quote reads the start of the packet inside an ICMP error: ports, or the identifier of an echo. The quoted packet
// is cut short, so lengths are not checked, but it must show its whole IP header and 8 bytes of the next.
func (p *packet) quote(b []byte, v6 bool) bool {
	*p = packet{v6: v6}
	if !v6 {
		if len(b) < 28 || b[0] != 0x45 || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return false
		}
		p.src = addr{0, v4in6 | uint64(binary.BigEndian.Uint32(b[12:]))}
		p.dst = addr{0, v4in6 | uint64(binary.BigEndian.Uint32(b[16:]))}
		p.proto, b = b[9], b[20:]
	} else {
		if len(b) < 48 || b[0]>>4 != 6 {
			return false
		}
		p.src = addr{binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
		p.dst = addr{binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint64(b[32:])}
		p.proto, b = b[6], b[40:]
		if p.proto == protoFragment { // of our own making, and the first
			if len(b) < 16 || binary.BigEndian.Uint16(b[2:])&^7 != 0 {
				return false
			}
			p.proto, b = b[0], b[8:]
		}
	}
	switch p.proto {
	case protoTCP, protoUDP, protoSCTP:
		p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case protoICMP, protoICMPv6:
		if p.icmp = kindOf(b[0], b[1], v6); p.icmp != icmpRequest && p.icmp != icmpReply {
			return false
		}
		id := binary.BigEndian.Uint16(b[4:])
		p.sport, p.dport = id, id
	}
	return true
}

// Tuple reads the ends and the protocol of a packet, for Explain and for records. ICMP echo has its identifier as
// both ports. It reports false if the packet is malformed.
func Tuple(pkt []byte) (src, dst netip.AddrPort, proto uint8, ok bool) {
	var p packet
	if _, ok = p.parse(pkt); !ok {
		return
	}
	return netip.AddrPortFrom(p.src.netip(), p.sport), netip.AddrPortFrom(p.dst.netip(), p.dport), p.proto, true
}
