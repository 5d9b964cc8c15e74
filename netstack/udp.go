package netstack

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// udpConn is a gVisor UDP endpoint; it is a net.Conn when dialled and a net.PacketConn always.
type udpConn struct {
	ep     tcpip.Endpoint
	local  *net.UDPAddr
	remote net.Addr       // nil when not connected
	to     netip.AddrPort // the same
	six    bool           // an IPv6 endpoint, which wants IPv4 destinations mapped
	closed atomic.Bool
	dgrams datagrams
	inbox  inbox
	sender atomic.Pointer[named] // of what was last read: mostly that of the next, too

	in  side
	dst tcpip.SliceWriter // what is read to, guarded by in.mu
	out side
	src bytes.Reader // what is written, guarded by out.mu
}

func newUDPConn(s *Stack, wq *waiter.Queue, ep tcpip.Endpoint, connected, six bool) *udpConn {
	c := &udpConn{ep: ep, local: new(net.UDPAddr), six: six}
	c.dgrams.s, c.dgrams.link = s, s.link
	if a, err := ep.GetLocalAddress(); err == nil {
		at := addrPort(a)
		c.local = net.UDPAddrFromAddrPort(at)
		if !at.Addr().IsUnspecified() {
			c.dgrams.from = at
		}
	}
	if a, err := ep.GetRemoteAddress(); err == nil && connected {
		c.to = addrPort(a)
		c.remote = net.UDPAddrFromAddrPort(c.to)
	}
	c.in.register(wq, waiter.ReadableEvents)
	c.out.register(wq, waiter.WritableEvents)
	s.inboxes.add(c.ends(), c)
	return c
}

// ends are what datagrams for the socket have.
func (c *udpConn) ends() ends {
	e := ends{local: c.dgrams.from, remote: c.to}
	if !e.local.IsValid() {
		e.local = netip.AddrPortFrom(netip.Addr{}, uint16(c.local.Port))
	}
	return e
}

// after waits if err says so; else it returns the error that package net would give, if any.
func (c *udpConn) after(err tcpip.Error, s *side, op string, to net.Addr) (again bool, _ error) {
	var e error
	switch _, wait := err.(*tcpip.ErrWouldBlock); {
	case err == nil:
		return false, nil
	case wait:
		if e = s.wait(); e == nil {
			return true, nil
		}
	case c.closed.Load() || isClosed(err):
		e = net.ErrClosed
	default:
		e = errno(err)
	}
	return false, &net.OpError{Op: op, Net: "udp", Source: c.local, Addr: to, Err: e}
}

func isClosed(err tcpip.Error) bool {
	switch err.(type) {
	case *tcpip.ErrClosedForReceive, *tcpip.ErrClosedForSend, *tcpip.ErrInvalidEndpointState:
		return true
	}
	return false
}

func (c *udpConn) Read(b []byte) (int, error) {
	n, _, err := c.readFrom(b)
	return n, err
}

func (c *udpConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.readFrom(b)
	if err != nil {
		return 0, nil, err
	}
	p := c.sender.Load()
	if p == nil || p.at != from {
		p = &named{from, net.UDPAddrFromAddrPort(from)}
		c.sender.Store(p)
	}
	return n, p.addr, nil
}

// named is an address as package net has it, in memory of its own.
type named struct {
	at   netip.AddrPort
	addr *net.UDPAddr
}

func (c *udpConn) readFrom(b []byte) (int, netip.AddrPort, error) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	for {
		if c.in.limit.passed() {
			return 0, netip.AddrPort{}, &net.OpError{Op: "read", Net: "udp", Source: c.local, Addr: c.remote, Err: os.ErrDeadlineExceeded}
		}
		c.in.begin()
		if n, from, ok := c.inbox.take(b); ok && !c.closed.Load() {
			return n, from, nil
		}
		c.dst = b
		r, terr := c.ep.Read(&c.dst, tcpip.ReadOptions{NeedRemoteAddr: true})
		c.dst = nil
		if again, err := c.after(terr, &c.in, "read", c.remote); !again {
			return r.Count, addrPort(r.RemoteAddr), err
		}
	}
}

func (c *udpConn) Write(b []byte) (int, error) { return c.writeTo(b, c.remote, c.to, nil) }

func (c *udpConn) WriteTo(b []byte, to net.Addr) (int, error) {
	ua, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, &net.OpError{Op: "write", Net: "udp", Source: c.local, Addr: to, Err: net.InvalidAddrError("not a *net.UDPAddr")}
	}
	ip := ua.IP.To4()
	if c.six || ip == nil {
		ip = ua.IP.To16()
	}
	if ip == nil {
		return 0, &net.OpError{Op: "write", Net: "udp", Source: c.local, Addr: to, Err: net.InvalidAddrError("no IP address")}
	}
	ap := ua.AddrPort()
	return c.writeTo(b, to, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), &tcpip.FullAddress{Addr: tcpip.AddrFromSlice(ip), Port: uint16(ua.Port)})
}

func (c *udpConn) writeTo(b []byte, name net.Addr, at netip.AddrPort, to *tcpip.FullAddress) (int, error) {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	defer c.src.Reset(nil)
	for {
		if c.out.limit.passed() {
			return 0, &net.OpError{Op: "write", Net: "udp", Source: c.local, Addr: name, Err: os.ErrDeadlineExceeded}
		}
		c.out.begin()
		n, terr := int64(len(b)), tcpip.Error(nil)
		if c.dgrams.can(len(b), at) {
			terr = c.send(b, at)
		} else {
			c.src.Reset(b)
			n, terr = c.ep.Write(&c.src, tcpip.WriteOptions{To: to})
		}
		if again, err := c.after(terr, &c.out, "write", name); !again {
			return int(n), err
		}
	}
}

func (c *udpConn) Close() error {
	if c.closed.Swap(true) {
		return &net.OpError{Op: "close", Net: "udp", Source: c.local, Addr: c.remote, Err: net.ErrClosed}
	}
	c.dgrams.s.inboxes.remove(c.ends(), c)
	c.ep.Close()
	return nil
}

func (c *udpConn) LocalAddr() net.Addr  { return c.local }
func (c *udpConn) RemoteAddr() net.Addr { return c.remote }

func (c *udpConn) SetDeadline(t time.Time) error {
	c.in.limit.set(t)
	c.out.limit.set(t)
	return nil
}
func (c *udpConn) SetReadDeadline(t time.Time) error  { c.in.limit.set(t); return nil }
func (c *udpConn) SetWriteDeadline(t time.Time) error { c.out.limit.set(t); return nil }

// deadline is a time after which waiting ends. Setting it wakes nobody unless it has passed, and reaches those
// who already wait.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	done  chan struct{} // closed when passed; nil until first used
}

// set changes the deadline; zero means none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.done // it has fired and is about to close, or has closed, the channel
	}
	d.timer = nil
	if d.done == nil || isDone(d.done) {
		d.done = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	done := d.done
	if left := time.Until(t); left > 0 {
		d.timer = time.AfterFunc(left, func() { close(done) })
		return
	}
	close(done)
}

// wait returns a channel that is closed when the deadline has passed.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done == nil {
		d.done = make(chan struct{})
	}
	return d.done
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done != nil && isDone(d.done)
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
