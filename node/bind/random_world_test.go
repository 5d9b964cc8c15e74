package bind

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/path"
	"github.com/hedge-mesh/hedge/test/lab"
)

// world is what was drawn, in being: two ends in an internet in memory, two relays with STUN beside them, and a coordinator that
// tells each end of the other.
type world struct {
	t     *testing.T
	drawn drawn
	net   *lab.Internet
	start time.Time
	ends  [2]*end
	hubs  [2]*hub

	mu   sync.Mutex
	rng  *rand.Rand
	log  []string
	over time.Duration // the end of the last event
}

// end is one node: what it is now, and what came of it.
type end struct {
	*side
	w       *world
	n       int
	host    *lab.Machine
	routers []*lab.Router
	ground  ground // as it is now

	// Under world.mu.
	dark     time.Time           // nothing passes until then
	hold     time.Time           // connections to relays are made anew until then
	silent   map[netip.Addr]int  // probes to addresses of which nothing ever came, in this second
	second   int64               //
	probes   int                 // the most of them
	heard    map[netip.Addr]bool //
	sent     int                 // datagrams to other than servers
	switches []change
	flow     talker
}

type change struct {
	at     time.Duration
	route  netip.AddrPort
	direct bool
	why    string
}

// hub is a relay: a stream to each node, which holds back what a dark network would, or datagrams where UDP passes.
type hub struct {
	w    *world
	id   uint16
	wait time.Duration
	down bool
	host *lab.Machine
	at   map[key.NodePublic]*line
}

type line struct {
	h    *hub
	e    *end
	cfg  derp.ClientConfig
	up   bool
	last [2]time.Time // arrival of the latest: at the relay, and here
}

// stun opens the relay's STUN server for both families.
func (h *hub) stun() (names []string) {
	t := h.w.t
	h.host = h.w.net.Machine().Both()
	h.links()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for _, network := range []string{"udp4", "udp6"} {
		pc, err := h.host.Listen(context.Background(), network, ":3478")
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, netip.AddrPortFrom(h.host.Addr(network == "udp6"), 3478).String())
		wg.Go(func() { derp.ServeSTUN(pc) })
		t.Cleanup(func() { pc.Close() })
	}
	return names
}

func (h *hub) links() {
	l := lab.Link{Latency: h.wait}
	if h.down {
		l.Loss = 1
	}
	h.host.Links(l, l)
}

func (h *hub) dial(e *end, cfg derp.ClientConfig) RelayClient {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	l := &line{h: h, e: e, cfg: cfg}
	h.at[cfg.Node] = l
	l.connect(3 * h.trip(e))
	return l
}

// trip is a round trip between a node and the relay.
func (h *hub) trip(e *end) time.Duration {
	return 2*h.wait + e.ground.up.Latency + e.ground.down.Latency + 2*lab.Edge
}

// connect lets a connection be up after a while, if the relay is by then. Under world.mu.
func (l *line) connect(after time.Duration) {
	w := l.h.w
	if d := time.Until(l.e.dark); d > 0 {
		after += d + w.some(time.Second)
	}
	w.net.After(after, func() {
		w.mu.Lock()
		l.up = !l.h.down && l.h.at[l.cfg.Node] == l
		up := l.up
		w.mu.Unlock()
		if up {
			l.cfg.Status(true, nil)
		}
	})
}

func (w *world) some(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d))) }

// after is when a packet is at the other end of a line; false if it is lost. Under world.mu.
func (l *line) after(dir int, now time.Time) (time.Time, bool) {
	k := &l.e.ground.up
	if dir == 1 {
		k = &l.e.ground.down
	}
	at, w := now, l.h.w
	udp := !slices.ContainsFunc(l.e.ground.routers, func(r lab.RouterConfig) bool { return r.BlockUDP || r.NoIPv4 })
	if k.Loss > 0 && k.Loss < 1 && w.rng.Float64() < k.Loss {
		if udp {
			return at, false
		}
		at = at.Add(l.h.trip(l.e) + w.some(50*time.Millisecond))
	}
	for _, t := range []time.Time{l.e.dark, l.e.hold} {
		if t.After(now) {
			at = t.Add(w.some(300 * time.Millisecond))
		}
	}
	at = at.Add(l.h.wait + k.Latency + lab.Edge)
	if k.Jitter > 0 {
		at = at.Add(w.some(k.Jitter))
	}
	at = latest(at, l.last[dir])
	l.last[dir] = at
	return at, true
}

func (l *line) Send(dst key.NodePublic, pkts [][]byte) bool {
	w := l.h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if !l.up {
		return false
	}
	now := time.Now()
	at, ok := l.after(0, now)
	if !ok {
		return true
	}
	var copies [][]byte
	for _, p := range pkts {
		copies = append(copies, slices.Clone(p))
	}
	w.net.After(at.Sub(now), func() { l.h.pass(l, dst, copies) })
	return true
}

// pass is what a relay does with packets.
func (h *hub) pass(from *line, dst key.NodePublic, pkts [][]byte) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	to := h.at[dst]
	if h.down || !from.up {
		return
	}
	now := time.Now()
	if to == nil || !to.up {
		if at, ok := from.after(1, now); ok {
			h.w.net.After(at.Sub(now), func() { from.cfg.Gone(dst) })
		}
		return
	}
	if at, ok := to.after(1, now); ok {
		h.w.net.After(at.Sub(now), func() {
			h.w.mu.Lock()
			there := to.up
			h.w.mu.Unlock()
			if there {
				to.cfg.Receive(from.cfg.Node, pkts)
			}
		})
	}
}

func (l *line) SendPriority(dst key.NodePublic, pkts [][]byte) bool { return l.Send(dst, pkts) }
func (l *line) Up() bool                                            { l.h.w.mu.Lock(); defer l.h.w.mu.Unlock(); return l.up }

// Redial makes a new connection, which takes three round trips where there is no UDP.
func (l *line) Redial() {
	w := l.h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.up {
		l.connect(3 * l.h.trip(l.e))
	}
}

func (l *line) Close() error {
	l.h.w.mu.Lock()
	defer l.h.w.mu.Unlock()
	l.up = false
	if l.h.at[l.cfg.Node] == l {
		delete(l.h.at, l.cfg.Node)
	}
	return nil
}

// set starts or ends a relay.
func (h *hub) set(down bool) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.down = down
	h.links()
	for _, l := range h.at {
		if !down {
			l.connect(l.h.trip(l.e))
			continue
		}
		l.up = false
		h.w.net.After(h.trip(l.e)/2, func() { l.cfg.Status(false, fmt.Errorf("the relay is gone")) })
	}
}

// lost is what a dark or a changed network does to the lines of an end. Under world.mu.
func (e *end) lost(d time.Duration) {
	for _, h := range e.w.hubs {
		l := h.at[e.cfg.Node]
		if l == nil || !l.up || d < 2*time.Second {
			continue
		}
		e.w.net.After(2*time.Second, func() {
			e.w.mu.Lock()
			was := l.up
			l.up = false
			if was {
				l.connect(0)
			}
			e.w.mu.Unlock()
			if was {
				l.cfg.Status(false, fmt.Errorf("no answer"))
			}
		})
	}
}

// watched is a socket that counts.
type watched struct {
	*lab.Socket
	e *end
}

func (c watched) WriteTo(b []byte, to net.Addr) (int, error) {
	c.e.count(b, to.(*net.UDPAddr).AddrPort())
	return c.Socket.WriteTo(b, to)
}

func (c watched) WriteTTL(b []byte, to netip.AddrPort, ttl int) (int, error) {
	c.e.count(b, to)
	return c.Socket.WriteTTL(b, to, ttl)
}

func (c watched) ReadFrom(b []byte) (int, net.Addr, error) {
	n, a, err := c.Socket.ReadFrom(b)
	if err == nil {
		c.e.w.mu.Lock()
		c.e.heard[a.(*net.UDPAddr).AddrPort().Addr().Unmap()] = true
		c.e.w.mu.Unlock()
	}
	return n, a, err
}

func (e *end) count(b []byte, to netip.AddrPort) {
	if _, probe := path.Sender(b); !probe && messageType(b) != transport {
		return
	}
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.sent++
	a := to.Addr().Unmap()
	if e.heard[a] {
		return
	}
	if s := time.Now().Unix(); s != e.second {
		e.second = s
		clear(e.silent)
	}
	e.silent[a]++
	e.probes = max(e.probes, e.silent[a])
}

// newWorld builds what was drawn.
func newWorld(t *testing.T, d drawn) *world {
	w := &world{t: t, drawn: d, net: lab.NewInternet(d.seed), rng: rand.New(rand.NewPCG(d.seed, 99)), start: time.Now()}
	var relays []Relay
	for i := range w.hubs {
		w.hubs[i] = &hub{w: w, id: uint16(i + 1), wait: d.relays[i] + lab.Edge, at: map[key.NodePublic]*line{}}
		relays = append(relays, Relay{ID: uint16(i + 1), URLs: []string{fmt.Sprint("http://relay", i+1)}, STUN: w.hubs[i].stun()})
	}
	for i := range w.ends {
		w.ends[i] = &end{w: w, n: i}
	}
	for i, e := range w.ends {
		e.settle(d.at[i], d.shared && i == 1, d.same && i == 1)
		e.begin(nil, relays)
	}
	<-time.After(1500 * time.Millisecond)
	w.tell()
	synctest.Wait()
	w.start = time.Now()
	return w
}

// settle brings the end to a place: routers are made anew, or shared with the other end.
func (e *end) settle(g ground, shared, same bool) {
	e.w.mu.Lock()
	e.routers, e.ground = nil, g
	e.ground.routers = slices.Clone(g.routers)
	e.w.mu.Unlock()
	o := e.w.ends[0].routers
	var in *lab.Router
	for i, cfg := range g.routers {
		switch {
		case same || shared && i == 0:
			in = o[i]
		default:
			if g.lan && i == len(g.routers)-1 && !cfg.Routed {
				cfg.LAN = lan
			}
			if in == nil {
				in = e.w.net.Router(cfg)
			} else {
				in = in.Router(cfg)
			}
		}
		e.routers = append(e.routers, in)
	}
	switch {
	case e.host != nil:
		e.host.Move(in)
	case in == nil:
		e.host = e.w.net.Machine()
	default:
		e.host = in.Machine()
	}
	e.links()
}

func (e *end) links() {
	e.w.mu.Lock()
	up, down := e.ground.up, e.ground.down
	e.w.mu.Unlock()
	e.host.Links(up, down)
}

// begin starts the node.
func (e *end) begin(old *side, relays []Relay) {
	w := e.w
	w.mu.Lock()
	e.heard, e.silent = map[netip.Addr]bool{}, map[netip.Addr]int{}
	w.mu.Unlock()
	var cfg Config
	if old != nil {
		cfg.Node, cfg.Disco, cfg.Machine, relays = old.cfg.Node, old.cfg.Disco, old.cfg.Machine, old.relays.list()
	}
	cfg.Listen = func(ctx context.Context, network, address string) (net.PacketConn, error) {
		pc, err := e.host.Listen(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return watched{pc.(*lab.Socket), e}, nil
	}
	cfg.Interfaces = func() ([]netip.Addr, error) { return e.host.Interfaces() }
	cfg.DialRelay = func(c derp.ClientConfig) RelayClient { return w.hubs[c.ID-1].dial(e, c) }
	cfg.LinkMTU = func(netip.AddrPort) int { return 1500 }
	cfg.Home = func(uint16) { w.net.After(30*time.Millisecond, w.tell) }
	cfg.Changed = func(c PathChange) {
		w.mu.Lock()
		defer w.mu.Unlock()
		e.switches = append(e.switches, change{time.Since(w.start), c.Path.Addr, c.Path.Direct, c.Path.Why})
		w.log = append(w.log, fmt.Sprintf("%v %c: %v %s", time.Since(w.start).Round(time.Millisecond), 'a'+e.n, c.Path.Addr, c.Path.Why))
	}
	s := newSide(w.t, cfg)
	s.small = true
	w.mu.Lock()
	e.side = s
	w.mu.Unlock()
	s.SetRelays(relays)
	s.attach()
	w.mu.Lock()
	e.flow.mine = w.rng.Uint32()
	w.mu.Unlock()
	e.flow.theirs, e.flow.asked = 0, time.Time{}
}

// tell is the coordinator: each end learns of the other, unless it is in the dark.
func (w *world) tell() {
	w.mu.Lock()
	defer w.mu.Unlock()
	a, b := w.ends[0].side, w.ends[1].side
	for _, x := range []struct{ to, of *side }{{a, b}, {b, a}} {
		if x.to == nil || x.of == nil {
			continue
		}
		x.to.SetPeers([]Peer{x.of.peer(x.of.Home(), x.of.Endpoints()...)})
	}
}

func (w *world) end() {
	for _, e := range w.ends {
		e.stop()
	}
	synctest.Wait()
}
