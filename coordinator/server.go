package coordinator

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/rs/zerolog"

	"github.com/hedge-mesh/hedge/acl"
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
	TicketLifetime time.Duration // of relay tickets, at most derp.MaxTicketLife: 72 hours
	EphemeralAfter time.Duration // offline for so long, an ephemeral node is removed: 10 minutes
	MaxHandshakes  int           // at once, before authentication: 256
	MaxSessions    int           // 20,000

	Log zerolog.Logger
}

func (c *Config) check() error {
	if c.Store == nil || c.Control.IsZero() || c.PolicyFile == "" || len(c.URLs) == 0 {
		return errors.New("coordinator: a store, a control key, a policy file and a URL must be configured")
	}
	if len(c.Prefixes) == 0 {
		c.Prefixes = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd68:6564:6765::/48")}
	}
	if len(c.Prefixes) != 2 || !c.Prefixes[0].Addr().Is4() || !c.Prefixes[1].Addr().Is6() || c.Prefixes[1].Addr().Is4In6() ||
		c.Prefixes[0] != c.Prefixes[0].Masked() || c.Prefixes[1] != c.Prefixes[1].Masked() {
		return fmt.Errorf("coordinator: the mesh needs one IPv4 and one IPv6 prefix, in this order, not %v", c.Prefixes)
	}
	c.Relays = slices.SortedFunc(slices.Values(c.Relays), func(a, b wire.Relay) int { return cmp.Compare(a.ID, b.ID) }) // as a Map has them
	for i := 1; i < len(c.Relays); i++ {
		if c.Relays[i].ID == c.Relays[i-1].ID {
			return fmt.Errorf("coordinator: two relays have the number %d", c.Relays[i].ID)
		}
	}
	def(&c.Domain, "hedge.internal")
	def(&c.KeyLifetime, 180*24*time.Hour)
	def(&c.TicketLifetime, 72*time.Hour)
	def(&c.EphemeralAfter, 10*time.Minute)
	def(&c.MaxHandshakes, 256)
	def(&c.MaxSessions, 20_000)
	if c.Kick == nil {
		c.Kick = func(key.NodePublic) {}
	}
	return nil
}

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Server is a coordinator.
type Server struct {
	cfg     Config
	mesh    mesh
	now     func() time.Time
	started time.Time
	cert    tls.Certificate

	// The registry: commits are one at a time; the state is what they made.
	commitMu sync.Mutex
	state    register

	policy  policyFile
	world   atomic.Pointer[world]
	told    atomic.Uint64 // the revision of the last world whose sessions are all awake or woken
	rebuild chan struct{} // of capacity 1: the world is behind the state or the policy
	built   broadcast     // told when there is a new world

	sessions sessions
	presence presences
	shaking  chan struct{} // a token for each handshake under way

	ctx    context.Context // of everything the Server starts
	cancel context.CancelFunc
	mu     sync.Mutex // guards wg.Add against Close
	wg     sync.WaitGroup
}

// New starts a coordinator: it loads the store and the policy, and watches the policy's file. A policy that does not
// stand is no reason not to start: the last one that did stays in force (or none, which allows nothing), and Status
// says what is wrong.
func New(c Config) (*Server, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	cert, err := key.Certificate(c.Control)
	if err != nil {
		return nil, err
	}
	snap, err := c.Store.Load(context.Background())
	if err != nil {
		return nil, err
	}
	st, err := load(snap)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: c, now: time.Now, cert: cert, rebuild: make(chan struct{}, 1), shaking: make(chan struct{}, c.MaxHandshakes)}
	s.started = s.now()
	s.mesh = mesh{v4: c.Prefixes[0], v6: c.Prefixes[1], lifetime: c.KeyLifetime}
	s.restore(st)
	s.state.store(st, nil)
	s.sessions.byNode = map[acl.NodeID]*session{}
	s.presence.init()
	s.built.ch = make(chan struct{})
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.Reload(); err != nil {
		s.cfg.Log.Error().Err(err).Str("file", c.PolicyFile).Msg("the policy file does not stand; the last one that did stays in force")
	}
	s.buildWorld()

	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		// The directory, not the file: editors save by renaming over it.
		if err = watcher.Add(filepath.Dir(c.PolicyFile)); err != nil {
			watcher.Close()
			watcher = nil
		}
	}
	if err != nil {
		s.cfg.Log.Warn().Err(err).Msg("cannot watch the policy file; send SIGHUP after changing it")
	}
	s.wg.Go(s.buildLoop)
	s.wg.Go(s.clockLoop)
	s.wg.Go(s.presenceLoop)
	if watcher != nil {
		s.wg.Go(func() { s.watchPolicy(watcher) })
	}
	return s, nil
}

// enter reports whether the Server is open, and if so keeps Close waiting until exit.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.wg.Add(1)
	return true
}

func (s *Server) exit() { s.wg.Done() }

// Close ends all sessions and waits for everything the Server started. Nodes keep what they have.
func (s *Server) Close() error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.sessions.each(func(x *session) { x.conn.Close() })
	s.wg.Wait()
	return nil
}

// commit makes the change that decide asks for, once it is durable: decide is called with the state as it is, and again
// if that has changed meanwhile. A nil change is nothing to do.
func (s *Server) commit(decide func(*state) (*change, error)) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	for try := 0; ; try++ {
		st := s.state.Load()
		c, err := decide(st)
		if c == nil || err != nil {
			return err
		}
		t, err := st.txn(*c)
		if err != nil {
			return err
		}
		revision, err := s.cfg.Store.Commit(s.ctx, t)
		if errors.Is(err, store.ErrConflict) && try < 3 {
			if err := s.reloadState(); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		s.state.store(st.apply(*c, t, revision), c)
		for id, n := range c.nodes {
			if was := st.nodes.get(id); n == nil && was != nil {
				s.cfg.Kick(was.Key) // before any session hears of it: who is told that it has left has no relay any more
			}
		}
		if c.nodes != nil || c.users != nil || c.policy != nil {
			s.poke()
		}
		return nil
	}
}

func (s *Server) reloadState() error {
	snap, err := s.cfg.Store.Load(s.ctx)
	if err != nil {
		return err
	}
	st, err := load(snap)
	if err == nil {
		s.restore(st)
		s.state.store(st, nil)
	}
	return err
}

// Handler serves nodes: /control, /healthz and /readyz. Its http.Server should set ReadHeaderTimeout.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.Path, s.serveControl)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if s.ctx.Err() != nil {
			http.Error(w, "closing", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ok\n")
	})
	return mux
}

// clockLoop does what is due by the clock alone.
func (s *Server) clockLoop() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
			s.tick(s.now())
		}
	}
}

// tick rebuilds the world when a node's key has expired or a carrier is gone, and removes ephemeral nodes that have been away.
func (s *Server) tick(now time.Time) {
	if w := s.world.Load(); w.expiryDue(now) || s.electionDue() {
		s.poke()
	}
	for id, n := range s.state.Load().nodes.all() {
		if !n.Ephemeral || s.sessions.get(id) != nil || now.Sub(s.presence.lastSeen(id, s.started)) < s.cfg.EphemeralAfter {
			continue
		}
		s.cfg.Log.Info().Str("node", n.Name).Msg("removed an ephemeral node that has been away")
		if err := s.remove(n, false); err != nil {
			s.cfg.Log.Error().Err(err).Str("node", n.Name).Msg("cannot remove an ephemeral node")
		}
	}
}

// remove ends a node's membership. If an admin did it, the machine will be told so.
func (s *Server) remove(n *node, byAdmin bool) error {
	err := s.commit(func(st *state) (*change, error) {
		if st.nodes.get(n.ID) == nil {
			return nil, nil
		}
		n = st.nodes.get(n.ID)
		c := &change{nodes: map[acl.NodeID]*node{n.ID: nil}}
		if byAdmin {
			c.gone = map[key.MachinePublic]*tombstone{n.Machine: {Name: n.Name, When: s.now()}}
		}
		return c, nil
	})
	if err != nil {
		return err
	}
	why := s.state.Load().removed(n.Machine)
	if why == nil {
		why = refuse(wire.RefusedRemoved, "this node has left the mesh: to join again, "+newJoin)
	}
	s.cutOff(n, why)
	s.presence.forget(n.ID)
	return nil
}

// cutOff ends a node's connections, without waiting for the world to be built anew.
func (s *Server) cutOff(n *node, why *wire.Refused) {
	s.cfg.Kick(n.Key)
	if x := s.sessions.get(n.ID); x != nil {
		x.end(why)
	}
}

// broadcast lets many wait for the next of something.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *broadcast) tell() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}

func (s *Server) control() key.ControlPublic { return key.PublicOf(s.cfg.Control) }
