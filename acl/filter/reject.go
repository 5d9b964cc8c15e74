package filter

import "encoding/binary"

func headerLen(a addr) int {
	if a.is4() {
		return 20
	}
	return 40
}

// putIP writes the IP header of a packet of ours that fills b and returns the rest of b.
func putIP(b []byte, src, dst addr, proto uint8) []byte {
	clear(b)
	if src.is4() {
		b[0], b[8], b[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		b[6] = 0x40 // don't fragment
		binary.BigEndian.PutUint32(b[12:], uint32(src.lo))
		binary.BigEndian.PutUint32(b[16:], uint32(dst.lo))
		binary.BigEndian.PutUint16(b[10:], checksum(b[:20], 0))
		return b[20:]
	}
	b[0], b[6], b[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	binary.BigEndian.PutUint64(b[8:], src.hi)
	binary.BigEndian.PutUint64(b[16:], src.lo)
	binary.BigEndian.PutUint64(b[24:], dst.hi)
	binary.BigEndian.PutUint64(b[32:], dst.lo)
	return b[40:]
}

// pseudo is the sum over the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
func pseudo(src, dst addr, proto uint8, n int) uint32 {
	sum := uint32(proto) + uint32(n)
	for _, a := range [2]addr{src, dst} {
		w := [2]uint64{a.hi, a.lo}
		if a.is4() {
			w[1] &= 1<<32 - 1
		}
		for _, x := range w {
			sum += uint32(x>>48) + uint32(x>>32&0xffff) + uint32(x>>16&0xffff) + uint32(x&0xffff)
		}
	}
	return sum
}

// checksum is the Internet checksum (RFC 1071) of b on top of sum; b's own field must be zero.
func checksum(b []byte, sum uint32) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Reject builds the packet that answers a denied one so that its sender need not wait for a timeout: an RST for TCP,
// ICMP "administratively prohibited" for the rest. It is written to buf, or to new memory if buf is too small (1,280
// bytes always suffice). It is nil when the packet must not be answered (RFC 1122 section 3.2.2, RFC 4443 section
// 2.4). Answer local senders, and peers when [Verdict.Answer] says so: other answers tell a scanner what exists.
func Reject(pkt, buf []byte) []byte {
	var p packet
	if _, ok := p.parse(pkt); !ok || p.off > 0 || p.src.martian() || p.dst.martian() {
		return nil
	}
	switch p.proto {
	case protoTCP:
		return rejectTCP(&p, buf)
	case protoICMP, protoICMPv6:
		if p.icmp != icmpRequest {
			return nil
		}
	}
	most, typ, code, proto := 576, byte(3), byte(13), byte(protoICMP) // RFC 1812 section 4.3.2.3
	if p.v6 {
		most, typ, code, proto = 1280, 1, 1, protoICMPv6
	}
	hlen := headerLen(p.src)
	b := room(buf, min(hlen+8+p.size, most))
	l4 := putIP(b, p.dst, p.src, proto)
	l4[0], l4[1] = typ, code
	copy(l4[8:], pkt[:p.size])
	sum := uint32(0)
	if p.v6 {
		sum = pseudo(p.dst, p.src, proto, len(l4))
	}
	binary.BigEndian.PutUint16(l4[2:], checksum(l4, sum))
	return b
}

// prohibited tells side d of a flow without RSTs that it is over: an ICMP error, as if from the other, about a packet
// such as d has sent. It is nil if d has sent none.
func (f *flow) prohibited(d int) [][]byte {
	src, dst, sport, dport := f.tuple.local, f.tuple.remote, f.tuple.lport(), f.tuple.rport() // of that packet
	if d == theirs {
		src, dst, sport, dport = dst, src, dport, sport
	}
	proto, echo := f.tuple.proto(), f.tuple.proto() == protoICMP || f.tuple.proto() == protoICMPv6
	if f.bytes[d] == 0 || echo && d != f.opener() { // what answers is no socket's
		return nil
	}
	typ, code, by := byte(3), byte(13), byte(protoICMP)
	if !src.is4() {
		typ, code, by = 1, 1, protoICMPv6
	}
	hlen := headerLen(src)
	b := make([]byte, hlen+8+hlen+8)
	l4 := putIP(b, dst, src, by)
	l4[0], l4[1] = typ, code
	switch q := putIP(l4[8:], src, dst, proto); {
	case echo:
		q[0] = map[byte]byte{protoICMP: 8, protoICMPv6: 128}[proto]
		binary.BigEndian.PutUint16(q[4:], sport)
	default:
		binary.BigEndian.PutUint16(q, sport)
		binary.BigEndian.PutUint16(q[2:], dport)
		if proto == protoUDP {
			binary.BigEndian.PutUint16(q[4:], 8)
		}
	}
	sum := uint32(0)
	if by == protoICMPv6 {
		sum = pseudo(dst, src, by, len(l4))
	}
	binary.BigEndian.PutUint16(l4[2:], checksum(l4, sum))
	return [][]byte{b}
}

// rejectTCP answers as a closed port does (RFC 9293 section 3.10.7.1).
func rejectTCP(p *packet, buf []byte) []byte {
	if p.flags&rst != 0 {
		return nil
	}
	b := room(buf, headerLen(p.src)+20)
	l4 := putIP(b, p.dst, p.src, protoTCP)
	binary.BigEndian.PutUint16(l4, p.dport)
	binary.BigEndian.PutUint16(l4[2:], p.sport)
	l4[12] = 5 << 4
	if p.flags&ackFlag != 0 {
		binary.BigEndian.PutUint32(l4[4:], p.ack)
		l4[13] = rst
	} else {
		binary.BigEndian.PutUint32(l4[8:], p.seq+p.length())
		l4[13] = rst | ackFlag
	}
	binary.BigEndian.PutUint16(l4[16:], checksum(l4, pseudo(p.dst, p.src, protoTCP, len(l4))))
	return b
}

func room(buf []byte, n int) []byte {
	if cap(buf) < n {
		return make([]byte, n)
	}
	return buf[:n]
}
