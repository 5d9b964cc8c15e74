package path

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/crypto/nacl/secretbox"

	"github.com/hedge-mesh/hedge/node/key"
)

// TxID ties a pong to its ping.
type TxID [12]byte

// NewTx returns a random one, which nobody can guess.
func NewTx() (tx TxID) { rand.Read(tx[:]); return tx }

// Message is a [Ping], a [Pong], a [Here], a [Loss], a [Guess], an [Ask] or an [Offer].
type Message interface{ kind() byte }

// Ping asks for a Pong. Pong answers it and says where the ping seemed to come from. Here tells a peer, by relay, where
// to reach us.
type (
	Ping struct {
		Tx  TxID
		Pad int // bytes more than the shortest: it is to learn what size of packet a path carries
	}
	Pong struct {
		Tx   TxID
		Seen netip.AddrPort // zero for a ping by relay
	}
	Here struct {
		Relay     uint16           // our home relay; 0 if none
		NAT       NAT              // ours
		Opened    uint32           // sum of the peer's public IPv4 addresses that we have sent to, in any order
		Endpoints []netip.AddrPort // at most MaxHere
		Fresh     bool             // the first of them is that of a socket opened for this peer
	}
)

// Loss tells a peer, by relay, how much of what it sent directly of late did not arrive, and in which time: whole
// milliseconds, a minute at most.
type Loss struct {
	PerMille uint16
	Over     time.Duration
}

// Guess tells a peer, by relay, that ports of a NAT are guessed from now on, and asks it to do its part. A node that does not know
// it takes no notice, as of every message that it does not know.
type Guess struct{}

// Ask asks a node that is a peer relay for a way to another. Offer answers it: with the way, a number and a key that
// nobody else is to know, or with why not. They are as long as each other.
type (
	Ask struct {
		Tx   TxID
		Peer key.NodePublic
	}
	Offer struct {
		Tx      TxID
		Peer    key.NodePublic
		Refusal byte // 0 for none
		Leg     [LegSize]byte
	}
)

// LegSize is the length of a number and a key.
const LegSize = 8 + 32

// String hides the key.
func (o Offer) String() string { return fmt.Sprintf("path.Offer(%s, %d)", o.Peer.Short(), o.Refusal) }

const (
	kindPing = 1
	kindPong = 2
	kindHere = 3
	kindLoss = 4
	kindAsk  = 5

	kindOffer = 6
	kindGuess = 7
)

func (Ping) kind() byte { return kindPing }
func (Pong) kind() byte { return kindPong }
func (Here) kind() byte { return kindHere }
func (Loss) kind() byte { return kindLoss }
func (Ask) kind() byte  { return kindAsk }

func (Offer) kind() byte { return kindOffer }
func (Guess) kind() byte { return kindGuess }

const (
	magic     = "HEDGE\x02" // the first two bits tell it from STUN (RFC 8489), the first byte from WireGuard
	nonceSize = 24
	addrSize  = 16 + 2

	// Overhead is what sealing adds to a message, Shortest the length of every ping and pong.
	Overhead = len(magic) + key.Size + nonceSize + secretbox.Overhead
	Shortest = Overhead + minPlain
	// MaxHere is how many addresses a Here carries.
	MaxHere = 16

	freshBit = 0x80 // of the NAT's kind
	minPlain = 40
	headSize = 1 + 8                 // kind and order
	hereSize = 2 + 1 + 2 + 2 + 4 + 1 // without head and addresses
	askSize  = 12 + key.Size         // without head
	askPlain = headSize + askSize + 1 + LegSize
	maxPlain = 65507 - Overhead // of a padded ping: the longest datagram of IPv4
)

// Box seals and opens the messages of two disco keys. Every message looks alike from outside:
//
//	0      6                          38                       62              78
//	├──────┼──────────────────────────┼────────────────────────┼───────────────┼──────────────────────┐
//	│HEDGE2│ sender's disco key (32)  │ nonce, random (24)     │ Poly1305 (16) │ sealed, at least 40  │
//	└──────┴──────────────────────────┴────────────────────────┴───────────────┴──────────────────────┘
//	sealed (NaCl secretbox: XSalsa20, Poly1305):
//	ping   01│ order (8) │ tx (12) │ zeros (19, more if padded)
//	pong   02│ order (8) │ tx (12) │ seen: IP (16) port (2) │ 0
//	here   03│ order (8) │ relay (2) │ NAT (1, with 80 if the first address is fresh) low (2) high (2) │ opened (4) │ n │ n × { IP (16) port (2) } │ zeros up to 40 in all
//	loss   04│ order (8) │ per mille (2) │ milliseconds (2) │ zeros (27)
//	ask    05│ order (8) │ tx (12) │ peer's node key (32) │ zeros (41)
//	offer  06│ order (8) │ tx (12) │ peer's node key (32) │ refusal │ leg: number (8) key (32)
//	guess  07│ order (8) │ zeros (31)
//
// Numbers are big-endian and IPv4 addresses are mapped into IPv6 (RFC 4291 section 2.5.5.2). A pong is never longer
// than its ping, nor an offer than its ask, so that a node amplifies nothing. Each direction has its own key, HKDF-SHA256 (RFC 5869) of the X25519
// secret with both public keys in order: were it one key for both, a thief could hand us our own ping, then our own
// pong to it, and be taken for the peer.
type Box struct {
	from       [key.Size]byte // our disco key
	ours, peer [key.Size]byte // seals what we send, opens what the peer does
}

// NewBox precomputes the keys shared with a peer. It fails if the peer's key is no good (RFC 7748 section 6.1) or ours.
func NewBox(priv key.DiscoPrivate, peer key.DiscoPublic) (*Box, error) {
	s, err := key.Shared(priv, peer)
	if err != nil {
		return nil, fmt.Errorf("path: disco key %s is unusable: %w", peer.Short(), err)
	}
	b := &Box{from: key.ExchangePublic(priv).Raw()}
	to := peer.Raw()
	if b.from == to {
		return nil, errors.New("path: the peer has our own disco key")
	}
	b.ours, b.peer = direction(s, b.from, to), direction(s, to, b.from)
	return b, nil
}

func direction(secret, from, to [key.Size]byte) [key.Size]byte {
	k, err := hkdf.Key(sha256.New, secret[:], nil, "hedge disco v1 "+string(from[:])+string(to[:]), key.Size)
	if err != nil {
		panic(err) // only for a wrong length
	}
	return [key.Size]byte(k)
}

// String hides the keys.
func (b *Box) String() string { return "path.Box" }

// Seal appends the sealed message to dst.
func (b *Box) Seal(dst []byte, m Message, at Order) []byte {
	var nonce [nonceSize]byte
	rand.Read(nonce[:]) // never fails (crypto/rand)
	return b.seal(dst, m, at, &nonce)
}

func (b *Box) seal(dst []byte, m Message, at Order, nonce *[nonceSize]byte) []byte {
	dst = append(dst, magic...)
	dst = append(dst, b.from[:]...)
	dst = append(dst, nonce[:]...)
	size := headSize + hereSize + MaxHere*addrSize
	if p, ok := m.(Ping); ok {
		size = max(size, minPlain+p.Pad)
	}
	plain := encode(make([]byte, 0, size), m, at)
	return secretbox.Seal(dst, plain, nonce, &b.ours)
}

// Sender reports whether a packet looks like a message, and whose it claims to be. It costs nothing and proves nothing.
func Sender(pkt []byte) (key.DiscoPublic, bool) {
	if len(pkt) < Shortest || string(pkt[:len(magic)]) != magic {
		return key.DiscoPublic{}, false
	}
	return key.DiscoPublicFromRaw([key.Size]byte(pkt[len(magic):])), true
}

var errForged = errors.New("path: message is not the peer's")

// Open authenticates and decodes a message of the peer.
func (b *Box) Open(pkt []byte) (Message, Order, error) {
	if _, ok := Sender(pkt); !ok {
		return nil, 0, errors.New("path: not a message")
	}
	if len(pkt) > Overhead+maxPlain {
		return nil, 0, fmt.Errorf("path: message of %d bytes is too long", len(pkt))
	}
	nonce := [nonceSize]byte(pkt[len(magic)+key.Size:])
	plain, ok := secretbox.Open(nil, pkt[len(magic)+key.Size+nonceSize:], &nonce, &b.peer)
	if !ok {
		return nil, 0, errForged
	}
	return decode(plain)
}

func encode(b []byte, m Message, at Order) []byte {
	b = binary.BigEndian.AppendUint64(append(b, m.kind()), uint64(at))
	switch m := m.(type) {
	case Ping:
		b = append(b, m.Tx[:]...)
	case Pong:
		b = append(b, m.Tx[:]...)
		b = appendAddr(b, m.Seen)
	case Here:
		eps := m.Endpoints[:min(len(m.Endpoints), MaxHere)]
		b = binary.BigEndian.AppendUint16(b, m.Relay)
		kind := byte(m.NAT.Kind)
		if m.Fresh && len(eps) > 0 {
			kind |= freshBit
		}
		b = append(b, kind)
		b = binary.BigEndian.AppendUint16(b, m.NAT.Low)
		b = binary.BigEndian.AppendUint16(b, m.NAT.High)
		b = binary.BigEndian.AppendUint32(b, m.Opened)
		b = append(b, byte(len(eps)))
		for _, a := range eps {
			b = appendAddr(b, a)
		}
	}
	size := minPlain
	switch m := m.(type) {
	case Loss:
		b = binary.BigEndian.AppendUint16(b, m.PerMille)
		b = binary.BigEndian.AppendUint16(b, uint16(min(max(m.Over, 0), time.Minute).Milliseconds()))
	case Ask:
		b, size = appendAsk(b, m.Tx, m.Peer), askPlain
	case Offer:
		b = append(append(appendAsk(b, m.Tx, m.Peer), m.Refusal), m.Leg[:]...)
	case Ping:
		size = min(minPlain+max(m.Pad, 0), maxPlain)
	}
	if n := size - len(b); n > 0 {
		b = append(b, make([]byte, n)...)
	}
	return b
}

// decode takes what encode wrote, and nothing else but longer pings.
func decode(b []byte) (Message, Order, error) {
	if len(b) < minPlain {
		return nil, 0, fmt.Errorf("path: message of %d bytes is too short", len(b))
	}
	body := b[headSize:]
	var m Message
	var used int
	switch b[0] {
	case kindPing:
		m, used = Ping{TxID(body), len(b) - minPlain}, len(TxID{})
	case kindPong:
		if len(b) != minPlain {
			return nil, 0, fmt.Errorf("path: pong of %d bytes, want %d", len(b), minPlain)
		}
		p := Pong{Tx: TxID(body)}
		used = copy(p.Tx[:], body)
		p.Seen = readAddr(body[used:])
		m, used = p, used+addrSize
	case kindHere:
		n := int(body[hereSize-1])
		if want := max(minPlain, headSize+hereSize+n*addrSize); n > MaxHere || len(b) != want {
			return nil, 0, fmt.Errorf("path: here of %d addresses has %d bytes", n, len(b))
		}
		h := Here{Relay: binary.BigEndian.Uint16(body), Opened: binary.BigEndian.Uint32(body[7:])}
		if h.Fresh = body[2]&freshBit != 0; h.Fresh && n == 0 {
			return nil, 0, errors.New("path: here has no fresh address")
		}
		h.NAT = NAT{Kind(body[2] &^ freshBit), binary.BigEndian.Uint16(body[3:]), binary.BigEndian.Uint16(body[5:])}
		used = hereSize
		for range n {
			h.Endpoints = append(h.Endpoints, readAddr(body[used:]))
			used += addrSize
		}
		m = h
	case kindLoss:
		if len(b) != minPlain {
			return nil, 0, fmt.Errorf("path: loss of %d bytes, want %d", len(b), minPlain)
		}
		m, used = Loss{binary.BigEndian.Uint16(body), time.Duration(binary.BigEndian.Uint16(body[2:])) * time.Millisecond}, 4
	case kindGuess:
		if len(b) != minPlain {
			return nil, 0, fmt.Errorf("path: guess of %d bytes, want %d", len(b), minPlain)
		}
		m = Guess{}
	case kindAsk, kindOffer:
		if len(b) != askPlain {
			return nil, 0, fmt.Errorf("path: ask or offer of %d bytes, want %d", len(b), askPlain)
		}
		tx, peer := TxID(body), key.NodePublicFromRaw([key.Size]byte(body[12:]))
		if m, used = (Ask{tx, peer}), askSize; b[0] == kindOffer {
			m, used = Offer{tx, peer, body[askSize], [LegSize]byte(body[askSize+1:])}, len(body)
		}
	default:
		return nil, 0, fmt.Errorf("path: message of unknown kind %d", b[0])
	}
	for _, c := range body[used:] {
		if c != 0 {
			return nil, 0, errors.New("path: padding is not zero")
		}
	}
	return m, Order(binary.BigEndian.Uint64(b[1:])), nil
}

func appendAsk(b []byte, tx TxID, peer key.NodePublic) []byte {
	k := peer.Raw()
	return append(append(b, tx[:]...), k[:]...)
}

func appendAddr(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(b, make([]byte, addrSize)...)
	}
	ip := a.Addr().As16()
	return binary.BigEndian.AppendUint16(append(b, ip[:]...), a.Port())
}

// readAddr returns the zero AddrPort for eighteen zeros.
func readAddr(b []byte) netip.AddrPort {
	ip, port := netip.AddrFrom16([16]byte(b)).Unmap(), binary.BigEndian.Uint16(b[16:])
	if port == 0 && ip == netip.IPv6Unspecified() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip, port)
}
