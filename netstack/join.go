package netstack

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// run is a number of TCP segments at the start of a batch that follow each other, and are delivered as one. TCP then
// handles, acknowledges and wakes its reader for all of them at once.
//
//	| IP | TCP | a |  | IP | TCP | b |  | IP | TCP | c |     same flow, acknowledgement, window and options
//	                      ▼
//	           | IP | TCP | a | b | c |
//
// Only neighbours are joined, so nothing overtakes anything, and nothing waits for a later batch.
type run struct {
	n    int // packets; 0: the first is not for joining
	ip   int // bytes of its IP header
	hdr  int // and of that and its TCP header
	size int // bytes of the joined packet
}

// runMax is the longest joined packet: what an IPv4 header can say.
const runMax = 65535

// findRun looks at the start of a batch, whose packets start at offset. None is found (n is 0) if the first is no TCP
// segment with payload, or one with a wrong checksum, which is the stack's to count.
//
// The checksums of each packet are verified here, and no more after it. WireGuard has authenticated the peer, but not
// what a host behind it sent and it forwards, so they cannot be left out.
func findRun(bufs [][]byte, offset int) run {
	first := bufs[0][offset:]
	ip, hdr := segment(first)
	if hdr == 0 {
		return run{}
	}
	r := run{n: 1, ip: ip, hdr: hdr, size: len(first)}
	next := binary.BigEndian.Uint32(first[ip+4:]) + uint32(len(first)-hdr)
	for _, b := range bufs[1:] {
		if len(b) <= offset+hdr {
			break
		}
		p := b[offset:]
		if r.size+len(p)-hdr > runMax || !follows(first, p, ip, hdr, next) {
			break
		}
		if _, h := segment(p); h != hdr {
			break
		}
		r.n++
		r.size += len(p) - hdr
		next += uint32(len(p) - hdr)
	}
	return r
}

// segment returns the length of the IP header, and of that and the TCP header, of a TCP segment that may be joined:
// an unfragmented packet without IP options, payload, no flag but ACK and PSH, and right checksums. Else both are 0.
func segment(p []byte) (ip, hdr int) {
	var src, dst tcpip.Address
	switch {
	case len(p) > header.IPv4MinimumSize+header.TCPMinimumSize && p[0] == 0x45:
		h := header.IPv4(p)
		if h.TotalLength() != uint16(len(p)) || h[9] != uint8(header.TCPProtocolNumber) || h.More() || h.FragmentOffset() != 0 || !h.IsChecksumValid() {
			return 0, 0
		}
		ip, src, dst = header.IPv4MinimumSize, h.SourceAddress(), h.DestinationAddress()
	case len(p) > header.IPv6MinimumSize+header.TCPMinimumSize && p[0]>>4 == 6:
		h := header.IPv6(p)
		if int(h.PayloadLength()) != len(p)-header.IPv6MinimumSize || h.NextHeader() != uint8(header.TCPProtocolNumber) {
			return 0, 0
		}
		ip, src, dst = header.IPv6MinimumSize, h.SourceAddress(), h.DestinationAddress()
	default:
		return 0, 0
	}
	t := header.TCP(p[ip:])
	hdr = ip + int(t.DataOffset())
	if t.DataOffset() < header.TCPMinimumSize || hdr >= len(p) || t.Flags()|header.TCPFlagPsh != header.TCPFlagAck|header.TCPFlagPsh {
		return 0, 0
	}
	if checksum.Checksum(t, header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(t)))) != 0xffff {
		return 0, 0
	}
	return ip, hdr
}

// follows reports whether p, which is longer than hdr bytes, continues first's flow with sequence number seq, and
// differs in nothing else but length, IPv4 identification, checksums and PSH.
func follows(first, p []byte, ip, hdr int, seq uint32) bool {
	a, b := first[ip:hdr], p[ip:hdr]
	if binary.BigEndian.Uint32(b[4:]) != seq {
		return false
	}
	if ip == header.IPv4MinimumSize {
		if !bytes.Equal(first[:2], p[:2]) || !bytes.Equal(first[6:10], p[6:10]) || !bytes.Equal(first[12:20], p[12:20]) {
			return false
		}
	} else if !bytes.Equal(first[:4], p[:4]) || !bytes.Equal(first[6:40], p[6:40]) {
		return false
	}
	return bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[8:13], b[8:13]) &&
		(a[13]^b[13])&^uint8(header.TCPFlagPsh) == 0 && bytes.Equal(a[14:16], b[14:16]) && bytes.Equal(a[18:], b[18:])
}

// join makes one packet of a run. Its headers have a view of their own: the stack keeps a second reference to the
// packet, and copies the whole of a shared view when it looks at a header in it.
func (r run) join(bufs [][]byte, offset int) *stack.PacketBuffer {
	head, body := buffer.NewViewSize(r.hdr), buffer.NewViewSize(r.size-r.hdr)
	h, out := head.AsSlice(), body.AsSlice()
	copy(h, bufs[0][offset:])
	at := 0
	for _, b := range bufs[:r.n] {
		h[r.ip+13] |= b[offset+r.ip+13] & uint8(header.TCPFlagPsh)
		at += copy(out[at:], b[offset+r.hdr:])
	}
	if r.ip == header.IPv4MinimumSize { // the TCP checksum stays the first's: nobody looks at it again
		ip := header.IPv4(h)
		ip.SetTotalLength(uint16(r.size))
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
	} else {
		header.IPv6(h).SetPayloadLength(uint16(r.size - r.ip))
	}
	payload := buffer.MakeWithView(head)
	_ = payload.Append(body)
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: payload})
	p.RXChecksumValidated = true
	return p
}
