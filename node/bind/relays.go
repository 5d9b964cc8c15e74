package bind

import (
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
)

const (
	maxRelays = 16               // connections at once
	relayIdle = 90 * time.Second // a connection but the home one is closed after that
	relayDown = time.Second      // a home relay not reachable for so long is left
	drainKeep = 2 * time.Second  // a relay that is going away is left, when another is home, after that
	drainIdle = time.Second      // without sending to it
	absentFor = 2 * time.Second  // what a relay said of a peer that is not there is good for so long
)

// relays are the relays we know and the connections to some of them.
type relays struct {
	b      *Bind
	mu     sync.Mutex
	known  map[uint16]Relay
	order  []uint16
	closed bool
	conns  atomic.Pointer[map[uint16]*relayConn] // swapped whole, under mu

	relinked atomic.Bool      // one of them is a new connection
	outside  atomic.Bool      // one of them sees us elsewhere than before
	lacked   map[uint16]int64 // the loop's: relays that we lack, and when we last did
}

type relayConn struct {
	Relay
	client RelayClient
	used   atomic.Int64 // last sent to
	lost   atomic.Int64 // since when it is not up; 0 while it is
	shut   atomic.Bool  // a dial since then was refused: nobody listens there
	drain  atomic.Int64 // since when it is about to go away; 0 if it is not
}

func (c *relayConn) up() bool { return c.lost.Load() == 0 }

// down reports whether a relay is to be left: it has been lost for long, or nobody listens there any more.
func (c *relayConn) down(now int64) bool {
	at := c.lost.Load()
	return at != 0 && (now-at > int64(relayDown) || c.shut.Load())
}

func (r Relay) equal(s Relay) bool {
	return r.ID == s.ID && r.Key == s.Key && slices.Equal(r.URLs, s.URLs) && slices.Equal(r.STUN, s.STUN)
}

// get returns the connection to a relay, making one if there is none; nil if the relay is not known.
func (r *relays) get(id uint16) *relayConn {
	if c := (*r.conns.Load())[id]; c != nil {
		return c
	}
	if id == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := *r.conns.Load()
	rel, ok := r.known[id]
	if c := old[id]; c != nil || !ok || r.closed || len(old) >= maxRelays {
		return c
	}
	b := r.b
	c := &relayConn{Relay: rel}
	now := b.now()
	c.used.Store(now)
	c.lost.Store(now)
	c.client = b.cfg.DialRelay(derp.ClientConfig{
		ID: id, URLs: rel.URLs, Key: rel.Key, Node: b.cfg.Node, Machine: b.cfg.Machine,
		Ticket:  b.currentTicket,
		Receive: func(from key.NodePublic, pkts [][]byte) { b.fromRelay(id, from, pkts) },
		Gone:    func(peer key.NodePublic) { b.absent(id, peer) },
		Outside: func() { r.outside.Store(true); b.stir() },
		Status:  func(up bool, err error) { r.status(c, up, err) },
		Dial:    b.Dial,
		Lookup:  b.directory.lookup,
		UDP:     rel.STUN, ListenUDP: b.listenRelay,
	})
	next := maps.Clone(old)
	next[id] = c
	r.conns.Store(&next)
	return c
}

const maxStray = 4 // relays asked for a peer that may be at any

// everywhere sends to a peer at its relay, which is down or no longer has it, at our own and at some others: it is at one of them.
func (r *relays) everywhere(bufs [][]byte, peer key.NodePublic, at uint16, now int64) (sent bool) {
	ids, home := r.ids(), r.b.Home()
	ids = slices.DeleteFunc(ids, func(id uint16) bool { return id == at || id == home })
	ids = append([]uint16{at}, ids[:min(len(ids), maxStray-2)]...)
	if home != at {
		ids = append(ids, home)
	}
	for _, id := range ids {
		if c := r.get(id); c != nil {
			c.used.Store(now)
			sent = c.client.SendPriority(peer, bufs) || sent
		}
	}
	return sent
}

// search sends to a peer at all relays that we are connected to: its own says that it is not there.
func (r *relays) search(bufs [][]byte, peer key.NodePublic, now int64) (sent bool) {
	for _, c := range *r.conns.Load() {
		if c.up() {
			c.used.Store(now)
			sent = c.client.SendPriority(peer, bufs) || sent
		}
	}
	return sent
}

// absent notes a relay's word that a peer is not there. What we know of its relay may be old: two that leave one relay
// for another may pass each other's news on the way. A relay that lies can only have packets go to others too.
func (b *Bind) absent(relay uint16, k key.NodePublic) {
	if p := b.table.Load().byNode[k]; p != nil {
		p.absent.Store(uint32(relay))
		p.absentAt.Store(b.now())
	}
}

// isAbsent reports whether a relay said so of late.
func (p *peer) isAbsent(relay uint16, now int64) bool {
	t := p.absentAt.Load()
	return t != 0 && now-t < int64(absentFor) && uint16(p.absent.Load()) == relay
}

// listenRelay opens the socket for a relay's UDP side. It is not one of those that peers use: what a relay's clients
// say to it there is not for the device.
func (b *Bind) listenRelay() (net.PacketConn, error) {
	addr := ":0"
	if b.cfg.Loopback {
		addr = "127.0.0.1:0"
	}
	lc := net.ListenConfig{Control: b.markConn}
	return lc.ListenPacket(b.ctx, "udp", addr)
}

func (r *relays) status(c *relayConn, up bool, err error) {
	switch {
	case up && errors.Is(err, derp.ErrDraining):
		c.drain.CompareAndSwap(0, r.b.now())
	case up:
		c.lost.Store(0)
		c.drain.Store(0) // a new connection: what drained is gone
		c.shut.Store(false)
		r.relinked.Store(err == nil)
	case c.lost.Load() == 0:
		c.lost.Store(r.b.now())
	case errors.Is(err, syscall.ECONNREFUSED):
		c.shut.Store(true)
	}
	if err != nil {
		r.b.cfg.Log("relay %d: %v", c.ID, err)
	}
	r.b.stir()
}

// set replaces the relays we know, and ends connections to those that are gone or changed.
func (r *relays) set(list []Relay) {
	r.mu.Lock()
	r.known, r.order = make(map[uint16]Relay, len(list)), nil
	for _, l := range list {
		if _, twice := r.known[l.ID]; l.ID != 0 && !twice {
			r.known[l.ID] = l
			r.order = append(r.order, l.ID)
		}
	}
	r.mu.Unlock()
	r.drop(func(c *relayConn) bool { k, ok := r.known[c.ID]; return !ok || !k.equal(c.Relay) })
}

// drop closes connections, without waiting for them here.
func (r *relays) drop(which func(*relayConn) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := maps.Clone(*r.conns.Load())
	for id, c := range next {
		if which(c) {
			delete(next, id)
			r.b.wg.Go(func() { c.client.Close() })
		}
	}
	r.conns.Store(&next)
}

// close ends all for good.
func (r *relays) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.drop(func(*relayConn) bool { return true })
}

// ids are the relays in the coordinator's order.
func (r *relays) ids() []uint16 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.order)
}

func (r *relays) list() []Relay {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Relay, 0, len(r.order))
	for _, id := range r.order {
		out = append(out, r.known[id])
	}
	return out
}

// tend closes idle connections and chooses the home relay. It makes before it breaks: as long as the old home is up, the
// new one becomes home when it is up as well. None is passed over for its latency before that is sure.
func (r *relays) tend(now int64, latency map[uint16]time.Duration, settled bool, sure func(id uint16) bool) {
	home := r.b.Home()
	down := map[uint16]bool{}
	for id, c := range *r.conns.Load() {
		if c.down(now) || c.drain.Load() != 0 {
			down[id] = true
		}
	}
	order := r.ids()
	next := chooseHome(home, order, latency, down, settled)
	for _, id := range passedOver(home, next, order) {
		if !down[id] && !sure(id) {
			next = home
		}
	}
	if next != home {
		c, old := r.get(next), (*r.conns.Load())[home]
		if c == nil || c.up() || old == nil || !old.up() {
			r.b.setHome(next)
			home = next
		}
	}
	r.get(home)
	r.b.lack(r.lacking(now))
	r.stand(now)
	r.drop(func(c *relayConn) bool {
		unused := now - c.used.Load()
		at := c.drain.Load()
		return c.ID != home && (unused > int64(relayIdle) || at != 0 && now-at > int64(drainKeep) && unused > int64(drainIdle))
	})
}

// next is when tend has something to do by the clock, 0 if it has not.
func (r *relays) next(now int64) (at int64) {
	for _, c := range *r.conns.Load() {
		for _, t := range [...]struct{ since, wait int64 }{{c.lost.Load(), int64(relayDown)}, {c.lost.Load(), int64(lackAfter)}, {c.drain.Load(), int64(drainKeep)}} {
			if due := t.since + t.wait + 1; t.since != 0 && due > now && (at == 0 || due < at) {
				at = due
			}
		}
	}
	return at
}

// nearer reports whether relay a is that much nearer than b that it matters: by 10 ms and by a third.
func nearer(latency map[uint16]time.Duration, a, b uint16) bool {
	la, ok := latency[a]
	lb, measured := latency[b]
	return ok && (!measured || lb-la >= 10*time.Millisecond && lb-la >= lb/3)
}

// passedOver are the relays that next was preferred to: the old home, or if there is none those before it in the list.
func passedOver(home, next uint16, order []uint16) []uint16 {
	switch {
	case next == home:
		return nil
	case home != 0:
		return []uint16{home}
	}
	return order[:max(0, slices.Index(order, next))]
}

// chooseHome picks the nearest relay, and stays there until another is nearer by enough. Of those about as near it is
// the first in the list, which is so for all nodes around: whose home is the same, need not connect to another relay
// before their first packet. One that is down is left for any that is not known to be. Before the latencies are settled
// nothing is chosen that may soon change, unless there is no choice.
func chooseHome(home uint16, order []uint16, latency map[uint16]time.Duration, down map[uint16]bool, settled bool) uint16 {
	if len(order) == 0 {
		return 0
	}
	up := slices.DeleteFunc(slices.Clone(order), func(id uint16) bool { return down[id] })
	stays := slices.Contains(order, home)
	switch {
	case len(up) == 0 && stays:
		return home // all are down
	case len(up) == 0:
		return order[0]
	}
	nearest := up[0]
	for _, id := range up {
		l, ok := latency[id]
		if b, measured := latency[nearest]; ok && (!measured || l < b) {
			nearest = id
		}
	}
	best := up[slices.IndexFunc(up, func(id uint16) bool { return !nearer(latency, nearest, id) })]
	if stays && !down[home] {
		if nearer(latency, nearest, home) {
			return best
		}
		return home
	}
	unsure := slices.ContainsFunc(up, func(id uint16) bool { _, ok := latency[id]; return !ok })
	if _, ok := latency[up[0]]; !settled && unsure && !ok && len(order) > 1 {
		return 0
	}
	return best
}
