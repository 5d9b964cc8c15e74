package coordinator

import (
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/rs/zerolog"

	"github.com/hedge-mesh/hedge/coordinator/store"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

// Config is what a Server needs. Store, Control, PolicyFile and URLs must be set; the zero value of the rest stands
// for its default.
type Config struct {
	Store      store.Store // closed by its owner, after the Server
	Control    key.ControlPrivate
	PolicyFile string       // HuJSON; read, watched, and written by the admin API
	URLs       []string     // where nodes reach /control: they go into join strings
	Relays     []wire.Relay // those of the mesh, the embedded one included
	// Kick cuts a node's connections to the embedded relay. It must not block.
	Kick func(key.NodePublic)

	Prefixes []netip.Prefix // one IPv4 and one IPv6: 100.64.0.0/10 and fd68:6564:6765::/48
	Domain   string         // "hedge.internal"

	KeyLifetime    time.Duration // of node keys: 180 days
	TicketLifetime time.Duration // of relay tickets: 48 hours
	EphemeralAfter time.Duration // offline for so long, an ephemeral node is removed: 10 minutes
	MaxHandshakes  int           // at once, before authentication: 256
	MaxSessions    int           // 20,000

	Log zerolog.Logger
}

// Server is a coordinator.
type Server struct{ cfg Config }

// New starts a coordinator: it loads the store and the policy, and watches the policy's file. A policy that does not
// stand is no reason not to start: nodes then keep what they have, and Status says what is wrong.
func New(c Config) (*Server, error) { panic("todo") }

// Handler serves nodes: /control, /healthz and /readyz.
func (s *Server) Handler() http.Handler { panic("todo") }

// Admin serves the admin API. It answers only connections that ServeAdmin has seen the credentials of.
func (s *Server) Admin() http.Handler { panic("todo") }

// ListenAdmin makes the admin API's unix socket, mode 0600, and takes the place of one that nobody listens on.
func ListenAdmin(path string) (net.Listener, error) { panic("todo") }

// ServeAdmin serves the admin API on l to the user this process runs as, and to root, until l or the Server is closed.
func (s *Server) ServeAdmin(l net.Listener) error { panic("todo") }

// Reload reads the policy file again. If the file does not stand, the error is or wraps an [acl.Errors] and the
// policy in force stays.
func (s *Server) Reload() error { panic("todo") }

// Close ends all sessions and waits for everything the Server started.
func (s *Server) Close() error { panic("todo") }
