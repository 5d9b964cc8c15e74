package bind

import (
	"sync"
	"sync/atomic"
	"time"
)

// held are the last packets that a peer was sent while nothing came of it for long. When it is heard again, or the relay
// it is reached by is connected anew, they go once more: among them is what each TCP connection inside repeated last, whose
// next timeout may be seconds away, as it doubles each time.
//
//	send, nothing heard ──▶ heldAfter ──▶ hold ──▶ heard ──▶ the loop sends them again
//
// What did arrive the first time is dropped by WireGuard's replay window. Nothing is held while a peer answers.
type held struct {
	asked atomic.Int64 // the first packet sent since the peer was heard; 0 if none was
	some  atomic.Bool  // pkts may not be empty

	mu   sync.Mutex
	pkts [][]byte // a ring once it is full
	next int
}

const (
	heldAfter = 150 * time.Millisecond // what TCP repeats is repeated after 200 ms, or by a peer far away
	heldMost  = 16                     // packets of a peer
	heldSize  = 2048                   // longer ones are not worth it
	heldAll   = 4096                   // packets of all peers
)

// keep holds the packets that a peer who does not answer is sent.
func (b *Bind) keep(bufs [][]byte, p *peer, now int64) {
	switch at := p.held.asked.Load(); {
	case at == 0:
		p.held.asked.Store(now)
		return
	case now-at < int64(heldAfter):
		return
	}
	h := &p.held
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.gone.Load() {
		return
	}
	for _, pkt := range bufs[max(0, len(bufs)-heldMost):] {
		switch {
		case len(pkt) <= shortest || len(pkt) > heldSize: // a keepalive says nothing that being heard does not
		case len(h.pkts) < heldMost:
			if b.holding.Add(1) > heldAll {
				b.holding.Add(-1)
				return
			}
			h.pkts = append(h.pkts, append([]byte(nil), pkt...))
		default:
			h.pkts[h.next] = append(h.pkts[h.next][:0], pkt...)
			h.next = (h.next + 1) % heldMost
		}
	}
	h.some.Store(len(h.pkts) > 0)
}

// hear notes that something came of a peer, by any route.
func (b *Bind) hear(p *peer, now int64) {
	p.any.Store(now)
	if p.held.asked.Load() == 0 {
		return
	}
	p.held.asked.Store(0)
	if p.held.some.CompareAndSwap(true, false) {
		select {
		case b.heards <- p:
		default: // so many at once: TCP will see to it
			b.release(p)
		}
	}
}

// release takes what is held, the oldest first.
func (b *Bind) release(p *peer) [][]byte {
	h := &p.held
	h.mu.Lock()
	defer h.mu.Unlock()
	pkts := append(h.pkts[h.next:len(h.pkts):len(h.pkts)], h.pkts[:h.next]...)
	b.holding.Add(-int32(len(h.pkts)))
	h.pkts, h.next = nil, 0
	return pkts
}

// nudgeAll nudges those who are reached by relay.
func (b *Bind) nudgeAll() {
	for _, p := range b.table.Load().byNode {
		if p.held.some.Load() && !p.routes.Load().primary.IsValid() {
			p.held.some.Store(false)
			b.nudge(p)
		}
	}
}

// nudge sends again what is held, by the routes of this moment.
func (b *Bind) nudge(p *peer) {
	if pkts := b.release(p); len(pkts) > 0 && !p.gone.Load() {
		_ = b.sendData(pkts, p, b.now())
	}
}
