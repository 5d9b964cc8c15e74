package bind

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/path"
)

// Config is what a Bind is made from. Node, Disco and Machine are required.
type Config struct {
	Node    key.NodePublic     // our WireGuard key, our name at relays
	Disco   key.DiscoPrivate   // seals path probes
	Machine key.MachinePrivate // authenticates us to relays
	Port    uint16             // UDP port of both sockets; 0 lets the system choose

	Loopback bool             // keep to loopback addresses, offered and probed: for several nodes on one machine
	Static   []netip.AddrPort // where peers may reach us, as an admin knows
	Exclude  []netip.Prefix   // addresses never offered nor probed: the mesh's own
	Budget   path.Budget      // of guessing the ports of NATs that are hard to get through; zero for the default

	Names     map[string][]netip.Addr // where the names of coordinator and relays led, as Named told
	PeerRelay derp.ForwarderConfig    // bounds of what is done as a relay for peers (SetPeerRelay)

	// The callbacks run on goroutines of the Bind, must return soon, and must not call Stop or Probe. Each may be nil.
	Endpoints func([]netip.AddrPort)           // our own endpoints changed
	Home      func(relay uint16)               // our home relay changed
	Lacks     func()                           // what [Bind.Lacks] says changed
	Moved     func()                           // this machine's addresses changed
	Deaf      func(mapped netip.AddrPort)      // nothing comes through what SetMapped set
	Changed   func(PathChange)                 // a peer's path changed
	Sized     func(key.NodePublic)             // what it carries did: see [Bind.MTU]. It may be called by SetPeers
	Stale     func(key.NodePublic)             // a peer uses a session we have no part in: it has not noticed our restart
	Crossed   func(key.NodePublic)             // handshakes with a peer have undone each other: make WireGuard forget them, and begin
	Unheard   func(key.NodePublic)             // a peer has not heard that its answer arrived: send it a keepalive
	Named     func(map[string][]netip.Addr)    // where names led, which is to be kept as Names
	Log       func(format string, args ...any) // what goes wrong and mends itself, for a debug log

	// Seams; nil for the real thing.
	Listen     func(ctx context.Context, network, address string) (net.PacketConn, error) // "udp4" or "udp6", ":port"
	Interfaces func() ([]netip.Addr, error)                                               // addresses of this machine
	DialRelay  func(derp.ClientConfig) RelayClient
	LinkMTU    func(netip.AddrPort) int // the longest IP packet that our own link to an address carries
}

// RelayClient is a connection to one relay that mends itself; *derp.Client is one. The Send methods never block, copy
// what they take, and report whether it was queued.
type RelayClient interface {
	Send(dst key.NodePublic, pkts [][]byte) bool
	SendPriority(dst key.NodePublic, pkts [][]byte) bool // before any data: probes and handshakes
	Up() bool
	Redial()      // the network changed
	Close() error // waits
}

var _ RelayClient = (*derp.Client)(nil)

// Peer is a peer as the coordinator tells it.
type Peer struct {
	Key       key.NodePublic
	Disco     key.DiscoPublic
	Endpoints []netip.AddrPort // candidates; at most path.MaxCandidates are used
	Relay     uint16           // ID of the relay the peer is at; 0 if unknown
	Lacks     []uint16         // relays that it cannot reach, as it says
	Hops      []Hop            // peer relays that it and we may use; at most path.MaxHops are
}

// Relay is a relay as the coordinator tells it.
type Relay struct {
	ID   uint16 // not 0
	Key  key.RelayPublic
	URLs []string
	STUN []string // host:port, UDP
}

// PathInfo is how packets reach a peer now.
type PathInfo struct {
	Direct    bool
	Addr      netip.AddrPort // of a direct path
	Hop       key.NodePublic // the peer relay that it is by; zero if by none
	HopName   string         // its name
	Relay     uint16         // the peer's relay; 0 if it has none
	RTT       time.Duration  // of the last answered probe of this path; 0 if none was
	MTU       int            // longest packet inside the tunnel that it carries whole
	Since     time.Time      // when the path was chosen
	LastHeard time.Time      // last packet of the peer by any path; zero if none
	Why       string         // why this path, for people
}

// PathChange is a change of the path of one peer.
type PathChange struct {
	Peer key.NodePublic
	Path PathInfo
}
