package derp

import (
	"encoding/binary"
	"errors"
	"hash/maphash"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v3"

	"github.com/hedge-mesh/hedge/node/udp"
)

// STUNGrowth is the most by which an answer is longer than its request, in bytes: an XOR-MAPPED-ADDRESS of IPv6
// (RFC 8489 section 14.2). For IPv4 it is 12.
const STUNGrowth = 24

// ServeSTUN answers binding requests (RFC 8489) that arrive at pc with the address they came from, until pc is closed;
// it then returns nil. What is not a binding request is ignored, and so are requests above a rate for their source.
//
// Of RFC 5780 it knows RESPONSE-PORT, by which a node learns whether another port of its gateway is forwarded to it, and
// CHANGE-REQUEST for another port of ours, by which it learns how its NAT filters. Neither goes to another address. Asked
// to change nothing, it adds an OTHER-ADDRESS for IPv4 with a third port, which it answers at too, so that one server is
// enough to learn how a NAT maps. Of that the port counts: the address is 0.0.0.0, as a server may not know its own.
func ServeSTUN(pc net.PacketConn) error {
	s, start := newSTUN(), time.Now()
	defer s.open(pc)()
	sock := udp.New(pc)
	return serve(sock, func(run []byte, size int, from netip.AddrPort) {
		for at := time.Since(start); len(run) > 0; run = run[min(size, len(run)):] {
			s.respond(sock, run[:min(size, len(run))], from, at)
		}
	})
}

// open makes the other ports; what it returns closes them and waits. Without the first, nobody is answered from it; without
// the second, nobody is told of it.
func (s *stunServer) open(pc net.PacketConn) (shut func()) {
	var wg sync.WaitGroup
	var list []net.PacketConn
	if u, ok := pc.(*net.UDPConn); ok {
		if alt, err := beside(u); err == nil {
			s.alt = udp.New(alt)
			list = append(list, alt)
		}
	}
	if c, err := beside(pc); err == nil {
		binary.BigEndian.PutUint16(s.third[2:], uint16(c.LocalAddr().(*net.UDPAddr).Port))
		s.third[1] = 1
		list = append(list, c)
		sock, r, start := udp.New(c), newSTUN(), time.Now()
		wg.Go(func() {
			_ = serve(sock, func(run []byte, size int, from netip.AddrPort) {
				for at := time.Since(start); len(run) > 0; run = run[min(size, len(run)):] {
					r.respond(sock, run[:min(size, len(run))], from, at)
				}
			})
		})
	}
	return func() {
		for _, c := range list {
			c.Close()
		}
		wg.Wait()
	}
}

// beside opens another port of the same address. A network that a test makes knows how by itself.
func beside(pc net.PacketConn) (net.PacketConn, error) {
	switch u := pc.(type) {
	case *net.UDPConn:
		a := u.LocalAddr().(*net.UDPAddr)
		return net.ListenUDP("udp", &net.UDPAddr{IP: a.IP, Zone: a.Zone})
	case interface {
		Beside() (net.PacketConn, error)
	}:
		return u.Beside()
	}
	return nil, errors.ErrUnsupported
}

// respond answers a request that came in at sock.
func (s *stunServer) respond(sock *udp.Socket, req []byte, src netip.AddrPort, now time.Duration) {
	answer, want := s.answer(req, src, now)
	if answer == nil {
		return
	}
	if want.other {
		if s.alt == nil {
			return
		}
		sock = s.alt
	}
	if want.port != 0 {
		src = netip.AddrPortFrom(src.Addr(), want.port)
	}
	_ = sock.WriteOne(answer, src) // asked again if it is lost
}

const (
	stunHeader  = 20
	stunCookie  = 0x2112A442
	stunBinding = 0x0001
	maxSTUN     = 1280 // of a request; no client comes near it

	stunSlots = 8192
	stunRate  = 64 // answers a second, for the sources that share a slot
)

// stunServer answers requests, one at a time. Its table of sources has a fixed size: sources are hashed to slots, so that
// no flood of made-up ones can make it grow, and all answers together are bounded as well.
type stunServer struct {
	seed   maphash.Seed
	second int64
	slots  [stunSlots]uint8
	msg    stun.Message
	alt    *udp.Socket // the other port, or nil
	third  [8]byte     // the value of OTHER-ADDRESS, a third port; zero for none
}

func newSTUN() *stunServer { return &stunServer{seed: maphash.MakeSeed()} }

// answer returns the answer to a request, valid until the next call, or nil for none. Time is since any moment.
func (s *stunServer) answer(req []byte, src netip.AddrPort, now time.Duration) ([]byte, binding) {
	want, ok := readBinding(req)
	if !ok || !src.IsValid() || !s.allow(src.Addr(), now) {
		return nil, want
	}
	addr := src.Addr().Unmap()
	s.msg.Reset()
	s.msg.TransactionID = [stun.TransactionIDSize]byte(req[8:stunHeader])
	s.msg.SetType(stun.BindingSuccess)
	s.msg.WriteHeader()
	if err := (stun.XORMappedAddress{IP: addr.AsSlice(), Port: int(src.Port())}).AddTo(&s.msg); err != nil {
		return nil, want
	}
	if want.third && s.third[1] != 0 && addr.Is4() {
		s.msg.Add(stun.AttrOtherAddress, s.third[:])
	}
	return s.msg.Raw, want
}

// binding is what a binding request asks for, beside an answer.
type binding struct {
	port  uint16 // to answer to; 0 for the one it came from
	other bool   // answer from the other port
	third bool   // and say what third port may be asked
}

const (
	attrChangeRequest = 0x0003 // RFC 5780 section 7.2: 4 bytes, of which 2 is "change port" and 4 "change IP"
	attrResponsePort  = 0x0027 // RFC 5780 section 7.5: a port in 2 bytes, padded
)

// readBinding reads a whole binding request without an attribute that it would be wrong to leave aside:
//
//	┌──────┬────────┬────────────┬────────────────┐ ┌──────┬────────┬────────────────┐
//	│ 0001 │ length │ 2112A442   │ 12 B, any      │ │ type │ length │ value, padded  │ …
//	└──────┴────────┴────────────┴────────────────┘ └──────┴────────┴────────────────┘
//	 be16   be16, of what follows the 20 bytes       type < 8000: must be understood (RFC 8489 section 14)
func readBinding(b []byte) (want binding, ok bool) {
	if len(b) < stunHeader || len(b) > maxSTUN || binary.BigEndian.Uint16(b) != stunBinding ||
		int(binary.BigEndian.Uint16(b[2:])) != len(b)-stunHeader || binary.BigEndian.Uint32(b[4:]) != stunCookie {
		return want, false
	}
	for b = b[stunHeader:]; len(b) > 0; {
		if len(b) < 4 {
			return want, false
		}
		attr, size := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		n := 4 + (size+3)&^3
		if n > len(b) {
			return want, false
		}
		switch {
		case attr == attrResponsePort && (size == 2 || size == 4):
			want.port = binary.BigEndian.Uint16(b[4:])
		case attr == attrChangeRequest && size == 4 && binary.BigEndian.Uint32(b[4:])&^2 == 0:
			want.other = b[7]&2 != 0
			want.third = !want.other
		case attr < 0x8000:
			return want, false
		}
		b = b[n:]
	}
	return want, true
}

// allow counts an answer to src: to a /64 of IPv6, which is one host's to make addresses in.
func (s *stunServer) allow(src netip.Addr, now time.Duration) bool {
	if sec := int64(now / time.Second); sec != s.second {
		s.second = sec
		clear(s.slots[:])
	}
	a := src.Unmap().As16()
	if !src.Unmap().Is4() {
		clear(a[8:])
	}
	n := &s.slots[maphash.Bytes(s.seed, a[:])%stunSlots]
	if *n >= stunRate {
		return false
	}
	*n++
	return true
}
