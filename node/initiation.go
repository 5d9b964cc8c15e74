package node

import (
	"bytes"
	"crypto/ecdh"
	"encoding/binary"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/hedge-mesh/hedge/node/device"
	"github.com/hedge-mesh/hedge/node/key"
)

// stamp is when an initiation was made by its sender's clock, as TAI64N: later ones compare as greater.
type stamp [12]byte

func (s stamp) before(t stamp) bool { return bytes.Compare(s[:], t[:]) < 0 }

// seconds are those of TAI64N.
func (s stamp) seconds() uint64 { return binary.BigEndian.Uint64(s[:]) }

// opener opens initiations, the first messages of WireGuard's handshake (https://www.wireguard.com/protocol/), as far as
// it takes to know who made them.
//
//	0 type 4 │ 4 sender 4 │ 8 ephemeral 32 │ 40 static 32+16 │ 88 timestamp 12+16 │ 116 mac1 16 │ 132 mac2 16
//	                                         └ sealed to us    └ by the static key, to us
//
// mac1 says that the sender knows our public key, and is looked at first since it costs next to nothing. The static key
// is the sender's claim, as anybody can seal any. The timestamp only the holder of that key can have sealed.
type opener struct {
	private *ecdh.PrivateKey
	public  [key.Size]byte
	macs    device.CookieChecker
}

func newOpener(private key.NodePrivate) (*opener, error) {
	k, err := key.X25519(private)
	if err != nil {
		return nil, err
	}
	o := &opener{private: k, public: [key.Size]byte(k.PublicKey().Bytes())}
	o.macs.Init(o.public)
	return o, nil
}

// shared is the secret of our key and another's, false for one that is no key.
func (o *opener) shared(public []byte) ([]byte, bool) {
	k, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, false
	}
	s, err := o.private.ECDH(k)
	return s, err == nil
}

// isInitiation reports whether a packet has the form of one.
func isInitiation(pkt []byte) bool {
	return len(pkt) == device.MessageInitiationSize && binary.LittleEndian.Uint32(pkt) == device.MessageInitiationType
}

// meant reports whether the sender of an initiation knows our public key.
func (o *opener) meant(pkt []byte) bool { return o.macs.CheckMAC1(pkt) }

// open says who made an initiation, and when; false if that is nobody known, or not surely so. It takes one exchange
// of keys, and another for the known.
func (o *opener) open(pkt []byte, known func(key.NodePublic) bool) (from key.NodePublic, at stamp, ok bool) {
	ephemeral, static, timestamp := pkt[8:40], pkt[40:88], pkt[88:116]
	hash := mix(mix(device.InitialHash, o.public[:]), ephemeral)
	var chain, secret [blake2s.Size]byte
	device.KDF1(&chain, device.InitialChainKey[:], ephemeral)

	shared, ok := o.shared(ephemeral)
	if !ok {
		return from, at, false
	}
	device.KDF2(&chain, &secret, chain[:], shared)
	var claim [key.Size]byte
	if !unseal(claim[:0], &secret, static, &hash) {
		return from, at, false
	}
	if from = key.NodePublicFromRaw(claim); !known(from) {
		return from, at, false
	}
	hash = mix(hash, static)

	if shared, ok = o.shared(claim[:]); !ok {
		return from, at, false
	}
	device.KDF2(&chain, &secret, chain[:], shared)
	return from, at, unseal(at[:0], &secret, timestamp, &hash)
}

// unseal opens what is sealed under a secret that is used only once.
func unseal(dst []byte, secret *[blake2s.Size]byte, sealed []byte, hash *[blake2s.Size]byte) bool {
	aead, err := chacha20poly1305.New(secret[:])
	if err != nil {
		return false
	}
	_, err = aead.Open(dst, device.ZeroNonce[:], sealed, hash[:])
	return err == nil
}

// mix is Noise's MixHash.
func mix(hash [blake2s.Size]byte, data []byte) [blake2s.Size]byte {
	var b [blake2s.Size + 48]byte
	return blake2s.Sum256(append(append(b[:0], hash[:]...), data...))
}
