package bind

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/pion/stun/v3"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/path"
	"github.com/hedge-mesh/hedge/node/udp"
)

// message is a disco or STUN packet on its way to the loop.
type message struct {
	pkt   []byte
	from  netip.AddrPort // zero by relay
	peer  *peer          // the sender it claims; nil for STUN
	relay uint16
	extra *extra // the socket it came by, if not the usual one
}

// stray is a packet of a peer's session from an address not known as the peer's.
type stray struct {
	peer *peer
	from netip.AddrPort
}

// lookup is the last source one receiver has seen, which is mostly the next one too.
type lookup struct {
	from  netip.AddrPort
	index uint32
	peer  *peer
	known bool // the address is proven
}

// receiver makes the device's receive function of one socket.
func (b *Bind) receiver(f *family, ses *session) conn.ReceiveFunc {
	from := make([]netip.AddrPort, udp.Batch)
	var last lookup
	on := onward{h: &b.hops}
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		if len(from) < len(bufs) {
			from = make([]netip.AddrPort, len(bufs))
		}
		for {
			n, err := f.read(ses, bufs, sizes, from)
			if err != nil {
				return 0, err
			}
			now, some := b.now(), false
			for i := range n {
				a := netip.AddrPortFrom(from[i].Addr().Unmap(), from[i].Port())
				if leg, ok := derp.Forwarded(bufs[i][:sizes[i]]); ok {
					pkt, route := b.hops.take(bufs[i][:sizes[i]], leg, a, now, &on)
					sizes[i], a = copy(bufs[i], pkt), route
				}
				if eps[i] = b.sort(bufs[i][:sizes[i]], a, now, &last); eps[i] == nil {
					sizes[i] = 0
				} else {
					some = true
				}
			}
			on.flush()
			if some {
				return n, nil
			}
		}
	}
}

// sort tells by its first bytes what a datagram is. What is not WireGuard's goes to the loop, and nil is returned.
func (b *Bind) sort(pkt []byte, from netip.AddrPort, now int64, last *lookup) conn.Endpoint {
	if t := messageType(pkt); t != 0 {
		return b.attribute(pkt, t, from, now, last)
	}
	if d, ok := path.Sender(pkt); ok {
		b.disco(pkt, d, message{from: from}, nil)
	} else if stun.IsMessage(pkt) && len(pkt) <= maxSTUN {
		m := message{pkt: append([]byte(nil), pkt...), from: from}
		select {
		case b.stunIn <- m:
		default:
		}
	}
	return nil
}

const (
	maxSmall = 2048 // bytes of a message that is not padded to learn what a path carries
	maxBig   = 16   // waiting messages, beyond which there is no room for one that is
)

// disco hands a probe to the loop, if its sender is one of ours, and not too many wait.
func (b *Bind) disco(pkt []byte, sender key.DiscoPublic, m message, via *peer) {
	p := b.table.Load().byDisco[sender]
	if p == nil || via != nil && via != p || len(pkt) > maxSmall && len(b.discoIn) >= maxBig {
		return
	}
	m.pkt, m.peer = append([]byte(nil), pkt...), p
	select {
	case b.discoIn <- m:
	default:
	}
}

// attribute says whose a WireGuard packet is, without looking inside: nil if surely nobody's. WireGuard authenticates
// it; what is decided here is only which routes the answers take.
func (b *Bind) attribute(pkt []byte, t uint32, from netip.AddrPort, now int64, last *lookup) conn.Endpoint {
	at := 4
	switch t {
	case initiation: // carries no index of ours
		p := b.book.addr(from)
		if !b.admit(pkt, t, p, now) {
			return nil
		}
		if p == nil {
			return &stranger{from}
		}
		return p.ep
	case response:
		at = 8
	}
	i := binary.LittleEndian.Uint32(pkt[at:])
	if last.peer == nil || last.from != from || last.index != i || last.peer.gone.Load() || !last.known {
		p, ok := b.book.index(i)
		owner := b.book.addr(from)
		if !ok {
			if t == transport && owner != nil {
				b.stale(owner, now)
			}
			return nil // we never gave anybody that index
		}
		if p == nil {
			if owner == nil {
				return &stranger{from}
			}
			return owner.ep
		}
		*last = lookup{from, i, p, owner == p}
	}
	p := last.peer
	b.hear(p, now)
	switch t {
	case transport:
		p.session.Store(now)
		p.rx.count(i, pkt)
	case cookie:
		p.cross.over(i)
	case response:
		b.replied(p, i, now)
		if !b.admit(pkt, t, p, now) {
			return nil
		}
	}
	switch {
	case p.routes.Load().primary == from:
		p.heard.Store(now)
		if p.waiting.Load() != 0 {
			p.waiting.Store(0)
		}
	case !last.known && now-p.strayed.Load() > int64(path.StrayEvery):
		p.strayed.Store(now)
		select {
		case b.strays <- stray{p, from}:
		default:
		}
	}
	return p.ep
}

// fromRelay takes what a relay brings. The sender is the relay's word, which is enough to choose a route back.
func (b *Bind) fromRelay(relay uint16, from key.NodePublic, pkts [][]byte) {
	p := b.table.Load().byNode[from]
	if p == nil {
		return
	}
	now := b.now()
	p.via.Store(uint32(relay))
	p.relayed.Store(now)
	b.hear(p, now)
	for _, pkt := range pkts {
		t := messageType(pkt)
		switch t {
		case 0:
			if d, ok := path.Sender(pkt); ok {
				b.disco(pkt, d, message{relay: relay}, p)
			}
			continue
		case initiation:
		case response:
			b.replied(p, binary.LittleEndian.Uint32(pkt[8:]), now)
		case cookie:
			p.cross.over(binary.LittleEndian.Uint32(pkt[4:]))
		case transport:
			p.session.Store(now)
			i := binary.LittleEndian.Uint32(pkt[4:])
			if q, ok := b.book.index(i); !ok {
				b.stale(p, now)
			} else if q == p {
				p.rx.count(i, pkt)
			}
		}
		if t == transport || b.admit(pkt, t, p, now) {
			b.ring.push(pkt, p.ep)
		}
	}
}

// Deliver gives the device a packet as one received, whose source is ep. It copies pkt.
func (b *Bind) Deliver(pkt []byte, ep conn.Endpoint) { b.ring.push(pkt, ep) }

// Forget notes that the device has no session with a peer any more: what comes of one is stale.
func (b *Bind) Forget(k key.NodePublic) {
	if p := b.table.Load().byNode[k]; p != nil {
		b.book.end(p)
	}
}

// stale tells of a peer that sends data of a session we never gave it: it had one with us before we started, and
// WireGuard would let it try for 15 s more. A handshake of ours is what it needs. Anybody may claim to be the peer;
// all that this brings about is one handshake message in staleEvery.
func (b *Bind) stale(p *peer, now int64) {
	last := p.staled.Load()
	if last != 0 && now-last < int64(staleEvery) || !p.staled.CompareAndSwap(last, now) {
		return
	}
	b.cfg.Stale(p.key)
}

const staleEvery = 5 * time.Second // WireGuard's own RekeyTimeout
