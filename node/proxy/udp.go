package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// parseDatagram splits a datagram of a UDP association (RFC 1928 section 7):
//
//	+-------+------+------------------+------+
//	|  RSV  | FRAG | address and port | DATA |
//	| 00 00 |  00  | see readTarget   |      |
//	+-------+------+------------------+------+
//
// Fragments are not supported and must then be dropped. data is a part of b.
func parseDatagram(b []byte) (to target, data []byte, err error) {
	if len(b) < 3 || b[0] != 0 || b[1] != 0 {
		return to, nil, errors.New("socks5: malformed datagram")
	}
	if b[2] != 0 {
		return to, nil, errors.New("socks5: fragments are not supported")
	}
	r := bytes.NewReader(b[3:])
	if to, err = readTarget(r); err != nil {
		return to, nil, err
	}
	if to.port == 0 {
		return to, nil, errors.New("socks5: no port")
	}
	return to, b[len(b)-r.Len():], nil
}

// association is a client's UDP port: it lives as long as its TCP connection and hears only its client.
//
//	client ⇄ sock ─ by destination ─→ peer ⇄ Dialer's connection
type association struct {
	s    *Server
	sock net.PacketConn
	ip   netip.Addr    // where the client must send from
	port atomic.Uint32 // and its port, fixed by what it announced or by its first datagram
	wg   sync.WaitGroup

	mu    sync.Mutex
	over  bool
	peers map[target]*peer
}

// peer is one destination of an association.
type peer struct {
	to  target
	out chan []byte // datagrams for it; only the association's reader sends
}

// associate serves UDP ASSOCIATE until the client's TCP connection ends. want is where the client says it will
// send from, zeros if it does not know.
func (s *Server) associate(c *client, want target) {
	at, ok1 := c.LocalAddr().(*net.TCPAddr)
	from, ok2 := c.RemoteAddr().(*net.TCPAddr)
	if !ok1 || !ok2 { // a unix socket: no address a datagram could come from
		reply(c, replyBadCommand, nil)
		return
	}
	sock, err := net.ListenUDP("udp", &net.UDPAddr{IP: at.IP, Zone: at.Zone})
	if err != nil {
		reply(c, replyFailure, nil)
		return
	}
	a := &association{s: s, sock: sock, ip: from.AddrPort().Addr().Unmap(), peers: make(map[target]*peer)}
	if want.ip == a.ip { // else it does not know its own address, or means another host, which we do not serve
		a.port.Store(uint32(want.port))
	}
	if reply(c, replySucceeded, sock.LocalAddr()) == nil {
		a.wg.Go(a.read)
		io.Copy(io.Discard, c) // until it ends, or Close closes it
	}
	a.mu.Lock()
	a.over = true
	a.mu.Unlock()
	sock.Close()
	a.wg.Wait()
}

// read takes the client's datagrams to their peers. What cannot be taken is dropped, as datagrams are.
func (a *association) read() {
	defer func() { // the sender closes
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, p := range a.peers {
			close(p.out)
		}
		a.peers = nil
	}()
	for buf := make([]byte, 64<<10); ; {
		n, from, err := a.sock.ReadFrom(buf)
		if err != nil {
			a.mu.Lock()
			over := a.over
			a.mu.Unlock()
			if over {
				return
			}
			continue // an ICMP error for what we sent to the client
		}
		ap := from.(*net.UDPAddr).AddrPort()
		if ap.Addr().Unmap() != a.ip {
			continue
		}
		to, data, err := parseDatagram(buf[:n])
		if err != nil {
			continue
		}
		a.port.CompareAndSwap(0, uint32(ap.Port()))
		if a.port.Load() != uint32(ap.Port()) {
			continue
		}
		if p := a.peer(to); p != nil {
			select {
			case p.out <- bytes.Clone(data):
			default:
			}
		}
	}
}

// peer finds or starts the peer for a destination; nil if there are too many.
func (a *association) peer(to target) *peer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.peers[to]; p != nil {
		return p
	}
	if len(a.peers) >= maxPeersPerClient {
		return nil
	}
	select {
	case a.s.peers <- struct{}{}:
	default:
		return nil
	}
	p := &peer{to: to, out: make(chan []byte, 16)}
	a.peers[to] = p
	a.wg.Go(func() {
		defer func() { <-a.s.peers }()
		a.run(p)
		a.mu.Lock()
		if a.peers[to] == p {
			delete(a.peers, to)
		}
		a.mu.Unlock()
	})
	return p
}

// run dials a peer and passes datagrams until neither side has had one for Options.UDPIdle.
func (a *association) run(p *peer) {
	conn, err := a.s.dial(a.s.ctx, "udp", p.to.String())
	if err != nil {
		return // nothing in SOCKS5 could tell the client
	}
	active := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.back(p, conn, active)
	}()
	defer func() { conn.Close(); <-done }()
	idle := time.NewTimer(a.s.opt.UDPIdle)
	defer idle.Stop()
	for {
		select {
		case b, ok := <-p.out:
			if !ok {
				return
			}
			conn.Write(b)
		case <-active:
		case <-done:
			return
		case <-idle.C:
			return
		}
		idle.Reset(a.s.opt.UDPIdle)
	}
}

// back passes a peer's datagrams to the client, each with the address it came from.
func (a *association) back(p *peer, conn net.Conn, active chan<- struct{}) {
	from := p.to
	if ua, ok := conn.RemoteAddr().(*net.UDPAddr); ok && ua.AddrPort().IsValid() {
		from = target{ip: ua.AddrPort().Addr().Unmap(), port: ua.AddrPort().Port()}
	}
	head := from.append([]byte{0, 0, 0})
	buf := make([]byte, len(head)+64<<10)
	copy(buf, head)
	for {
		n, err := conn.Read(buf[len(head):])
		if err != nil {
			return
		}
		select {
		case active <- struct{}{}:
		default:
		}
		to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.ip, uint16(a.port.Load())))
		a.sock.WriteTo(buf[:len(head)+n], to)
	}
}
