// Package node is a member of a mesh: the embeddable API, and the only place where the other packages meet.
//
//	                       ┌──────────────────── Node ────────────────────┐
//	app ── Dial, Listen ───┤ netstack ── tunnel[filter] ── wireguard ── bind ├── UDP, relays ── peers
//	app ── SOCKS5, HTTP ───┤ proxy          ▲ Set                ▲ peers      │
//	hedge status, ping … ──┤ local API      └─────── control ────┘            ├── wire ── coordinator
//	                       └──────────── state: identity, last Map ───────┘
//
// A [Node] enforces the last Map it was given, whether or not its coordinator can be reached, and from its disk after
// a restart. It has no rights that the Map does not give, and none at all once it is refused.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/hedge-mesh/hedge/acl/filter"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/netstack"
	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/device"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/ostun"
	"github.com/hedge-mesh/hedge/node/path"
	"github.com/hedge-mesh/hedge/node/portmap"
	"github.com/hedge-mesh/hedge/node/proxy"
)

// DefaultProxy is where the SOCKS5 and HTTP proxy listens unless told otherwise.
const DefaultProxy = "127.0.0.1:1055"

// Config is what a Node is made of. Only StateDir is needed, and Join the first time.
type Config struct {
	// StateDir holds the identity and the last Map; it is made with mode 0700. One process at a time may use it.
	StateDir string
	// Join is the join string "hedge1-…", a secret. It is needed once: a state that is a member already ignores it,
	// if it is for the same mesh, and refuses it if not.
	Join string
	// Name is the name to have from enrolment on, one DNS label: this or none. By default it is the host's name,
	// with a number if that is taken.
	Name string
	// Ephemeral asks the coordinator to forget this node soon after it goes away.
	Ephemeral bool
	// Inbound says what becomes of connections from the mesh to ports on which nobody has called [Node.Listen].
	// The zero value refuses them; [Loopback] hands them to the same port of 127.0.0.1.
	Inbound Inbound
	// Proxy is the loopback address on which SOCKS5 and HTTP proxy are served, [DefaultProxy] say; port 0 takes any
	// free port (see Status). Empty or "off" serves none.
	Proxy string
	// Socket is the path of the local API's Unix socket; empty serves none.
	Socket string
	// Port is the UDP port for WireGuard and path probes; 0 takes any.
	Port uint16
	// TUN is [TUNOn] for an interface of the operating system through which all programs of this host reach the mesh,
	// and peers whatever listens here; [TUNAuto] for one if it can be made; [TUNOff] or empty for a stack inside the
	// process. With an interface Dial, Listen and Proxy use the host's sockets, and Inbound must be [Loopback], since
	// what the policy lets in is the host's to take.
	TUN string
	// TUNName is the interface's name, ostun.DefaultName if empty.
	TUNName string
	// Device is an interface made elsewhere, as on phones; whoever made it gives it addresses and routes.
	Device tun.Device
	// Routing is what to carry for others and the exit to use, from the start; see [Node.SetRouting].
	Routing Routing
	// Version is the software's version as Status and the coordinator show it.
	Version string
	// Endpoints are addresses at which peers can reach this node, as an admin knows: a forwarded port, say.
	Endpoints []netip.AddrPort
	// Guesses bounds the ports that this node guesses in one attempt to reach a peer behind a NAT with a port for each far
	// end (see [path.Budget]); 0 for 1,024, negative for none. Where both NATs are such, it is twice as many.
	Guesses int
	// NoPortMapping does not ask the gateway to forward a port (PCP, NAT-PMP, UPnP).
	NoPortMapping bool
	// LoopbackOnly keeps WireGuard and path probes to loopback addresses, for several nodes on one machine.
	LoopbackOnly bool
	// Log is where the node and what it is made of log. No secret is ever written to it. The zero value is silent.
	Log zerolog.Logger
}

// Inbound is what to do with connections that come from the mesh and that the policy allows.
type Inbound struct {
	mode   string
	accept func(ctx context.Context, network string, local, remote netip.AddrPort) (net.Conn, error)
}

// Loopback joins a connection with the same port of 127.0.0.1.
var Loopback = Inbound{"loopback", dialLoopback}

// String is "off", "loopback" or "handler".
func (i Inbound) String() string {
	if i.mode == "" {
		return "off"
	}
	return i.mode
}

// Handle gives each connection (network is "tcp" or "udp") to accept, which returns what to join it with; an error
// refuses it: a TCP peer gets an RST before it is accepted, a UDP peer port unreachable.
func Handle(accept func(ctx context.Context, network string, local, remote netip.AddrPort) (net.Conn, error)) Inbound {
	return Inbound{"handler", accept}
}

// Node is a member of a mesh. Its methods may be called from any goroutine.
type Node struct {
	cfg     Config
	log     zerolog.Logger
	started time.Time
	machine key.MachinePublic
	self    key.NodePublic

	state   *state
	filter  *filter.Filter
	bind    *bind.Bind
	portmap atomic.Pointer[portmap.Client] // nil if the gateway is not asked
	stack   *netstack.Stack                // nil on a host's device
	host    host                           // nil but on one that we have made
	beside  *beside                        // it, with what carries for others
	about   Device
	tun     *tunnel
	wg      *device.Device
	roster  *roster
	enforce *enforcer
	sizes   *sizes
	control *control
	proxy   *proxy.Server // nil for none
	proxyAt netip.AddrPort
	local   *local // nil for none

	routing   atomic.Pointer[Routing]
	routingMu sync.Mutex // held while it changes
	noPings   error      // why pings are not carried for others

	find   lookup        // of names, for those whose exit this node is
	asking chan struct{} // a token for each lookup

	cancel context.CancelFunc // ends what running counts
	run    sync.WaitGroup

	news     news
	stop     sync.Once
	done     chan struct{} // closed when the node is asked to end
	close    sync.Once
	closeErr error
	released chan struct{} // closed when the state is another process's to take
}

// Start brings a node up. It returns once the node enforces a Map: at once from its state's last one, coordinator or
// not; a node that has none yet enrols and waits for its first, until ctx is done. The context bounds Start only.
//
// Errors are told apart with errors.As and errors.Is: [*StateError], [*LockedError], [ErrNotJoined], [*JoinError],
// [*wire.Refused] (its Code says why), [*wire.PinError] (an impostor coordinator) and [*wire.UnreachableError].
func Start(ctx context.Context, cfg Config) (*Node, error) {
	n := &Node{
		cfg: cfg, log: cfg.Log, started: time.Now(),
		find: net.DefaultResolver.LookupNetIP, asking: make(chan struct{}, namesInAll),
		done: make(chan struct{}), released: make(chan struct{}), cancel: func() {}, sizes: newSizes(),
	}
	n.routing.Store(&cfg.Routing)
	if err := n.start(ctx); err != nil {
		_ = n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Node) start(ctx context.Context) error {
	join, err := parseJoin(n.cfg.Join)
	if err != nil {
		return err
	}
	if err := n.cfg.Routing.check(nil); err != nil {
		return err
	}
	if n.state, err = openState(n.cfg.StateDir); err != nil {
		return err
	}
	id, err := n.state.member(join)
	if err != nil {
		return err
	}
	m, err := n.state.loadMap()
	if err != nil {
		return err
	}
	l, err := n.listenProxy()
	if err != nil {
		return err
	}
	if err := n.build(id, m); err != nil {
		if l != nil {
			_ = l.Close()
		}
		return err
	}
	n.control.join = join.Key
	if !id.joined {
		n.control.hello.Enrol = join.Key
	}
	have := false
	if m != nil {
		if err := n.enforce.set(m, true, time.Now()); err != nil {
			n.log.Warn().Err(err).Msg("cannot use the map on disk; waiting for the coordinator's")
		} else {
			have = true
			n.greetAll(m)
		}
	}
	rctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.run.Go(func() { n.control.run(rctx) })
	n.run.Go(func() { n.enforce.clock(rctx.Done()) })
	n.run.Go(func() { n.roster.serve(rctx.Done()) })
	n.run.Go(func() { n.roster.answer(rctx.Done()) })
	if n.host != nil {
		n.run.Go(func() { n.tellSizes(rctx.Done()) })
	}
	if l != nil {
		n.run.Go(func() { _ = n.proxy.Serve(l) })
	}
	if n.cfg.Socket != "" {
		if n.local, err = serveLocal(n, n.cfg.Socket); err != nil {
			return err
		}
	}
	if have {
		return nil
	}
	return n.await(ctx)
}

// await waits for the first Map.
func (n *Node) await(ctx context.Context) error {
	select {
	case err := <-n.control.first:
		return err
	case <-n.done:
		return net.ErrClosed
	case <-ctx.Done():
		if err := n.control.why(); err != nil {
			return err
		}
		return fmt.Errorf("no answer from the coordinator at %s: %w", strings.Join(n.control.id.urls, ", "), ctx.Err())
	}
}

// build makes the data path, which denies everything until a Map is set.
func (n *Node) build(id identity, m *wire.Map) (err error) {
	n.machine, n.self = key.PublicOf(id.machine), key.ExchangePublic(id.node)
	disco := key.ExchangePublic(id.disco)
	name := n.cfg.Name
	if name == "" {
		name = hostName()
	}
	n.control = &control{
		id: id, state: n.state, disco: disco, log: n.log, changed: n.news.tell,
		hello: newHello(id, name, n.cfg.Version, n.cfg.Ephemeral, disco),
		moved: make(chan struct{}, 1), again: make(chan struct{}, 1), dirty: make(chan struct{}, 1), first: make(chan error, 1),
	}
	n.control.hello.Exact = n.cfg.Name != ""
	n.control.offers = n.offers
	n.control.relay = func() bool { return n.Routing().PeerRelay }
	var exclude []netip.Prefix
	if m != nil {
		exclude = m.Self.Prefixes
	}
	n.bind, err = bind.New(bind.Config{
		Node: n.self, Disco: id.disco, Machine: id.machine, Port: n.cfg.Port, Loopback: n.cfg.LoopbackOnly, Exclude: exclude,
		Budget:    budget(n.cfg.Guesses),
		Endpoints: func([]netip.AddrPort) { n.control.move() },
		Lacks:     func() { n.control.move() },
		Home:      func(uint16) { n.control.move() },
		Static:    n.cfg.Endpoints,
		Moved:     n.moved,
		Deaf:      n.deaf,
		Changed:   n.pathChanged,
		Sized:     n.sizes.mark,
		Stale:     n.greet,
		Crossed:   n.regreet,
		Unheard:   n.confirm,
		Names:     n.state.loadNames(),
		Named:     n.named,
		Log:       func(format string, args ...any) { n.log.Debug().Msgf("bind: "+format, args...) },
	})
	if err != nil {
		return fmt.Errorf("open UDP port %d: %w", n.cfg.Port, err)
	}
	n.mapPort()
	n.control.bind = n.bind
	inner, err := n.makeDevice()
	if err != nil {
		return err
	}
	if n.host != nil {
		n.bind.Watch()
		if err := n.bind.SetMark(ostun.Mark); err != nil {
			n.log.Warn().Err(err).Msg("the tunnel's own packets cannot be marked")
		}
	}
	n.log.Info().Str("kind", n.about.Kind).Str("name", n.about.Name).Str("why", n.about.Why).Msg("device")
	n.filter = filter.New(filter.Options{})
	n.tun = newTunnel(inner, n.filter)
	n.tun.lost, n.tun.company.heard = n.lostDevice, n.bind.HearsSparse
	w := &screened{Bind: n.bind, company: &n.tun.company}
	if n.roster, err = newRoster(n.bind.Deliver, n.bind.Forget, id.node, n.log); err != nil {
		return fmt.Errorf("node key: %w", err)
	}
	w.screen, n.tun.peers = n.roster.screen, &usher{roster: n.roster}
	n.wg = device.NewDevice(n.tun, w, wgLogger(n.log))
	n.roster.wg = n.wg
	n.wg.DisableSomeRoamingForBrokenMobileSemantics() // an endpoint is a peer, by whatever path: none is better than it
	if err := n.wg.IpcSet("private_key=" + key.WireGuardHex(id.node) + "\n"); err != nil {
		return fmt.Errorf("set the WireGuard key: %w", err)
	}
	if err := n.wg.Up(); err != nil {
		return fmt.Errorf("start WireGuard: %w", err)
	}
	n.enforce = &enforcer{
		self: n.self, filter: n.filter, bind: n.bind, roster: n.roster, tun: n.tun, shape: n.shape, log: n.log,
		exit: func() string { return n.Routing().ExitNode }, relay: n.control.relay,
		news: func() { n.news.tell(); n.sizes.markAll() }, ask: n.control.ask, pin: n.control.id.pin, wake: make(chan struct{}, 1),
	}
	n.enforce.cur.Store(&enforced{})
	n.control.enforce = n.enforce
	n.noPings = carriesPings()
	return nil
}

// offers are the prefixes that the coordinator is told of: none where they cannot be carried.
func (n *Node) offers() []netip.Prefix {
	if n.stack == nil && n.beside.can() != nil {
		return nil
	}
	r := n.Routing()
	return r.offers()
}

// greetAll makes new sessions at a restart. Peers still have those of the process before, whose keys are gone, and would
// send into them for a quarter of a minute before WireGuard gives them up.
func (n *Node) greetAll(m *wire.Map) {
	greeted := 0
	for i := range m.Peers {
		if p := &m.Peers[i]; m.Presence[p.ID].Online && greeted < maxGreet {
			n.greet(p.Key)
			greeted++
		}
	}
}

// maxGreet is how many peers are greeted: in a larger mesh most have no session with us, and those that do are
// greeted when they use it.
const maxGreet = 64

// greet makes a new session with a peer, if there is none being made.
func (n *Node) greet(k key.NodePublic) { n.roster.greet(k) }

// regreet makes a new session in place of those being made, which have undone each other. WireGuard would have no other
// for 5 s, unless it is told to forget.
func (n *Node) regreet(k key.NodePublic) {
	if p := n.wg.LookupPeer(device.NoisePublicKey(k.Raw())); p != nil {
		p.ExpireCurrentKeypairs()
		_ = p.SendHandshakeInitiation(false)
	}
}

// named keeps where names led, for when this node is started while DNS does not answer.
func (n *Node) named(names map[string][]netip.Addr) {
	if err := n.state.saveNames(names); err != nil {
		n.log.Debug().Err(err).Msg("keep where names led")
	}
}

// confirm lets a peer know that its answer has arrived.
func (n *Node) confirm(k key.NodePublic) {
	if p := n.wg.LookupPeer(device.NoisePublicKey(k.Raw())); p != nil {
		p.SendKeepalive()
	}
}

// wgLogger gives WireGuard's words to our log; they hold no secrets. What it calls errors are packets that could not be
// sent just now.
func wgLogger(l zerolog.Logger) *device.Logger {
	w := &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
	if l.GetLevel() <= zerolog.TraceLevel {
		w.Verbosef = func(format string, args ...any) { l.Trace().Msgf("wireguard: "+format, args...) }
	}
	if l.GetLevel() <= zerolog.DebugLevel {
		w.Errorf = func(format string, args ...any) { l.Debug().Msgf("wireguard: "+format, args...) }
	}
	return w
}

// hostName is the host's name as one DNS label.
func hostName() string {
	h, _ := os.Hostname()
	h, _, _ = strings.Cut(strings.ToLower(h), ".")
	h = strings.Trim(strings.Map(func(r rune) rune {
		if r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' {
			return r
		}
		return '-'
	}, h), "-")
	if len(h) > 63 {
		h = strings.TrimRight(h[:63], "-")
	}
	if h == "" {
		h = "node"
	}
	return h
}

// parseJoin reads a join string; an empty one is the zero Join.
func parseJoin(s string) (wire.Join, error) {
	if s = strings.TrimSpace(s); s == "" {
		return wire.Join{}, nil
	}
	j, err := wire.ParseJoin(s)
	if err != nil {
		return j, &JoinError{Reason: err.Error()}
	}
	return j, nil
}

// end asks the node to end; whoever started it sees Done and Closes it.
func (n *Node) end() { n.stop.Do(func() { close(n.done) }) }

// Done is closed when the node ends, by Close or because the local API was asked for it. Whoever called Start must
// Close it then.
func (n *Node) Done() <-chan struct{} { return n.done }

// farewell is how long a peer relay that is stopped still forwards what is under way: until those who use it have been
// told, and have left.
const farewell = 250 * time.Millisecond

// Close stops the node and waits until all that it started has ended.
func (n *Node) Close() error {
	n.end()
	n.close.Do(func() {
		n.cancel()
		if n.bind != nil && n.bind.EndPeerRelay() {
			<-time.After(farewell)
		}
		if n.proxy != nil {
			_ = n.proxy.Close()
		}
		if n.wg != nil {
			n.wg.Close() // and with it the stack
		}
		if p := n.portmap.Load(); p != nil {
			p.Close()
		}
		if n.bind != nil {
			n.bind.Stop()
		}
		n.run.Wait()
		if n.state != nil {
			n.closeErr = n.state.close()
		}
		close(n.released)
		if n.local != nil {
			n.local.close()
		}
		n.news.tell()
	})
	return n.closeErr
}

// Logout ends this node's membership: the coordinator forgets it, if it can be reached before ctx is done (the error
// says if not), and the identity is deleted in any case. It asks the node to end and does not wait for that; see Done.
func (n *Node) Logout(ctx context.Context) error {
	told := n.leave(ctx)
	n.enforce.refuse(&wire.Refused{Code: wire.RefusedRemoved, Message: "logged out"}, time.Now())
	forgot := n.state.forget()
	n.end()
	return errors.Join(told, forgot)
}

// leave tells the coordinator, and waits until it has ended the session.
func (n *Node) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	told := false
	for {
		next := n.news.next()
		conn := n.control.session()
		switch {
		case told && conn == nil:
			return nil
		case !told && conn != nil:
			if err := conn.Send(&wire.Logout{}); err != nil {
				return fmt.Errorf("tell the coordinator: %w; ask an admin to remove this node", err)
			}
			told = true
			continue
		}
		select {
		case <-next:
		case <-ctx.Done():
			return fmt.Errorf("the coordinator could not be told that this node leaves (%w); ask an admin to remove it", ctx.Err())
		}
	}
}

// leaveTimeout is how long Logout waits for the coordinator at most.
const leaveTimeout = 5 * time.Second

// Forget deletes the identity in a state directory that no process uses, without telling the coordinator.
func Forget(dir string) error {
	s, err := openState(dir)
	if err != nil {
		return err
	}
	return errors.Join(s.forget(), s.close())
}

// budget is what may be spent on guessing ports.
func budget(guesses int) path.Budget {
	if guesses < 0 {
		return path.Budget{Sockets: -1}
	}
	return path.Budget{Probes: guesses, Pairs: 2 * guesses}
}
