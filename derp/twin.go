package derp

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/hedge-mesh/hedge/node/udp"
)

// twin is the UDP side of a session, for nodes whose UDP gets out: there no packet waits for another that was lost. The
// session itself is the WebSocket, which carries what UDP does not.
//
//	node ══ WebSocket ══▶ reader ─┐                ┌─▶ WebSocket   words of the relay, long packets, all if UDP is off
//	     ── datagrams ──▶ twin ───┴▶ queue of B ───┴─▶ B's twin    the rest, while B pings by UDP
//
// Where the node is follows its newest genuine datagram. Whatever is not genuine gets no answer.
type twin struct {
	offer [offerLen]byte
	in    *unseal
	out   *seal
	pings *rate.Limiter

	mu    sync.Mutex
	sock  *udp.Socket
	addr  netip.AddrPort
	use   int // the longest datagram to send; 0 for none
	heard time.Time
}

const (
	twinTrust = 10 * time.Second // after a node's last datagram it is sent any for so long

	twinFresh  = 1250 * time.Millisecond // and after that packets go by WebSocket, too: its pings come each second
	twinUrgent = 250 * time.Millisecond  // likewise probes and handshakes: by what they make the node send, its NAT opens again
)

func newTwin() *twin {
	t := &twin{offer: newOffer(), pings: rate.NewLimiter(20, 64)}
	t.out, t.in = newSeals(t.offer, dgDown)
	return t
}

// from takes note of where a genuine datagram came from, and how.
func (t *twin) from(sock *udp.Socket, addr netip.AddrPort, newest bool, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if newest {
		t.sock, t.addr = sock, addr
	}
	t.heard = now
}

// route returns where to send datagrams now, and of which size at most, 0 for not at all; and whether packets are to go by
// WebSocket, too, for the node has not been heard within fresh.
func (t *twin) route(now time.Time, fresh time.Duration) (sock *udp.Socket, to netip.AddrPort, use int, both bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	age := now.Sub(t.heard)
	if t.use == 0 || age > twinTrust {
		return nil, netip.AddrPort{}, 0, false
	}
	return t.sock, t.addr, t.use, age > fresh
}

func (t *twin) setUse(n int) {
	t.mu.Lock()
	t.use = min(n, maxDatagram)
	t.mu.Unlock()
}

// twins are the sessions by their UDP number.
type twins struct {
	mu   sync.RWMutex
	m    map[uint64]*session // nil without UDP
	late []late              // oldest first
}

// late is a session that another of the same node has replaced: what it had sent may still be on its way.
type late struct {
	c     *session
	until time.Time
}

const lateTime = 2 * time.Second

// add gives c its UDP side, if there is any.
func (s *twins) add(c *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expire(time.Now()); s.m != nil {
		c.twin = newTwin()
		s.m[c.twin.in.session] = c
	}
}

// remove is the counterpart of add, at once or soon.
func (s *twins) remove(c *session, replaced bool, now time.Time) {
	if c.twin == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expire(now); replaced {
		s.late = append(s.late, late{c, now.Add(lateTime)})
		return
	}
	delete(s.m, c.twin.in.session)
}

func (s *twins) expire(now time.Time) {
	n := 0
	for n < len(s.late) && now.After(s.late[n].until) {
		delete(s.m, s.late[n].c.twin.in.session)
		n++
	}
	s.late = slices.Delete(s.late, 0, n)
}

func (s *twins) get(session uint64) *session {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.m[session]
}

// ServeUDP serves the relay's UDP side, if ServerConfig says that there is one, and answers STUN at pc, until pc is
// closed; it then returns nil. Nodes look for it at the URLs' hosts and ports, or wherever they are told it is.
func (s *Server) ServeUDP(pc net.PacketConn) error {
	r := &udpReader{s: s, sock: udp.New(pc), stun: newSTUN(), row: make([]byte, 0, 2*MaxMessage)}
	defer r.stun.open(pc)()
	return serve(r.sock, r.take)
}

// serve calls take with each run of datagrams until the socket is closed.
func serve(s *udp.Socket, take func(run []byte, size int, from netip.AddrPort)) error {
	r := s.Reader()
	for fails := 0; ; {
		run, size, from, err := r.Next()
		switch {
		case err == nil:
			fails = 0
			take(run, size, from)
		case errors.Is(err, net.ErrClosed):
			return nil
		default:
			if fails++; fails > 100 {
				return err // some, an ICMP error brings about; a broken socket goes on
			}
		}
	}
}

// udpReader is one socket's reader goroutine.
type udpReader struct {
	s     *Server
	sock  *udp.Socket
	stun  *stunServer
	reply []byte

	c   *session // whose packets are in row
	row []byte
}

// take sorts a run of datagrams from one source. Packets of one session that came together are forwarded together.
func (r *udpReader) take(run []byte, size int, from netip.AddrPort) {
	now := time.Now()
	for len(run) > 0 {
		n := min(size, len(run))
		if id, ok := datagramSession(run[:n]); !ok {
			r.stun.respond(r.sock, run[:n], from, now.Sub(r.s.start))
		} else if c := r.s.twins.get(id); c != nil {
			r.datagram(c, run[:n], from, now)
		}
		run = run[n:]
	}
	r.flush()
}

func (r *udpReader) datagram(c *session, b []byte, from netip.AddrPort, now time.Time) {
	kind, body, newest, ok := c.twin.in.open(b)
	if !ok {
		r.s.n.forged.Add(1)
		return
	}
	c.twin.from(r.sock, from, newest, now)
	switch kind {
	case dgMessage:
		if c != r.c {
			r.flush()
			r.c = c
		}
		r.row = append(r.row, body...)
		r.s.n.udpIn.Add(1)
	case dgPing:
		echo, use, ok := cutProbe(body)
		if !ok || len(b) > maxDatagram || !c.twin.pings.Allow() {
			return
		}
		if newest {
			c.twin.setUse(int(use))
		}
		r.reply = c.twin.out.probe(r.reply[:0], dgPing, echo, use, from, len(b))
		_ = r.sock.WriteOne(r.reply, from) // asked again if it is lost
	}
}

func (r *udpReader) flush() {
	if len(r.row) > 0 {
		if e := r.c.forward(r.row); e != nil {
			r.c.end(e)
		}
	}
	r.c, r.row = nil, r.row[:0]
}

// sayUDP sends what of b may go by UDP that way, and leaves the rest in b.
func (c *session) sayUDP(b *block) {
	if c.twin == nil {
		return
	}
	fresh := twinFresh
	if first, _, err := cutPacket(b.bytes()); err == nil && urgent(first[headerLen:]) { // and so is all of b
		fresh = twinUrgent
	}
	sock, addr, use, both := c.twin.route(time.Now(), fresh)
	if use == 0 {
		return
	}
	n, size := b.n, len(b.bytes())
	rest, left, err := sendRow(sock, c.twin.out, addr, use, b.bytes(), both)
	if err != nil {
		c.twin.setUse(0) // until the node pings again
	}
	b.buf, b.n = b.buf[:b.off+len(rest)], left
	c.s.n.packetsOut.Add(uint64(n - left))
	c.s.n.bytesOut.Add(uint64(size - len(rest)))
	c.s.n.udpOut.Add(uint64(n - left))
}
