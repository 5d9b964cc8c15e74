package derp

import (
	"context"
	"crypto/tls"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/hedge-mesh/hedge/node/key"
)

// ServerConfig is what a relay needs to know. Zero numbers stand for the defaults given.
type ServerConfig struct {
	Key   key.RelayPrivate
	Trust []key.ControlPublic // whose tickets are good; nodes of one never reach nodes of another

	UDP bool // ServeUDP will be called: nodes are offered the UDP side

	MaxClients   int // 10,000
	QueueBytes   int // for each client: 256 KiB of packets that wait, the oldest dropped first
	QueuePackets int // for each client: 512
	Rate         int // bytes a second that each node key may send, the rest being dropped; 0 for no limit
	Burst        int // bytes it may send at once; a second's worth, and at least MaxMessage

	Log zerolog.Logger
}

// Server is a relay. It is an http.Handler for the path it is mounted on; the http.Server around it should set
// ReadHeaderTimeout and a MaxHeaderBytes of a few KiB, since that is where strangers are.
type Server struct {
	cfg   ServerConfig
	pub   key.RelayPublic
	start time.Time
	idle  time.Duration // silence for that long ends a session
	last  time.Duration // between our goodbye and the end of the connection
	up    websocket.Upgrader
	mesh  map[key.ControlPublic]*mesh // never changes
	twins twins

	mu       sync.Mutex // before mesh.mu
	replays  replays
	bars     bars
	draining bool
	closed   bool
	live     int           // sessions, and upgrades under way
	empty    chan struct{} // made by Drain, closed when live is 0
	wg       sync.WaitGroup

	n counters
}

// mesh holds the nodes of one coordinator.
type mesh struct {
	mu    sync.RWMutex
	nodes map[key.NodePublic]*session
}

func (m *mesh) get(n key.NodePublic) *session {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.nodes[n]
}

type counters struct {
	accepted, refused, replaced, kicked, expired, abused     atomic.Uint64
	packetsIn, bytesIn, packetsOut, bytesOut                 atomic.Uint64
	droppedQueue, droppedUrgent, droppedUnknown, droppedRate atomic.Uint64
	udpIn, udpOut, forged                                    atomic.Uint64
}

// Stats counts what a server has done since it started.
type Stats struct {
	Clients  int    // connected now
	Accepted uint64 // connections
	Refused  uint64 // upgrade requests: whatever the reason
	Replaced uint64 // connections that gave way to a newer one of the same key
	Kicked   uint64
	Expired  uint64 // sessions that ended with their ticket
	Abused   uint64 // connections ended for breaking the protocol

	PacketsIn, BytesIn   uint64 // from nodes, to nodes, headers included
	PacketsOut, BytesOut uint64

	DroppedQueue   uint64 // the oldest of a full queue
	DroppedUrgent  uint64 // of a full urgent queue, or of a sender's part in it
	DroppedUnknown uint64 // to a key that is not here
	DroppedRate    uint64 // above the sender's rate

	UDPIn, UDPOut uint64 // packets of the above that came and went by UDP
	Forged        uint64 // datagrams that claimed to be of a session and were not, or had come before
}

// NewServer makes a relay. Close ends it.
func NewServer(cfg ServerConfig) *Server {
	orDefault(&cfg.MaxClients, 10_000)
	orDefault(&cfg.QueueBytes, 256<<10)
	orDefault(&cfg.QueuePackets, 512)
	cfg.QueueBytes = max(cfg.QueueBytes, MaxMessage)
	orDefault(&cfg.Burst, cfg.Rate)
	cfg.Burst = max(cfg.Burst, MaxMessage)
	s := &Server{
		cfg:   cfg,
		pub:   key.PublicOf(cfg.Key),
		start: time.Now(),
		idle:  idleTimeout,
		last:  lingerTime,
		mesh:  map[key.ControlPublic]*mesh{},
		up: websocket.Upgrader{
			HandshakeTimeout: 5 * time.Second,
			ReadBufferSize:   1024,
			WriteBufferSize:  MaxMessage, // a whole message, so that it leaves in one write
			WriteBufferPool:  &writeBuffers,
			Subprotocols:     []string{Subprotocol},
			CheckOrigin:      func(*http.Request) bool { return true }, // admit has refused all that have one
			Error: func(w http.ResponseWriter, _ *http.Request, status int, err error) {
				http.Error(w, err.Error(), status)
			},
		},
		replays: replays{max: 16 * cfg.MaxClients, maxPer: 64},
		bars:    bars{max: 65536},
	}
	if cfg.UDP {
		s.twins.m = map[uint64]*session{}
	}
	for _, c := range cfg.Trust {
		s.mesh[c] = &mesh{nodes: map[key.NodePublic]*session{}}
	}
	return s
}

func orDefault(n *int, d int) {
	if *n <= 0 {
		*n = d
	}
}

// writeBuffers are gorilla's; all connections have buffers of one size, as it asks.
var writeBuffers sync.Pool

// refusal is an answer to a request that does not become a session.
type refusal struct {
	status int
	text   string
}

// The refusals. A stranger gets one and the same answer whatever is wrong with its proof; the more telling ones below
// it are for those whose ticket and signature were good.
var (
	refuseHTTP     = &refusal{http.StatusUpgradeRequired, "this is a Hedge relay: it speaks WebSocket over HTTP/1.1; point a node's relay URL here, and let proxies in between pass WebSocket"}
	refuseMethod   = &refusal{http.StatusMethodNotAllowed, "this is a Hedge relay: it only answers GET"}
	refuseOrigin   = &refusal{http.StatusForbidden, "this is a Hedge relay: it is not for web pages"}
	refuseVersion  = &refusal{http.StatusBadRequest, "this relay speaks " + Subprotocol + " and the node does not: update the older of the two"}
	refuseProof    = &refusal{http.StatusUnauthorized, "this relay admits nodes of coordinators that it trusts, each with its own key; connect the node to such a coordinator to get a ticket"}
	refuseClock    = &refusal{http.StatusUnauthorized, "the node's clock is more than two minutes off this relay's, whose time is in the header " + timeHeader + ": set the clock"}
	refuseExpired  = &refusal{http.StatusUnauthorized, "the node's relay ticket has expired: it gets a new one from its coordinator"}
	refuseReplay   = &refusal{http.StatusUnauthorized, "this proof has been used before: make a new one for each connection"}
	refuseBarred   = &refusal{http.StatusForbidden, "the node's relay ticket was withdrawn: if the node was not removed, it gets a new one from its coordinator"}
	refuseTooMany  = &refusal{http.StatusTooManyRequests, "this machine connects too often: wait four minutes, and look for a second copy of it with the same keys"}
	refuseFull     = &refusal{http.StatusServiceUnavailable, "this relay is full: try another, or raise its limit of clients"}
	refuseDraining = &refusal{http.StatusServiceUnavailable, "this relay is going away: use another"}
)

// heardHeader is a node's word, in an upgrade request, on a connection that it has lost: how many messages came by it.
const heardHeader = "Hedge-Heard"

// timeHeader carries the relay's time, in Unix milliseconds, with a refusal.
const timeHeader = "Hedge-Time"

func (f *refusal) write(w http.ResponseWriter, now time.Time) {
	h := w.Header()
	h.Set(timeHeader, strconv.FormatInt(now.UnixMilli(), 10))
	h.Set("Cache-Control", "no-store")
	switch f.status {
	case http.StatusUpgradeRequired:
		h.Set("Upgrade", "websocket")
		h.Set("Connection", "Upgrade")
	case http.StatusMethodNotAllowed:
		h.Set("Allow", http.MethodGet)
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", proofScheme[:len(proofScheme)-1])
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "5")
	case http.StatusTooManyRequests:
		h.Set("Retry-After", "240")
	}
	http.Error(w, f.text, f.status)
}

// checkRequest looks at all of a request but who sends it.
func checkRequest(r *http.Request) *refusal {
	switch {
	case r.Method != http.MethodGet:
		return refuseMethod
	case r.ProtoMajor != 1 || !websocket.IsWebSocketUpgrade(r):
		return refuseHTTP
	case len(r.Header["Origin"]) > 0:
		return refuseOrigin
	case !slices.Contains(websocket.Subprotocols(r), Subprotocol):
		return refuseVersion
	}
	return nil
}

// checkProof is the part of admission that needs no state.
func (s *Server) checkProof(header string, now time.Time) (Ticket, proof, *refusal) {
	p, ok := parseProof(header)
	if !ok {
		return Ticket{}, p, refuseProof
	}
	t, err := OpenTicket(p.ticket, s.cfg.Trust, now)
	if t.Node.IsZero() || !key.Verify(t.Machine, proofContext, proofMessage(s.pub, p.ticket, p.at, p.nonce), p.sig) {
		return Ticket{}, p, refuseProof
	}
	// From here on the machine is known. A proof from before the start may be one that the server has forgotten.
	switch {
	case err == ErrTicketExpired:
		return t, p, refuseExpired
	case err != nil:
		return t, p, refuseProof
	case now.Sub(p.at).Abs() > window, p.at.UnixMilli() < s.start.UnixMilli():
		return t, p, refuseClock
	}
	return t, p, nil
}

// admit decides whether a request may become a session, and if so counts it as one.
func (s *Server) admit(r *http.Request, now time.Time) (Ticket, *refusal) {
	if f := checkRequest(r); f != nil {
		return Ticket{}, f
	}
	t, p, f := s.checkProof(r.Header.Get("Authorization"), now)
	if f != nil {
		return t, f
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.replays.take(t.Machine, p.nonce, now) {
	case replaySeen:
		return t, refuseReplay
	case replayTooMany:
		return t, refuseTooMany
	case replayFull:
		return t, refuseFull
	}
	switch {
	case s.bars.has(t.Node, t.Issued):
		return t, refuseBarred
	case s.draining || s.closed:
		return t, refuseDraining
	case s.live >= s.cfg.MaxClients && s.mesh[t.Control].get(t.Node) == nil:
		return t, refuseFull
	}
	s.live++
	s.wg.Add(1)
	return t, nil
}

// leave is the counterpart of a successful admit.
func (s *Server) leave() {
	s.mu.Lock()
	s.live--
	if s.live == 0 && s.empty != nil {
		close(s.empty)
		s.empty = nil
	}
	s.mu.Unlock()
	s.wg.Done()
}

// ServeHTTP admits a node and upgrades its request to a WebSocket, or says why not.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	t, f := s.admit(r, now)
	if f != nil {
		s.n.refused.Add(1)
		s.cfg.Log.Debug().Str("remote", r.RemoteAddr).Str("node", shortNode(t.Node)).Int("status", f.status).Str("why", f.text).Msg("relay refused a request")
		f.write(w, now)
		return
	}
	ws, err := s.up.Upgrade(w, r, nil)
	if err != nil {
		s.n.refused.Add(1)
		s.cfg.Log.Debug().Str("remote", r.RemoteAddr).Str("node", t.Node.Short()).Err(err).Msg("relay could not upgrade a request")
		s.leave()
		return
	}
	c := newSession(s, ws, t)
	c.heard, _ = strconv.ParseUint(r.Header.Get(heardHeader), 10, 64)
	// The session runs on its own goroutine, so that net/http's for this connection ends and its buffers are freed.
	go c.run()
}

func shortNode(n key.NodePublic) string {
	if n.IsZero() {
		return ""
	}
	return n.Short()
}

// enter makes c the session of its node. The one before gives way to it, and gives it what waits in its queue.
func (s *Server) enter(c *session) *ending {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return endClosed
	case s.bars.has(c.ticket.Node, c.ticket.Issued):
		return endKicked // since it was admitted
	}
	m := c.mesh
	m.mu.Lock()
	old := m.nodes[c.ticket.Node]
	m.nodes[c.ticket.Node] = c
	if old != nil {
		var row []byte
		var n int
		if c.heard > 0 {
			row, n = old.tail.after(c.heard, time.Now())
		}
		old.q.moveTo(&c.q, row, n)
		c.limit.Store(old.limit.Load())
	} else if s.cfg.Rate > 0 {
		c.limit.Store(rate.NewLimiter(rate.Limit(s.cfg.Rate), s.cfg.Burst))
	}
	m.mu.Unlock()
	if old != nil {
		old.end(endReplaced)
	}
	if s.draining {
		c.control(kindDrain, nil)
	}
	return nil
}

// remove is the counterpart of enter.
func (s *Server) remove(c *session) {
	m := c.mesh
	m.mu.Lock()
	if m.nodes[c.ticket.Node] == c {
		delete(m.nodes, c.ticket.Node)
	}
	m.mu.Unlock()
}

// each calls f for every session. The caller holds s.mu.
func (s *Server) each(f func(*session)) {
	for _, m := range s.mesh {
		m.mu.RLock()
		all := make([]*session, 0, len(m.nodes))
		for _, c := range m.nodes {
			all = append(all, c)
		}
		m.mu.RUnlock()
		for _, c := range all {
			f(c)
		}
	}
}

// TLSConfig is for a listener of this relay's own: TLS 1.3 with a self-signed certificate of the relay's key.
func (s *Server) TLSConfig() (*tls.Config, error) {
	cert, err := key.Certificate(s.cfg.Key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates:                []tls.Certificate{cert},
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{"http/1.1"}, // WebSocket needs it
		DynamicRecordSizingDisabled: true,                 // packets come in whole messages
		SessionTicketsDisabled:      true,                 // pinned keys make them useless
	}, nil
}

// Kick ends node's session, and refuses the tickets that it was issued until now.
func (s *Server) Kick(node key.NodePublic) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bars.add(node, time.Now())
	for _, m := range s.mesh {
		if c := m.get(node); c != nil {
			c.end(endKicked)
		}
	}
}

// Drain refuses new clients, tells those that are here to go elsewhere, and waits until they have or until ctx ends.
// It returns how many were left. Close must still be called.
func (s *Server) Drain(ctx context.Context) int {
	s.mu.Lock()
	s.draining = true
	s.each(func(c *session) { c.control(kindDrain, nil) })
	if s.live > 0 && s.empty == nil {
		s.empty = make(chan struct{})
	}
	empty, n := s.empty, s.live
	s.mu.Unlock()
	if n == 0 {
		return 0
	}
	s.cfg.Log.Info().Int("clients", n).Msg("relay is draining")
	select {
	case <-empty:
		return 0
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live
}

// Close ends all sessions and waits for every goroutine of the server: two seconds at most.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.each(func(c *session) { c.end(endClosed) })
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	clients := 0
	for _, m := range s.mesh {
		m.mu.RLock()
		clients += len(m.nodes)
		m.mu.RUnlock()
	}
	n := &s.n
	return Stats{
		Clients: clients, Accepted: n.accepted.Load(), Refused: n.refused.Load(), Replaced: n.replaced.Load(),
		Kicked: n.kicked.Load(), Expired: n.expired.Load(), Abused: n.abused.Load(),
		PacketsIn: n.packetsIn.Load(), BytesIn: n.bytesIn.Load(), PacketsOut: n.packetsOut.Load(), BytesOut: n.bytesOut.Load(),
		DroppedQueue: n.droppedQueue.Load(), DroppedUrgent: n.droppedUrgent.Load(),
		DroppedUnknown: n.droppedUnknown.Load(), DroppedRate: n.droppedRate.Load(),
		UDPIn: n.udpIn.Load(), UDPOut: n.udpOut.Load(), Forged: n.forged.Load(),
	}
}
