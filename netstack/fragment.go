package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// What is no TCP and longer than its path comes in fragments: of IPv4 what does not forbid it (RFC 791 section 3.2), of IPv6
// datagrams and what is a fragment already (RFC 8200 section 4.5). All of one then go the same way, and none overtakes the
// first, which alone tells of which flow they are.
//
//	IPv4  │ … │ length │ id │ flags 3 offset 13 │ …                       each has its own header
//	IPv6  │ IP │ next │ 0 │ offset 13  0 0  more 1 │ id 4 │ payload       and of IPv6 a fragment header
const (
	moreFragments4 = 0x2000
	moreFragments6 = 1
	// fitsAlways is what every path carries, see node/bind.
	fitsAlways = 512
)

// fragment looks whether the packet is too long, and prepares to cut it.
func (s *segmenter) fragment(l *link) {
	if s.left <= fitsAlways {
		return
	}
	b := s.view.AsSlice()[s.skip:]
	switch {
	case len(b) >= header.IPv4MinimumSize && b[0] == 0x45 && b[6]&0x40 == 0:
		s.pieces(header.IPv4MinimumSize, l.fit(b[16:20], int(l.mtu)))
	case len(b) >= header.IPv6MinimumSize+header.IPv6FragmentHeaderSize && b[0]>>4 == 6 && (b[6] == header.IPv6FragmentHeader || b[6] == uint8(header.UDPProtocolNumber)):
		most := l.fit(b[24:40], int(l.mtu))
		if s.left <= most {
			return
		}
		if b[6] == header.IPv6FragmentHeader {
			s.pieces(header.IPv6MinimumSize+header.IPv6FragmentHeaderSize, most)
			return
		}
		s.pieces(header.IPv6MinimumSize, most-header.IPv6FragmentHeaderSize)
		h := s.hdr[s.n:][:header.IPv6FragmentHeaderSize]
		h[0], s.hdr[6] = s.hdr[6], header.IPv6FragmentHeader
		binary.BigEndian.PutUint32(h[4:], l.ids.Add(1))
		s.n += len(h)
	}
}

// pieces has each piece of a packet begin with its headers of n bytes, and be no longer than most.
func (s *segmenter) pieces(n, most int) {
	if s.left <= most {
		return
	}
	s.frags, s.n, s.mss = true, n, (most-n)&^7
	s.take(s.hdr[:n])
}

// piece fills dst with headers and payload.
func (s *segmenter) piece(dst []byte) {
	copy(dst, s.hdr[:s.n])
	s.take(dst[s.n:])
	if dst[0]>>4 == 4 {
		off := binary.BigEndian.Uint16(dst[6:]) + uint16(s.at/8)
		if s.left > 0 {
			off |= moreFragments4
		}
		binary.BigEndian.PutUint16(dst[6:], off)
		h := header.IPv4(dst[:header.IPv4MinimumSize])
		h.SetTotalLength(uint16(len(dst)))
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	} else {
		off := binary.BigEndian.Uint16(dst[header.IPv6MinimumSize+2:]) + uint16(s.at)
		if s.left > 0 {
			off |= moreFragments6
		}
		binary.BigEndian.PutUint16(dst[header.IPv6MinimumSize+2:], off)
		header.IPv6(dst).SetPayloadLength(uint16(len(dst) - header.IPv6MinimumSize))
	}
	s.at += len(dst) - s.n
}
