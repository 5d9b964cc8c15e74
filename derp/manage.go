package derp

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"time"

	"github.com/gorilla/websocket"
)

const (
	settled   = 10 * time.Second       // a link that lasted that long was a success
	staleness = 2 * time.Second        // what has waited longer for a link is no use to anybody
	retireIn  = 2 * time.Second        // an old link has that long to end by itself
	freeWrite = 200 * time.Millisecond // and a writer stuck in it that long
	urgency   = 15 * time.Second       // what waits for a link has it dialed often for that long
	wishes    = 5                      // rounds of all URLs, when a new link is wished for while the old one seems to live
)

type dialResult struct {
	ws     *websocket.Conn
	ticket []byte
	err    error
}

// manager is the client's one decider: everything in it belongs to its goroutine.
type manager struct {
	*Client
	links  map[*link]struct{} // whose readers run
	ticket []byte             // of the current link

	cancel  context.CancelFunc // of the dial under way, or nil
	again   bool               // when it is over, dial once more
	url     int                // the next to dial
	good    int                // the one that was reached last
	wish    int                // dials that have failed since a new link was wished for, and 1; 0 if none is
	fails   int                // in a row
	ahead   time.Duration      // the relay's clock of ours
	lost    error              // why the manager itself hung up the current link
	downAt  time.Time
	dialAt  time.Time // zero for never; likewise below
	beatAt  time.Time
	renewAt time.Time
	freeAt  time.Time // when packets are no longer held

	udp udpSide
}

func (c *Client) manage() {
	defer c.wg.Done()
	now := time.Now()
	m := &manager{Client: c, links: map[*link]struct{}{}, downAt: now, dialAt: now}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(m.due(time.Now()))
		select {
		case <-c.ctx.Done():
			m.stop()
			return
		case <-c.redial:
			m.wanted(time.Now())
		case r := <-c.dialed:
			m.dialEnded(r, time.Now())
		case l := <-c.ended:
			m.linkEnded(l, time.Now())
		case <-c.stir:
			m.beat(time.Now())
			m.mindUDP(time.Now())
		case o := <-c.offers:
			m.offered(o, time.Now())
		case a := <-c.located:
			m.udp.addrs = a
			m.mindUDP(time.Now())
		case a := <-c.pongs:
			m.answered(a, time.Now())
		case <-timer.C:
			m.tick(time.Now())
		}
	}
}

// stop ends all that the manager has begun; Close waits for it.
func (m *manager) stop() {
	if m.cancel != nil {
		m.cancel()
	}
	m.cur.Store(nil)
	if s := m.sock.Load(); s != nil {
		s.Close()
	}
	for l := range m.links {
		l.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(100*time.Millisecond))
		l.hangUp()
	}
}

// due is how long there is nothing to do by the clock.
func (m *manager) due(now time.Time) time.Duration {
	d := time.Hour
	for _, t := range []time.Time{m.dialAt, m.beatAt, m.renewAt, m.freeAt, m.udp.at} {
		if !t.IsZero() {
			d = min(d, t.Sub(now))
		}
	}
	return max(d, 0)
}

func (m *manager) tick(now time.Time) {
	past := func(t *time.Time) bool {
		if t.IsZero() || now.Before(*t) {
			return false
		}
		*t = time.Time{}
		return true
	}
	if past(&m.freeAt) {
		m.free() // the link may be alive after all
	}
	if past(&m.renewAt) {
		m.renew(now)
	}
	if past(&m.beatAt) {
		m.beat(now)
	}
	if past(&m.udp.at) {
		m.mindUDP(now)
	}
	if past(&m.dialAt) {
		m.dial()
	}
}

// wanted is a wish for a new link at once. Addresses come before routes when a network changes, so the first dials may fail.
func (m *manager) wanted(now time.Time) {
	m.wish = 1
	if m.cur.Load() != nil {
		m.url = m.good // by the family, and over the proxy, that worked
	}
	m.udp.lane.moved(m.since())
	m.mindUDP(now)
	l := m.cur.Load()
	if l != nil && l.draining.Load() {
		m.status(true, ErrDraining)
	}
	if size, _ := m.udp.lane.usable(); l != nil && size == 0 && m.left(l) {
		m.held.Store(true)
		m.freeAt = now.Add(staleness)
	}
	if m.cancel != nil { // the dial under way may be on a network that is gone
		m.again = true
		m.cancel()
		return
	}
	m.dialAt = now
}

// free lets the writer go on.
func (m *manager) free() {
	m.held.Store(false)
	m.freeAt = time.Time{}
	m.poke(m.wake)
}

func (m *manager) status(up bool, err error) {
	if m.cfg.Status != nil {
		m.cfg.Status(up, err)
	}
}

// left reports whether packets to the relay no longer leave by the address that the link has: then it is surely dead. The
// system is asked, and nothing is sent.
func (m *manager) left(l *link) bool {
	was, ok := l.raw.LocalAddr().(*net.TCPAddr)
	if !ok {
		return false
	}
	c, err := m.cfg.Dial(m.ctx, "udp", l.raw.RemoteAddr().String())
	if err != nil {
		return true // there is no route at all, for the moment
	}
	defer c.Close()
	is, ok := c.LocalAddr().(*net.UDPAddr)
	return ok && !is.IP.Equal(was.IP)
}

// heard is how many messages came by the current link, if no more will.
func (m *manager) heard() uint64 {
	if l := m.cur.Load(); l != nil && (m.held.Load() || l.pulse.missed > 0) {
		return l.messages.Load()
	}
	return 0
}

func (m *manager) dial() {
	if m.cancel != nil {
		return
	}
	ctx, cancel := context.WithTimeout(m.ctx, m.times.dial)
	m.cancel, m.again = cancel, false
	url, ahead, heard := "", m.ahead, m.heard()
	if n := len(m.cfg.URLs); n > 0 {
		url = m.cfg.URLs[m.url%n]
	}
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		var r dialResult
		r.ticket = bytes.Clone(m.cfg.Ticket())
		r.ws, r.err = dial(ctx, &m.cfg, url, r.ticket, ahead, heard)
		m.dialed <- r // has room
	}()
}

func (m *manager) dialEnded(r dialResult, now time.Time) {
	m.cancel()
	m.cancel = nil
	var off *clockError
	switch {
	case r.err == nil:
		m.adopt(r, now)
	case m.again:
		m.dialAt = now
	case errors.As(r.err, &off) && (off.ahead-m.ahead).Abs() > window/8:
		m.ahead, m.dialAt = off.ahead, now // the same URL, by its own clock
	default:
		m.url++
		m.fails++
		l := m.cur.Load()
		if l == nil {
			m.status(false, r.err)
		}
		switch {
		case m.wish > 0 && m.wish < wishes*max(1, len(m.cfg.URLs)):
			m.dialAt = now
			if m.wish >= len(m.cfg.URLs) {
				m.dialAt = now.Add(m.times.backoff(m.wish, len(m.cfg.URLs), false))
			}
			m.wish++
		case l == nil || l.draining.Load() || l.pulse.missed > 0:
			m.dialAt = now.Add(m.times.backoff(m.fails, len(m.cfg.URLs), m.urgent(now)))
		}
	}
	if r.err == nil && m.again {
		m.dialAt = now
	}
}

// adopt makes a new connection the current link.
func (m *manager) adopt(r dialResult, now time.Time) {
	l := &link{c: m.Client, ws: r.ws, raw: r.ws.NetConn(), up: now}
	l.messages.Store(1) // dial has read it
	l.heard.Store(int64(m.since()))
	l.pulse.heard = m.since()
	l.ticket, _ = parseTicket(r.ticket)
	m.links[l] = struct{}{}
	old := m.cur.Load()
	if old == nil && now.Sub(m.downAt) > staleness {
		m.q.clear()
	}
	m.cur.Store(l)
	m.partUDP()
	m.ticket, m.lost = r.ticket, nil
	m.good, m.wish = m.url, 0
	m.dialAt = time.Time{}
	m.free()
	m.wg.Add(1)
	go l.read()
	if old != nil { // the relay ends it as soon as all that was for us in it is sent
		old.raw.SetReadDeadline(now.Add(retireIn))
		old.raw.SetWriteDeadline(now.Add(freeWrite))
	}
	m.renewAt = now.Add(l.ticket.Expires.Sub(now.Add(m.ahead)) * 3 / 4)
	m.beat(now)
	m.status(true, nil)
}

func (m *manager) linkEnded(l *link, now time.Time) {
	delete(m.links, l)
	if m.cur.Load() != l {
		return
	}
	m.cur.Store(nil)
	m.partUDP()
	m.downAt, m.beatAt, m.renewAt = now, time.Time{}, time.Time{}
	err := l.err
	if m.lost != nil {
		err = m.lost
	}
	if m.cancel != nil && errors.Is(err, ErrReplaced) {
		return // by ourselves: the dial under way is about to succeed
	}
	switch {
	case errors.Is(err, ErrReplaced), errors.Is(err, ErrKicked):
		m.fails += 4 * max(1, len(m.cfg.URLs)) // not to fight with a second copy of this node
	case now.Sub(l.up) >= settled:
		m.fails = 0
	default:
		m.fails++
	}
	if m.cancel == nil {
		m.dialAt = now.Add(m.times.backoff(m.fails, len(m.cfg.URLs), m.urgent(now)))
	}
	m.status(false, err)
}

// backoff is how long to wait after that many failures in a row. Nobody waits before each URL has had its turn, but for a
// moment that keeps all the nodes of a relay that has just restarted from coming at once. Who has something to send, and was
// connected a moment ago, asks more often: it may be that its own network is dark, or lets nothing through yet.
func (t times) backoff(fails, urls int, urgent bool) time.Duration {
	if fails < max(urls, 1) {
		return rand.N(100 * time.Millisecond)
	}
	d := t.most
	if urgent {
		d = t.hurry
	}
	if n := fails/max(urls, 1) - 1; n < 16 {
		d = min(d, t.retry<<n)
	}
	return d/2 + rand.N(d/2+1)
}

// urgent reports whether somebody waits for a link that was there a moment ago.
func (m *manager) urgent(now time.Time) bool {
	return now.Sub(m.downAt) < urgency && m.q.waiting()
}

// renew makes a new link when there is a newer ticket than the link's.
func (m *manager) renew(now time.Time) {
	l := m.cur.Load()
	if l == nil {
		return
	}
	if t := m.cfg.Ticket(); len(t) > 0 && !bytes.Equal(t, m.ticket) {
		m.dialAt = now
	}
	m.renewAt = now.Add(max(l.ticket.Expires.Sub(now.Add(m.ahead))/8, 5*time.Second))
}

// beat looks after the current link's pulse.
func (m *manager) beat(now time.Time) {
	l := m.cur.Load()
	if l == nil {
		return
	}
	l.stirring.Store(false)
	at := m.since()
	l.pulse.heard, l.pulse.sent = time.Duration(l.heard.Load()), time.Duration(l.sent.Load())
	l.pulse.data = time.Duration(l.data.Load())
	what, next := l.pulse.next(at, m.times)
	m.beatAt = now.Add(next - at)
	if l.pulse.sent != 0 || l.pulse.pinged != 0 || l.pulse.data > l.pulse.asked {
		l.stirring.Store(true) // beatAt is soon enough for it
	} else if (l.sent.Load() != 0 || time.Duration(l.data.Load()) > l.pulse.asked) && l.stirring.CompareAndSwap(false, true) {
		m.poke(m.stir) // sent meanwhile
	}
	switch what {
	case beatPing:
		l.ping()
	case beatSuspect:
		l.ping()
		if m.cancel == nil && m.dialAt.IsZero() {
			m.dialAt = now
		}
	case beatDead:
		m.lost = ErrSilent
		l.hangUp()
	}
}
