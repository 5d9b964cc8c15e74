package bind

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fabric is a network in memory: every host has one address, packets take a while, and any may be dropped.
type fabric struct {
	mu      sync.Mutex
	delay   time.Duration
	drop    func(from, to netip.AddrPort) bool
	public  map[netip.Addr]netip.Addr // hosts behind a NAT that keeps ports
	sockets map[netip.AddrPort]*memConn
	tapped  func(from, to netip.AddrPort, pkt []byte)
	lose    func(pkt []byte) bool // as drop, by what it is
}

func newFabric(delay time.Duration) *fabric {
	return &fabric{delay: delay, sockets: map[netip.AddrPort]*memConn{}}
}

func (f *fabric) setDrop(drop func(from, to netip.AddrPort) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop = drop
}

// host is Config.Listen of a host with an address of one family.
func (f *fabric) host(ip netip.Addr) func(context.Context, string, string) (net.PacketConn, error) {
	return func(_ context.Context, network, address string) (net.PacketConn, error) {
		if (network == "udp4") != ip.Is4() {
			return nil, &net.OpError{Op: "listen", Net: network, Err: os.ErrNotExist}
		}
		_, p, _ := net.SplitHostPort(address)
		port, _ := strconv.Atoi(p)
		f.mu.Lock()
		defer f.mu.Unlock()
		for port == 0 || f.sockets[netip.AddrPortFrom(ip, uint16(port))] != nil {
			port = max(port, 40000) + 1
		}
		c := &memConn{f: f, addr: netip.AddrPortFrom(ip, uint16(port)), in: make(chan datagram, 4096),
			closed: make(chan struct{}), wake: make(chan struct{})}
		f.sockets[c.addr] = c
		return c, nil
	}
}

type datagram struct {
	from netip.AddrPort
	b    []byte
}

type memConn struct {
	f      *fabric
	addr   netip.AddrPort
	in     chan datagram
	closed chan struct{}

	mu   sync.Mutex
	past bool          // a read deadline in the past
	wake chan struct{} // closed when it is set
}

func (c *memConn) ReadFrom(b []byte) (int, net.Addr, error) {
	c.mu.Lock()
	wake, past := c.wake, c.past
	c.mu.Unlock()
	if past {
		return 0, nil, os.ErrDeadlineExceeded
	}
	select {
	case d := <-c.in:
		return copy(b, d.b), net.UDPAddrFromAddrPort(d.from), nil
	case <-c.closed:
		return 0, nil, net.ErrClosed
	case <-wake:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

func (c *memConn) WriteTo(b []byte, to net.Addr) (int, error) {
	dst := to.(*net.UDPAddr).AddrPort()
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	d := datagram{c.addr, append([]byte(nil), b...)}
	if ip, ok := c.f.public[c.addr.Addr()]; ok {
		d.from = netip.AddrPortFrom(ip, c.addr.Port())
	}
	if c.f.tapped != nil {
		c.f.tapped(c.addr, dst, d.b)
	}
	if c.f.drop != nil && c.f.drop(c.addr, dst) || c.f.lose != nil && c.f.lose(b) {
		return len(b), nil
	}
	time.AfterFunc(c.f.delay, func() {
		c.f.mu.Lock()
		for private, ip := range c.f.public {
			switch dst.Addr() {
			case ip:
				dst = netip.AddrPortFrom(private, dst.Port())
			case private:
				dst = netip.AddrPort{}
			}
		}
		peer := c.f.sockets[dst]
		c.f.mu.Unlock()
		if peer != nil {
			select {
			case peer.in <- d:
			default:
			}
		}
	})
	return len(b), nil
}

func (c *memConn) Close() error {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if c.f.sockets[c.addr] == c {
		delete(c.f.sockets, c.addr)
		close(c.closed)
	}
	return nil
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch past := !t.IsZero() && t.Before(time.Now()); {
	case past && !c.past:
		c.past = true
		close(c.wake)
	case !past && c.past:
		c.past, c.wake = false, make(chan struct{})
	}
	return nil
}

func (c *memConn) LocalAddr() net.Addr              { return net.UDPAddrFromAddrPort(c.addr) }
func (c *memConn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *memConn) SetWriteDeadline(time.Time) error { return nil }

// doubles are relays in memory.
type doubles struct {
	mu    sync.Mutex
	delay time.Duration
	down  map[uint16]bool
	cut   map[uint16]key.NodePublic // of each the node that it has lost, and does not know of
	at    map[uint16]map[key.NodePublic]*double
	sends atomic.Int64
	lose  func(pkt []byte) bool // some are lost on the way
	gone  bool                  // they say so of a node that is not there
}

type double struct {
	r   *doubles
	cfg derp.ClientConfig
}

func newDoubles(delay time.Duration) *doubles {
	return &doubles{delay: delay, down: map[uint16]bool{}, cut: map[uint16]key.NodePublic{}, at: map[uint16]map[key.NodePublic]*double{}}
}

func (r *doubles) dial(cfg derp.ClientConfig) RelayClient {
	c := &double{r, cfg}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at[cfg.ID] == nil {
		r.at[cfg.ID] = map[key.NodePublic]*double{}
	}
	r.at[cfg.ID][cfg.Node] = c
	down := c.out()
	time.AfterFunc(0, func() {
		if !down {
			cfg.Status(true, nil)
		}
	})
	return c
}

func (r *doubles) setDown(id uint16, down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down[id] = down
	for _, c := range r.at[id] {
		c.cfg.Status(!down, nil)
	}
}

// setCut loses a relay to one node only.
func (r *doubles) setCut(id uint16, k key.NodePublic) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut[id] = k
	if c := r.at[id][k]; c != nil {
		c.cfg.Status(false, nil)
	}
}

// out reports whether nothing gets between the node and the relay. The caller holds mu.
func (c *double) out() bool { return c.r.down[c.cfg.ID] || c.r.cut[c.cfg.ID] == c.cfg.Node }

func (r *doubles) setLose(lose func([]byte) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lose = lose
}

func (c *double) Send(dst key.NodePublic, pkts [][]byte) bool {
	c.r.sends.Add(1)
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	if c.out() {
		return false
	}
	var copies [][]byte
	for _, p := range pkts {
		if c.r.lose == nil || !c.r.lose(p) {
			copies = append(copies, append([]byte(nil), p...))
		}
	}
	time.AfterFunc(c.r.delay, func() {
		c.r.mu.Lock()
		d := c.r.at[c.cfg.ID][dst]
		gone := c.r.gone && d == nil
		if d != nil && d.out() {
			d = nil
		}
		c.r.mu.Unlock()
		if gone {
			c.cfg.Gone(dst)
		}
		if d != nil && len(copies) > 0 {
			d.cfg.Receive(c.cfg.Node, copies)
		}
	})
	return true
}

func (c *double) SendPriority(dst key.NodePublic, pkts [][]byte) bool { return c.Send(dst, pkts) }
func (c *double) Redial()                                             {}
func (c *double) Up() bool                                            { c.r.mu.Lock(); defer c.r.mu.Unlock(); return !c.out() }
func (c *double) Close() error {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	if c.r.at[c.cfg.ID][c.cfg.Node] == c {
		delete(c.r.at[c.cfg.ID], c.cfg.Node)
	}
	return nil
}

// side is one Bind with what a device would do around it: its receive functions run, and what they bring is kept.
type side struct {
	*Bind
	t     testing.TB
	cfg   Config
	wg    sync.WaitGroup
	got   chan packet
	addrs chan []netip.AddrPort
	small bool // room for small packets only, few at once
}

type packet struct {
	b  []byte
	ep conn.Endpoint
	at time.Time
}

func newSide(t testing.TB, cfg Config) *side {
	t.Helper()
	s := &side{t: t, got: make(chan packet, 4096), addrs: make(chan []netip.AddrPort, 64)}
	if cfg.Node.IsZero() {
		cfg.Node = key.ExchangePublic(key.NewNode())
		cfg.Disco, cfg.Machine = key.NewDisco(), key.NewMachine()
	}
	cfg.Log = func(f string, a ...any) { t.Logf(f, a...) }
	cfg.Endpoints = func(a []netip.AddrPort) {
		select {
		case s.addrs <- a:
		default: // a test that cares reads
		}
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Bind, s.cfg = b, cfg
	t.Cleanup(s.stop)
	return s
}

func (s *side) stop() {
	s.Stop()
	s.wg.Wait()
}

func (s *side) attach() {
	s.t.Helper()
	fns, _, err := s.Open(0)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, fn := range fns {
		s.wg.Go(func() {
			n, size := s.BatchSize(), 65535
			if s.small {
				n, size = 4, 2048
			}
			bufs, sizes, eps := make([][]byte, n), make([]int, n), make([]conn.Endpoint, n)
			for i := range bufs {
				bufs[i] = make([]byte, size)
			}
			for {
				n, err := fn(bufs, sizes, eps)
				if err != nil {
					if err != net.ErrClosed {
						s.t.Errorf("receive: %v", err)
					}
					return
				}
				for i := range n {
					if sizes[i] > 0 {
						s.got <- packet{append([]byte(nil), bufs[i][:sizes[i]]...), eps[i], time.Now()}
					}
				}
			}
		})
	}
}

func (s *side) detach() {
	s.Close()
	s.wg.Wait()
}

func (s *side) peer(relay uint16, eps ...netip.AddrPort) Peer {
	return Peer{Key: s.cfg.Node, Disco: key.ExchangePublic(s.cfg.Disco), Endpoints: eps, Relay: relay}
}

// to sends one packet to another side, as the device would.
func (s *side) to(d *side, pkt []byte) error {
	k := d.cfg.Node.Raw()
	ep, err := s.ParseEndpoint((&Endpoint{key: key.NodePublicFromRaw(k)}).DstToString())
	if err != nil {
		s.t.Fatal(err)
	}
	return s.Send([][]byte{pkt}, ep)
}

// wg makes WireGuard packets: what counts here is the type, the indexes, and a number to know them by.
func wg(kind, first, second uint32, n uint64) []byte {
	b := make([]byte, map[uint32]int{initiation: 148, response: 92, cookie: 64, transport: 96}[kind])
	binary.LittleEndian.PutUint32(b, kind)
	binary.LittleEndian.PutUint32(b[4:], first)
	binary.LittleEndian.PutUint32(b[8:], second)
	binary.LittleEndian.PutUint64(b[16:], n)
	if kind <= response {
		rand.Read(b[24:40]) // of the ephemeral key
	}
	return b
}

func number(b []byte) uint64 { return binary.LittleEndian.Uint64(b[16:]) }
