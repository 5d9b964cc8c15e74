package bind

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/path"
)

// peer is one peer with one disco key. Times are nanoseconds on the Bind's clock, 0 for never.
type peer struct {
	key   key.NodePublic
	disco key.DiscoPublic
	ep    *Endpoint
	box   *path.Box // the loop's; made when first needed

	routes   atomic.Pointer[routes]
	relay    atomic.Uint32            // where it is
	via      atomic.Uint32            // where its packets last came from; 0 if from none
	relayed  atomic.Int64             // when they did
	wide     atomic.Int64             // when it was last asked for at all relays
	lacks    atomic.Pointer[[]uint16] // relays that it cannot reach, as the coordinator told last
	absent   atomic.Uint32            // a relay that said it was not there,
	absentAt atomic.Int64             // and when
	blind    atomic.Int32             // packets sent to unproven addresses since the last handshake
	sent     atomic.Int64
	heard    atomic.Int64 // by the primary route, if that is direct
	waiting  atomic.Int64 // first sent by it after heard
	any      atomic.Int64 // heard by any route
	session  atomic.Int64 // last answer to a handshake, or data
	data     atomic.Int64 // last data sent
	cross    *crossing
	strayed  atomic.Int64
	staled   atomic.Int64 // when Stale was last called
	rx       rx
	held     held
	up       atomic.Bool // the loop ticks it
	gone     atomic.Bool // removed, or replaced by another
}

// rx counts a peer's packets, by any route and each once, against the counter they bear: what is missing was lost. The
// marks of the latest counters are a ring, and tell copies. Receivers may miscount a little between them.
type rx struct {
	session  atomic.Uint32
	got, top atomic.Uint64
	marks    [rxMarks / 64]atomic.Uint64
}

const rxMarks = 2048 // counters; by so many a path may be behind another at 100,000 packets a second and 20 ms

func (x *rx) count(session uint32, pkt []byte) {
	n := binary.LittleEndian.Uint64(pkt[8:])
	top := x.top.Load()
	if x.session.Load() != session {
		x.session.Store(session)
		x.top.Store(n)
		top = n
		for i := range x.marks {
			x.marks[i].Store(0)
		}
	}
	if n > top {
		for i := range min(n/64-top/64, rxMarks/64) {
			x.marks[(n/64-i)%(rxMarks/64)].Store(0)
		}
		x.top.Store(n)
	} else if top-n >= rxMarks-64 {
		return // it may have been counted
	}
	bit := uint64(1) << (n % 64)
	if w := &x.marks[n/64%(rxMarks/64)]; w.Load()&bit == 0 {
		w.Or(bit)
		x.got.Add(1)
	}
}

func (p *peer) counts() path.Counts {
	return path.Counts{Session: p.rx.session.Load(), Got: p.rx.got.Load(), Top: p.rx.top.Load()}
}

// routes is where packets go, swapped whole.
type routes struct {
	primary path.Route
	both    bool
	other   path.Route
	until   int64 // 0: until the next
	first   []netip.AddrPort
	rtt     time.Duration
	trust   time.Duration // how long primary may be silent and yet be used alone
	mtu     int           // the longest IP packet that primary surely carries; 0 if not known
	since   time.Time
	why     string
}

// table is all peers, swapped whole.
type table struct {
	byNode  map[key.NodePublic]*peer
	byDisco map[key.DiscoPublic]*peer
	lacking []*peer // those that lack a relay
}

// anySeeks reports whether somebody is sent to who has no direct path.
func (b *Bind) anySeeks() bool {
	for _, p := range b.table.Load().byNode {
		if p.up.Load() && !p.routes.Load().primary.IsValid() {
			return true
		}
	}
	return false
}

// SetPeers replaces the set of peers. Those that stay keep their paths, unless their disco key changed: then it is
// another process, found anew.
func (b *Bind) SetPeers(set []Peer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.table.Load()
	t := &table{byNode: make(map[key.NodePublic]*peer, len(set)), byDisco: make(map[key.DiscoPublic]*peer, len(set))}
	ev := make([]path.Peer, 0, len(set))
	hops := b.hops.set(set)
	for _, s := range set {
		if s.Key == b.cfg.Node || t.byNode[s.Key] != nil {
			continue
		}
		p := old.byNode[s.Key]
		if p == nil || p.disco != s.Disco {
			ep := &Endpoint{b: b, key: s.Key}
			if p != nil {
				ep = p.ep
			}
			next := &peer{key: s.Key, disco: s.Disco, ep: ep, cross: new(crossing)}
			if p != nil { // what was sent to it still wants its answer
				next.cross = p.cross
				next.sent.Store(p.sent.Load())
				next.session.Store(p.session.Load())
			}
			p = next
			p.routes.Store(&routes{since: time.Now(), why: "no direct path yet"})
			p.relay.Store(uint32(s.Relay))
		}
		if told := b.told[s.Key]; told != s.Relay { // else the peer itself may have told us a newer one
			p.relay.Store(uint32(s.Relay))
		}
		b.told[s.Key] = s.Relay
		lacks := s.Lacks[:min(len(s.Lacks), maxLacks)]
		p.lacks.Store(&lacks)
		if len(lacks) > 0 {
			t.lacking = append(t.lacking, p)
		}
		t.byNode[s.Key] = p
		if !s.Disco.IsZero() {
			t.byDisco[s.Disco] = p
		}
		ev = append(ev, path.Peer{Key: s.Key, Candidates: slices.Clone(s.Endpoints), Hops: hops[s.Key]})
	}
	for k, p := range old.byNode {
		if t.byNode[k] != p {
			p.gone.Store(true)
			b.release(p)
			b.book.drop(p, t.byNode[k])
			b.reset = append(b.reset, k)
		}
		if t.byNode[k] == nil {
			delete(b.told, k)
		}
	}
	was := b.table.Swap(t)
	b.hops.allow(t)
	for k, p := range was.byNode {
		if t.byNode[k] != p && p.routes.Load().inside() != usualMTU {
			b.sized(k)
		}
	}
	b.peers = ev
	b.stir()
}

const (
	maxIndexes   = 32  // sessions remembered per peer: WireGuard tries a handshake for 90 s, every 5 s
	maxStrangers = 256 // and of peers not known by their address
)

// book tells whose an address or a session is. Addresses are those a pong came from. A session's index is ours: we put
// it into the handshake messages we send, and the peer into everything it answers.
type book struct {
	mu        sync.RWMutex
	addrs     map[netip.AddrPort]*peer
	indexes   map[uint32]*peer // nil for a stranger's
	byPeer    map[*peer][]uint32
	addrsOf   map[*peer][]netip.AddrPort
	strangers []uint32
}

func newBook() *book {
	return &book{addrs: map[netip.AddrPort]*peer{}, indexes: map[uint32]*peer{}, byPeer: map[*peer][]uint32{},
		addrsOf: map[*peer][]netip.AddrPort{}}
}

func (k *book) addr(a netip.AddrPort) *peer {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.addrs[a]
}

func (k *book) index(i uint32) (*peer, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	p, ok := k.indexes[i]
	return p, ok
}

// setAddrs replaces a peer's addresses. One that another peer has proven too is the latest one's.
func (k *book) setAddrs(p *peer, addrs []netip.AddrPort) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if slices.Equal(k.addrsOf[p], addrs) || p.gone.Load() {
		return
	}
	for _, a := range k.addrsOf[p] {
		if k.addrs[a] == p {
			delete(k.addrs, a)
		}
	}
	k.addrsOf[p] = addrs
	for _, a := range addrs {
		k.addrs[a] = p
	}
}

// learn notes an index of ours, given to p, or to a stranger.
func (k *book) learn(i uint32, p *peer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if q, ok := k.indexes[i]; ok && q == p {
		return
	}
	if p == nil {
		k.strangers = k.push(k.strangers, i, maxStrangers)
	} else {
		k.byPeer[p] = k.push(k.byPeer[p], i, maxIndexes)
	}
	k.indexes[i] = p
}

func (k *book) push(list []uint32, i uint32, most int) []uint32 {
	if len(list) >= most {
		delete(k.indexes, list[0])
		list = slices.Delete(list, 0, 1)
	}
	return append(list, i)
}

// end forgets a peer's sessions.
func (k *book) end(p *peer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, i := range k.byPeer[p] {
		if k.indexes[i] == p {
			delete(k.indexes, i)
		}
	}
	delete(k.byPeer, p)
}

// drop forgets a peer's addresses; its sessions pass to its successor, if it has one (not nil): WireGuard goes on with
// them, or has just begun one, whatever disco key we are told of.
func (k *book) drop(p, successor *peer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, a := range k.addrsOf[p] {
		if k.addrs[a] == p {
			delete(k.addrs, a)
		}
	}
	for _, i := range k.byPeer[p] {
		if successor != nil {
			k.indexes[i] = successor
		} else {
			delete(k.indexes, i)
		}
	}
	if successor != nil && len(k.byPeer[p]) > 0 {
		k.byPeer[successor] = k.byPeer[p]
	}
	delete(k.addrsOf, p)
	delete(k.byPeer, p)
}
