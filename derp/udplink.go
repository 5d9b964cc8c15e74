package derp

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/hedge-mesh/hedge/node/udp"
)

// bond is a client's UDP side of one session at the relay.
type bond struct {
	in   *unseal
	l    *link
	out  *seal
	size atomic.Int32                   // of the longest datagram to send packets in; 0 for none
	both atomic.Bool                    // and they go by WebSocket, too
	addr atomic.Pointer[netip.AddrPort] // the relay's

	heard atomic.Int64 // as the lane's
	data  atomic.Int64
	sent  atomic.Int64
	mute  atomic.Int64
	stale atomic.Bool // the manager is to ask at once
	last  atomic.Int64
	long  atomic.Int64
}

// offer is a relay's word that a link has a UDP side.
type offer struct {
	l      *link
	secret [offerLen]byte
}

// answered is a pong.
type answered struct {
	b    *bond
	sent time.Duration
	size int
}

// udpSide is what the manager knows of the relay's UDP. The socket is opened with the first packet and kept: it is not
// connected, so the system sends from whatever address the machine has now.
type udpSide struct {
	lane  lane
	bond  *bond // of the current link, or nil
	addrs []netip.AddrPort
	addr  int
	at    time.Time // when the lane wants to be asked; zero for never
}

// offered takes the UDP side of the current link.
func (m *manager) offered(o offer, now time.Time) {
	if m.cur.Load() != o.l {
		return
	}
	b := &bond{l: o.l}
	b.out, b.in = newSeals(o.secret, 0)
	m.udp.bond = b
	m.bond.Store(b)
	m.udp.lane.renewed(m.since())
	m.wg.Add(1)
	go func() { // names may take long
		defer m.wg.Done()
		select {
		case m.located <- locate(m.ctx, m.cfg.UDP, m.cfg.URLs, m.cfg.Lookup):
		case <-m.ctx.Done():
		}
	}()
	m.mindUDP(now)
}

// partUDP leaves the UDP side, until the relay offers it anew. What is on its way by it still comes.
func (m *manager) partUDP() {
	if b := m.bond.Swap(nil); b != nil {
		m.prior.Store(b)
	}
	m.udp.bond = nil
}

// locate finds the addresses of the relay's UDP side: those of hosts, or if there are none, of the URLs.
func locate(ctx context.Context, hosts, urls []string, lookup func(context.Context, string) ([]netip.Addr, error)) (addrs []netip.AddrPort) {
	if len(hosts) == 0 {
		for _, s := range urls {
			u, err := url.Parse(s)
			if err != nil {
				continue
			}
			port := u.Port()
			if port == "" {
				port = map[string]string{"http": "80", "ws": "80"}[u.Scheme]
			}
			if port == "" {
				port = "443"
			}
			hosts = append(hosts, net.JoinHostPort(u.Hostname(), port))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, h := range hosts {
		if a, err := netip.ParseAddrPort(h); err == nil {
			addrs = append(addrs, a)
			continue
		}
		name, service, err := net.SplitHostPort(h)
		if err != nil {
			continue
		}
		port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
		if err != nil {
			continue
		}
		ips, err := lookup(ctx, name)
		if err != nil {
			continue // the WebSocket does without
		}
		for _, ip := range ips {
			addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
		}
	}
	return addrs[:min(len(addrs), maxUDPAddrs)]
}

const maxUDPAddrs = 8 // of a relay, tried in turn

// mindUDP does what the lane says.
func (m *manager) mindUDP(now time.Time) {
	u, b := &m.udp, m.udp.bond
	u.at = time.Time{}
	if b == nil || len(u.addrs) == 0 {
		return
	}
	m.lulled.Store(false)
	at := m.since()
	for {
		u.lane.traffic = time.Duration(m.traffic.Load())
		u.lane.heard, u.lane.sent, u.lane.out = time.Duration(b.heard.Load()), time.Duration(b.sent.Load()), time.Duration(b.last.Load())
		u.lane.data, u.lane.mute, u.lane.stale = time.Duration(b.data.Load()), time.Duration(b.mute.Load()), b.stale.Load()
		u.lane.long = int(b.long.Load())
		a, next := u.lane.act(at)
		size, both := u.lane.usable()
		b.both.Store(both)
		if b.size.Store(int32(size)); size > 0 && m.held.Load() {
			m.free() // what waits for a new link goes by UDP
		}
		if a.stop {
			m.control(kindUDP, nil)
			if l := m.cur.Load(); l != nil {
				l.ping() // is the network gone, or UDP only?
			}
		}
		switch {
		case a.ping > 0:
			m.pingUDP(b, a.ping, at)
			continue
		case a.stop:
			continue
		case a.other:
			u.addr++
			continue
		case next != 0:
			u.at = now.Add(next - at)
		case m.lulled.CompareAndSwap(false, true) && time.Duration(m.traffic.Load()) > u.lane.traffic:
			m.lulled.Store(false) // a packet came meanwhile
			continue
		}
		return
	}
}

func (m *manager) pingUDP(b *bond, size int, at time.Duration) {
	s := m.udpSocket()
	if s == nil {
		return
	}
	addr := m.udp.addrs[m.udp.addr%len(m.udp.addrs)]
	if old := b.addr.Load(); old == nil || *old != addr {
		b.addr.Store(&addr)
	}
	b.mark(at)
	var echo [8]byte
	binary.BigEndian.PutUint64(echo[:], uint64(at))
	_ = s.WriteOne(b.out.probe(nil, dgPing, echo, uint16(m.udp.lane.use()), netip.AddrPort{}, size), addr) // asked again if it is lost
}

// mark notes that something is sent.
func (b *bond) mark(at time.Duration) {
	b.last.Store(int64(at))
	b.sent.CompareAndSwap(0, int64(at))
	b.mute.CompareAndSwap(0, int64(at))
}

func (b *bond) longest(n int) {
	if int64(n) > b.long.Load() {
		b.long.Store(int64(n))
	}
}

// answered takes a pong.
func (m *manager) answered(a answered, now time.Time) {
	if a.b != m.udp.bond {
		return
	}
	m.udp.lane.long = int(a.b.long.Load())
	a.b.stale.Store(false)
	if m.udp.lane.pong(m.since(), a.sent, a.size) {
		a.b.sent.Store(0)
		a.b.long.Store(0)
	}
	m.mindUDP(now)
}

// udpSocket opens the socket, once. Without one the WebSocket does.
func (m *manager) udpSocket() *udp.Socket {
	if s := m.sock.Load(); s != nil {
		return s
	}
	pc, err := m.cfg.ListenUDP()
	if err != nil {
		return nil
	}
	s := udp.New(pc)
	m.sock.Store(s)
	r := &udpLink{c: m.Client, link: &link{c: m.Client}}
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		_ = serve(s, r.take) // it ends with the client; if it breaks before, pings tell
	}()
	return s
}

// udpLink is the goroutine that reads the socket.
type udpLink struct {
	c    *Client
	link *link // takes the packets
	row  []byte
	seen [2]netip.AddrPort // the relay, and how it saw us last
}

func (r *udpLink) take(run []byte, size int, from netip.AddrPort) {
	at := r.c.since()
	for len(run) > 0 {
		n := min(size, len(run))
		r.datagram(run[:n], from, at)
		run = run[n:]
	}
	if len(r.row) > 0 {
		_ = r.link.take(r.row) // a relay that breaks the protocol here, is left when it does so on the WebSocket
		r.row = r.row[:0]
	}
}

// outside takes the relay's word of where our pings come from. Another place than before means that a NAT of ours is another,
// or has forgotten us.
func (r *udpLink) outside(relay, seen netip.AddrPort) {
	if !seen.IsValid() {
		return
	}
	was := r.seen
	r.seen = [...]netip.AddrPort{relay, seen}
	if was[0] == relay && was[1] != seen && r.c.cfg.Outside != nil && r.c.ctx.Err() == nil {
		r.c.cfg.Outside()
	}
}

func (r *udpLink) datagram(b []byte, from netip.AddrPort, at time.Duration) {
	session, ok := datagramSession(b)
	if !ok {
		return
	}
	for _, p := range [...]*atomic.Pointer[bond]{&r.c.bond, &r.c.prior} {
		bd := p.Load()
		if bd == nil || bd.in.session != session {
			continue
		}
		kind, body, _, ok := bd.in.open(b)
		if !ok {
			return
		}
		bd.heard.Store(int64(at))
		bd.mute.Store(0)
		switch kind {
		case dgMessage:
			r.row = append(r.row, body...)
			bd.longest(len(b))
			bd.data.Store(int64(at))
			if at-time.Duration(bd.last.Load()) > laneFresh {
				r.c.doubt(bd) // the relay, too, sends both ways what it is not sure of
			}
		case dgPing: // a pong
			if echo, _, ok := cutProbe(body); ok {
				r.outside(from, cutSeen(body))
				select {
				case r.c.pongs <- answered{bd, time.Duration(binary.BigEndian.Uint64(echo[:])), len(b)}:
				default:
				}
			}
		}
		return
	}
}

// doubt has the manager ask whether UDP passes.
func (c *Client) doubt(b *bond) {
	if b.stale.CompareAndSwap(false, true) {
		c.poke(c.stir)
	}
}

// sayUDP sends what of a message may go by UDP now, and leaves the rest in it; or all, if UDP may no longer pass.
func (c *Client) sayUDP(b *block) {
	bd, sock := c.bond.Load(), c.sock.Load()
	if bd == nil || sock == nil {
		return
	}
	size, addr := int(bd.size.Load()), bd.addr.Load()
	if size == 0 || addr == nil || bd.l.over.Load() {
		return
	}
	now, both := c.since(), bd.both.Load()
	if now-time.Duration(bd.heard.Load()) > laneFresh {
		c.doubt(bd)
		both = true
	}
	bd.mark(now)
	for row := b.bytes(); len(row) > 0; {
		p, more, err := cutPacket(row)
		if err != nil {
			break // whole packets only are in a block
		}
		if n := len(p) + datagramOverhead; n <= size {
			bd.longest(n)
		}
		row = more
	}
	rest, left, err := sendRow(sock, bd.out, *addr, size, b.bytes(), both)
	if err != nil {
		bd.size.Store(0)
	}
	b.buf, b.n = b.buf[:b.off+len(rest)], left
}

// busy notes that packets of nodes pass, which wakes the lane.
func (c *Client) busy() {
	c.traffic.Store(int64(c.since()))
	if c.lulled.CompareAndSwap(true, false) {
		c.poke(c.stir)
	}
}
