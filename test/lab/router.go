package lab

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Dependence is on what of the far end a router's mapping or filtering depends (RFC 4787 sections 4.1 and 5).
type Dependence uint8

const (
	EndpointIndependent Dependence = iota
	AddressDependent
	AddressAndPortDependent
)

func (d Dependence) String() string {
	return [...]string{"endpoint-independent", "address-dependent", "address- and port-dependent"}[d]
}

// of is the part of a far end that counts.
func (d Dependence) of(a netip.AddrPort) netip.AddrPort {
	switch d {
	case EndpointIndependent:
		return netip.AddrPort{}
	case AddressDependent:
		return netip.AddrPortFrom(a.Addr(), 0)
	}
	return a
}

// Ports is how a router chooses the outside port of a mapping (RFC 4787 section 4.2).
type Ports uint8

const (
	Preserving Ports = iota // the inside one, unless another machine has it
	Sequential              // one after the other, for all machines and far ends
	Random                  // any from 1024 up
	Block                   // any of 1024 in a row
)

func (p Ports) String() string { return [...]string{"preserving", "sequential", "random", "block"}[p] }

const blockSize = 1024

// Refresh is which packets keep a mapping (RFC 4787 section 4.3).
type Refresh uint8

const (
	InKeepsFilters Refresh = iota // those that go out keep mappings, those that come in only what they came by
	OutOnly                       // those that go out
	BothWays                      // any
)

// NAT is how a router translates IPv4.
type NAT struct {
	Mapping, Filtering Dependence
	Ports              Ports
	Parity             bool          // outside ports are even where inside ones are (RFC 4787 section 4.2.2)
	Step               uint16        // between ports in sequence; 0 for 1, 65535 for one downwards
	Others             int           // steps that others take between two ports in sequence, at most
	Size               int           // of a block; 0 for 1024
	Shift              time.Duration // after which the block is another; 0 for never
	Refresh            Refresh       // which packets keep a mapping
	Quota              int           // mappings at most: there is no other until one is forgotten; 0 for any number
	Hairpin            bool          // its machines reach each other by their outside addresses,
	Inside             bool          // and see each other by their inside ones
	Trap               bool          // as Linux without a firewall of its own: a packet that nobody asked for spoils its port for the sender
	Timeout            time.Duration // how long mappings and filters last; 0 for 2 min
	Pool               int           // outside addresses, of which each far address gets one by its last byte ("arbitrary pooling", RFC 4787 section 4.1); 0 for one
}

// RouterConfig says what a router is. The zero value has a full-cone NAT and no IPv6.
type RouterConfig struct {
	NAT      NAT
	NoIPv4   bool
	IPv6     bool         // with a firewall that lets in what was asked for
	Routed   bool         // IPv4 too: its inside has addresses of the internet's, if its outside has
	BlockUDP bool         // nothing passes
	CGN      bool         // its inside has shared addresses (RFC 6598), for other routers
	LAN      netip.Prefix // of its inside, /24; zero for one of its own
	Rate     int          // packets a second that pass, both ways together, and as many at once; 0 for any number
}

// Router stands between a segment and the one above it.
type Router struct {
	segment // the inside
	cfg     RouterConfig
	outside *segment
	wire    *wire
	addr    netip.Addr
	pool    []netip.Addr // addr among them; empty if that is all there is
	rng     *rand.Rand

	maps   map[mapKey]*mapping
	ports  map[uint16][]*mapping
	next   uint16 // sequential
	low    uint16 // of the block,
	moved  time.Time
	left   float64 // packets that may pass now, as of
	leftAt time.Time
	ghost  map[flow]time.Time
	trap   map[netip.AddrPort][]*mapping // of a machine's socket, where there are ghosts; the newest last
	six    map[flow]time.Time
}

// flow is one machine, or outside port, and one far end.
type flow struct{ near, far netip.AddrPort }

type mapKey struct{ in, far netip.AddrPort }

type mapping struct {
	mapKey
	port uint16
	used time.Time
	sent map[netip.AddrPort]time.Time // far ends, as filtering sees them
}

// Router adds a router to the core, or inside another router.
func (s *segment) Router(cfg RouterConfig) *Router {
	n := s.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if cfg.NAT.Timeout == 0 {
		cfg.NAT.Timeout = 2 * time.Minute
	}
	n.hosts++
	k := byte(n.hosts)
	r := &Router{cfg: cfg, outside: s, rng: rand.New(rand.NewPCG(n.seed, uint64(k)<<32))}
	r.segment = segment{net: n, up: r, routes: map[netip.Addr]*wire{},
		prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, k, 0}), 24),
		six:    netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, k}), 48)}
	switch {
	case cfg.CGN:
		r.segment.prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, k, 0}), 24)
	case cfg.Routed:
		r.segment.prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, k, 0}), 24)
	case cfg.LAN.IsValid():
		r.segment.prefix = cfg.LAN
	}
	r.wire = n.wire(r, s.linkDefault())
	r.addr = s.next()
	s.routes[r.addr] = r.wire
	for i := range cfg.NAT.Pool {
		if i == 0 {
			r.pool = append(r.pool, r.addr)
			continue
		}
		r.pool = append(r.pool, s.next())
		s.routes[r.pool[i]] = r.wire
	}
	r.forget()
	return r
}

func (s *segment) linkDefault() Link {
	if s.up == nil {
		return Link{Latency: Edge}
	}
	return Link{}
}

// Addr is the outside address.
func (r *Router) Addr() netip.Addr {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	return r.addr
}

// Links replaces the directions of the link to the outside.
func (r *Router) Links(up, down Link) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.wire.up.Link, r.wire.down.Link = up, down
}

// Forget drops all state, as a restart or a timeout does.
func (r *Router) Forget() {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.forget()
}

func (r *Router) forget() {
	r.maps, r.ports = map[mapKey]*mapping{}, map[uint16][]*mapping{}
	r.ghost, r.six, r.trap = map[flow]time.Time{}, map[flow]time.Time{}, map[netip.AddrPort][]*mapping{}
	r.next = 1024 + uint16(r.rng.IntN(50000))
	r.shift(time.Now())
}

// size is how many ports the block has.
func (r *Router) size() int { return cmp.Or(r.cfg.NAT.Size, blockSize) }

func (r *Router) shift(now time.Time) {
	n := r.size()
	r.low, r.moved = 1024+uint16(r.rng.IntN((1<<16-1024)/n)*n), now
}

// Replace makes the router another, at the same address and with the same inside, and drops all state.
func (r *Router) Replace(cfg RouterConfig) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	cfg.NAT.Timeout = cmp.Or(cfg.NAT.Timeout, r.cfg.NAT.Timeout)
	cfg.NAT.Pool, cfg.Routed = r.cfg.NAT.Pool, r.cfg.Routed
	r.cfg = cfg
	r.forget()
}

// passes reports whether the router has time for a packet.
func (r *Router) passes(now time.Time) bool {
	if r.cfg.Rate == 0 {
		return true
	}
	most := float64(r.cfg.Rate)
	r.left, r.leftAt = min(most, r.left+most*now.Sub(r.leftAt).Seconds()), now
	if r.left < 1 {
		return false
	}
	r.left--
	return true
}

// Rebind gives the router another outside address, and drops all state.
func (r *Router) Rebind() {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	delete(r.outside.routes, r.addr)
	r.addr = r.outside.next()
	if len(r.pool) > 0 {
		r.pool[0] = r.addr
	}
	r.outside.routes[r.addr] = r.wire
	r.forget()
}

// BlockUDP stops everything, or lets it pass again.
func (r *Router) BlockUDP(block bool) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.cfg.BlockUDP = block
}

// outbound takes a packet from the inside.
func (r *Router) outbound(p packet) {
	now := time.Now()
	if p.ttl--; p.ttl <= 0 || r.cfg.BlockUDP || !r.passes(now) {
		return
	}
	if p.dst.Addr().Is6() || r.cfg.Routed {
		if r.cfg.IPv6 || p.dst.Addr().Is4() {
			r.six[flow{p.src, p.dst}] = now
			r.net.cross(&r.wire.up, p, r.outside.forward)
		}
		return
	}
	if r.cfg.NoIPv4 {
		return
	}
	m := r.translate(now, p.src, p.dst)
	if m == nil {
		return
	}
	m.used = now
	m.sent[r.cfg.NAT.Filtering.of(p.dst)] = now
	inside := p.src
	p.src = netip.AddrPortFrom(r.pooled(p.dst.Addr()), m.port)
	if p.dst.Addr() == r.addr {
		if r.cfg.NAT.Hairpin {
			r.hairpin(now, p, inside)
		}
		return
	}
	r.net.cross(&r.wire.up, p, r.outside.forward)
}

// pooled is the outside address that is used towards a far one.
func (r *Router) pooled(far netip.Addr) netip.Addr {
	if n := len(r.pool); n > 0 && far.Is4() {
		return r.pool[int(far.As4()[3])%n]
	}
	return r.addr
}

// hairpin takes a packet from one of its machines to another.
func (r *Router) hairpin(now time.Time, p packet, inside netip.AddrPort) {
	if !r.cfg.NAT.Inside {
		r.receive(p)
	} else if m := r.admits(now, p); m != nil {
		p.src, p.dst = inside, m.in
		r.segment.inside(p)
	}
}

// receive takes a packet from the outside.
func (r *Router) receive(p packet) {
	now := time.Now()
	if p.ttl--; p.ttl <= 0 || r.cfg.BlockUDP || !r.passes(now) {
		return
	}
	if p.dst.Addr().Is6() || r.cfg.Routed {
		if r.fresh(now, r.six[flow{p.dst, p.src}]) {
			r.six[flow{p.dst, p.src}] = now
			r.segment.inside(p)
		}
		return
	}
	if p.dst.Addr() != r.pooled(p.src.Addr()) {
		return
	}
	if m := r.admits(now, p); m != nil {
		p.dst = m.in
		r.segment.inside(p)
	} else if r.cfg.NAT.Trap {
		r.ghost[flow{netip.AddrPortFrom(r.addr, p.dst.Port()), p.src}] = now
	}
}

// admits is the mapping by which a packet gets in, nil for none.
func (r *Router) admits(now time.Time, p packet) *mapping {
	for _, m := range r.ports[p.dst.Port()] {
		from := r.cfg.NAT.Filtering.of(p.src)
		if !r.fresh(now, m.used) || r.cfg.NAT.Filtering != EndpointIndependent && !r.fresh(now, m.sent[from]) {
			continue
		}
		if r.cfg.NAT.Refresh != OutOnly && r.cfg.NAT.Filtering != EndpointIndependent {
			m.sent[from] = now
		}
		if r.cfg.NAT.Refresh == BothWays {
			m.used = now
		}
		return m
	}
	return nil
}

// inside delivers what was let in; it never goes out again.
func (s *segment) inside(p packet) {
	if w := s.routes[p.dst.Addr()]; w != nil {
		s.net.cross(&w.down, p, w.end.receive)
	}
}

func (r *Router) fresh(now, t time.Time) bool { return !t.IsZero() && now.Sub(t) < r.cfg.NAT.Timeout }

const ghostLife = 30 * time.Second // nf_conntrack_udp_timeout

// translate finds the mapping of a flow, or makes it.
func (r *Router) translate(now time.Time, in, far netip.AddrPort) *mapping {
	k := mapKey{in: in, far: r.cfg.NAT.Mapping.of(far)}
	if r.cfg.NAT.Trap {
		return r.trapped(now, k, far)
	}
	m := r.maps[k]
	if m == nil || !r.fresh(now, m.used) {
		if r.full(now) {
			return nil
		}
		m = r.add(now, k, in.Port())
	}
	return m
}

// full reports whether there may be no more mappings.
func (r *Router) full(now time.Time) bool {
	if r.cfg.NAT.Quota == 0 || len(r.maps) < r.cfg.NAT.Quota {
		return false
	}
	for _, m := range r.maps {
		if !r.fresh(now, m.used) {
			r.drop(m)
		}
	}
	return len(r.maps) >= r.cfg.NAT.Quota
}

// trapped is translate as Linux does it: a flow keeps its port, and one that is new takes the newest port of its socket
// that no ghost has towards its far end, or else a new one, which those that follow take from then on.
func (r *Router) trapped(now time.Time, k mapKey, far netip.AddrPort) *mapping {
	list := slices.DeleteFunc(r.trap[k.in], func(m *mapping) bool { return !r.fresh(now, m.used) })
	r.trap[k.in] = list
	for _, m := range list {
		if r.fresh(now, m.sent[r.cfg.NAT.Filtering.of(far)]) {
			return m
		}
	}
	for _, m := range slices.Backward(list) {
		if !r.haunted(now, m.port, far) {
			return m
		}
	}
	want := k.in.Port()
	if len(list) > 0 || r.haunted(now, want, far) {
		want = 0
	}
	delete(r.maps, k)
	m := r.add(now, k, want)
	r.trap[k.in] = append(list, m)
	return m
}

func (r *Router) haunted(now time.Time, port uint16, far netip.AddrPort) bool {
	g := r.ghost[flow{netip.AddrPortFrom(r.addr, port), far}]
	return !g.IsZero() && now.Sub(g) < ghostLife
}

func (r *Router) add(now time.Time, k mapKey, want uint16) *mapping {
	if old := r.maps[k]; old != nil {
		r.drop(old)
	}
	m := &mapping{mapKey: k, used: now, sent: map[netip.AddrPort]time.Time{}}
	switch {
	case want != 0 && r.cfg.NAT.Ports == Preserving && r.free(now, want, k):
		m.port = want
	case r.cfg.NAT.Ports == Sequential:
		r.next += max(r.cfg.NAT.Step, 1) * uint16(1+r.rng.IntN(r.cfg.NAT.Others+1))
		m.port = max(r.next, 1024)
		r.next = m.port
	case r.cfg.NAT.Ports == Block:
		if r.cfg.NAT.Shift > 0 && now.Sub(r.moved) > r.cfg.NAT.Shift {
			r.shift(now)
		}
		for range r.size() {
			if m.port = r.low + uint16(r.rng.IntN(r.size())); r.free(now, m.port, k) {
				break
			}
		}
	default:
		for m.port == 0 || !r.free(now, m.port, k) || r.cfg.NAT.Parity && (m.port^k.in.Port())&1 != 0 {
			m.port = 1024 + uint16(r.rng.IntN(1<<16-1024))
		}
	}
	r.maps[k] = m
	r.ports[m.port] = append(r.ports[m.port], m)
	return m
}

// free reports whether a port may be given: to far ends other than those that have it, as Linux does.
func (r *Router) free(now time.Time, port uint16, k mapKey) bool {
	for _, m := range r.ports[port] {
		if r.fresh(now, m.used) && (m.in != k.in || m.far == k.far) {
			return false
		}
	}
	return true
}

func (r *Router) drop(m *mapping) {
	delete(r.maps, m.mapKey)
	list := r.ports[m.port]
	for i, o := range list {
		if o == m {
			r.ports[m.port] = append(list[:i:i], list[i+1:]...)
			return
		}
	}
}
