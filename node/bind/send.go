package bind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/node/path"
)

// WireGuard's message types (https://www.wireguard.com/protocol/), each a little-endian uint32.
const (
	initiation = 1 // type, sender index, …
	response   = 2 // type, sender index, receiver index, …
	cookie     = 3 // type, receiver index, …
	transport  = 4 // type, receiver index, …

	shortest = 32 // a keepalive
)

// messageType returns a WireGuard packet's type, 0 if it is none.
func messageType(pkt []byte) uint32 {
	if len(pkt) < shortest {
		return 0
	}
	if t := binary.LittleEndian.Uint32(pkt); t <= transport {
		return t
	}
	return 0
}

var errUnreachable = errors.New("bind: the peer has no direct path and its relay is not connected")

// Send implements conn.Bind. It never blocks: what does not fit is lost, as on any network. What is sent takes these ways:
//
//	to a stranger ──── answers to handshakes, to where it is
//	to a peer ─┬─ handshake ── every way, and again until it is answered (handshake.go)
//	           └─ data ─┬─ primary ─┬─ what fits ───── UDP, a pinned socket or a peer relay
//	                    │           └─ what may not ── relay, too
//	                    ├─ other ────── all again, while the path changes
//	                    ├─ relay ────── all again, while the primary path is in doubt; or instead
//	                    ├─ kept ─────── the last of it, for when the path has been dead (nudge.go)
//	                    └─ blind ────── a few packets to addresses not proven, after a handshake
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if len(bufs) == 0 {
		return nil
	}
	switch e := ep.(type) {
	case *Endpoint:
		p := e.find()
		if p == nil {
			return fmt.Errorf("bind: node %s is not a peer", e.key.Short())
		}
		return b.sendPeer(bufs, p)
	case *stranger:
		return b.sendStranger(bufs, e)
	}
	return conn.ErrWrongEndpointType
}

func (b *Bind) sendPeer(bufs [][]byte, p *peer) error {
	now, r := b.now(), p.routes.Load()
	p.sent.Store(now)
	if r.primary.IsValid() && p.waiting.Load() == 0 {
		p.waiting.Store(now)
		if now-p.heard.Load() > int64(r.trust) && p.up.Load() {
			b.ask(p) // does it still work?
		}
	}
	if !p.up.Load() {
		b.wake(p)
	}
	if t := messageType(bufs[0]); t == initiation || t == response {
		return b.sendHandshake(bufs, t, p, r)
	}
	p.data.Store(now)
	b.keep(bufs, p, now)
	return b.sendData(bufs, p, now)
}

// sendData sends packets of a session by the routes of now.
func (b *Bind) sendData(bufs [][]byte, p *peer, now int64) error {
	r := p.routes.Load()
	var err error
	direct := r.primary.IsValid()
	if direct {
		err = b.sendPrimary(bufs, p, r)
	}
	other, relay := r.beside(now, p.heard.Load())
	if other.IsValid() {
		_ = b.sendUDP(bufs, other) // beside what counts
	}
	blind := !direct && b.sendBlind(bufs, p, r, now)
	if (relay || err != nil) && !b.sendRelay(bufs, p, false) && (!direct || err != nil) && !blind {
		return errors.Join(err, errUnreachable)
	}
	return nil
}

// beside is what data goes by beside the primary path, at a time when that was last heard of at heard.
func (r *routes) beside(now, heard int64) (other path.Route, relay bool) {
	// A path unheard of for long gets a companion here, before the loop has even seen the packet.
	relay = !r.primary.IsValid() || now-heard > int64(r.trust)
	if r.both && (r.until == 0 || now < r.until) {
		if r.other.IsValid() {
			return r.other, relay
		}
		return other, true
	}
	return other, relay
}

// sendPrimary sends by the direct path what that carries, and by relay what it may not.
func (b *Bind) sendPrimary(bufs [][]byte, p *peer, r *routes) error {
	carried := r.carries()
	if !slices.ContainsFunc(bufs, func(pkt []byte) bool { return len(pkt) > carried }) {
		return b.sendUDP(bufs, r.primary)
	}
	s := sortings.Get().(*sorting)
	defer s.free()
	for len(bufs) > 0 {
		fit, long, rest := s.divide(bufs, carried)
		if r.mtu == 0 { // it is not known that the long ones do not fit
			fit = bufs[:len(bufs)-len(rest)]
		}
		if len(fit) > 0 {
			if err := b.sendUDP(fit, r.primary); err != nil {
				return err
			}
		}
		if len(long) > 0 {
			b.sendRelay(long, p, false)
		}
		bufs = rest
	}
	return nil
}

const (
	relayTrust = 5 * time.Second // a relay that brought something of the peer that recently has it connected
	maxBlind   = 4               // packets, in whole batches, sent to unproven addresses after a handshake
)

// sendBlind sends the first packets where handshakes go too, as long as nothing has come by relay: the session may have
// been made by such an address, and the peer not be at its relay yet.
func (b *Bind) sendBlind(bufs [][]byte, p *peer, r *routes, now int64) (sent bool) {
	if at := p.relayed.Load(); at != 0 && now-at < int64(relayTrust) || p.blind.Load() >= maxBlind {
		return false
	}
	p.blind.Add(int32(len(bufs)))
	for _, a := range r.first {
		sent = b.sendUDP(bufs, a) == nil || sent
	}
	return sent
}

// sendStranger sends what is no longer than what the stranger sent us. Data goes by the peer's own routes, if it has
// turned out whose the address is, and else nowhere.
func (b *Bind) sendStranger(bufs [][]byte, s *stranger) error {
	if p := b.book.addr(s.addr); p != nil {
		return b.sendPeer(bufs, p)
	}
	switch messageType(bufs[0]) {
	case response:
		b.book.learn(binary.LittleEndian.Uint32(bufs[0][4:]), nil)
		return b.sendUDP(bufs, s.addr)
	case cookie:
		return b.sendUDP(bufs, s.addr)
	}
	return fmt.Errorf("bind: %s is not known to be a peer's address", s.addr)
}

func (b *Bind) sendUDP(bufs [][]byte, to netip.AddrPort) error {
	if pins := *b.pins.Load(); len(pins) > 0 {
		if e := pins[to]; e != nil {
			return e.Write(bufs, to)
		}
	}
	if to.Addr().Is4() {
		return b.udp4.write(bufs, to)
	}
	if path.ByHop(to) {
		return b.hops.send(bufs, to)
	}
	return b.udp6.write(bufs, to)
}

// sendRelay queues packets at the relay the peer is at. If that cannot be reached, or says that the peer is not there, they
// go to where it was last heard, or else to where it may have gone for the same reason, with nobody there to tell us: our
// own relay, and what is urgent to some others too. Handshakes and probes are urgent: they go before data.
func (b *Bind) sendRelay(bufs [][]byte, p *peer, urgent bool) bool {
	at, via := uint16(p.relay.Load()), uint16(p.via.Load())
	if at == 0 {
		at = b.Home() // nobody told us: it may well be at ours
	}
	now, c := b.now(), b.relays.get(at)
	if absent := p.isAbsent(at, now); absent || c == nil || !c.up() {
		if absent && urgent {
			return b.relays.search(bufs, p.key, now)
		}
		if c != nil {
			c.used.Store(now) // it is still wanted
		}
		if d := b.relays.get(via); via != at && d != nil && d.up() {
			c = d
		} else if d := b.relays.common(p, at); d != nil && d.up() {
			c = d
		} else if urgent && (c == nil || c.down(now)) {
			return b.relays.everywhere(bufs, p.key, at, now)
		} else if d := b.relays.get(b.Home()); d != nil && d.up() {
			c = d
		}
	}
	if c == nil {
		return false
	}
	c.used.Store(now)
	if urgent {
		return c.client.SendPriority(p.key, bufs)
	}
	return c.client.Send(p.key, bufs)
}

// wake tells the loop that a peer at rest is sent to.
func (b *Bind) wake(p *peer) {
	if p.up.CompareAndSwap(false, true) {
		select {
		case b.wakes <- p:
		default:
			p.up.Store(false) // the next packet tries again
		}
	}
}

// ask gives the loop a peer to look at, unless it has so much to do that it will soon anyway.
func (b *Bind) ask(p *peer) {
	select {
	case b.wakes <- p:
	default:
	}
}

// now is the time on the Bind's clock: nanoseconds, monotonic, never 0.
func (b *Bind) now() int64 { return int64(time.Since(b.epoch)) }

func (b *Bind) nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return int64(t.Sub(b.epoch))
}

func (b *Bind) time(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return b.epoch.Add(time.Duration(n))
}
