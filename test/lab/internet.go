package lab

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Internet is a network in memory that carries UDP datagrams: machines, routers that translate addresses, and links
// that lose, delay and reorder. It needs no root, obeys the clock of testing/synctest, and decides every packet's fate
// from its seed: the same packets at the same times fare alike.
//
//	machine ─ link ─ router ─ link ─╮                     ╭─ link ─ machine
//	machine ─ link ─╯               ├──── the core ───────┤
//	machine ─ link ─ router ─ link ─ router (CGN) ─ link ─╯
//
// A link has its latency in each direction; those of the core's neighbours have 10 ms, so that any two are 20 ms apart,
// and all others none. Every router, and the core, takes one from a packet's time to live.
type Internet struct {
	segment
	seed uint64

	mu      sync.Mutex
	events  events
	seq     uint64
	timer   *time.Timer
	running bool
	links   uint64
	hosts   int
}

// Edge is the latency of the links to the core, one way.
const Edge = 10 * time.Millisecond

// NewInternet makes an empty one. In a synctest bubble, it belongs to the bubble.
func NewInternet(seed uint64) *Internet {
	n := &Internet{seed: seed}
	n.segment = segment{net: n, routes: map[netip.Addr]*wire{}, prefix: netip.MustParsePrefix("203.0.113.0/24")}
	return n
}

// Link says what becomes of packets in one direction. The zero value passes them on at once.
type Link struct {
	Latency time.Duration
	Jitter  time.Duration // up to that much more, evenly spread; packets stay in order
	Loss    float64       // the part that is lost, 0 to 1
	Reorder float64       // the part that is overtaken by what follows within a half of Latency
	Twice   float64       // the part that arrives twice
	MTU     int           // IP packets longer than that vanish without a word; 0 for any
}

// wire is a link as it is: two directions, and what hangs on the far end.
type wire struct {
	up, down lane
	end      receiver
}

type lane struct {
	Link
	rng  *rand.Rand
	last time.Time // arrival of the last packet
}

// receiver is a machine or a router, as seen from the segment above it.
type receiver interface{ receive(p packet) }

type packet struct {
	src, dst netip.AddrPort
	ttl      int
	data     []byte
}

func (p packet) size() int {
	if p.dst.Addr().Is4() {
		return len(p.data) + 20 + 8
	}
	return len(p.data) + 40 + 8
}

func (n *Internet) wire(end receiver, l Link) *wire {
	n.links++
	mk := func(dir uint64) lane { return lane{Link: l, rng: rand.New(rand.NewPCG(n.seed, n.links<<1|dir))} }
	return &wire{up: mk(0), down: mk(1), end: end}
}

// cross takes a packet over one direction of a link.
func (n *Internet) cross(l *lane, p packet, then func(packet)) {
	if l.MTU > 0 && p.size() > l.MTU || l.Loss > 0 && l.rng.Float64() < l.Loss {
		return
	}
	if l.Link == (Link{}) {
		then(p)
		return
	}
	now := time.Now()
	at := now.Add(l.Latency)
	if l.Jitter > 0 {
		at = at.Add(time.Duration(l.rng.Int64N(int64(l.Jitter) + 1)))
	}
	if l.Reorder > 0 && l.rng.Float64() < l.Reorder {
		at = at.Add(l.Latency / 2)
	} else {
		if at.Before(l.last) {
			at = l.last
		}
		l.last = at
	}
	n.at(at, event{f: func() { then(p) }})
	if l.Twice > 0 && l.rng.Float64() < l.Twice {
		n.at(at, event{f: func() { then(p) }})
	}
}

// segment is the core, or what is inside a router: a place where packets find their way by destination.
type segment struct {
	net    *Internet
	up     *Router // nil for the core
	prefix netip.Prefix
	six    netip.Prefix
	given  int
	routes map[netip.Addr]*wire
}

// forward hands a packet to whoever has its address; what is not in here goes out.
func (s *segment) forward(p packet) {
	if s.up == nil {
		if p.ttl--; p.ttl <= 0 {
			return
		}
	}
	if w := s.routes[p.dst.Addr()]; w != nil {
		s.net.cross(&w.down, p, w.end.receive)
	} else if s.up != nil {
		s.up.outbound(p)
	}
}

// next is another address of the segment.
func (s *segment) next() netip.Addr {
	s.given++
	b := s.prefix.Addr().As4()
	b[2] += byte((s.given + 1) >> 8)
	b[3] = byte(s.given + 1)
	return netip.AddrFrom4(b)
}

func (s *segment) next6() netip.Addr {
	s.given++
	b := s.six.Addr().As16()
	b[14], b[15] = byte((s.given+1)>>8), byte(s.given+1)
	return netip.AddrFrom16(b)
}

// route says where an address is that is not translated, from here up to the core: one of IPv6, or of a router without NAT.
func (s *segment) route(a netip.Addr, w *wire) {
	s.routes[a] = w
	if s.up != nil && (a.Is6() || s.up.cfg.Routed) {
		s.up.outside.route(a, s.up.wire)
	}
}

func (s *segment) unroute(a netip.Addr, w *wire) {
	if s.routes[a] == w {
		delete(s.routes, a)
		if s.up != nil && (a.Is6() || s.up.cfg.Routed) {
			s.up.outside.unroute(a, s.up.wire)
		}
	}
}

// After runs f after d, in order with the arrival of packets: what a test makes of it, a relay for one, is part of the
// network's time.
func (n *Internet) After(d time.Duration, f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at(time.Now().Add(d), event{f: f, free: true})
}

// event is something to happen; one that is free runs without the lock.
type event struct {
	at   time.Time
	seq  uint64
	f    func()
	free bool
}

func (n *Internet) at(at time.Time, e event) {
	n.seq++
	e.at, e.seq = at, n.seq
	heap.Push(&n.events, e)
	n.arm()
}

func (n *Internet) arm() {
	if n.running || len(n.events) == 0 {
		return
	}
	d := time.Until(n.events[0].at)
	if n.timer == nil {
		n.timer = time.AfterFunc(d, n.run)
	} else {
		n.timer.Reset(d)
	}
}

func (n *Internet) run() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running {
		return
	}
	n.running = true
	for len(n.events) > 0 && !n.events[0].at.After(time.Now()) {
		e := heap.Pop(&n.events).(event)
		if e.free {
			n.mu.Unlock()
			e.f()
			n.mu.Lock()
		} else {
			e.f()
		}
	}
	n.running = false
	n.arm()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	if c := q[i].at.Compare(q[j].at); c != 0 {
		return c < 0
	}
	return q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = slices.Delete(old, len(old)-1, len(old))
	return e
}
