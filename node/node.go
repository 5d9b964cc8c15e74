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
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.zx2c4.com/wireguard/tun"
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
	// Name is the name to ask for at enrolment, one DNS label; the host's name by default.
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
	// Tun is the host's device, instead of the stack of our own: then Dial, Listen, Inbound and Proxy use the host's.
	Tun tun.Device
	// Version is the software's version as Status and the coordinator show it.
	Version string
	// Log is where the node and what it is made of log. No secret is ever written to it. The zero value is silent.
	Log zerolog.Logger
}

// Inbound is what to do with connections that come from the mesh and that the policy allows.
type Inbound struct {
	mode   string
	accept func(ctx context.Context, network string, local, remote netip.AddrPort) (net.Conn, error)
}

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
	started time.Time

	done  chan struct{} // closed when the node is to end: by Close, Down or Logout
	once  sync.Once
	cause error // why done was closed; written before
}

// Start brings a node up. It returns once the node enforces a Map: at once from its state's last one, coordinator or
// not; a node that has none yet enrols and waits for its first, until ctx is done. The context bounds Start only.
//
// Errors are told apart with errors.As: [*StateError], [*LockedError], [ErrNotJoined], [*JoinError],
// [*wire.Refused] (its Code says why), [*wire.PinError] (an impostor coordinator) and [*wire.UnreachableError].
func Start(ctx context.Context, cfg Config) (*Node, error) {
	return nil, ErrNotJoined
}

// Close stops the node and waits until all that it started has ended.
func (n *Node) Close() error { return nil }

// Done is closed when the node ends, by Close or because the local API was asked for Down or Logout. Whoever called
// Start must then Close it.
func (n *Node) Done() <-chan struct{} { return n.done }

// Logout ends this node's membership: the coordinator forgets it, if it can be reached, and the state is deleted in
// any case. It does not wait for the node to end; see Done.
func (n *Node) Logout(ctx context.Context) error { return nil }

// Resolve gives the addresses of a peer by its name ("web" or "web.hedge.internal", in any case), or of an address
// literal itself, IPv4 first. Only peers that the policy lets this node see have names here.
func (n *Node) Resolve(name string) ([]netip.Addr, error) { return nil, &UnknownNameError{Name: name} }

// DialContext connects to hostport ("web:80", "100.64.0.3:53") over the mesh; network is tcp, tcp4, tcp6, udp, udp4
// or udp6. Errors are told apart with errors.As: [*DeniedError], [*UnknownNameError], [*UnreachableError].
func (n *Node) DialContext(ctx context.Context, network, hostport string) (net.Conn, error) {
	return nil, &UnknownNameError{Name: hostport}
}

// Listen accepts connections from the mesh on hostport; ":80" is port 80 of all of this node's addresses in the mesh.
// network is tcp, tcp4 or tcp6. The policy still decides who gets here.
func (n *Node) Listen(network, hostport string) (net.Listener, error) { return nil, net.ErrClosed }

// ListenPacket is Listen for udp, udp4 and udp6; the host part must be one of this node's addresses.
func (n *Node) ListenPacket(network, hostport string) (net.PacketConn, error) {
	return nil, net.ErrClosed
}

// Ping measures the way to a peer: a path probe, and an ICMP echo in the tunnel if the peer answers no probe.
func (n *Node) Ping(ctx context.Context, name string) (PingResult, error) {
	return PingResult{}, &UnknownNameError{Name: name}
}

// Why says what the policy makes of a new flow, and which rule says so.
func (n *Node) Why(q WhyQuery) (WhyResult, error) {
	return WhyResult{}, &UnknownNameError{Name: q.Dst}
}

// Status is what this node knows of itself and its peers, now.
func (n *Node) Status() Status { return Status{} }
