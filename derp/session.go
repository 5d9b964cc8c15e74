package derp

import (
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/time/rate"

	"github.com/hedge-mesh/hedge/node/key"
)

const (
	idleTimeout  = 40 * time.Second // a node pings when it has been quiet for 15 s
	writeTimeout = 10 * time.Second // a message that takes longer to write ends its connection
	lingerTime   = time.Second      // between our goodbye and the end of the connection
)

// ending is why a session ends, as a WebSocket close says it.
type ending struct {
	code int    // RFC 6455 section 7.4; 4000 and above are ours
	text string // at most 123 bytes
	mute bool   // nothing more is forwarded from it or to it, from now on
	err  error  // what a client makes of the code
}

var (
	endClosed   = &ending{websocket.CloseGoingAway, "the relay is shutting down", false, ErrDraining}
	endReplaced = &ending{4001, "another connection of the same node key has come", false, ErrReplaced}
	endKicked   = &ending{4002, "the node was removed", true, ErrKicked}
	endExpired  = &ending{4003, "the relay ticket has expired", true, ErrExpired}
	endFrame    = &ending{websocket.CloseInvalidFramePayloadData, "a message is not a row of packets", true, nil}
	endKind     = &ending{websocket.CloseUnsupportedData, "only binary messages are understood", true, nil}
	endControl  = &ending{websocket.ClosePolicyViolation, "not something to ask a relay", true, nil}
	endFlood    = &ending{websocket.ClosePolicyViolation, "too many pings", true, nil}
	endIdle     = &ending{websocket.CloseNormalClosure, "nothing was heard for too long", false, nil}
	endLeft     = &ending{websocket.CloseNormalClosure, "", false, nil}
	endings     = []*ending{endClosed, endReplaced, endKicked, endExpired}
)

// session is one node's connection. Its reader goroutine owns it; the writer lives only while packets wait.
type session struct {
	s      *Server
	mesh   *mesh
	ticket Ticket
	ws     *websocket.Conn
	raw    net.Conn // under ws
	twin   *twin    // nil without UDP
	q      queue
	tail   tail
	heard  uint64 // messages of the one before, as the node says; 0 if it may get more
	greet  bool   // the writer's: it has not said welcome
	pings  *rate.Limiter
	gones  *rate.Limiter

	limit atomic.Pointer[rate.Limiter] // of bytes, nil for none; set by enter, used by the reader of the UDP side too

	muted    atomic.Bool
	mu       sync.Mutex
	ended    *ending
	deadline time.Time // of the next read
}

func newSession(s *Server, ws *websocket.Conn, t Ticket) *session {
	c := &session{s: s, mesh: s.mesh[t.Control], ticket: t, ws: ws, raw: ws.NetConn()}
	c.q.maxBytes, c.q.maxPackets, c.q.maxSame = s.cfg.QueueBytes, s.cfg.QueuePackets, maxUrgentSame
	c.q.wake() // run starts the writer
	c.greet = true
	c.pings, c.gones = rate.NewLimiter(10, 32), rate.NewLimiter(1, 8)
	tune(c.raw)
	ws.SetReadLimit(MaxMessage)
	ws.SetCloseHandler(func(int, string) error { return nil }) // end answers
	ws.SetPongHandler(c.wsPing)
	ws.SetPingHandler(c.wsPing)
	s.twins.add(c)
	return c
}

var errFlood = errors.New("derp: too many pings")

// wsPing is told of WebSocket's own pings and pongs. No node sends any and a proxy might send a few: those get no answer
// but are no reason to hang up.
func (c *session) wsPing(string) error {
	if !c.pings.Allow() {
		return errFlood
	}
	return nil
}

// run is the reader goroutine.
func (c *session) run() {
	defer c.s.leave()
	log := c.s.cfg.Log.With().Str("node", c.ticket.Node.Short()).Stringer("remote", c.raw.RemoteAddr()).Logger()
	why := c.s.enter(c)
	var err error
	if why == nil {
		c.s.n.accepted.Add(1)
		log.Debug().Msg("relay client has come")
		go c.write()
		why, err = c.read()
		c.end(why)
	} else {
		c.end(why)
		go c.write()
	}
	c.s.remove(c)
	if why != endLeft {
		c.linger()
	}
	c.hangUp()
	c.q.kill()
	c.mu.Lock()
	why = c.ended
	c.mu.Unlock()
	c.s.twins.remove(c, why == endReplaced, time.Now())
	c.s.count(why)
	log.Debug().Int("code", why.code).Str("why", why.text).AnErr("error", err).Msg("relay client has gone")
}

func (s *Server) count(e *ending) {
	switch e {
	case endReplaced:
		s.n.replaced.Add(1)
	case endKicked:
		s.n.kicked.Add(1)
	case endExpired:
		s.n.expired.Add(1)
	case endFrame, endKind, endControl, endFlood:
		s.n.abused.Add(1)
	}
}

// hangUp closes the socket without TLS's goodbye, which can take seconds; WebSocket's was said if it could be.
func (c *session) hangUp() {
	if t, ok := c.raw.(interface{ NetConn() net.Conn }); ok {
		t.NetConn().Close()
		return
	}
	c.raw.Close()
}

// read forwards messages until the session ends, and says why it did.
func (c *session) read() (*ending, error) {
	for {
		if e := c.touch(time.Now()); e != nil {
			return e, nil
		}
		kind, r, err := c.ws.NextReader()
		if err != nil {
			return c.readEnding(err), err
		}
		if kind != websocket.BinaryMessage {
			return endKind, nil
		}
		b := newBlock() // only now: idle connections have no buffers
		msg, err := readMessage(r, b.buf[:0])
		var e *ending
		if err == nil {
			e = c.forward(msg)
		}
		b.free()
		if err != nil {
			return c.readEnding(err), err
		}
		if e != nil {
			return e, nil
		}
	}
}

// readMessage reads a whole message into buf's capacity, which is MaxMessage; the connection's read limit is the same.
func readMessage(r io.Reader, buf []byte) ([]byte, error) {
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case err == io.EOF:
			return buf, nil
		case err != nil:
			return nil, err
		case len(buf) == cap(buf):
			if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				return nil, errors.Join(errFrame, err)
			}
			return buf, nil
		}
	}
}

// touch sets the deadline of the next read, which is also what ends a session whose ticket has expired.
func (c *session) touch(now time.Time) *ending {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return nil // end has set the last deadline
	}
	if !now.Before(c.ticket.Expires) {
		return endExpired
	}
	next := now.Add(c.s.idle)
	if next.After(c.ticket.Expires) {
		next = c.ticket.Expires
	}
	if next.Sub(c.deadline) > c.s.idle/8 || next.Equal(c.ticket.Expires) && !next.Equal(c.deadline) {
		c.deadline = next
		c.raw.SetReadDeadline(next)
	}
	return nil
}

func (c *session) readEnding(err error) *ending {
	var ce *websocket.CloseError
	var ne net.Error
	switch {
	case errors.As(err, &ne) && ne.Timeout(): // gorilla hides os.ErrDeadlineExceeded
		if !time.Now().Before(c.ticket.Expires) {
			return endExpired
		}
		return endIdle
	case errors.Is(err, errFlood):
		return endFlood
	case errors.As(err, &ce), errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return endLeft
	case ne != nil:
		return endLeft // reset and the like
	}
	return endFrame // websocket's own complaints, of which it has told the node
}

// tally counts what became of one message's packets.
type tally struct{ packets, bytes, unknown, limited, dropped, droppedUrgent int }

func (n *counters) add(t *tally) {
	n.packetsIn.Add(uint64(t.packets))
	n.bytesIn.Add(uint64(t.bytes))
	for _, c := range []struct {
		to *atomic.Uint64
		n  int
	}{{&n.droppedUnknown, t.unknown}, {&n.droppedRate, t.limited}, {&n.droppedQueue, t.dropped}, {&n.droppedUrgent, t.droppedUrgent}} {
		if c.n > 0 {
			c.to.Add(uint64(c.n))
		}
	}
}

// forward gives the packets of a message to the queues they are for. It never waits.
func (c *session) forward(msg []byte) *ending {
	if len(msg) == 0 {
		return endFrame
	}
	var t tally
	defer func() {
		c.s.n.add(&t)
		if t.dropped > 0 {
			runtime.Gosched() // a full queue wants its writer more than it wants us
		}
	}()
	for len(msg) > 0 {
		p, rest, err := cutPacket(msg)
		if err != nil {
			return endFrame
		}
		if [key.Size]byte(p) == [key.Size]byte{} {
			if e := c.asked(p[headerLen:]); e != nil {
				return e
			}
			msg = rest
			continue
		}
		run, n, err := cutRun(msg)
		if err != nil {
			return endFrame
		}
		msg = msg[len(run):]
		c.deliver(run, n, &t)
	}
	return nil
}

// cutRun returns what a message begins with: an urgent packet, or neighbouring data packets to one node, which are copied
// at once.
func cutRun(msg []byte) (run []byte, n int, err error) {
	first, rest, err := cutPacket(msg)
	if err != nil {
		return nil, 0, err
	}
	size := len(first)
	for n = 1; len(rest) > 0 && !urgent(first[headerLen:]); n++ {
		p, more, err := cutPacket(rest)
		if err != nil {
			return nil, 0, err
		}
		if [key.Size]byte(p) != [key.Size]byte(first) || urgent(p[headerLen:]) {
			break
		}
		size, rest = size+len(p), more
	}
	return msg[:size:size], n, nil
}

// deliver puts a run of n packets into the queue it is for, with its destination made its source.
func (c *session) deliver(run []byte, n int, t *tally) {
	to, self := key.NodePublicFromRaw([key.Size]byte(run)), c.ticket.Node.Raw()
	first := urgent(run[headerLen:])
	for rest := run; len(rest) > 0; {
		copy(rest, self[:])
		_, rest, _ = cutPacket(rest)
	}
	t.packets, t.bytes = t.packets+n, t.bytes+len(run)
	if c.muted.Load() {
		return
	}
	if limit := c.limit.Load(); limit != nil && !limit.AllowN(time.Now(), len(run)) {
		t.limited += n
		return
	}
	for dst := c.mesh.get(to); dst != nil; {
		var lost int
		var start, taken bool
		if first {
			lost, start, taken = dst.q.pushUrgent(self, run[headerLen:])
			t.droppedUrgent += lost
		} else {
			lost, start, taken = dst.q.push(run, n)
			t.dropped += lost
		}
		if dst.startWriter(start); taken {
			return
		}
		was := dst
		if dst = c.mesh.get(to); dst == was {
			break // it is on its way out, and nobody has come in its place
		}
	}
	t.unknown += n
	if raw := to.Raw(); c.gones.Allow() {
		c.control(kindGone, raw[:])
	}
}

// asked handles what a node says to the relay itself.
func (c *session) asked(payload []byte) *ending {
	if len(payload) == 1 && payload[0] == kindUDP && c.twin != nil {
		c.twin.setUse(0)
		return nil
	}
	if len(payload) != 9 || payload[0] != kindPing {
		return endControl
	}
	if !c.pings.Allow() {
		return endFlood
	}
	c.tail.rest(time.Now()) // a node pings when it is quiet
	c.control(kindPong, payload[1:])
	return nil
}

// control queues a word of the relay's own.
func (c *session) control(kind byte, body []byte) {
	var b [1 + key.Size]byte
	b[0] = kind
	n := copy(b[1:], body)
	_, start, _ := c.q.pushUrgent([key.Size]byte{}, b[:1+n])
	c.startWriter(start)
}

func (c *session) startWriter(start bool) {
	if start {
		go c.write()
	}
}

// write is the writer goroutine: it writes what waits and ends.
func (c *session) write() {
	defer c.q.writers.Done()
	if c.greet {
		c.greet = false
		if c.say(welcome, 0) != nil {
			return
		}
		if c.twin != nil && c.say(appendPacket(nil, [key.Size]byte{}, append([]byte{kindUDP}, c.twin.offer[:]...)), 0) != nil {
			return
		}
	}
	for {
		b, last := c.q.pop()
		if b == nil {
			if last {
				c.sayGoodbye()
			}
			return
		}
		if c.sayUDP(b); b.n == 0 {
			b.free()
			continue
		}
		n, size := b.n, len(b.bytes())
		err := c.say(b.bytes(), n)
		b.free()
		if err != nil {
			return
		}
		c.s.n.packetsOut.Add(uint64(n))
		c.s.n.bytesOut.Add(uint64(size))
	}
}

// say writes a message, of n packets that the tail is to have. When it cannot, it hangs up, which the reader sees; and no other writer starts, since pop has
// not said nil to this one.
func (c *session) say(msg []byte, n int) error {
	c.tail.add(msg, n, time.Now())
	c.ws.SetWriteDeadline(time.Now().Add(writeTimeout))
	err := c.ws.WriteMessage(websocket.BinaryMessage, msg)
	if err != nil {
		c.hangUp()
	}
	return err
}

// end makes the session end within a second: what waits is still written, then why it ends. Only the first call
// counts. It never waits, and may be called from any goroutine.
func (c *session) end(e *ending) {
	c.mu.Lock()
	if c.ended != nil {
		c.mu.Unlock()
		return
	}
	c.ended = e
	c.raw.SetReadDeadline(time.Now().Add(c.s.last))
	c.mu.Unlock()
	if e.mute {
		c.muted.Store(true)
	}
	c.startWriter(c.q.finish(e.mute))
}

func (c *session) sayGoodbye() {
	c.mu.Lock()
	e := c.ended
	c.mu.Unlock()
	c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(e.code, e.text), time.Now().Add(c.s.last))
}

// linger reads and forgets until the node hangs up or the deadline of end passes: closing a socket with bytes unread makes
// TCP reset it, and the node would not hear why.
func (c *session) linger() {
	buf := make([]byte, 512)
	for n := 0; n < 4*MaxMessage; {
		m, err := c.raw.Read(buf)
		if err != nil {
			return
		}
		n += m
	}
}
