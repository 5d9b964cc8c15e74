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

func (l *lookup) is(from netip.AddrPort, index uint32) bool {
	return l.known && l.from == from && l.index == index && !l.peer.gone.Load()
}

// receiver takes what comes by one socket:
//
//	datagram ─┬─ of a leg of a peer relay ─┬─ ours ─── what is inside, by that route
//	          │                            └─ others' ─▶ goes on to one of them (hops.go)
//	          ├─ disco, STUN ─▶ the loop
//	          └─ WireGuard's ─── whose? ─┬─ a peer's ───▶ the device, from that peer's endpoint
//	                                     ├─ who knows ──▶ the device, if it may be a handshake, from a stranger
//	                                     └─ nobody's
//
// What a relay brings goes the same ways (fromRelay), with the relay's word on whose it is.
type receiver struct {
	b      *Bind
	f      *family
	sparse bool // the companion's
	n      int  // datagrams that the last read brought
	size   int  // bytes of the last of them
	ses    *session
	from   []netip.AddrPort
	last   lookup
	on     onward
}

// receiver makes the device's receive function of one socket, or of its companion.
func (b *Bind) receiver(f *family, sparse bool, ses *session) conn.ReceiveFunc {
	r := &receiver{b: b, f: f, sparse: sparse, ses: ses, from: make([]netip.AddrPort, udp.Batch), on: onward{h: &b.hops}}
	return r.receive
}

func (r *receiver) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	if len(r.from) < len(bufs) {
		r.from = make([]netip.AddrPort, len(bufs))
	}
	for {
		if !r.sparse && r.b.turns.over(r.n, r.size, r.b.now()) {
			giveWay()
		}
		n, sparse, err := r.read(bufs, sizes)
		if err != nil {
			return 0, err
		}
		now, some := r.b.now(), false
		r.n, r.size = n, 0
		if n > 0 {
			r.size = sizes[n-1]
		}
		if sparse {
			r.b.turns.hear(now)
		}
		for i := range n {
			pkt, from := bufs[i][:sizes[i]], r.from[i]
			if leg, ok := derp.Forwarded(pkt); ok {
				pkt, from = r.b.hops.take(pkt, leg, from, now, &r.on)
				bufs[i] = pkt
			}
			sizes[i], eps[i] = len(pkt), r.b.sort(pkt, from, now, &r.last)
			if eps[i] == nil {
				sizes[i] = 0
			} else {
				some = true
			}
		}
		r.on.flush()
		if some {
			return n, nil
		}
		clear(bufs[:n]) // while it waits, what it was lent is to be given back: see Rest
	}
}

// read waits for datagrams, and says whether they are of flows that send little. Where those are heard and have no thread of
// their own, the reader of the other socket looks for them first: theirs, that the runtime has to notice and to find a thread
// for, waits for milliseconds while all of them are busy with a transfer. What it has taken it gives also when they fall silent.
func (r *receiver) read(bufs [][]byte, sizes []int) (n int, sparse bool, err error) {
	if !r.sparse && (r.b.turns.heard(r.b.now()) || r.f.left()) {
		if n = r.f.peek(bufs, sizes, r.from); n > 0 {
			return n, true, nil
		}
	}
	n, err = r.f.read(r.sparse, r.ses, bufs, sizes, r.from)
	return n, r.sparse, err
}

// sort tells by its first bytes what a datagram is. What is not for the device goes where it belongs, and nil is
// returned.
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
	if t == initiation {
		p := b.book.addr(from)
		if !b.admit(pkt, t, p, now) {
			return nil
		}
		if p == nil {
			return &stranger{from}
		}
		return p.ep
	}
	i := indexOf(pkt, t)
	if !last.is(from, i) {
		p, ok := b.book.index(i)
		owner := b.book.addr(from)
		switch {
		case !ok: // we never gave anybody that index
			if t == transport && owner != nil {
				b.stale(owner, now)
			}
			return nil
		case p == nil && owner == nil:
			return &stranger{from}
		case p == nil:
			return owner.ep
		}
		*last = lookup{from, i, p, owner == p}
	}
	p := last.peer
	b.hear(p, now)
	if t == transport {
		p.session.Store(now)
		p.rx.count(i, pkt)
	} else if !b.reply(pkt, t, p, now) {
		return nil
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

// indexOf is the index of ours that a packet bears, 0 for an initiation, which has none.
func indexOf(pkt []byte, t uint32) uint32 {
	switch t {
	case initiation:
		return 0
	case response:
		return binary.LittleEndian.Uint32(pkt[8:])
	}
	return binary.LittleEndian.Uint32(pkt[4:])
}

// reply takes note of a peer's answer to a handshake of ours, and reports whether the device is to have it.
func (b *Bind) reply(pkt []byte, t uint32, p *peer, now int64) bool {
	switch t {
	case response:
		b.replied(p, indexOf(pkt, t), now)
	case cookie:
		p.cross.over(indexOf(pkt, t))
	}
	return b.admit(pkt, t, p, now)
}

// fromRelay takes what a relay brings. The sender is the relay's word, which is enough to choose a route back.
func (b *Bind) fromRelay(relay uint16, from key.NodePublic, pkts [][]byte) {
	p := b.table.Load().byNode[from]
	if p == nil {
		return
	}
	now := b.now()
	if at, asked := uint16(p.relay.Load()), p.wide.Load(); asked != 0 && now-asked < int64(relayTrust) && relay != at && relay != b.Home() {
		b.absent(at, from) // it answers from where it can
	}
	p.via.Store(uint32(relay))
	p.relayed.Store(now)
	b.hear(p, now)
	for _, pkt := range pkts {
		switch t := messageType(pkt); t {
		case 0:
			if d, ok := path.Sender(pkt); ok {
				b.disco(pkt, d, message{relay: relay}, p)
			}
		case transport:
			p.session.Store(now)
			if q, ok := b.book.index(indexOf(pkt, t)); !ok {
				b.stale(p, now)
			} else if q == p {
				p.rx.count(indexOf(pkt, t), pkt)
			}
			b.ring.push(pkt, p.ep)
		default:
			if b.reply(pkt, t, p, now) {
				b.ring.push(pkt, p.ep)
			}
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
