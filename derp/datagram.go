package derp

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/replay"
)

// A datagram of the relay's UDP side. The relay hands the session's number and key to the node over the WebSocket:
//
//	 0    1   2   3   4           12          20                        n-16     n
//	┌────┬───┬───┬───┬───────────┬───────────┬─────────────────────────┬────────┐
//	│ ED │ R │ 1 │ k │ counter   │ session   │ body                    │ tag    │
//	└────┴───┴───┴───┴───────────┴───────────┴─────────────────────────┴────────┘
//	                  be64        be64: the    tag: ChaCha20-Poly1305 (RFC 8439) of no plaintext, over all before it, by the
//	                              relay's      session's key, the first 12 bytes being the nonce: k differs by direction
//
//	k   to the relay      from the relay
//	    1 message         81 message     body: packets, as in a WebSocket message
//	    2 ping            82 pong        body: 8 bytes to give back, be16 use, padding; a pong is as long as its ping, and where
//	                                     there is room its padding begins with the ping's source: 16 bytes (RFC 4291 section
//	                                     2.5.5.2 for IPv4), be16 port
//	    3 carry           83 carry       body: one packet, of a peer relay's: see forward.go
//
// Use is the size of the longest datagram that has come through to the node: as long as it pings, the relay sends it
// nothing longer by UDP, and nothing at all for 0. ED has its first bit set, which tells a datagram from STUN, disco and
// WireGuard.
const (
	datagramHeader   = 4 + 8 + 8
	datagramTag      = chacha20poly1305.Overhead
	datagramOverhead = datagramHeader + datagramTag
	datagramMagic    = "\xedR\x01"

	dgMessage = 0x01
	dgPing    = 0x02
	dgCarry   = 0x03
	dgDown    = 0x80 // from the relay
	dgPong    = dgDown | dgPing

	probeHead = 8 + 2  // of a ping's body
	seenLen   = 16 + 2 // of the source in a pong's

	// maxDatagram is the longest that is tried: it fits IPv6 in Ethernet.
	maxDatagram = 1452
)

// offerLen is the length of what a relay says of its UDP side, after the kind: session be64, key.
const offerLen = 8 + chacha20poly1305.KeySize

// seal authenticates the datagrams that one end of a session sends.
type seal struct {
	aead    cipher.AEAD
	session uint64
	down    byte // dgDown at the relay
	counter atomic.Uint64
}

// newOffer makes a session's secrets, as they are told to the node.
func newOffer() (offer [offerLen]byte) {
	rand.Read(offer[:]) // never fails (crypto/rand)
	return offer
}

// newSeals makes both directions of one end of a session.
func newSeals(offer [offerLen]byte, down byte) (*seal, *unseal) {
	aead, err := chacha20poly1305.New(offer[8:])
	if err != nil {
		panic(err) // the key has the right length
	}
	session := binary.BigEndian.Uint64(offer[:])
	return &seal{aead: aead, session: session, down: down}, &unseal{aead: aead, session: session, down: down ^ dgDown}
}

// start appends a datagram's header to b. The caller appends the body and then calls end with b's old length.
func (s *seal) start(b []byte, kind byte) []byte {
	b = append(b, datagramMagic...)
	b = append(b, kind|s.down)
	b = binary.BigEndian.AppendUint64(b, s.counter.Add(1))
	return binary.BigEndian.AppendUint64(b, s.session)
}

// end appends the tag of the datagram that begins at from.
func (s *seal) end(b []byte, from int) []byte {
	return s.aead.Seal(b, b[from:from+12], nil, b[from:])
}

// probe appends a ping or pong of size bytes in all. A pong says where its ping came from, if there is room.
func (s *seal) probe(b []byte, kind byte, echo [8]byte, use uint16, seen netip.AddrPort, size int) []byte {
	from := len(b)
	b = s.start(b, kind)
	b = append(b, echo[:]...)
	b = binary.BigEndian.AppendUint16(b, use)
	if seen.IsValid() && len(b)-from+seenLen <= size-datagramTag {
		ip := seen.Addr().As16()
		b = append(b, ip[:]...)
		b = binary.BigEndian.AppendUint16(b, seen.Port())
	}
	for len(b)-from < size-datagramTag {
		b = append(b, 0)
	}
	return s.end(b, from)
}

// datagramSession returns which session a datagram claims to be of, without believing it.
func datagramSession(b []byte) (session uint64, ok bool) {
	if len(b) < datagramOverhead || string(b[:3]) != datagramMagic {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[12:]), true
}

// unseal checks the datagrams that one end of a session receives.
type unseal struct {
	aead    cipher.AEAD
	session uint64
	down    byte

	mu   sync.Mutex
	top  uint64         // the highest counter so far
	seen *replay.Filter // made with the first good datagram: most sessions have none
}

// open returns the kind, without its direction, and the body of a datagram, if it is genuine and has not come before.
// Newest says that it was sent after all others that have come.
func (u *unseal) open(b []byte) (kind byte, body []byte, newest, ok bool) {
	session, ok := datagramSession(b)
	if !ok || session != u.session || b[3]&dgDown != u.down {
		return 0, nil, false, false
	}
	at := len(b) - datagramTag
	if _, err := u.aead.Open(nil, b[:12], b[at:], b[:at]); err != nil {
		return 0, nil, false, false
	}
	counter := binary.BigEndian.Uint64(b[4:])
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.seen == nil {
		u.seen = new(replay.Filter)
	}
	if !u.seen.ValidateCounter(counter, 1<<63) {
		return 0, nil, false, false
	}
	if newest = counter > u.top; newest {
		u.top = counter
	}
	return b[3] &^ dgDown, b[datagramHeader:at:at], newest, true
}

// cutProbe takes the body of a ping or pong apart.
func cutProbe(body []byte) (echo [8]byte, use uint16, ok bool) {
	if len(body) < probeHead {
		return echo, 0, false
	}
	return [8]byte(body), binary.BigEndian.Uint16(body[8:]), true
}

// cutSeen is where the ping of a pong came from; not valid if the pong does not say.
func cutSeen(body []byte) netip.AddrPort {
	if len(body) < probeHead+seenLen {
		return netip.AddrPort{}
	}
	ip := netip.AddrFrom16([16]byte(body[probeHead:])).Unmap()
	if ip.IsUnspecified() { // padding
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(body[probeHead+16:]))
}
