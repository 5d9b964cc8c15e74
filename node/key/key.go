// Package key holds every kind of key Hedge has, as types that cannot be mixed up.
//
//	kind      curve    lives in            identifies
//	Machine   Ed25519  state, for good     a device, to its coordinator and to relays
//	Control   Ed25519  coordinator state   a coordinator; its public half is the pin in a join string
//	Relay     Ed25519  relay state         a relay; its public half is the pin in the relay list
//	Node      X25519   state, rotates      a node, to its peers: the WireGuard key
//	Disco     X25519   state               a node's path probes
//
// A kind is a phantom type parameter: passing or converting one kind where another is meant does not
// compile. Private keys do not compare, print, or marshal; they leave the process only through
// [Private.Secret], which is what a reviewer looks for.
package key

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Size is the length in bytes of every public key and of every private key (for Ed25519, the RFC 8032 seed).
const Size = 32

type (
	machine struct{}
	control struct{}
	relay   struct{}
	node    struct{}
	disco   struct{}
)

func (machine) name() string { return "machine" }
func (control) name() string { return "control" }
func (relay) name() string   { return "relay" }
func (node) name() string    { return "node" }
func (disco) name() string   { return "disco" }

type kind interface{ name() string }

// signer are the Ed25519 kinds, exchanger the X25519 kinds.
type (
	signer interface {
		machine | control | relay
		kind
	}
	exchanger interface {
		node | disco
		kind
	}
)

// The public and private halves of each kind.
type (
	MachinePublic  = Public[machine]
	MachinePrivate = Private[machine]
	ControlPublic  = Public[control]
	ControlPrivate = Private[control]
	RelayPublic    = Public[relay]
	RelayPrivate   = Private[relay]
	NodePublic     = Public[node]
	NodePrivate    = Private[node]
	DiscoPublic    = Public[disco]
	DiscoPrivate   = Private[disco]
)

// Public is a public key of kind K. It is comparable and may be a map key; its zero value is no key.
type Public[K kind] struct {
	_ [0]K // makes the kinds' underlying types differ, so that they do not convert either
	k [Size]byte
}

// Private is a private key of kind K. Its zero value is no key.
type Private[K kind] struct {
	_ [0]func(K) // as in Public; a func also forbids ==, which is not constant-time
	k [Size]byte
}

// PublicFrom32 takes the 32 bytes of a public key as they stand on a wire.
func PublicFrom32[K kind](b [Size]byte) Public[K] { return Public[K]{k: b} }

// NodePublicFromRaw, DiscoPublicFromRaw and their kin name the kind for callers outside this package.
func NodePublicFromRaw(b [Size]byte) NodePublic       { return PublicFrom32[node](b) }
func DiscoPublicFromRaw(b [Size]byte) DiscoPublic     { return PublicFrom32[disco](b) }
func MachinePublicFromRaw(b [Size]byte) MachinePublic { return PublicFrom32[machine](b) }
func ControlPublicFromRaw(b [Size]byte) ControlPublic { return PublicFrom32[control](b) }
func RelayPublicFromRaw(b [Size]byte) RelayPublic     { return PublicFrom32[relay](b) }

// Raw returns the key's bytes.
func (p Public[K]) Raw() [Size]byte { return p.k }

// IsZero reports whether p is no key.
func (p Public[K]) IsZero() bool { return p.k == [Size]byte{} }

// String is the key's text form: its kind, a colon, and 64 hexadecimal digits.
func (p Public[K]) String() string {
	var z K
	return z.name() + ":" + hex.EncodeToString(p.k[:])
}

// Short is a form for people to tell keys apart in a log: the first eight hexadecimal digits.
func (p Public[K]) Short() string { return hex.EncodeToString(p.k[:4]) }

// MarshalText and UnmarshalText use the form of String.
func (p Public[K]) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText wrote, and refuses any other kind.
func (p *Public[K]) UnmarshalText(b []byte) error {
	var z K
	k, err := parse(z.name(), string(b))
	if err != nil {
		return err
	}
	p.k = k
	return nil
}

// MarshalBinary returns the key's 32 bytes, its form in CBOR.
func (p Public[K]) MarshalBinary() ([]byte, error) { return p.k[:], nil }

// UnmarshalBinary takes exactly 32 bytes.
func (p *Public[K]) UnmarshalBinary(b []byte) error {
	if len(b) != Size {
		return fmt.Errorf("key: %d bytes, want %d", len(b), Size)
	}
	copy(p.k[:], b)
	return nil
}

// Secret is the private key's text form, kind-private:hex, for a state file of mode 0600 and nothing else.
func (p Private[K]) Secret() string {
	var z K
	return z.name() + "-private:" + hex.EncodeToString(p.k[:])
}

// IsZero reports whether p is no key.
func (p Private[K]) IsZero() bool { return p.k == [Size]byte{} }

// String, GoString and Format never show the key.
func (p Private[K]) String() string { var z K; return z.name() + "-private:(hidden)" }

// GoString never shows the key.
func (p Private[K]) GoString() string { return p.String() }

// Format never shows the key, whatever the verb.
func (p Private[K]) Format(s fmt.State, _ rune) { fmt.Fprint(s, p.String()) }

var errSecret = errors.New("key: a private key does not marshal; use Secret where it is really meant")

// MarshalText fails: a private key in a struct that is logged or sent is a mistake.
func (p Private[K]) MarshalText() ([]byte, error) { return nil, errSecret }

// MarshalBinary fails, as MarshalText does.
func (p Private[K]) MarshalBinary() ([]byte, error) { return nil, errSecret }

func parse(prefix, s string) (k [Size]byte, err error) {
	digits, ok := strings.CutPrefix(s, prefix+":")
	if !ok {
		return k, fmt.Errorf("key: want %s:…, a %s key", prefix, prefix)
	}
	if len(digits) != 2*Size {
		return k, fmt.Errorf("key: %s key has %d hexadecimal digits, want %d", prefix, len(digits), 2*Size)
	}
	if _, err := hex.Decode(k[:], []byte(digits)); err != nil {
		return [Size]byte{}, fmt.Errorf("key: %s key is not hexadecimal", prefix)
	}
	return k, nil
}

func parsePrivate[K kind](s string) (Private[K], error) {
	var z K
	k, err := parse(z.name()+"-private", strings.TrimSpace(s))
	if err == nil && k == [Size]byte{} {
		err = fmt.Errorf("key: %s-private key is all zeros", z.name())
	}
	return Private[K]{k: k}, err
}

func random[K kind]() Private[K] {
	var p Private[K]
	rand.Read(p.k[:]) // never fails (crypto/rand)
	return p
}

// The constructors, by kind. Parse reads what Secret wrote.
func NewMachine() MachinePrivate                           { return random[machine]() }
func NewControl() ControlPrivate                           { return random[control]() }
func NewRelay() RelayPrivate                               { return random[relay]() }
func ParseMachinePrivate(s string) (MachinePrivate, error) { return parsePrivate[machine](s) }
func ParseControlPrivate(s string) (ControlPrivate, error) { return parsePrivate[control](s) }
func ParseRelayPrivate(s string) (RelayPrivate, error)     { return parsePrivate[relay](s) }
func ParseNodePrivate(s string) (NodePrivate, error)       { return parsePrivate[node](s) }
func ParseDiscoPrivate(s string) (DiscoPrivate, error)     { return parsePrivate[disco](s) }

// NewNode makes a WireGuard private key, clamped as RFC 7748 section 5 says.
func NewNode() NodePrivate { return clamp(random[node]()) }

// NewDisco makes a key for path probes.
func NewDisco() DiscoPrivate { return clamp(random[disco]()) }

func clamp[K exchanger](p Private[K]) Private[K] {
	p.k[0] &= 248
	p.k[31] = p.k[31]&127 | 64
	return p
}

// PublicOf returns the Ed25519 public half.
func PublicOf[K signer](p Private[K]) Public[K] {
	return PublicFrom32[K]([Size]byte(Ed25519(p).Public().(ed25519.PublicKey)))
}

// ExchangePublic returns the X25519 public half.
func ExchangePublic[K exchanger](p Private[K]) Public[K] {
	k, err := ecdh.X25519().NewPrivateKey(p.k[:])
	if err != nil {
		panic(err) // only for a wrong length
	}
	return PublicFrom32[K]([Size]byte(k.PublicKey().Bytes()))
}

// Ed25519 gives the key to the standard library, for TLS certificates.
func Ed25519[K signer](p Private[K]) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(p.k[:]) }

// Sign signs context and message together (RFC 8032), so that a signature made for one purpose is never
// good for another. The context is a fixed string such as "hedge relay ticket v1".
func Sign[K signer](p Private[K], context string, msg []byte) []byte {
	return ed25519.Sign(Ed25519(p), framed(context, msg))
}

// Verify reports whether sig is p's signature over context and message.
func Verify[K signer](p Public[K], context string, msg, sig []byte) bool {
	return !p.IsZero() && ed25519.Verify(p.k[:], framed(context, msg), sig)
}

func framed(context string, msg []byte) []byte {
	b := make([]byte, 0, len(context)+1+len(msg))
	b = append(b, context...)
	b = append(b, 0) // no context contains NUL
	return append(b, msg...)
}

// Shared is the X25519 shared secret of the two keys (RFC 7748 section 6.1), to be hashed or used by a
// NaCl box. It fails for a low-order public key.
func Shared[K exchanger](priv Private[K], pub Public[K]) ([Size]byte, error) {
	sk, err := ecdh.X25519().NewPrivateKey(priv.k[:])
	if err != nil {
		return [Size]byte{}, err
	}
	pk, err := ecdh.X25519().NewPublicKey(pub.k[:])
	if err != nil {
		return [Size]byte{}, err
	}
	s, err := sk.ECDH(pk)
	if err != nil {
		return [Size]byte{}, err
	}
	return [Size]byte(s), nil
}

// X25519 is the private key for many exchanges: making it, which [Shared] does each time, takes as long as one. Its
// ECDH fails for a low-order public key.
func X25519[K exchanger](p Private[K]) (*ecdh.PrivateKey, error) {
	return ecdh.X25519().NewPrivateKey(p.k[:])
}

// WireGuardHex is the private key as wireguard-go's configuration protocol wants it. It is a secret.
func WireGuardHex(p NodePrivate) string { return hex.EncodeToString(p.k[:]) }
