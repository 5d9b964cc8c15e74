package derp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/hedge-mesh/hedge/node/key"
)

// Forwarder is the relay that a node can be for two others (a peer relay): what is left of a [Server] when both come by
// UDP. It has no sockets and no queues. Each of the two has asked for the other and been given a leg, a number and a key
// of its own; a datagram of one's leg goes on as a datagram of the other's, as long as it was.
//
//	A ── leg of A ──▶ Take: genuine, and not seen before? ── Onward: the other's number and key ──▶ B
//
//	 0    1   2   3   4           12          20                        n-16     n
//	┌────┬───┬───┬───┬───────────┬───────────┬─────────────────────────┬────────┐
//	│ ED │ R │ 1 │ k │ counter   │ leg       │ one packet              │ tag    │   k: 3 to the relay, 83 from it
//	└────┴───┴───┴───┴───────────┴───────────┴─────────────────────────┴────────┘   the rest: see datagram.go
//
// Packets are WireGuard's and disco's, sealed from end to end: the relay can read none. Nothing is forwarded before both
// ends have asked, nothing between nodes neither of which may use it, nothing to an address that the caller has not made
// sure of, and what is not genuine has no answer. Every table has a bound; when it is full, who asks is refused.
//
// It decides without I/O; its methods may be called from any goroutine.
type Forwarder struct {
	cfg ForwarderConfig

	mu    sync.RWMutex
	relay bool
	users map[key.NodePublic]*user // who may be an end of a pair
	legs  map[uint64]*Leg
	pairs map[pairKey]*pair
	swept time.Time

	packets, octets, unmet, limited, forged, refused atomic.Uint64
}

// ForwarderConfig bounds a Forwarder. Zeros are for the defaults.
type ForwarderConfig struct {
	Pairs   int // at once; 0 for 1024
	PerNode int // of one node; 0 for 64
	Rate    int // bytes a second that one pair may send, both ways together; 0 for 125 MB/s (1 Gbit/s)
}

const (
	pairIdle = 2 * time.Minute  // without a packet a pair is forgotten after that,
	pairHalf = 30 * time.Second // and one of which an end has never come is so old at most, whatever the other sends
	askRate  = 4                // a second, of one node
	askBurst = 64
	askSeen  = 32 // asks of a node that are remembered: a copy of one means nothing

	drainFor = time.Second // a relay that wants to be none any more serves its pairs on: for what is under way, and until they know
)

// Refusal is why a node is given no leg. Zero is none.
type Refusal uint8

// The refusals. Repeated and Hasty have no answer.
const (
	NotRelay   Refusal = iota + 1 // this node is no relay, or no more
	NotAllowed                    // the policy lets neither use it, or the relay does not know one of them
	Full
	Hasty    // too many asks
	Repeated // it has been asked before
)

func (r Refusal) String() string {
	return [...]string{"granted", "it is no peer relay", "its policy lets neither use it", "it carries as many pairs as it may", "asked too often", "asked before"}[min(r, Repeated)]
}

// Answered reports whether who asked may be told.
func (r Refusal) Answered() bool { return r < Hasty }

// Offer is the number and the key of a leg: a secret of the relay and one node.
type Offer [offerLen]byte

// String hides the key.
func (Offer) String() string { return "derp.Offer" }

// OfferLen is the length of an Offer.
const OfferLen = offerLen

type user struct {
	granted bool          // one of a pair must be
	asks    *rate.Limiter // nil before the first
	pairs   int           // that it has asked for: what others ask of it is theirs
	seen    [][12]byte    // the last askSeen
	next    int
}

type pairKey [2]key.NodePublic // in order

type pair struct {
	ends  [2]*end
	limit *rate.Limiter
	since time.Time
	used  atomic.Int64 // Unix ns of the last genuine datagram
	until atomic.Int64 // Unix ns; 0 for as long as it is used
	n     atomic.Uint64
	size  atomic.Uint64
}

// end is one node's in a pair.
type end struct {
	pair  *pair
	node  key.NodePublic
	other *end
	asked bool                // it counts among the node's pairs
	leg   atomic.Pointer[Leg] // in use: a genuine datagram has come by it
	next  *Leg                // given, and not used yet
}

// Leg is the way between the relay and one node of a pair, at the relay.
type Leg struct {
	end  *end
	in   *unseal
	out  *seal
	tx   [12]byte // of the ask
	addr atomic.Pointer[netip.AddrPort]
}

// Ended is a leg that was taken back: its node, which asked for Peer by an ask of Tx, should be told.
type Ended struct {
	Node, Peer key.NodePublic
	Tx         [12]byte
}

// Node is whose leg it is.
func (l *Leg) Node() key.NodePublic { return l.end.node }

// At reports whether packets to the node go to an address.
func (l *Leg) At(a netip.AddrPort) bool { p := l.addr.Load(); return p != nil && *p == a }

// Move has packets to the node go to an address, which must surely be the node's: somebody else's would be flooded.
func (l *Leg) Move(a netip.AddrPort) { l.addr.Store(&a) }

// NewForwarder returns a Forwarder that nobody may use.
func NewForwarder(cfg ForwarderConfig) *Forwarder {
	set := func(p *int, d int) {
		if *p <= 0 {
			*p = d
		}
	}
	set(&cfg.Pairs, 1024)
	set(&cfg.PerNode, 64)
	set(&cfg.Rate, 125e6)
	return &Forwarder{cfg: cfg, legs: map[uint64]*Leg{}, pairs: map[pairKey]*pair{}}
}

// Allow says whether this node is a relay, and which others may use it so: to reach each other, and any of rest, who may not
// use it among themselves. Pairs that are not allowed any more end at once, those that are when this node is no relay any
// more, a second later. It returns the legs of either.
func (f *Forwarder) Allow(now time.Time, users, rest []key.NodePublic, relay bool) (ended []Ended) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.users
	f.relay, f.users = relay, make(map[key.NodePublic]*user, len(users)+len(rest))
	for i, list := range [...][]key.NodePublic{rest, users} {
		for _, k := range list {
			u := f.users[k]
			if u == nil {
				u = old[k]
			}
			if u == nil {
				u = new(user)
			}
			u.granted, f.users[k] = i > 0, u
		}
	}
	for k, p := range f.pairs {
		revoked := !f.allowed(k[0], k[1])
		if relay && !revoked {
			p.until.Store(0)
			continue
		}
		if !relay && p.until.CompareAndSwap(0, now.Add(drainFor).UnixNano()) || revoked {
			for _, e := range p.ends {
				if l := e.leg.Load(); l != nil {
					ended = append(ended, Ended{e.node, e.other.node, l.tx})
				}
			}
		}
		if revoked {
			f.drop(k, p)
		}
	}
	return ended
}

// allowed reports whether two nodes may be a pair.
func (f *Forwarder) allowed(a, b key.NodePublic) bool {
	x, y := f.users[a], f.users[b]
	return a != b && x != nil && y != nil && (x.granted || y.granted)
}

// Open is how many pairs are served.
func (f *Forwarder) Open() (n int) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, p := range f.pairs {
		if p.open() {
			n++
		}
	}
	return n
}

func (f *Forwarder) drop(k pairKey, p *pair) {
	delete(f.pairs, k)
	for _, e := range p.ends {
		for _, l := range []*Leg{e.leg.Swap(nil), e.next} {
			if l != nil {
				delete(f.legs, l.in.session)
			}
		}
		if u := f.users[e.node]; u != nil && e.asked {
			u.pairs--
		}
	}
}

// Ask gives a node its leg to another, or says why not. The ask is authentic; tx tells it from others of the node. A leg
// given before serves until the new one is used.
func (f *Forwarder) Ask(now time.Time, from, to key.NodePublic, tx [12]byte) (o Offer, no Refusal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if no = f.may(now, from, to, tx); no == 0 {
		var e *end
		if e, no = f.end(now, from, to); no == 0 {
			return f.give(e, tx), 0
		}
	}
	f.refused.Add(1)
	return o, no
}

func (f *Forwarder) may(now time.Time, from, to key.NodePublic, tx [12]byte) Refusal {
	u := f.users[from]
	switch {
	case !f.relay:
		return NotRelay
	case u == nil || from == to:
		return NotAllowed
	case slices.Contains(u.seen, tx):
		return Repeated
	}
	if u.asks == nil {
		u.asks = rate.NewLimiter(askRate, askBurst)
	}
	if !u.asks.AllowN(now, 1) {
		return Hasty
	}
	if len(u.seen) < askSeen {
		u.seen = append(u.seen, tx)
	} else {
		u.seen[u.next], u.next = tx, (u.next+1)%askSeen
	}
	if !f.allowed(from, to) {
		return NotAllowed
	}
	return 0
}

// end finds or makes a node's end of a pair. A pair counts for those of its ends that have asked, so that nobody can use
// up what is another's.
func (f *Forwarder) end(now time.Time, from, to key.NodePublic) (*end, Refusal) {
	k, at := pairKey{from, to}, 0
	if a, b := from.Raw(), to.Raw(); bytes.Compare(a[:], b[:]) > 0 {
		k, at = pairKey{to, from}, 1
	}
	u := f.users[from]
	full := func() bool {
		p := f.pairs[k]
		return p == nil && len(f.pairs) >= f.cfg.Pairs || (p == nil || !p.ends[at].asked) && u.pairs >= f.cfg.PerNode
	}
	if full() {
		if f.sweep(now); full() {
			return nil, Full
		}
	}
	p := f.pairs[k]
	if p == nil {
		p = &pair{limit: rate.NewLimiter(rate.Limit(f.cfg.Rate), max(f.cfg.Rate/10, 1<<18)), since: now}
		p.ends = [2]*end{{pair: p, node: k[0]}, {pair: p, node: k[1]}}
		p.ends[0].other, p.ends[1].other = p.ends[1], p.ends[0]
		p.used.Store(now.UnixNano())
		f.pairs[k] = p
	}
	e := p.ends[at]
	if !e.asked {
		e.asked = true
		u.pairs++
	}
	return e, 0
}

// give makes a leg that is not used yet.
func (f *Forwarder) give(e *end, tx [12]byte) Offer {
	if e.next != nil {
		delete(f.legs, e.next.in.session)
	}
	secret := newOffer()
	l := &Leg{end: e, tx: tx}
	l.out, l.in = newSeals(secret, dgDown)
	e.next = l
	f.legs[l.in.session] = l
	return Offer(secret)
}

// sweep forgets pairs that are not used.
func (f *Forwarder) sweep(now time.Time) {
	if now.Sub(f.swept) < time.Second {
		return
	}
	f.swept = now
	for k, p := range f.pairs {
		if p.stale(now) || p.over(now) {
			f.drop(k, p)
		}
	}
}

// over reports whether the pair has been served long enough after its relay has ended.
func (p *pair) over(now time.Time) bool {
	until := p.until.Load()
	return until != 0 && now.UnixNano() >= until
}

// open reports whether both have come.
func (p *pair) open() bool { return p.ends[0].leg.Load() != nil && p.ends[1].leg.Load() != nil }

// stale reports whether a pair may be forgotten: one end alone cannot keep it.
func (p *pair) stale(now time.Time) bool {
	if !p.open() {
		return now.Sub(p.since) >= pairHalf
	}
	return now.Sub(time.Unix(0, p.used.Load())) >= pairIdle
}

// Forwarded returns which leg a datagram claims to be of, without believing it.
func Forwarded(b []byte) (leg uint64, ok bool) {
	leg, ok = datagramSession(b)
	return leg, ok && b[3]&^dgDown == dgCarry
}

// Take authenticates a datagram of a leg; nil if it is none. Newest says that it was sent after all others of the leg that
// have come, and so where the node is.
func (f *Forwarder) Take(now time.Time, b []byte) (l *Leg, newest bool) {
	id, ok := Forwarded(b)
	if !ok {
		return nil, false
	}
	f.mu.RLock()
	l = f.legs[id]
	f.mu.RUnlock()
	if l == nil || l.end.pair.over(now) {
		return nil, false
	}
	kind, _, newest, ok := l.in.open(b)
	if !ok || kind != dgCarry {
		f.forged.Add(1)
		return nil, false
	}
	if l.end.leg.Load() != l && !f.enter(l) {
		return nil, false
	}
	l.end.pair.used.Store(now.UnixNano())
	return l, newest
}

// enter puts a leg in use in the place of the one before; false if it has ended meanwhile.
func (f *Forwarder) enter(l *Leg) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := l.end
	if f.legs[l.in.session] != l {
		return false
	}
	if e.next != l {
		return e.leg.Load() == l
	}
	if old := e.leg.Swap(l); old != nil {
		delete(f.legs, old.in.session)
	}
	e.next = nil
	return true
}

// Onward makes of a datagram that was taken the one for the other end, in place, and returns where to send it; false if
// it ends here.
func (f *Forwarder) Onward(now time.Time, l *Leg, b []byte) (to netip.AddrPort, ok bool) {
	p, other := l.end.pair, l.end.other.leg.Load()
	if other == nil {
		f.unmet.Add(1)
		return to, false
	}
	a := other.addr.Load()
	if a == nil {
		f.unmet.Add(1)
		return to, false
	}
	if !p.limit.AllowN(now, len(b)) {
		f.limited.Add(1)
		return to, false
	}
	other.out.restamp(b)
	f.packets.Add(1)
	f.octets.Add(uint64(len(b)))
	p.n.Add(1)
	p.size.Add(uint64(len(b)))
	return *a, true
}

// restamp makes a datagram one of this end's, in place.
func (s *seal) restamp(b []byte) {
	at := len(b) - datagramTag
	b[3] = dgCarry | s.down
	binary.BigEndian.PutUint64(b[4:], s.counter.Add(1))
	binary.BigEndian.PutUint64(b[12:], s.session)
	s.aead.Seal(b[:at], b[:12], nil, b[:at])
}

// ForwarderStats are counters since the Forwarder was made, and the pairs there are.
type ForwarderStats struct {
	Packets, Bytes uint64 // forwarded
	Unmet          uint64 // dropped: the other end had not come yet
	Limited        uint64 // dropped: the pair's rate
	Forged         uint64 // dropped: not genuine, or a copy
	Refused        uint64 // asks
	Pairs          []PairStats
}

// PairStats is a pair of nodes.
type PairStats struct {
	A, B           key.NodePublic
	Open           bool // both have come
	Since          time.Time
	Packets, Bytes uint64
}

// Stats sums up. Pairs that are not used any more are forgotten first.
func (f *Forwarder) Stats(now time.Time) ForwarderStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sweep(now)
	s := ForwarderStats{Packets: f.packets.Load(), Bytes: f.octets.Load(), Unmet: f.unmet.Load(), Limited: f.limited.Load(),
		Forged: f.forged.Load(), Refused: f.refused.Load()}
	for k, p := range f.pairs {
		s.Pairs = append(s.Pairs, PairStats{A: k[0], B: k[1], Since: p.since, Packets: p.n.Load(), Bytes: p.size.Load(),
			Open: p.open()})
	}
	slices.SortFunc(s.Pairs, func(a, b PairStats) int { return a.Since.Compare(b.Since) })
	return s
}

// Hop is the way between a relay and one node of a pair, at the node.
type Hop struct {
	in  *unseal
	out *seal
}

// HopOverhead is what a Hop adds to each packet.
const HopOverhead = datagramOverhead

// NewHop makes the node's side of a leg.
func NewHop(o Offer) *Hop {
	h := &Hop{}
	h.out, h.in = newSeals(o, 0)
	return h
}

// ID is the number of the leg.
func (h *Hop) ID() uint64 { return h.in.session }

// Wrap appends a packet's datagram to dst, at most HopOverhead longer than the packet.
func (h *Hop) Wrap(dst, pkt []byte) []byte {
	from := len(dst)
	return h.out.end(append(h.out.start(dst, dgCarry), pkt...), from)
}

// Unwrap returns the packet in a datagram of the relay, within b; nil if it is not genuine, or a copy.
func (h *Hop) Unwrap(b []byte) []byte {
	if kind, body, _, ok := h.in.open(b); ok && kind == dgCarry {
		return body
	}
	return nil
}
