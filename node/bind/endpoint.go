package bind

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/node/key"
)

// Endpoint is a peer, by whatever path. WireGuard may keep it for ever.
type Endpoint struct {
	b    *Bind
	key  key.NodePublic
	peer atomic.Pointer[peer] // the last found
}

var _ conn.Endpoint = (*Endpoint)(nil)

// find returns the peer as it is now, nil if it is none of ours.
func (e *Endpoint) find() *peer {
	p := e.peer.Load()
	if p != nil && !p.gone.Load() {
		return p
	}
	p = e.b.table.Load().byNode[e.key]
	e.peer.Store(p)
	return p
}

// Key is the peer's node key.
func (e *Endpoint) Key() key.NodePublic { return e.key }

// ClearSrc does nothing: there is no source to stick to.
func (e *Endpoint) ClearSrc() {}

// SrcToString is empty.
func (e *Endpoint) SrcToString() string { return "" }

// SrcIP is no address.
func (e *Endpoint) SrcIP() netip.Addr { return netip.Addr{} }

// DstToString is what ParseEndpoint reads.
func (e *Endpoint) DstToString() string {
	k := e.key.Raw()
	return hex.EncodeToString(k[:])
}

// DstToBytes is what WireGuard's cookies are bound to.
func (e *Endpoint) DstToBytes() []byte {
	k := e.key.Raw()
	return k[:]
}

// DstIP is a made-up address by which WireGuard limits the peer's handshakes.
func (e *Endpoint) DstIP() netip.Addr {
	k := e.key.Raw()
	a := [16]byte{0xfd}
	copy(a[1:], k[:])
	return netip.AddrFrom16(a)
}

// stranger is the source of a packet that may be anybody's: a handshake from an address no probe has proven yet. It
// gives WireGuard the true source for cookies and limits; nothing but answers to handshakes is ever sent to it.
type stranger struct{ addr netip.AddrPort }

var _ conn.Endpoint = (*stranger)(nil)

func (s *stranger) ClearSrc()           {}
func (s *stranger) SrcToString() string { return "" }
func (s *stranger) SrcIP() netip.Addr   { return netip.Addr{} }
func (s *stranger) DstToString() string { return s.addr.String() }
func (s *stranger) DstIP() netip.Addr   { return s.addr.Addr() }
func (s *stranger) DstToBytes() []byte  { b, _ := s.addr.MarshalBinary(); return b }

// ParseEndpoint implements conn.Bind; s is the 64 hexadecimal digits of a node key. The peer need not be known yet.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	var k [key.Size]byte
	if len(s) != 2*key.Size {
		return nil, errors.New("bind: endpoint is not a node key: want 64 hexadecimal digits")
	}
	if _, err := hex.Decode(k[:], []byte(s)); err != nil {
		return nil, errors.New("bind: endpoint is not a node key: not hexadecimal")
	}
	n := key.NodePublicFromRaw(k)
	if p := b.table.Load().byNode[n]; p != nil {
		return p.ep, nil
	}
	return &Endpoint{b: b, key: n}, nil
}
