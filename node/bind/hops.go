package bind

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/path"
)

// Peer relays, from both sides. To the paths a way by one is a route like an address; what is sent there goes, in a
// datagram of a leg, to the relay's own address, by the direct path that we have to it as to any peer.
//
//	here     Send(route) ─ hops.send ── leg ──▶ relay's address         at the relay   receive ─ Forwarder ── leg ──▶ peer
//	         receive ◀─ packet, route ─ hops.take ◀── leg               (see derp.Forwarder)
//
// The relay is asked by a disco message (path.Ask), which it answers with the leg's number and key (path.Offer).

// Hop is a peer relay that we and a peer may be able to use: whether they may, it knows.
type Hop struct {
	Relay key.NodePublic // a peer of ours
	Name  string         // for people
}

// way is one peer's by one relay.
type way struct {
	Hop
	peer  key.NodePublic
	route netip.AddrPort
	cur   atomic.Pointer[derp.Hop] // nil until it was given
	prior atomic.Pointer[derp.Hop] // what is on its way by it still counts

	tx    path.TxID // of the ask that waits for its answer; the loop's
	got   path.TxID // of that which the leg in use answers; the loop's
	wants bool      // it is to be asked as soon as there is a direct path to it; the loop's
}

type wayKey struct{ relay, peer key.NodePublic }

// ways is all of them, swapped whole.
type ways struct {
	byRoute map[netip.AddrPort]*way
	byKey   map[wayKey]*way
	byLeg   map[uint64]*way
}

// hops is both sides.
type hops struct {
	b       *Bind
	all     atomic.Pointer[ways]
	last    uint64 // route given; under Bind.mu
	users   []key.NodePublic
	on      bool
	ended   []derp.Ended // whose nodes are to be told
	forward *derp.Forwarder
}

func (h *hops) init(b *Bind, cfg derp.ForwarderConfig) {
	h.b, h.forward = b, derp.NewForwarder(cfg)
	h.all.Store(&ways{})
}

// set takes over the relays of each peer, and gives their routes. The caller holds Bind.mu.
func (h *hops) set(peers []Peer) (routes map[key.NodePublic][]path.Hop) {
	old := h.all.Load()
	next := &ways{map[netip.AddrPort]*way{}, map[wayKey]*way{}, map[uint64]*way{}}
	routes = map[key.NodePublic][]path.Hop{}
	for _, p := range peers {
		for _, x := range p.Hops[:min(len(p.Hops), path.MaxHops)] {
			k := wayKey{x.Relay, p.Key}
			if x.Relay == p.Key || x.Relay == h.b.cfg.Node || next.byKey[k] != nil {
				continue
			}
			w := old.byKey[k]
			if w == nil || w.Hop != x {
				h.last++
				w = &way{Hop: x, peer: p.Key, route: hopRoute(h.last)}
			}
			next.byKey[k], next.byRoute[w.route] = w, w
			for _, leg := range []*derp.Hop{w.cur.Load(), w.prior.Load()} {
				if leg != nil {
					next.byLeg[leg.ID()] = w
				}
			}
			routes[p.Key] = append(routes[p.Key], path.Hop{Relay: x.Relay, Name: x.Name, Route: w.route})
		}
	}
	h.all.Store(next)
	return routes
}

// hopRoute is the nth route there was.
func hopRoute(n uint64) netip.AddrPort {
	a := path.Hops.Addr().As16()
	for i := range 8 {
		a[15-i] = byte(n >> (8 * i))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(a), 1)
}

// given puts a leg in use.
func (h *hops) given(w *way, leg *derp.Hop) {
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	old := h.all.Load()
	if old.byRoute[w.route] != w {
		return // revoked meanwhile
	}
	next := &ways{old.byRoute, old.byKey, make(map[uint64]*way, len(old.byLeg)+1)}
	gone := w.prior.Load()
	for id, x := range old.byLeg {
		if gone == nil || id != gone.ID() {
			next.byLeg[id] = x
		}
	}
	next.byLeg[leg.ID()] = w
	w.prior.Store(w.cur.Load())
	w.cur.Store(leg)
	h.all.Store(next)
}

var errNoHop = errors.New("bind: there is no direct path to the peer relay")

// at is where datagrams to a relay go, if there is a direct path to it, and the peer that it is.
func (h *hops) at(relay key.NodePublic) (p *peer, to netip.AddrPort, ok bool) {
	if p = h.b.table.Load().byNode[relay]; p == nil {
		return nil, to, false
	}
	to = p.routes.Load().primary
	return p, to, to.IsValid() && !path.ByHop(to)
}

// busy keeps the path to a relay awake, as packets to it would.
func (h *hops) busy(p *peer, direct bool) {
	now := h.b.now()
	p.sent.Store(now)
	if direct && p.waiting.Load() == 0 {
		p.waiting.Store(now)
	}
	if !p.up.Load() {
		h.b.wake(p)
	}
}

// wraps are scratch for one send.
type wraps struct {
	buf  []byte
	list [][]byte
}

var wrapPool = sync.Pool{New: func() any { return &wraps{buf: make([]byte, 0, 1<<16)} }}

// send sends packets by a relay.
func (h *hops) send(bufs [][]byte, to netip.AddrPort) error {
	w := h.all.Load().byRoute[to]
	if w == nil {
		return errNoHop
	}
	p, at, ok := h.at(w.Relay)
	leg := w.cur.Load()
	if p != nil {
		h.busy(p, ok)
	}
	if !ok || leg == nil {
		return errNoHop
	}
	s := wrapPool.Get().(*wraps)
	defer wrapPool.Put(s)
	need := 0
	for _, b := range bufs {
		need += len(b) + derp.HopOverhead
	}
	s.buf, s.list = slices.Grow(s.buf[:0], need), s.list[:0]
	for _, b := range bufs {
		from := len(s.buf)
		s.buf = leg.Wrap(s.buf, b)
		s.list = append(s.list, s.buf[from:])
	}
	return h.b.sendUDP(s.list, at)
}

// onward collects datagrams that go on to the same address, of one receiver.
type onward struct {
	h   *hops
	to  netip.AddrPort
	all [][]byte
}

func (o *onward) add(to netip.AddrPort, b []byte) {
	if to != o.to {
		o.flush()
		o.to = to
	}
	o.all = append(o.all, b)
}

func (o *onward) flush() {
	if len(o.all) > 0 {
		_ = o.h.b.sendUDP(o.all, o.to) // lost, as on any network
	}
	clear(o.all)
	o.all = o.all[:0]
}

// take takes a datagram that claims to be of a leg: one of ours gives the packet inside, and its route; one that we are
// the relay of goes on. All others are nobody's, and nil.
func (h *hops) take(b []byte, leg uint64, from netip.AddrPort, now int64, on *onward) (pkt []byte, route netip.AddrPort) {
	w := h.all.Load().byLeg[leg]
	if w == nil {
		h.pass(b, from, now, on)
		return nil, route
	}
	x := w.cur.Load()
	if x == nil || x.ID() != leg {
		x = w.prior.Load()
	}
	if x == nil || x.ID() != leg {
		return nil, route
	}
	if pkt = x.Unwrap(b); pkt == nil {
		return nil, route
	}
	if p := h.b.table.Load().byNode[w.Relay]; p != nil {
		p.any.Store(now)
		if p.routes.Load().primary == from {
			p.heard.Store(now)
			p.waiting.Store(0)
		}
	}
	if _, disco := path.Sender(pkt); !disco && messageType(pkt) == 0 {
		return nil, route // nothing else goes by here
	}
	return pkt, w.route
}

// pass is the relay's part. A node's packets go where a pong of it came from, and nowhere else: who may use a relay could
// else have it flood others.
func (h *hops) pass(b []byte, from netip.AddrPort, now int64, on *onward) {
	at := h.b.time(now)
	leg, newest := h.forward.Take(at, b)
	if leg == nil {
		return
	}
	if newest && !leg.At(from) {
		switch p := h.b.table.Load().byNode[leg.Node()]; {
		case p == nil:
			return
		case h.b.book.addr(from) == p:
			leg.Move(from)
		case now-p.strayed.Load() > int64(path.StrayEvery):
			p.strayed.Store(now)
			select {
			case h.b.strays <- stray{p, from}:
			default:
			}
		}
	}
	if to, ok := h.forward.Onward(at, leg, b); ok {
		on.add(to, b)
	}
}

// linkMTU is what our link takes of packets by a relay, as if they had the headers of their route.
func (h *hops) linkMTU(link func(netip.AddrPort) int) func(netip.AddrPort) int {
	if link == nil {
		return nil
	}
	return func(a netip.AddrPort) int {
		if !path.ByHop(a) {
			return link(a)
		}
		if w := h.all.Load().byRoute[a]; w != nil {
			if _, to, ok := h.at(w.Relay); ok {
				return link(to) - headers(to.Addr()) - derp.HopOverhead + headers(a.Addr())
			}
		}
		return usualMTU
	}
}

// relayOf is the peer relay of a route, zero for none.
func (h *hops) relayOf(r netip.AddrPort) (x Hop) {
	if path.ByHop(r) {
		if w := h.all.Load().byRoute[r]; w != nil {
			x = w.Hop
		}
	}
	return x
}

// SetPeerRelay says whether this node is a relay for its peers, and which of them may use it: to reach each other, and any
// other peer. What is not allowed any more ends at once.
func (b *Bind) SetPeerRelay(on bool, users []key.NodePublic) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hops.on, b.hops.users = on, slices.Clone(users)
	b.hops.allow(b.table.Load())
}

// EndPeerRelay has this node be no relay any more, and reports whether it was one for anybody: they are told, and what is
// under way is forwarded until Stop.
func (b *Bind) EndPeerRelay() bool {
	serves := b.hops.forward.Open() > 0
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hops.on = false
	b.hops.allow(b.table.Load())
	return serves
}

// allow lets the users that are peers use this node as their relay, to any peer. The caller holds Bind.mu.
func (h *hops) allow(t *table) {
	if !h.on && h.forward.Open() == 0 { // as most nodes
		h.forward.Allow(time.Now(), nil, nil, false)
		return
	}
	users := slices.DeleteFunc(slices.Clone(h.users), func(k key.NodePublic) bool { return t.byNode[k] == nil })
	if ended := h.forward.Allow(time.Now(), users, slices.Collect(maps.Keys(t.byNode)), h.on); len(ended) > 0 {
		h.ended = append(h.ended, ended...)
		h.b.stir()
	}
}

// tellEnded tells nodes that the relay that we were has ended. Whoever does not hear of it notices.
func (l *loop) tellEnded() {
	l.b.mu.Lock()
	ended := l.b.hops.ended
	l.b.hops.ended = nil
	why := derp.NotAllowed
	if !l.b.hops.on {
		why = derp.NotRelay
	}
	l.b.mu.Unlock()
	t := l.b.table.Load()
	for _, e := range ended {
		if p := t.byNode[e.Node]; p != nil {
			m := path.Offer{Tx: e.Tx, Peer: e.Peer, Refusal: byte(why)}
			l.send(p, path.Send{To: p.routes.Load().primary, Msg: m})
			l.send(p, path.Send{Msg: m})
		}
	}
}

// PeerRelayStats says what this node does as a relay for its peers.
func (b *Bind) PeerRelayStats() derp.ForwarderStats { return b.hops.forward.Stats(time.Now()) }

// askHop asks a relay for a way, as soon as there is a direct path to it.
func (l *loop) askHop(route netip.AddrPort) {
	h := &l.b.hops
	w := h.all.Load().byRoute[route]
	if w == nil {
		return
	}
	p, to, ok := h.at(w.Relay)
	if p == nil {
		return
	}
	h.busy(p, false)
	if w.wants = !ok; !ok {
		return
	}
	w.tx = path.NewTx()
	l.send(p, path.Send{To: to, Msg: path.Ask{Tx: w.tx, Peer: w.peer}})
}

// reached asks a relay for what waited for a direct path to it.
func (l *loop) reached(relay key.NodePublic) {
	for k, w := range l.b.hops.all.Load().byKey {
		if k.relay == relay && w.wants {
			l.askHop(w.route)
		}
	}
}

// hopMessage takes an ask or an offer of a peer.
func (l *loop) hopMessage(p *peer, from path.Route, msg path.Message) bool {
	h := &l.b.hops
	switch m := msg.(type) {
	case path.Ask:
		o, no := h.forward.Ask(time.Now(), p.key, m.Peer, m.Tx)
		if no == 0 || no.Answered() {
			l.send(p, path.Send{To: from, Msg: path.Offer{Tx: m.Tx, Peer: m.Peer, Refusal: byte(no), Leg: o}})
		}
	case path.Offer:
		w := h.all.Load().byKey[wayKey{p.key, m.Peer}]
		no := derp.Refusal(m.Refusal)
		if w == nil || m.Tx == (path.TxID{}) || w.tx != m.Tx && (no == 0 || w.got != m.Tx) {
			return true // not asked for, or long ago
		}
		ev := path.Hopped{Peer: w.peer, Route: w.route}
		if no != 0 {
			ev.Refuse = no.String()
		} else {
			h.given(w, derp.NewHop(m.Leg))
			w.got = m.Tx
		}
		w.tx = path.TxID{}
		l.step(ev)
	default:
		return false
	}
	return true
}
