package bind

import (
	"net/netip"
	"sync"

	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/udp"
)

// What fits where. Sizes inside are those of the packets WireGuard is given:
//
//	| IP | UDP | WireGuard 16 | packet, padded to 16 | tag 16 |
//	└──────── path.Use.MTU ───────────────────────────────────┘
const (
	wgOverhead = 32
	usualMTU   = 1280 // inside, by relay and wherever nothing more is known
	leastMTU   = 512  // inside, where nothing at all is
)

// headers are those of IP and UDP.
func headers(a netip.Addr) int {
	if a.Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// inside is the longest packet that surely fits.
func (r *routes) inside() int {
	if !r.primary.IsValid() || r.mtu == 0 { // it goes by relay too
		return usualMTU
	}
	return max((r.mtu-headers(r.primary.Addr())-wgOverhead)&^15, leastMTU)
}

// MTU is the longest packet, of those WireGuard is given, that reaches a peer whole by its current path: 1280 bytes as
// long as nothing else is known. Longer ones go by relay, as far as that takes them.
func (b *Bind) MTU(k key.NodePublic) int {
	p := b.table.Load().byNode[k]
	if p == nil {
		return usualMTU
	}
	return p.routes.Load().inside()
}

// sized says that what MTU returns for a peer has changed.
func (b *Bind) sized(k key.NodePublic) {
	if b.cfg.Sized != nil {
		b.cfg.Sized(k)
	}
}

// carries is the longest datagram that the direct path surely carries. As long as that is not known, longer ones go both
// ways.
func (r *routes) carries() int {
	if r.mtu == 0 {
		return leastMTU + wgOverhead
	}
	return r.mtu - headers(r.primary.Addr())
}

// sorting is scratch to separate datagrams by their lengths.
type sorting struct{ fit, long [udp.Batch][]byte }

var sortings = sync.Pool{New: func() any { return new(sorting) }}

// divide separates as many of bufs as there is room for.
func (s *sorting) divide(bufs [][]byte, most int) (fit, long, rest [][]byte) {
	n := min(len(bufs), udp.Batch)
	fit, long = s.fit[:0], s.long[:0]
	for _, b := range bufs[:n] {
		if len(b) > most {
			long = append(long, b)
		} else {
			fit = append(fit, b)
		}
	}
	return fit, long, bufs[n:]
}

func (s *sorting) free() {
	*s = sorting{}
	sortings.Put(s)
}

// linkMTU returns what the paths ask of our own links; nil if that is not to be had.
func (b *Bind) linkMTU() func(netip.AddrPort) int {
	if b.cfg.LinkMTU != nil || b.watch == nil && !b.cfg.Loopback {
		return b.cfg.LinkMTU
	}
	return systemMTU()
}
