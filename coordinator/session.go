package coordinator

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/derp"
)

const (
	helloWait  = 10 * time.Second // for a machine to say Hello
	lastWords  = 2 * time.Second  // for a node to read why its session ends
	talkRate   = 20               // messages a second that a node may send, in the long run
	talkBurst  = 200
	whereBatch = 256 // presences in one message
)

// session is one node's channel. Two goroutines serve it: read takes what the node says; write, alone, tells the node
// the difference between what it was told and what is so. What is to be told is thus never a queue.
type session struct {
	s    *Server
	conn *wire.Conn
	id   acl.NodeID
	node *node // as of the start
	up   time.Time

	first *wire.Delta   // what the node lacked when it came
	due   chan struct{} // of capacity 1: there may be something to tell
	done  chan struct{} // closed when the session is over

	mu      sync.Mutex
	ended   bool
	stale   bool                    // woken, and write has not looked yet
	sent    *world                  // whose map the node has
	told    uint64                  // the revision that it was told of last
	acked   uint64                  // what the node has said it enforces
	pending map[acl.NodeID]struct{} // peers whose presence is to be told
}

// sessions are those that are open, at most one for each node.
type sessions struct {
	mu     sync.Mutex
	byNode map[acl.NodeID]*session
}

func (ss *sessions) get(id acl.NodeID) *session {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.byNode[id]
}

func (ss *sessions) each(f func(*session)) {
	ss.mu.Lock()
	all := make([]*session, 0, len(ss.byNode))
	for _, x := range ss.byNode {
		all = append(all, x)
	}
	ss.mu.Unlock()
	for _, x := range all {
		f(x)
	}
}

// put makes x the node's session, and returns the one it replaces. It refuses when there are too many.
func (ss *sessions) put(x *session, most int) (old *session, ok bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	old = ss.byNode[x.id]
	if old == nil && len(ss.byNode) >= most {
		return nil, false
	}
	ss.byNode[x.id] = x
	return old, true
}

// drop forgets x, and reports whether it was still the node's session.
func (ss *sessions) drop(x *session) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.byNode[x.id] != x {
		return false
	}
	delete(ss.byNode, x.id)
	return true
}

// serveControl is a node's whole session.
func (s *Server) serveControl(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		http.Error(w, "closing", http.StatusServiceUnavailable)
		return
	}
	defer s.exit()
	select {
	case s.shaking <- struct{}{}:
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many machines are connecting at once; try again", http.StatusServiceUnavailable)
		return
	}
	x := s.welcome(w, r)
	<-s.shaking
	if x != nil {
		x.serve()
	}
}

// welcome takes a channel, hears the Hello, and admits the node.
func (s *Server) welcome(w http.ResponseWriter, r *http.Request) *session {
	conn, err := wire.Accept(w, r, wire.AcceptConfig{Control: s.cfg.Control, Certificate: s.cert})
	if err != nil {
		s.cfg.Log.Debug().Err(err).Str("from", r.RemoteAddr).Msg("a handshake failed")
		return nil
	}
	silent := time.AfterFunc(helloWait, func() { conn.Close() })
	closing := context.AfterFunc(s.ctx, func() { conn.Close() })
	msg, err := conn.Recv()
	silent.Stop()
	if err != nil {
		closing()
		conn.Close()
		return nil
	}
	x, no := s.hello(conn, msg)
	if no != nil {
		s.cfg.Log.Info().Str("machine", conn.Machine().Short()).Str("from", r.RemoteAddr).Str("code", string(no.Code)).Msg(no.Message)
		conn.Refuse(no)
		closing()
		return nil
	}
	closing() // Close ends sessions itself, from here on
	if s.ctx.Err() != nil {
		conn.Close()
	}
	return x
}

func (s *Server) hello(conn *wire.Conn, msg any) (*session, *wire.Refused) {
	h, ok := msg.(*wire.Hello)
	if !ok {
		return nil, refuse(wire.RefusedMalformed, "the first message must be a Hello")
	}
	n, no := s.admit(conn, h)
	if no != nil {
		return nil, no
	}
	w, err := s.worldOf(s.ctx, s.state.Load().revs.get(nodeKeyOf(n.ID)))
	if err != nil {
		return nil, refuse(wire.RefusedBusy, "the coordinator is closing; try again")
	}
	m := s.mapFor(w, n.ID)
	if m == nil {
		return nil, w.outOf(n)
	}
	first, err := wire.Missing(h.Revision, h.Have, m)
	if err != nil {
		s.cfg.Log.Error().Err(err).Str("node", n.Name).Msg("cannot say what a node lacks")
		return nil, refuse(wire.RefusedBusy, "the coordinator cannot tell this node its map; its log says why")
	}
	x := &session{s: s, conn: conn, id: n.ID, node: n, up: s.now(), first: first, due: make(chan struct{}, 1), done: make(chan struct{}),
		sent: w, told: m.Revision, stale: true, pending: map[acl.NodeID]struct{}{}}
	for _, p := range m.Peers {
		x.pending[p.ID] = struct{}{}
	}
	old, ok := s.sessions.put(x, s.cfg.MaxSessions)
	if !ok {
		return nil, refuse(wire.RefusedBusy, "the coordinator serves as many nodes as it may; try again later")
	}
	if old != nil {
		old.end(refuse(wire.RefusedReplaced, "this node has connected anew; if that was not this machine, its state directory was copied"))
	}
	s.presence.here(n.ID, &wire.Here{Disco: h.Disco}, s.now())
	s.cfg.Log.Info().Str("node", n.Name).Str("machine", n.Machine.Short()).Str("from", conn.RemoteAddr().String()).Msg("connected")
	return x, nil
}

// outOf says why a node that was in the mesh is not part of this world.
func (w *world) outOf(n *node) *wire.Refused {
	if w.expired[n.ID] {
		return refuse(wire.RefusedExpired, "this node's key has expired: to keep its name and address, "+newJoin+" and join with it")
	}
	if no := w.state.removed(n.Machine); no != nil {
		return no
	}
	return refuse(wire.RefusedRemoved, "this node is not part of the mesh any more: to join again, "+newJoin)
}

// admit makes durable what the Hello means, before anyone is told.
func (s *Server) admit(conn *wire.Conn, h *wire.Hello) (n *node, no *wire.Refused) {
	var was *node
	err := s.commit(func(st *state) (c *change, err error) {
		was = st.byMachine.get(conn.Machine())
		n, c, no = st.admit(s.mesh, conn.Machine(), h, s.now())
		return c, nil
	})
	if err != nil {
		s.cfg.Log.Error().Err(err).Msg("cannot admit a node")
		return nil, refuse(wire.RefusedBusy, "the coordinator cannot write its store; its log says why: try again later")
	}
	if no == nil && was != nil && was.Key != n.Key {
		s.cfg.Kick(was.Key) // rotated: whoever still holds the old one is not this node
	}
	if no == nil && was == nil {
		s.cfg.Log.Info().Str("node", n.Name).Str("owner", n.owner()).Str("key", n.JoinKey).Msg("joined")
	}
	return n, no
}

// serve runs the session to its end.
func (x *session) serve() {
	var wg sync.WaitGroup
	wg.Go(x.write)
	x.wake()
	x.read()
	x.conn.Close()
	close(x.done)
	wg.Wait()
	if x.s.sessions.drop(x) {
		x.s.presence.away(x.id, x.s.now())
	}
	x.s.cfg.Log.Info().Str("node", x.node.Name).Msg("disconnected")
}

// end tells the node why, and ends the session once it has read that, or has had the time to.
func (x *session) end(why *wire.Refused) {
	x.mu.Lock()
	first := !x.ended
	x.ended = true
	x.mu.Unlock()
	if !first || !x.s.enter() {
		return
	}
	go func() { // Send waits for a node that does not read
		defer x.s.exit()
		t := time.AfterFunc(lastWords, func() { x.conn.Close() })
		defer t.Stop()
		if x.conn.Send(why) != nil {
			x.conn.Close()
		}
		<-x.done
	}()
}

func (x *session) over() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.ended
}

// wake has write look at the world, and at the pending presences.
func (x *session) wake() {
	x.mu.Lock()
	x.stale = true
	x.mu.Unlock()
	x.nudge()
}

func (x *session) nudge() {
	select {
	case x.due <- struct{}{}:
	default:
	}
}

func (x *session) read() {
	talk := rate.NewLimiter(talkRate, talkBurst)
	for {
		msg, err := x.conn.Recv()
		if err != nil {
			return
		}
		if x.over() {
			continue // until the node has read why, and closes
		}
		if !talk.Allow() {
			x.end(refuse(wire.RefusedBusy, "this node sends too many messages"))
			continue
		}
		switch m := msg.(type) {
		case *wire.Ack:
			x.mu.Lock()
			if m.Revision <= x.told {
				x.acked = max(x.acked, m.Revision)
			}
			x.mu.Unlock()
		case *wire.Advertise:
			if err := x.offers(m.Routes); err != nil {
				x.s.cfg.Log.Error().Err(err).Str("node", x.node.Name).Msg("cannot store the routes of a node")
				x.end(refuse(wire.RefusedBusy, "the coordinator cannot write its store; its log says why: try again later"))
			}
		case *wire.Here:
			x.s.presence.here(x.id, m, x.s.now())
			if m.PeerRelay {
				x.s.presence.vouch(&x.s.world)
			}
		case *wire.Logout:
			x.s.cfg.Log.Info().Str("node", x.node.Name).Msg("logged out")
			if err := x.s.remove(x.node, false); err != nil {
				x.s.cfg.Log.Error().Err(err).Str("node", x.node.Name).Msg("cannot remove a node that logged out")
				x.end(refuse(wire.RefusedBusy, "the coordinator cannot write its store; log out again later"))
			}
		default:
			x.end(refuse(wire.RefusedMalformed, "a node does not send a message of this kind"))
		}
	}
}

// write tells the node what is new. It alone sends, but for the last words.
func (x *session) write() {
	ticket := time.NewTimer(0)
	defer ticket.Stop()
	err := x.conn.Send(x.first)
	for x.first = nil; ; {
		if err != nil {
			x.conn.Close() // read will see
			<-x.done
			return
		}
		select {
		case <-x.done:
			return
		case <-ticket.C:
			err = x.conn.Send(x.ticket())
			ticket.Reset(x.s.cfg.TicketLifetime / 2)
		case <-x.due:
			if err = x.tellMap(); err == nil {
				err = x.tellWhere()
			}
		}
	}
}

func (x *session) ticket() *wire.Ticket {
	now := x.s.now()
	expires := now.Add(x.s.cfg.TicketLifetime)
	if e := x.node.Expires; !e.IsZero() && e.Before(expires) {
		expires = e
	}
	t := derp.Ticket{Node: x.node.Key, Machine: x.node.Machine, Issued: now, Expires: expires}
	return &wire.Ticket{Signed: t.Sign(x.s.cfg.Control)}
}

// tellMap sends the difference between what the node was told and what is so.
func (x *session) tellMap() error {
	x.mu.Lock()
	look := x.stale && !x.ended
	sent, told := x.sent, x.told
	x.stale = false
	x.mu.Unlock()
	if !look {
		return nil
	}
	w := x.s.world.Load()
	if w.lacks(x.id) {
		x.end(w.outOf(x.node))
		return nil
	}
	d, ok := sent.delta(w, x.id, told)
	if !ok {
		d = wire.Diff(x.s.mapFor(sent, x.id), x.s.mapFor(w, x.id))
		d.From = told
	}
	x.mu.Lock()
	x.sent = w
	if d.Empty() {
		x.mu.Unlock()
		return nil
	}
	x.told = d.Revision
	for _, p := range d.Peers { // new ones, or with a new key
		x.pending[p.ID] = struct{}{}
	}
	x.mu.Unlock()
	return x.conn.Send(d)
}

// tellWhere sends the presences that have changed since they were told.
func (x *session) tellWhere() error {
	x.mu.Lock()
	var ids []acl.NodeID
	for id := range x.pending {
		ids = append(ids, id)
	}
	clear(x.pending)
	sent := x.sent
	over := x.ended
	x.mu.Unlock()
	var w wire.Where
	var peers []acl.NodeID
	if sent.program != nil && len(ids) > 0 {
		peers = sent.program.Peers(x.id)
	}
	for _, id := range ids {
		if _, sees := slices.BinarySearch(peers, id); !sees {
			continue
		}
		if p, ok := x.s.presence.of(id); ok {
			w.Peers = append(w.Peers, p)
		}
	}
	for len(w.Peers) > 0 && !over {
		n := min(len(w.Peers), whereBatch)
		if err := x.conn.Send(&wire.Where{Peers: w.Peers[:n]}); err != nil {
			return err
		}
		w.Peers = w.Peers[n:]
	}
	return nil
}

// enforces is the newest revision that the node is known to enforce. A node that lacks nothing of the world's
// revision enforces that, though it was not told of it.
func (x *session) enforces(world uint64) uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.stale && x.acked >= x.told {
		return world
	}
	return x.acked
}
