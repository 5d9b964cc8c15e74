package node

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/device"
	"github.com/hedge-mesh/hedge/node/key"
)

// roster has the WireGuard device hold only the peers that are talked to: one takes 2 kB there without a session, and
// a node of a large mesh knows ten thousand of whom it talks to a few.
//
//	Map ── set ──▶ known ── seat: a packet for it, an initiation of its own ──▶ in the device
//	                 ▲                                                            │
//	                 └──────────── sweep: nothing to or from it for idleAfter ────┘
//
//	tunnel.Read ── need ── in already? ── no: waits for serve, which configures it ──▶ device
//	receivers ── screen ── initiation? ── answer: opens it, configures its maker ──▶ bind.Deliver ──▶ receivers ──▶ device
//
// A peer is taken out only when every session with it is dead on both sides, so nothing but memory is lost; what the
// device would forget with it is kept here: its counters, and the time of its last initiation, against replays.
//
// Who carries routes is always in: the device takes a source address for a peer's if no other peer has a longer prefix
// of it, so a router's wide prefix must never stand there without the narrower ones of other routers. The mesh's own
// addresses are nobody's, a peer that does not exist, where a route in use spans them.
type roster struct {
	wg      *device.Device                     // set before there is anybody
	deliver func(pkt []byte, ep conn.Endpoint) // to the device
	forget  func(key.NodePublic)               // its sessions are gone
	opener  *opener
	nobody  key.NodePublic // whose private key nobody has
	epoch   time.Time
	log     zerolog.Logger

	table  atomic.Pointer[map[netip.Addr]*seat] // never nil
	calls  chan call
	knocks chan knock
	limits [2]*rate.Limiter // of opening, by whether the sender is a stranger
	once   sync.Once
	closed chan struct{} // the tunnel is

	mu    sync.Mutex // held while the device's peers change
	seats map[key.NodePublic]*seat
	wide  []netip.Prefix // nobody's
	swept time.Time
}

// seat is a peer's place in the device, taken or not.
type seat struct {
	key  key.NodePublic
	in   atomic.Bool  // changes only with mu held
	used atomic.Int64 // when a packet was last to go to it, or an initiation came: nanoseconds since epoch

	// with mu held
	allowed []netip.Prefix
	fixed   bool     // always in
	last    stamp    // of its initiations
	helped  int64    // when it was last greeted because its clock is behind that
	seen    counters // when they last changed
	since   int64    // when that was
	past    counters // of its earlier stays
}

// call asks for a peer to be seated.
type call struct {
	seat  *seat
	key   key.NodePublic // if seat is nil: for a greeting
	ready chan struct{}  // closed then; nil if nobody waits
}

// knock is an initiation.
type knock struct {
	pkt [device.MessageInitiationSize]byte
	ep  conn.Endpoint
}

// admitted is the source of an initiation that has been looked at.
type admitted struct{ conn.Endpoint }

const (
	idleAfter    = 5 * time.Minute // longer than any session lives without a handshake, 3 minutes
	sweepEvery   = time.Minute
	clockBehind  = 10 // seconds by which an initiation is older than one before it, because its maker's clock was set back
	helpEvery    = 5 * time.Second
	maxCalls     = 128 // greetings that wait; Read waits alone
	maxKnocks    = 256 // initiations that wait, half of them for strangers
	opensASecond = 500 // of strangers', and of others': a tenth of a processor
)

func newRoster(deliver func([]byte, conn.Endpoint), forget func(key.NodePublic), private key.NodePrivate, log zerolog.Logger) (*roster, error) {
	o, err := newOpener(private)
	if err != nil {
		return nil, err
	}
	r := &roster{
		deliver: deliver, forget: forget, opener: o, nobody: key.ExchangePublic(key.NewNode()), epoch: time.Now(), log: log,
		calls: make(chan call, maxCalls), knocks: make(chan knock, maxKnocks), closed: make(chan struct{}),
		limits: [2]*rate.Limiter{rate.NewLimiter(opensASecond, opensASecond), rate.NewLimiter(opensASecond, opensASecond)},
	}
	r.table.Store(&map[netip.Addr]*seat{})
	return r, nil
}

// close lets go of who waits.
func (r *roster) close() { r.once.Do(func() { close(r.closed) }) }

// set replaces who may be in the device, and configures at once those of fixed. mesh are the addresses that only those
// who have them may use, whatever routes there are.
func (r *roster) set(peers map[key.NodePublic][]netip.Prefix, fixed map[key.NodePublic]bool, mesh []netip.Prefix) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	seats := make(map[key.NodePublic]*seat, len(peers))
	table := make(map[netip.Addr]*seat, 2*len(peers))
	had, has := make(map[key.NodePublic][]netip.Prefix), make(map[key.NodePublic][]netip.Prefix)
	for k, s := range r.seats {
		if s.in.Load() {
			had[k] = s.allowed
		}
	}
	if len(r.wide) > 0 {
		had[r.nobody] = r.wide
	}
	wide := spanned(peers, fixed, mesh)
	if len(wide) > 0 {
		has[r.nobody] = wide
	}
	for k, allowed := range peers {
		s := r.seats[k]
		if s == nil {
			s = &seat{key: k}
		}
		seats[k] = s
		for _, p := range allowed {
			if p.IsSingleIP() {
				table[p.Addr()] = s
			}
		}
		if fixed[k] || s.in.Load() {
			has[k] = allowed
		}
	}
	if conf := wgDiff(had, has); conf != "" {
		if err := r.wg.IpcSet(conf); err != nil {
			return fmt.Errorf("set WireGuard peers: %w", err)
		}
	}
	now := r.now(time.Now())
	for k, s := range r.seats {
		if seats[k] == nil {
			s.in.Store(false)
		}
	}
	for k, s := range seats {
		s.allowed, s.fixed = peers[k], fixed[k]
		if _, in := has[k]; in && !s.in.Load() {
			s.since = now
			s.in.Store(true)
		}
	}
	r.seats, r.wide = seats, wide
	r.table.Store(&table)
	return nil
}

// spanned are the prefixes of the mesh, if a route of one of fixed reaches into them.
func spanned(peers map[key.NodePublic][]netip.Prefix, fixed map[key.NodePublic]bool, mesh []netip.Prefix) []netip.Prefix {
	for k := range fixed {
		for _, p := range peers[k] {
			if slices.ContainsFunc(mesh, func(m netip.Prefix) bool { return p.Bits() <= m.Bits() && p.Overlaps(m) }) {
				return mesh
			}
		}
	}
	return nil
}

// clear takes everybody out, and knows nobody any more.
func (r *roster) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wg.RemoveAllPeers()
	for _, s := range r.seats {
		s.in.Store(false)
	}
	r.seats, r.wide = nil, nil
	r.table.Store(&map[netip.Addr]*seat{})
}

// take configures a peer, if it is still one. The caller holds mu.
func (r *roster) take(s *seat) bool {
	if s == nil || r.seats[s.key] != s {
		return false
	}
	if s.in.Load() {
		return true
	}
	if err := r.wg.IpcSet(wgDiff(nil, map[key.NodePublic][]netip.Prefix{s.key: s.allowed})); err != nil {
		r.log.Debug().Err(err).Str("peer", s.key.Short()).Msg("configure a WireGuard peer")
		return false
	}
	s.seen, s.since = counters{}, r.now(time.Now())
	s.in.Store(true)
	return true
}

// usher is how the one goroutine that Reads sees to it that peers are there: it looks up a run of packets for one
// address once.
type usher struct {
	*roster
	table *map[netip.Addr]*seat
	dst   [16]byte
	n     int // bytes of dst
	seat  *seat
}

// need returns when the peer that a packet is for is in the device, if there is one.
func (c *usher) need(pkt []byte, now time.Time) {
	var dst []byte
	switch {
	case len(pkt) >= 20 && pkt[0]>>4 == 4:
		dst = pkt[16:20]
	case len(pkt) >= 40 && pkt[0]>>4 == 6:
		dst = pkt[24:40]
	default:
		return
	}
	if t := c.roster.table.Load(); t != c.table || !bytes.Equal(dst, c.dst[:c.n]) {
		a, _ := netip.AddrFromSlice(dst)
		c.table, c.n, c.seat = t, copy(c.dst[:], dst), (*t)[a]
	}
	s := c.seat
	if s == nil {
		return
	}
	if at := c.now(now); s.used.Load() != at {
		s.used.Store(at) // before in is looked at: sweep does it the other way round
	}
	if s.in.Load() {
		return
	}
	ready := make(chan struct{})
	select {
	case c.calls <- call{seat: s, ready: ready}:
	case <-c.closed:
		return
	}
	select {
	case <-ready:
	case <-c.closed:
	}
}

// serve configures the peers that packets wait for, and those to be greeted, until done. It is a goroutine of its own
// because the device closes with a lock held that configuring takes, and waits for Read and the receivers.
func (r *roster) serve(done <-chan struct{}) {
	for {
		select {
		case c := <-r.calls:
			r.mu.Lock()
			s := c.seat
			if s == nil {
				s = r.seats[c.key]
			}
			ok := r.take(s)
			r.mu.Unlock()
			if c.ready != nil {
				close(c.ready)
			} else if ok {
				r.initiate(s.key)
			}
		case <-done:
			return
		}
	}
}

// greet makes a new session with a peer, if there is none being made. It does not wait.
func (r *roster) greet(k key.NodePublic) {
	if r.initiate(k) {
		return
	}
	select {
	case r.calls <- call{key: k}:
	default: // too many wait: the peer makes one itself in a quarter of a minute
	}
}

func (r *roster) initiate(k key.NodePublic) bool {
	p := r.wg.LookupPeer(device.NoisePublicKey(k.Raw()))
	if p != nil {
		_ = p.SendHandshakeInitiation(false) // the bind repeats it
	}
	return p != nil
}

// screen takes an initiation that nobody has looked at yet away from a receiver, or reports that the device is to have
// the packet, and as whose. When too many wait the device gets what there is: it has its own ways with a flood, and only
// peers that are not in it go without.
func (r *roster) screen(pkt []byte, ep conn.Endpoint) (conn.Endpoint, bool) {
	if !isInitiation(pkt) {
		return ep, true
	}
	if a, ok := ep.(admitted); ok {
		return a.Endpoint, true
	}
	if !r.opener.meant(pkt) {
		return ep, false
	}
	stranger := isStranger(ep)
	if stranger == 1 && len(r.knocks) >= maxKnocks/2 || !r.limits[stranger].Allow() {
		return ep, true
	}
	select {
	case r.knocks <- knock{[device.MessageInitiationSize]byte(pkt), ep}:
		return ep, false
	default:
		return ep, true
	}
}

func isStranger(ep conn.Endpoint) int {
	if _, ok := ep.(*bind.Endpoint); ok {
		return 0
	}
	return 1
}

// answer lets the device have initiations of peers, who are configured before, until done.
func (r *roster) answer(done <-chan struct{}) {
	for {
		select {
		case k := <-r.knocks:
			if r.admit(k.pkt[:]) {
				r.deliver(k.pkt[:], admitted{k.ep})
			}
		case <-done:
			return
		}
	}
}

// admit reports whether an initiation is a peer's and not older than one before it. One as old is a copy of it that the
// bind has let pass, and the device may not have had the first.
func (r *roster) admit(pkt []byte) bool {
	from, at, ok := r.opener.open(pkt, func(k key.NodePublic) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.seats[k] != nil
	})
	if !ok {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.seats[from]
	if s != nil && at.before(s.last) {
		r.help(s, at)
		return false
	}
	if s == nil || !r.take(s) {
		return false
	}
	s.last = at
	s.used.Store(r.now(time.Now()))
	return true
}

// help makes a session with a peer whose clock was set back, by an hour or by years if it keeps no time while it is off: to
// WireGuard its initiations are replays until the hour is over, and ours are not. They may be replays indeed, of what
// somebody has recorded; then the peer gets an initiation that it has no need of, now and then. The caller holds mu.
func (r *roster) help(s *seat, at stamp) {
	now := r.now(time.Now())
	if at.seconds()+clockBehind > s.last.seconds() || s.helped != 0 && now-s.helped < int64(helpEvery) {
		return
	}
	s.helped = now
	select {
	case r.calls <- call{key: s.key}:
	default: // the next initiation is not far
	}
}

// sweep takes out the peers that nothing has gone to or come from for long. It looks every sweepEvery.
func (r *roster) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.swept) < sweepEvery {
		return
	}
	r.swept = now
	at, counts := r.now(now), r.read()
	gone := make(map[key.NodePublic][]netip.Prefix)
	for k, s := range r.seats {
		if !s.in.Load() || s.fixed {
			continue
		}
		c := counts[k]
		if c != s.seen || s.used.Load() > s.since {
			s.seen, s.since = c, at
			continue
		}
		if at-s.since < int64(idleAfter) {
			continue
		}
		s.in.Store(false)
		if s.used.Load() > s.since { // just now: its packet may have passed need
			s.in.Store(true)
			continue
		}
		gone[k] = nil
	}
	if len(gone) == 0 {
		return
	}
	if err := r.wg.IpcSet(wgDiff(gone, nil)); err != nil {
		r.log.Debug().Err(err).Msg("take idle peers out of WireGuard")
	}
	for k := range gone {
		r.forget(k) // should it talk after all, it is told so at once
		s := r.seats[k]
		s.past = s.past.plus(s.seen)
		s.seen = counters{}
	}
	r.log.Debug().Int("peers", len(gone)).Msg("idle peers are out of WireGuard")
}

// counters are those of all peers, of all their stays.
func (r *roster) counters() map[key.NodePublic]counters {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.read()
	for k, s := range r.seats {
		if s.past != (counters{}) {
			out[k] = s.past.plus(out[k])
		}
	}
	return out
}

// read asks the device, whose answer also has private keys in it: they are skipped here and go nowhere.
func (r *roster) read() map[key.NodePublic]counters {
	var b bytes.Buffer
	if r.wg.IpcGetOperation(&b) != nil {
		return map[key.NodePublic]counters{}
	}
	defer func() { clear(b.Bytes()) }()
	return parseCounters(b.Bytes())
}

func (r *roster) now(t time.Time) int64 { return int64(t.Sub(r.epoch)) }
