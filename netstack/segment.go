package netstack

import (
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// segmenter cuts one packet of the stack after the other to what goes on the wire. TCP hands down up to 56 KiB at
// once, and with it the work of cutting and of the checksums (stack.HostGSOSupported):
//
//	| IP | TCP | a | b | c |                            one PacketBuffer, a and b of one MSS
//	                      ▼
//	| IP | TCP | a |  | IP | TCP | b |  | IP | TCP | c |   each with its length, sequence number and checksums;
//	                                                       FIN and PSH only on the last
//
// Everything else (UDP, ICMP, RST) comes complete, and goes as it is, or in fragments (fragment.go).
type segmenter struct {
	pkt    *stack.PacketBuffer // nil when all of it is out
	view   *buffer.View        // where the rest starts
	skip   int                 // bytes of view already taken
	left   int                 // bytes of payload that are left
	mss    int                 // of payload in each; 0: one packet, complete
	frags  bool                // each is a fragment
	at     int                 // bytes of payload that came before, in fragments
	seq    uint32
	id     uint16
	hdr    [header.IPv4MaximumHeaderSize + header.TCPHeaderMaximumSize]byte
	ip, n  int    // length of the IP header, and of both
	pseudo uint16 // checksum of the addresses and the protocol
}

// start takes a packet over, with the caller's reference to it.
func (s *segmenter) start(p *stack.PacketBuffer, l *link) {
	views, skip := p.AsViewList()
	*s = segmenter{pkt: p, view: views.Front(), skip: skip, left: p.Size()}
	gso := &p.GSOOptions
	if gso.Type != stack.GSOTCPv4 && gso.Type != stack.GSOTCPv6 || !gso.NeedsCsum {
		s.fragment(l)
		return
	}
	ip, tcp := p.NetworkHeader().Slice(), p.TransportHeader().Slice()
	if len(ip)+len(tcp) > len(s.hdr) || gso.MSS == 0 {
		return // cannot be: gVisor makes no such headers
	}
	s.ip, s.n, s.mss = len(ip), len(ip)+len(tcp), int(gso.MSS)
	copy(s.hdr[:], ip)
	copy(s.hdr[s.ip:], tcp)
	s.take(s.hdr[:s.n])
	s.seq = header.TCP(tcp).SequenceNumber()
	var src, dst tcpip.Address
	if gso.Type == stack.GSOTCPv4 {
		h := header.IPv4(ip)
		src, dst, s.id = h.SourceAddress(), h.DestinationAddress(), h.ID()
	} else {
		h := header.IPv6(ip)
		src, dst = h.SourceAddress(), h.DestinationAddress()
	}
	s.pseudo = header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, 0)
	// The far end takes longer segments than it has asked for; a host behind it could not be sent them.
	s.mss = l.fit(dst.AsSlice(), s.n+s.mss) - s.n
}

// size is how long the next packet is.
func (s *segmenter) size() int {
	if s.mss > 0 {
		return s.n + min(s.left, s.mss)
	}
	return s.left
}

// count is how many packets are left.
func (s *segmenter) count() int {
	if s.mss > 0 {
		return (s.left + s.mss - 1) / s.mss
	}
	return 1
}

// next writes the next packet to dst and returns its length. It is 0 if dst is too small: the packet is then lost
// whole. There is no next one when s.pkt is nil.
func (s *segmenter) next(dst []byte) int {
	size := s.size()
	if size > len(dst) {
		s.end()
		return 0
	}
	switch {
	case s.mss == 0:
		s.take(dst[:size])
	case s.frags:
		s.piece(dst[:size])
	default:
		s.cut(dst[:size])
	}
	if s.left == 0 {
		s.end()
	}
	return size
}

// cut fills dst with headers and payload.
func (s *segmenter) cut(dst []byte) {
	copy(dst, s.hdr[:s.n])
	s.take(dst[s.n:])
	ip, tcp := dst[:s.ip], header.TCP(dst[s.ip:])
	if ip[0]>>4 == 4 {
		h := header.IPv4(ip)
		h.SetTotalLength(uint16(len(dst)))
		h.SetID(s.id)
		s.id++
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	} else {
		header.IPv6(ip).SetPayloadLength(uint16(len(tcp)))
	}
	tcp.SetSequenceNumber(s.seq)
	s.seq += uint32(len(dst) - s.n)
	if s.left > 0 {
		tcp.SetFlags(uint8(tcp.Flags() &^ (header.TCPFlagFin | header.TCPFlagPsh)))
	}
	tcp.SetChecksum(0)
	tcp.SetChecksum(^checksum.Checksum(tcp, checksum.Combine(s.pseudo, uint16(len(tcp)))))
}

// take copies the next bytes of the packet.
func (s *segmenter) take(dst []byte) {
	s.left -= len(dst)
	for len(dst) > 0 && s.view != nil {
		b := s.view.AsSlice()
		if s.skip >= len(b) {
			s.skip -= len(b)
			s.view = s.view.Next()
			continue
		}
		n := copy(dst, b[s.skip:])
		s.skip += n
		dst = dst[n:]
	}
}

// end lets go of the packet.
func (s *segmenter) end() {
	if s.pkt != nil {
		s.pkt.DecRef()
	}
	s.pkt, s.view = nil, nil
}
