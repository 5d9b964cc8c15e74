package bind

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/device"
	"github.com/hedge-mesh/hedge/node/key"
)

// relayServer is a real relay with its STUN, on loopback.
func relayServer(t testing.TB) (Relay, func(node key.NodePublic, m key.MachinePrivate) []byte) {
	t.Helper()
	control, relay := key.NewControl(), key.NewRelay()
	s := derp.NewServer(derp.ServerConfig{Key: relay, Trust: []key.ControlPublic{key.PublicOf(control)}, Log: zerolog.Nop()})
	h := httptest.NewServer(s)
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { derp.ServeSTUN(pc) })
	t.Cleanup(func() { pc.Close(); s.Close(); h.Close(); wg.Wait() })
	r := Relay{ID: 1, Key: key.PublicOf(relay), URLs: []string{h.URL}, STUN: []string{pc.LocalAddr().String()}}
	return r, func(n key.NodePublic, m key.MachinePrivate) []byte {
		return derp.Ticket{Node: n, Machine: key.PublicOf(m), Expires: time.Now().Add(time.Hour)}.Sign(control)
	}
}

// memTUN is a tun.Device in memory.
type memTUN struct {
	out, in chan []byte // towards the mesh, from the mesh
	events  chan tun.Event
	closed  chan struct{}
	once    sync.Once
}

func newTUN() *memTUN {
	t := &memTUN{make(chan []byte, 1024), make(chan []byte, 65536), make(chan tun.Event, 1), make(chan struct{}), sync.Once{}}
	t.events <- tun.EventUp
	return t
}

func (t *memTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-t.closed:
		return 0, os.ErrClosed
	case p := <-t.out:
		sizes[0] = copy(bufs[0][offset:], p)
	}
	n := 1
	for ; n < len(bufs); n++ {
		select {
		case p := <-t.out:
			sizes[n] = copy(bufs[n][offset:], p)
			continue
		default:
		}
		break
	}
	return n, nil
}

func (t *memTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		select {
		case t.in <- append([]byte(nil), b[offset:]...):
		default: // a test that cares reads
		}
	}
	return len(bufs), nil
}

func (t *memTUN) File() *os.File           { return nil }
func (t *memTUN) MTU() (int, error)        { return 1280, nil }
func (t *memTUN) Name() (string, error)    { return "mem", nil }
func (t *memTUN) Events() <-chan tun.Event { return t.events }
func (t *memTUN) BatchSize() int           { return conn.IdealBatchSize }
func (t *memTUN) Close() error {
	t.once.Do(func() { close(t.closed); close(t.events) })
	return nil
}

// wgNode is a WireGuard device over a Bind.
type wgNode struct {
	*Bind
	dev     *device.Device
	tun     *memTUN
	ip      netip.Addr
	node    key.NodePrivate
	disco   key.DiscoPrivate
	changes chan PathChange
	gate    *gate
}

// gate lets a node's UDP through, or not.
type gate struct {
	shut atomic.Bool
	dial func(derp.ClientConfig) RelayClient // nil for the real thing
}

type gated struct {
	net.PacketConn
	g *gate
}

func (g gated) WriteTo(b []byte, a net.Addr) (int, error) {
	if g.g.shut.Load() {
		return len(b), nil
	}
	return g.PacketConn.WriteTo(b, a)
}

func newWG(t testing.TB, ip string, relay Relay, ticket func(key.NodePublic, key.MachinePrivate) []byte, g *gate) *wgNode {
	t.Helper()
	n := &wgNode{tun: newTUN(), ip: netip.MustParseAddr(ip), node: key.NewNode(), disco: key.NewDisco(),
		changes: make(chan PathChange, 256), gate: g}
	m := key.NewMachine()
	cfg := Config{Node: key.ExchangePublic(n.node), Disco: n.disco, Machine: m, Loopback: true,
		Interfaces: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil },
		Changed:    func(c PathChange) { n.changes <- c },
		Log:        func(f string, a ...any) { t.Logf(f, a...) },
	}
	if g != nil {
		cfg.DialRelay = g.dial
		cfg.Listen = func(ctx context.Context, network, address string) (net.PacketConn, error) {
			pc, err := net.ListenPacket(network, address)
			if err != nil {
				return nil, err
			}
			return gated{pc, g}, nil
		}
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Bind = b
	b.SetTicket(ticket(cfg.Node, m))
	b.SetRelays([]Relay{relay})
	n.dev = device.NewDevice(n.tun, b, device.NewLogger(device.LogLevelSilent, ""))
	n.dev.DisableSomeRoamingForBrokenMobileSemantics()
	t.Cleanup(func() { n.dev.Close(); b.Stop() })
	return n
}

func (n *wgNode) meet(t testing.TB, p *wgNode) {
	t.Helper()
	k := key.ExchangePublic(p.node)
	n.SetPeers([]Peer{{Key: k, Disco: key.ExchangePublic(p.disco), Relay: 1}})
	raw := k.Raw()
	h := hex.EncodeToString(raw[:])
	if err := n.dev.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=%s/32\n",
		key.WireGuardHex(n.node), h, h, p.ip)); err != nil {
		t.Fatal(err)
	}
	if err := n.dev.Up(); err != nil {
		t.Fatal(err)
	}
}

// ip makes an IPv4 packet that carries a number.
func ipPacket(src, dst netip.Addr, n uint64, size int) []byte {
	b := make([]byte, size)
	b[0], b[8], b[9] = 0x45, 64, 253 // protocol for experiments (RFC 3692)
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	s, d := src.As4(), dst.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint64(b[20:], n)
	return b
}

func (n *wgNode) send(to *wgNode, i uint64) { n.tun.out <- ipPacket(n.ip, to.ip, i, 100) }

// greet sends packets until one arrives: then there is a session, and WireGuard no longer keeps a short queue for want
// of it.
func greet(t testing.TB, from, to *wgNode) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(20 * time.Second); ; {
		from.send(to, 0)
		select {
		case <-to.tun.in:
			return
		case <-tick.C:
		case <-timeout:
			t.Fatal("no packet arrived in 20 s")
		}
	}
}

var base uint64 // tells flows apart

// flow sends a packet each millisecond until stop says so, and returns which never arrived.
func flow(t testing.TB, from, to *wgNode, stop func() bool) (sent, missing int) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	base++
	got := map[uint64]int{}
	count := func(p []byte) {
		if n := binary.BigEndian.Uint64(p[20:]); n>>32 == base { // else of greet, or late of the last flow
			got[n]++
		}
	}
	var n uint64
	for !stop() {
		<-tick.C
		n++
		from.send(to, base<<32|n)
		for more := true; more; {
			select {
			case p := <-to.tun.in:
				count(p)
			default:
				more = false
			}
		}
	}
	for quiet := time.After(3 * time.Second); len(got) < int(n); {
		select {
		case p := <-to.tun.in:
			count(p)
			continue
		case <-quiet:
		}
		break
	}
	for i, times := range got {
		if times > 1 {
			t.Errorf("packet %d arrived %d times", i, times)
		}
	}
	return int(n), int(n) - len(got)
}

// until stops a flow after the first change of path that is direct, or not, and some packets more.
func until(t testing.TB, n *wgNode, direct bool) func() bool {
	deadline := time.Now().Add(30 * time.Second)
	more := -1
	return func() bool {
		select {
		case c := <-n.changes:
			if t.Logf("%v: %s", time.Now().Format(".000"), c.Path.Why); c.Path.Direct == direct && more < 0 {
				more = 600
			}
		default:
		}
		if more > 0 {
			more--
		}
		if time.Now().After(deadline) {
			t.Errorf("no change of path in 30 s")
			return true
		}
		return more == 0
	}
}

// Two devices, a real relay, real sockets: packets flow from the first on, by relay and then directly, none is lost.
func TestDevices(t *testing.T) {
	relay, ticket := relayServer(t)
	a, b := newWG(t, "100.64.0.1", relay, ticket, nil), newWG(t, "100.64.0.2", relay, ticket, nil)
	a.meet(t, b)
	b.meet(t, a)
	if i, ok := a.Path(key.ExchangePublic(b.node)); !ok || i.Direct {
		t.Errorf("before the first packet: %+v", i)
	}
	greet(t, a, b)
	sent, missing := flow(t, a, b, until(t, a, true))
	if missing != 0 {
		t.Errorf("%d of %d packets lost", missing, sent)
	}
	// The device closes and opens its bind under the flow; what it does not read meanwhile waits in the sockets.
	i := 0
	sent, missing = flow(t, a, b, func() bool {
		if i++; i%100 == 0 {
			if err := b.dev.BindUpdate(); err != nil {
				t.Error(err)
			}
		}
		return i == 1000
	})
	if missing != 0 {
		t.Errorf("%d of %d packets lost over BindUpdate", missing, sent)
	}
	if i, _ := a.Path(key.ExchangePublic(b.node)); !i.Direct {
		t.Errorf("after BindUpdate: %+v", i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	rtt, i2, err := a.Probe(ctx, key.ExchangePublic(b.node))
	if err != nil || !i2.Direct {
		t.Errorf("probe: %v, %+v, %v", rtt, i2, err)
	}
}

// The direct path is shut, opens, shuts and opens again under a flow.
func TestDevicesFallback(t *testing.T) {
	relay, ticket := relayServer(t)
	g := &gate{}
	g.shut.Store(true)
	a, b := newWG(t, "100.64.0.1", relay, ticket, g), newWG(t, "100.64.0.2", relay, ticket, g)
	a.meet(t, b)
	b.meet(t, a)
	greet(t, a, b)
	n := 0
	sent, missing := flow(t, a, b, func() bool { n++; return n > 300 })
	if missing != 0 {
		t.Errorf("%d of %d packets lost by relay", missing, sent)
	}
	if i, _ := a.Path(key.ExchangePublic(b.node)); i.Direct {
		t.Errorf("shut, and yet %+v", i)
	}
	g.shut.Store(false)
	if sent, missing = flow(t, a, b, until(t, a, true)); missing != 0 {
		t.Errorf("%d of %d packets lost in the change to direct", missing, sent)
	}
	g.shut.Store(true)
	sent, missing = flow(t, a, b, until(t, a, false))
	t.Logf("%d of %d packets lost with the path", missing, sent)
	if missing > 1000 {
		t.Errorf("%d packets, one a millisecond, lost with the path", missing)
	}
	g.shut.Store(false)
	if sent, missing = flow(t, a, b, until(t, a, true)); missing != 0 {
		t.Errorf("%d of %d packets lost in the change back", missing, sent)
	}
}

// BenchmarkTunnel is what arrives of packets of 1280 bytes through two devices, both ends and the relay on this machine.
func BenchmarkTunnel(b *testing.B) {
	for _, by := range []string{"direct", "relay"} {
		b.Run(by, func(b *testing.B) {
			relay, ticket := relayServer(b)
			var g *gate
			if by == "relay" {
				g = &gate{}
				g.shut.Store(true)
			}
			s, d := newWG(b, "100.64.0.1", relay, ticket, g), newWG(b, "100.64.0.2", relay, ticket, g)
			s.meet(b, d)
			d.meet(b, s)
			greet(b, s, d)
			if by == "direct" {
				for !(<-s.changes).Path.Direct {
				}
			}
			pkt := ipPacket(s.ip, d.ip, 1, 1280)
			done := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					select {
					case s.tun.out <- pkt:
					case <-done:
						return
					}
				}
			})
			b.SetBytes(1280)
			for b.Loop() {
				<-d.tun.in
			}
			close(done)
			wg.Wait()
		})
	}
}
