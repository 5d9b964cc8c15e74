package netstack

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// pings are the echo requests in flight, so that an ICMP error ends the one it is about.
type pings struct {
	mu sync.Mutex
	m  map[pingID]chan<- error // buffered by one
}

type pingID struct {
	dst   netip.Addr
	ident uint16
}

func (p *pings) add(id pingID, c chan<- error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = make(map[pingID]chan<- error)
	}
	p.m[id] = c
}

func (p *pings) remove(id pingID) {
	p.mu.Lock()
	delete(p.m, id)
	p.mu.Unlock()
}

func (p *pings) fail(id pingID, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.m[id]; c != nil {
		select {
		case c <- err:
		default:
		}
	}
}

// Ping sends one ICMP echo request to dst and waits for the reply. The error is syscall.EHOSTUNREACH as soon as an
// ICMP message says that dst cannot be reached or that pinging it is prohibited, or the context's.
func (s *Stack) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	dst = dst.Unmap()
	rtt, err := s.ping(ctx, dst)
	if err != nil {
		return 0, &net.OpError{Op: "ping", Net: "icmp", Addr: &net.IPAddr{IP: dst.AsSlice()}, Err: err}
	}
	return rtt, nil
}

func (s *Stack) ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	if !dst.IsValid() || dst.IsUnspecified() {
		return 0, net.InvalidAddrError("no address to ping")
	}
	if ctx.Err() != nil {
		return 0, gone(ctx)
	}
	proto, kind := icmp.ProtocolNumber6, byte(header.ICMPv6EchoRequest)
	if dst.Is4() {
		proto, kind = icmp.ProtocolNumber4, byte(header.ICMPv4Echo)
	}
	wq := new(waiter.Queue)
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	ep, terr := s.connect(proto, wq, netip.AddrPort{}, netip.AddrPortFrom(dst, 0))
	if ep != nil {
		defer ep.Close()
	}
	if terr != nil {
		return 0, errno(terr)
	}
	at, terr := ep.GetLocalAddress()
	if terr != nil {
		return 0, errno(terr)
	}
	id, failed := pingID{dst, at.Port}, make(chan error, 1)
	s.pings.add(id, failed)
	defer s.pings.remove(id)

	// type, code, checksum, identifier (both filled in by the endpoint), sequence 1, and 16 bytes only the reply knows
	msg := append([]byte{kind, 0, 0, 0, 0, 0, 0, 1}, make([]byte, 16)...)
	rand.Read(msg[header.ICMPv4MinimumSize:])
	sent := time.Now()
	if _, terr := ep.Write(bytes.NewReader(msg), tcpip.WriteOptions{}); terr != nil {
		return 0, errno(terr)
	}
	for {
		select {
		case <-ready:
		case err := <-failed:
			return 0, err
		case <-ctx.Done():
			return 0, gone(ctx)
		case <-s.ctx.Done():
			return 0, net.ErrClosed
		}
		for {
			var reply bytes.Buffer
			if _, terr := ep.Read(&reply, tcpip.ReadOptions{}); terr != nil {
				if _, ok := terr.(*tcpip.ErrWouldBlock); ok {
					break
				}
				return 0, errno(terr)
			}
			if b := reply.Bytes(); len(b) == len(msg) && bytes.Equal(b[6:], msg[6:]) {
				return time.Since(sent), nil
			}
		}
	}
}

// normaliseICMP makes gVisor hear the destination-unreachable messages it would ignore, by changing their code in
// place to one it acts on, and ends the Ping they are about. Other packets are left alone.
//
//	 IPv4 or IPv6 header (no extension headers)
//	+------+------+----------+
//	| type | code | checksum |   ICMPv4 type 3 (RFC 792), ICMPv6 type 1 (RFC 4443 section 3.1)
//	+------+------+----------+
//	|        unused          |
//	+------------------------+
//	| the IP packet it is about: header, then at least 8 bytes |
//	+------------------------+
//
// gVisor fails a TCP connection attempt for most ICMPv4 codes but only for ICMPv6 codes 0 and 4, so that code 1
// (administratively prohibited) and its kind would end in a timeout; a UDP socket hears only "port unreachable".
func (s *Stack) normaliseICMP(p []byte) {
	var at int // where the ICMP message starts
	var six bool
	switch {
	case len(p) >= header.IPv4MinimumSize && p[0]>>4 == 4 && p[9] == uint8(header.ICMPv4ProtocolNumber):
		if binary.BigEndian.Uint16(p[6:])&0x1fff != 0 { // not the first fragment
			return
		}
		at = int(p[0]&15) * 4
	case len(p) >= header.IPv6MinimumSize && p[0]>>4 == 6 && p[6] == uint8(header.ICMPv6ProtocolNumber):
		at, six = header.IPv6MinimumSize, true
	default:
		return
	}
	if at < header.IPv4MinimumSize || len(p) < at+8 {
		return
	}
	msg, about := p[at:], p[at+8:]
	if six && msg[0] != uint8(header.ICMPv6DstUnreachable) || !six && msg[0] != uint8(header.ICMPv4DstUnreachable) {
		return
	}
	var proto uint8
	var dst netip.Addr
	var body []byte
	switch {
	case !six && len(about) >= header.IPv4MinimumSize && about[0]>>4 == 4:
		if n := int(about[0]&15) * 4; n >= header.IPv4MinimumSize && len(about) >= n+8 {
			proto, body = about[9], about[n:]
		}
		dst = netip.AddrFrom4([4]byte(about[16:]))
	case six && len(about) >= header.IPv6MinimumSize+8 && about[0]>>4 == 6:
		proto, dst, body = about[6], netip.AddrFrom16([16]byte(about[24:])), about[header.IPv6MinimumSize:]
	}
	code := msg[1]
	switch {
	case body == nil:
	case !six && code == uint8(header.ICMPv4FragmentationNeeded):
	case proto == uint8(header.ICMPv4ProtocolNumber) && body[0] == uint8(header.ICMPv4Echo),
		proto == uint8(header.ICMPv6ProtocolNumber) && body[0] == uint8(header.ICMPv6EchoRequest):
		s.pings.fail(pingID{dst, binary.BigEndian.Uint16(body[4:])}, syscall.EHOSTUNREACH)
	case proto == uint8(header.UDPProtocolNumber) && six:
		code = uint8(header.ICMPv6PortUnreachable)
	case proto == uint8(header.UDPProtocolNumber):
		code = uint8(header.ICMPv4PortUnreachable)
	case six && code != uint8(header.ICMPv6PortUnreachable):
		code = uint8(header.ICMPv6NetworkUnreachable)
	}
	if code != msg[1] { // RFC 1624: HC' = ~(~HC + ~m + m')
		sum := uint32(^binary.BigEndian.Uint16(msg[2:])) + uint32(^(uint16(msg[0])<<8 | uint16(msg[1])))
		msg[1] = code
		sum += uint32(msg[0])<<8 | uint32(code)
		sum = sum>>16 + sum&0xffff
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(msg[2:], ^uint16(sum))
	}
}
