package derp

import (
	"encoding/binary"
	"hash/maphash"
	"net"
	"net/netip"
	"time"

	"github.com/pion/stun/v3"
)

// STUNGrowth is the most by which an answer is longer than its request, in bytes: an XOR-MAPPED-ADDRESS of IPv6
// (RFC 8489 section 14.2). For IPv4 it is 12.
const STUNGrowth = 24

// ServeSTUN answers binding requests (RFC 8489) that arrive at pc with the address they came from, until pc is closed;
// it then returns nil. What is not a binding request is ignored, and so are requests above a rate for their source.
func ServeSTUN(pc net.PacketConn) error {
	s, start := newSTUN(), time.Now()
	sock := &udpsock{pc: pc}
	return sock.serve(func(req []byte, _ int, from netip.AddrPort) {
		if answer := s.answer(req, from, time.Since(start)); answer != nil {
			_ = writeTo(pc, answer, from) // asked again if it is lost
		}
	})
}

// readFrom and writeTo allocate nothing for a UDP socket.
func readFrom(pc net.PacketConn, b []byte) (int, netip.AddrPort, error) {
	if u, ok := pc.(*net.UDPConn); ok {
		return u.ReadFromUDPAddrPort(b)
	}
	n, a, err := pc.ReadFrom(b)
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	src, err := netip.ParseAddrPort(a.String())
	return n, src, err
}

func writeTo(pc net.PacketConn, b []byte, dst netip.AddrPort) error {
	if u, ok := pc.(*net.UDPConn); ok {
		_, err := u.WriteToUDPAddrPort(b, dst)
		return err
	}
	_, err := pc.WriteTo(b, net.UDPAddrFromAddrPort(dst))
	return err
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
}

func newSTUN() *stunServer { return &stunServer{seed: maphash.MakeSeed()} }

// answer returns the answer to a request, valid until the next call, or nil for none. Time is since any moment.
func (s *stunServer) answer(req []byte, src netip.AddrPort, now time.Duration) []byte {
	if !isBinding(req) || !src.IsValid() || !s.allow(src.Addr(), now) {
		return nil
	}
	addr := src.Addr().Unmap()
	s.msg.Reset()
	s.msg.TransactionID = [stun.TransactionIDSize]byte(req[8:stunHeader])
	s.msg.SetType(stun.BindingSuccess)
	s.msg.WriteHeader()
	if err := (stun.XORMappedAddress{IP: addr.AsSlice(), Port: int(src.Port())}).AddTo(&s.msg); err != nil {
		return nil
	}
	return s.msg.Raw
}

// isBinding reports whether b is a whole binding request without an attribute that it would be wrong to leave aside:
//
//	┌──────┬────────┬────────────┬────────────────┐ ┌──────┬────────┬────────────────┐
//	│ 0001 │ length │ 2112A442   │ 12 B, any      │ │ type │ length │ value, padded  │ …
//	└──────┴────────┴────────────┴────────────────┘ └──────┴────────┴────────────────┘
//	 be16   be16, of what follows the 20 bytes       type < 8000: must be understood (RFC 8489 section 14)
func isBinding(b []byte) bool {
	if len(b) < stunHeader || len(b) > maxSTUN || binary.BigEndian.Uint16(b) != stunBinding ||
		int(binary.BigEndian.Uint16(b[2:])) != len(b)-stunHeader || binary.BigEndian.Uint32(b[4:]) != stunCookie {
		return false
	}
	for b = b[stunHeader:]; len(b) > 0; {
		if len(b) < 4 || binary.BigEndian.Uint16(b) < 0x8000 {
			return false
		}
		n := 4 + (int(binary.BigEndian.Uint16(b[2:]))+3)&^3
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return true
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
