package bind

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/path"
)

// sendHandshake sends one message every promising way at once, and the loop does so again while it is not answered:
// WireGuard itself waits 5 s, and drops all copies but one.
func (b *Bind) sendHandshake(bufs [][]byte, t uint32, p *peer, r *routes) error {
	now, index := b.now(), binary.LittleEndian.Uint32(bufs[0][4:])
	b.book.learn(index, p)
	p.blind.Store(0)
	h := handshake{peer: p, pkt: slices.Clone(bufs[0]), at: now, next: now + int64(repeats[0])}
	wait, crossed := int64(0), false
	h.order, wait, crossed = p.cross.sent(t, index, now, p.data.Load())
	if wait > 0 {
		h.next = now + wait
	}
	sent := wait <= 0 && b.everyWay(bufs, p, r, true)
	select {
	case b.shakes <- h:
	default: // the loop is busy
		if !sent && !b.everyWay(bufs, p, r, true) {
			return errUnreachable
		}
	}
	if crossed {
		b.crossed(p, now)
	}
	return nil
}

func (b *Bind) everyWay(bufs [][]byte, p *peer, r *routes, first bool) (sent bool) {
	sent = b.sendRelay(bufs, p, true)
	if r.primary.IsValid() {
		sent = b.sendUDP(bufs, r.primary) == nil || sent
	}
	if first {
		for _, a := range r.first {
			sent = b.sendUDP(bufs, a) == nil || sent
		}
	}
	return sent
}

// handshake is one to repeat below WireGuard, or one that crossed another.
type handshake struct {
	peer  *peer
	pkt   []byte // nil: begin anew, if nothing has passed until next
	order uint64 // of sending
	at    int64
	next  int64
	n     int // repeats so far
}

// answered reports whether it is over: an initiation wants a response or a cookie, a response wants data, and so does
// who waits for what has crossed.
func (h *handshake) answered() bool {
	if messageType(h.pkt) == initiation {
		return h.peer.cross.isOver(h.order)
	}
	return h.peer.session.Load() > h.at
}

// repeats are the times from one to the next: all within the 5 s after which WireGuard makes a new one.
var repeats = [...]time.Duration{
	100 * time.Millisecond, 150 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second,
}

const maxShakes = 1024 // peers

func (l *loop) shake(h handshake) {
	if h.peer.gone.Load() {
		if h.peer = l.b.table.Load().byNode[h.peer.key]; h.peer == nil {
			return
		}
	}
	if old := l.shakes[h.peer]; old == nil && len(l.shakes) < maxShakes || old != nil && old.order <= h.order {
		l.shakes[h.peer] = &h
	}
}

// repeat sends the handshakes that are due again.
func (l *loop) repeat(at time.Time) {
	now := l.b.nanos(at)
	for p, h := range l.shakes {
		switch {
		case p.gone.Load() || h.n == len(repeats) || h.answered():
			delete(l.shakes, p)
			continue
		case h.next > now:
			continue
		case h.pkt == nil:
			delete(l.shakes, p)
			if p.data.Load() < h.at {
				l.b.cfg.Crossed(p.key)
			}
			continue
		case !p.cross.again(h.order, now):
			delete(l.shakes, p) // another has taken its place
			continue
		}
		l.b.everyWay([][]byte{h.pkt}, p, p.routes.Load(), h.n < 2) // addresses not proven get few
		if h.n++; h.n < len(repeats) {
			h.next = now + int64(repeats[h.n])
		}
	}
}

// hurry makes a handshake the next to be repeated.
func (h *handshake) hurry(now int64) { h.next = max(now, h.at+int64(deviceTakes)) }

// hurry repeats a handshake at once when there is a way it has not gone yet.
func (l *loop) hurry(p *peer, old *routes, u path.Use) {
	h := l.shakes[p]
	if h == nil || h.pkt == nil || h.answered() {
		return
	}
	fresh := u.Primary.IsValid() && u.Primary != old.primary && !slices.Contains(old.first, u.Primary)
	for _, a := range u.First {
		fresh = fresh || a != old.primary && !slices.Contains(old.first, a)
	}
	if fresh {
		h.n = min(h.n, 1)
		h.hurry(l.b.now())
	}
}

// crossing notices that our handshake with a peer and one of the peer's have undone each other.
//
//	a ── initiation ─╲╱─ initiation ── b
//	a ◀─ takes b's, ─╱╲─ takes a's, ─▶ b     WireGuard has one handshake at a time with a peer
//	a ── response ──╲╱── response ──── b     each to what the other has forgotten
//
// Nobody is left to begin: both have just sent a handshake message, so they wait 5 s, and wireguard-go's timer for that
// may find that it has been only 4.9 s since the response, do nothing, and not be set again. What gives it away is a
// response to our initiation although we have answered the peer's since. Then the end with the lesser key begins anew.
type crossing struct {
	mu       sync.Mutex
	order    uint64              // of our last handshake message
	ended    uint64              // of the last initiation that was answered
	last     int64               // when it was sent; 0 for never
	response bool                // it was one
	index    uint32              // of our last initiation
	answered int64               // when it was; 0 for not yet
	gaveWay  bool                // to one of the peer's, since
	noticed  bool                // that they have crossed
	took     [response + 1]int64 // when a message of the peer's, by type, was last given to the device
}

const (
	// crossedWait is until the new beginning: a peer takes no initiation within 20 ms of another, nor one whose
	// timestamp, which wireguard-go rounds to 17 ms, is the last one's.
	crossedWait = 25 * time.Millisecond
	// deviceTakes is how long a device may take to work off a handshake message, by a generous guess.
	deviceTakes = 10 * time.Millisecond
	// copyTakes is by how much one path is slower than another, at most, for what arrives twice to be one message.
	copyTakes = 80 * time.Millisecond
)

// sent notes a handshake message of ours, of type t. It says how long to wait before it goes out: were it to follow
// another at once, two workers of the peer's device could change one handshake together. And it says whether it has
// undone our own handshake at the last moment: the answer has come, but no data has followed.
func (c *crossing) sent(t, index uint32, now, data int64) (order uint64, wait int64, crossed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last != 0 {
		wait = max(0, c.last+int64(deviceTakes)-now)
	}
	overtaken := wait > 0 && c.response // one that was made first, for the device makes none so soon after a response
	c.order++
	c.last, c.response = now+wait, t == response
	if t == initiation {
		c.index, c.answered, c.gaveWay, c.noticed = index, 0, overtaken, false
		return c.order, wait, false
	}
	c.gaveWay = true
	if c.answered != 0 && now-c.answered < 10*int64(deviceTakes) && data < c.answered && !c.noticed {
		c.noticed = true
		return c.order, wait, true
	}
	return c.order, wait, false
}

// again notes that a message is repeated, and reports whether it is still the last.
func (c *crossing) again(order uint64, now int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.order != order {
		return false
	}
	c.last = max(c.last, now)
	return true
}

// over notes a cookie or a response to the initiation with that index.
func (c *crossing) over(index uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if index == c.index {
		c.ended = c.order
	}
}

func (c *crossing) isOver(order uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended == order
}

// take reports whether the device may be given a message of type t of the peer's: not while it works off another, for
// two workers could change one handshake together. The peer repeats it.
func (c *crossing) take(pkt []byte, t uint32, once *once, now int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	other := c.took[initiation+response-t]
	if other != 0 && now-other < int64(deviceTakes) || once.copied(pkt, t, now) {
		return false
	}
	c.took[t] = now
	return true
}

// admit reports whether the device is to have a message that is not data. The peer may be unknown, nil.
func (b *Bind) admit(pkt []byte, t uint32, p *peer, now int64) bool {
	switch {
	case t != initiation && t != response:
		return true
	case p == nil:
		return !b.once.copied(pkt, t, now)
	}
	return p.cross.take(pkt, t, &b.once, now)
}

// reply is what a response means.
type reply uint8

const (
	replyFirst   reply = iota // the answer to our initiation
	replyVoid                 // a copy of it by another path, or to an initiation before the last
	replyAgain                // the answer again, because the peer has not heard that the first arrived
	replyCrossed              // to an initiation that the device has forgotten
)

// reply judges a response to the initiation with that index. Data of the peer's was last heard at heard.
func (c *crossing) reply(index uint32, now, heard int64) reply {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.index != index || c.noticed:
		return replyVoid
	case c.gaveWay:
		c.noticed = true
		return replyCrossed
	case c.answered == 0:
		c.answered, c.ended = now, c.order
		return replyFirst
	case now-c.answered > int64(copyTakes) && heard <= c.answered:
		return replyAgain
	}
	return replyVoid
}

// replied takes a peer's response to the initiation with that index.
func (b *Bind) replied(p *peer, index uint32, now int64) {
	switch p.cross.reply(index, now, p.session.Load()) {
	case replyFirst:
		p.session.Store(now)
	case replyAgain:
		b.cfg.Unheard(p.key)
	case replyCrossed:
		b.crossed(p, now)
	}
}

// later reports whether a peer goes before us where only one of us is to do something.
func (b *Bind) later(k key.NodePublic) bool {
	ours, theirs := b.cfg.Node.Raw(), k.Raw()
	return bytes.Compare(ours[:], theirs[:]) > 0
}

// crossed has the loop begin anew, if it is our turn.
func (b *Bind) crossed(p *peer, now int64) {
	if b.later(p.key) {
		return
	}
	p.cross.mu.Lock()
	order := p.cross.order
	p.cross.mu.Unlock()
	select {
	case b.shakes <- handshake{peer: p, order: order, at: now, next: now + int64(crossedWait)}:
	default: // WireGuard begins anew in 5 s
	}
}
