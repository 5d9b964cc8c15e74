package bind

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/path"
	"github.com/hedge-mesh/hedge/node/udp"
)

var errStopped = errors.New("bind: stopped")

// Bind is a conn.Bind. Its methods may be called from any goroutine.
type Bind struct {
	cfg     Config
	epoch   time.Time
	wall    atomic.Pointer[time.Duration]                 // added to the wall clock, by a test
	watch   func(changed func()) (stop func(), err error) // the system's word on its addresses; nil to poll
	sources func(control) [2]netip.Addr                   // of packets to the internet; nil not to look

	udp4, udp6 family
	ring       ring
	once       once
	relays     relays
	hops       hops
	turns      turns
	book       *book
	table      atomic.Pointer[table]
	ticket     atomic.Pointer[[]byte]
	endpoints  atomic.Pointer[[]netip.AddrPort]
	mapped     atomic.Pointer[netip.AddrPort] // a port of the gateway's that it forwards to us; the zero one for none
	home       atomic.Uint32
	lacks      atomic.Pointer[[]uint16]
	mark       atomic.Uint32
	holding    atomic.Int32 // packets of all peers, see held
	exclude    atomic.Pointer[[]netip.Prefix]
	nat        atomic.Pointer[NAT]
	around     atomic.Pointer[around]
	pins       atomic.Pointer[map[netip.AddrPort]*extra] // addresses that packets go to by a socket of their own

	mu      sync.Mutex
	ses     *session         // nil while no device is attached
	peers   []path.Peer      // for the loop, nil if unchanged
	reset   []key.NodePublic // peers to begin anew
	told    map[key.NodePublic]uint16
	stopped bool

	directory names

	// To the loop.
	news     chan struct{} // peers, relays, home or status changed
	moves    chan struct{} // addresses of this machine may have changed
	wakes    chan *peer
	shakes   chan handshake
	discoIn  chan message
	stunIn   chan message
	strays   chan stray
	heards   chan *peer // who may be sent again what they may have missed
	probes   chan *probe
	accounts chan asked
	names    chan resolved
	samples  chan []uint16
	spoils   chan Finding
	done     <-chan struct{} // of ctx
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

var _ conn.Bind = (*Bind)(nil)

// New opens the sockets and starts; Stop ends it. Nothing is received until a device calls Open. The device should be
// told DisableSomeRoamingForBrokenMobileSemantics before its peers are configured: then it keeps the endpoints it
// configured, which are better than any it could learn.
func New(cfg Config) (*Bind, error) {
	if cfg.Node.IsZero() || cfg.Disco.IsZero() {
		return nil, errors.New("bind: Config needs Node and Disco keys")
	}
	if cfg.Log == nil {
		cfg.Log = func(string, ...any) {}
	}
	for _, f := range []*func(key.NodePublic){&cfg.Stale, &cfg.Crossed, &cfg.Unheard} {
		if *f == nil {
			*f = func(key.NodePublic) {}
		}
	}
	var watch func(func()) (func(), error)
	var sources func(control) [2]netip.Addr
	if cfg.Interfaces == nil {
		cfg.Interfaces, watch, sources = systemAddrs, watchSystem, systemSources
		if cfg.Loopback {
			sources = nil
			cfg.Interfaces = func() ([]netip.Addr, error) {
				return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
			}
		}
	}
	if cfg.DialRelay == nil {
		cfg.DialRelay = func(c derp.ClientConfig) RelayClient { return derp.NewClient(c) }
	}
	b := &Bind{
		cfg:      cfg,
		watch:    watch,
		sources:  sources,
		moves:    make(chan struct{}, 1),
		epoch:    time.Now().Add(-time.Hour), // long ago: 0 means never
		book:     newBook(),
		told:     make(map[key.NodePublic]uint16),
		news:     make(chan struct{}, 1),
		wakes:    make(chan *peer, 4096),
		shakes:   make(chan handshake, 256),
		discoIn:  make(chan message, 512),
		stunIn:   make(chan message, 64),
		strays:   make(chan stray, 64),
		heards:   make(chan *peer, 256),
		probes:   make(chan *probe),
		accounts: make(chan asked),
		names:    make(chan resolved),
		samples:  make(chan []uint16),
		spoils:   make(chan Finding),
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.done = b.ctx.Done()
	if cfg.Listen == nil {
		b.cfg.Listen = b.listenSystem
	}
	b.udp4.network, b.udp6.network = "udp4", "udp6"
	b.ring.ready = make(chan struct{}, 1)
	b.directory.ask = func(ctx context.Context, host string) ([]netip.Addr, error) {
		return b.resolver().LookupNetIP(ctx, "ip", host)
	}
	b.directory.init(cfg.Names, cfg.Named)
	b.relays.b, b.relays.lacked = b, make(map[uint16]int64)
	b.hops.init(b, cfg.PeerRelay)
	b.relays.conns.Store(&map[uint16]*relayConn{})
	b.table.Store(&table{})
	b.pins.Store(&map[netip.AddrPort]*extra{})
	b.endpoints.Store(&[]netip.AddrPort{})
	b.exclude.Store(&cfg.Exclude)
	b.mapped.Store(&netip.AddrPort{})
	s4, s6, err := b.listen(cfg.Port)
	if err != nil {
		return nil, err
	}
	b.exchange(s4, s6)
	l := newLoop(b)
	b.wg.Go(l.run)
	return b, nil
}

// Stop closes sockets and relay clients and waits for every goroutine.
func (b *Bind) Stop() {
	b.mu.Lock()
	first := !b.stopped
	b.stopped = true
	b.mu.Unlock()
	if first {
		b.cancel()
		b.Close()
		b.relays.close()
		for _, u := range []*family{&b.udp4, &b.udp6} {
			if s := u.cur.Load(); s != nil {
				s.Close()
			}
		}
	}
	b.wg.Wait()
}

// stir makes the loop look at what changed.
func (b *Bind) stir() {
	select {
	case b.news <- struct{}{}:
	default:
	}
}

// SetRelays replaces the set of relays.
func (b *Bind) SetRelays(list []Relay) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.stopped {
		b.relays.set(slices.Clone(list))
		b.stir()
	}
}

// SetExclude replaces Config.Exclude.
func (b *Bind) SetExclude(prefixes []netip.Prefix) {
	if slices.Equal(*b.exclude.Load(), prefixes) {
		return
	}
	p := slices.Clone(prefixes)
	b.exclude.Store(&p)
	select {
	case b.moves <- struct{}{}: // look at the addresses again
	default:
	}
}

// Dial makes a connection beside the tunnel, which the device's firewall mark keeps out of it; names are looked up the
// same way, and lead where they last did while DNS does not answer. It fits any path.
func (b *Bind) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Control: func(network, address string, c syscall.RawConn) error {
		return errors.Join(b.markConn(network, address, c), derp.LimitSegments(network, address, c))
	}}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ips, err := b.directory.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	addrs := make([]string, 0, maxLed)
	for _, ip := range ips[:min(len(ips), maxLed)] {
		addrs = append(addrs, net.JoinHostPort(ip.String(), port))
	}
	return dialAny(ctx, addrs, func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, network, addr) })
}

// resolver looks names up beside the tunnel.
func (b *Bind) resolver() *net.Resolver {
	if b.mark.Load() == 0 {
		return net.DefaultResolver
	}
	return &net.Resolver{PreferGo: true, Dial: (&net.Dialer{Control: b.markConn}).DialContext}
}

// Mark keeps a socket beside the tunnel by the device's firewall mark, if it has one. It is a net.Dialer's Control.
func (b *Bind) Mark(network, address string, c syscall.RawConn) error {
	return b.markConn(network, address, c)
}

// SetTicket sets the ticket shown to relays from the next connection on. It is kept.
func (b *Bind) SetTicket(ticket []byte) {
	t := slices.Clone(ticket)
	b.ticket.Store(&t)
	for _, c := range *b.relays.conns.Load() {
		if !c.up() {
			c.client.Redial()
		}
	}
}

func (b *Bind) currentTicket() []byte {
	if t := b.ticket.Load(); t != nil {
		return *t
	}
	return nil
}

// SetMapped sets the address at which the gateway forwards packets to us, the zero one for none. Peers are told.
func (b *Bind) SetMapped(at netip.AddrPort) {
	b.mapped.Store(&at)
	b.stir()
}

// Endpoints are the addresses at which peers may reach us.
func (b *Bind) Endpoints() []netip.AddrPort { return slices.Clone(*b.endpoints.Load()) }

// Home is the ID of our home relay, 0 if none.
func (b *Bind) Home() uint16 { return uint16(b.home.Load()) }

func (b *Bind) setHome(id uint16) {
	b.home.Store(uint32(id))
	if b.cfg.Home != nil {
		b.cfg.Home(id)
	}
	b.stir()
}

// Port is the UDP port of the sockets.
func (b *Bind) Port() uint16 {
	for _, u := range []*family{&b.udp4, &b.udp6} {
		if s := u.cur.Load(); s != nil {
			return s.port
		}
	}
	return 0
}

// Path is how packets reach a peer now; false if there is no such peer.
func (b *Bind) Path(k key.NodePublic) (PathInfo, bool) {
	p := b.table.Load().byNode[k]
	if p == nil {
		return PathInfo{}, false
	}
	return b.info(p), true
}

func (b *Bind) info(p *peer) PathInfo {
	r := p.routes.Load()
	hop := b.hops.relayOf(r.primary)
	return PathInfo{
		Direct: r.primary.IsValid() && !path.ByHop(r.primary), Addr: r.primary, Hop: hop.Relay, HopName: hop.Name, Relay: uint16(p.relay.Load()),
		RTT: r.rtt, MTU: r.inside(), Since: r.since, LastHeard: b.time(p.any.Load()), Why: r.why,
	}
}

// Open implements conn.Bind. Port 0 means the port in use.
func (b *Bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return nil, 0, errStopped
	}
	if b.ses != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	if port != 0 && port != b.Port() {
		s4, s6, err := b.listen(port)
		if err != nil {
			return nil, 0, err
		}
		b.exchange(s4, s6)
		b.stir()
	}
	b.ses = &session{done: make(chan struct{})}
	fns := []conn.ReceiveFunc{}
	for _, u := range []*family{&b.udp4, &b.udp6} {
		if s := u.cur.Load(); s != nil {
			if err := s.SetReadDeadline(time.Time{}); err != nil {
				b.ses = nil
				return nil, 0, fmt.Errorf("bind: %s socket: %w", u.network, err)
			}
			fns = append(fns, b.receiver(u, false, b.ses))
			if s.sparse != nil {
				fns = append(fns, b.receiver(u, true, b.ses))
			}
		}
	}
	done := b.ses.done
	return append(fns, func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		return b.ring.pop(done, bufs, sizes, eps)
	}), b.Port(), nil
}

// Close implements conn.Bind: it detaches the device and leaves the sockets open.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ses == nil {
		return nil
	}
	close(b.ses.done)
	b.ses = nil
	for _, u := range []*family{&b.udp4, &b.udp6} {
		if s := u.cur.Load(); s != nil {
			s.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
		}
	}
	return nil
}

// exchange puts new sockets in the place of the old; a family that is missing among the new keeps its old one.
func (b *Bind) exchange(s4, s6 *sock) {
	for i, u := range []*family{&b.udp4, &b.udp6} {
		if s := []*sock{s4, s6}[i]; s != nil {
			if old := u.cur.Swap(s); old != nil {
				old.Close()
			}
		}
	}
}

// SetMark implements conn.Bind: on our sockets and on connections to relays made from now on.
func (b *Bind) SetMark(mark uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mark.Store(mark)
	for _, u := range []*family{&b.udp4, &b.udp6} {
		s := u.cur.Load()
		if s == nil {
			continue
		}
		for _, s := range s.both() {
			if c, err := s.SyscallConn(); err != nil {
				return err
			} else if c != nil {
				if err := udp.Mark(c, mark); err != nil && mark != 0 {
					return fmt.Errorf("bind: cannot set the firewall mark: %w", err)
				}
			}
		}
	}
	return nil
}

// BatchSize implements conn.Bind.
func (b *Bind) BatchSize() int { return udp.Batch }

// Lends implements device.Lender: what is received stays where the system, or a relay's reader, has put it.
func (b *Bind) Lends() bool { return true }
