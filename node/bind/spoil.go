package bind

import (
	"context"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/pion/stun/v3"

	"github.com/hedge-mesh/hedge/node/path"
)

// Some NATs take a packet that nobody has asked for as their own, Linux without a firewall of its own for one, and never use the
// port that it came to towards its sender again. Peers are careful with such a NAT, and need not be with others. Which ours is
// shows with two sockets that are used for nothing else:
//
//	a ── request ───────────────────▶ server              you are A
//	b ── request, answer to A ──────▶ its third port ───▶ A, which nobody has asked for
//	a ── request ───────────────────▶ third port          you are A still, or another: A is spoilt for it
type spoiling struct {
	about netip.Addr // our outside address
	tries int
	busy  bool
	next  time.Time
	found Finding
}

const (
	spoilTries = 3 // tests of a network, until one says something
	spoilAgain = 20 * time.Second
	unasked    = 3 // packets, one of which may be lost
	unaskedFor = 300 * time.Millisecond
)

// try begins the test if it is due: the server sees us at an address.
func (s *spoiling) try(b *Bind, server, mapped netip.AddrPort, now time.Time) {
	if mapped.Addr() != s.about && !s.busy {
		*s = spoiling{about: mapped.Addr()}
	}
	if s.found != Unknown || s.busy || s.tries == spoilTries || s.next.After(now) {
		return
	}
	s.tries, s.busy, s.next = s.tries+1, true, now.Add(spoilAgain)
	b.wg.Go(func() {
		select {
		case b.spoils <- b.spoilt(server):
		case <-b.done:
		}
	})
}

// kind is what peers are told of it, as the Low of a path.NAT of kind Easy.
func (s *spoiling) kind() uint16 {
	return map[Finding]uint16{Yes: path.Spoilt, No: path.Steady}[s.found]
}

// spoilt reports whether packets that nobody has asked for spoil ports of our NAT.
func (b *Bind) spoilt(server netip.AddrPort) Finding {
	var socks [2]*sock
	for i := range socks {
		s, err := b.listenOne("udp4", 0)
		if err != nil {
			return Unknown
		}
		defer s.Close()
		defer context.AfterFunc(b.ctx, func() { s.Close() })()
		socks[i] = s
	}
	first, port := socks[0].ask(server)
	if port == 0 {
		return Unknown
	}
	third := netip.AddrPortFrom(server.Addr(), port)
	for range unasked {
		m := newRequest()
		m.Add(attrResponsePort, binary.BigEndian.AppendUint16(nil, first.Port()))
		m.WriteLength()
		_ = socks[1].WriteOne(m.Raw, third)
	}
	select {
	case <-time.After(unaskedFor):
	case <-b.done:
		return Unknown
	}
	switch again, _ := socks[0].ask(third); again {
	case netip.AddrPort{}:
		return Unknown
	case first:
		return No
	}
	return Yes
}

// ask asks a STUN server how a socket looks from outside, and at what other port it may be asked; zero values if it does not say.
func (s *sock) ask(server netip.AddrPort) (mapped netip.AddrPort, other uint16) {
	m := newRequest()
	m.Add(stun.AttrChangeRequest, make([]byte, 4))
	m.WriteLength()
	_ = s.WriteOne(m.Raw, server) // it is repeated
	return s.await(m, server)
}
