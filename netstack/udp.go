package netstack

import (
	"bytes"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// udpConn is a gVisor UDP endpoint; it is a net.Conn when dialled and a net.PacketConn always. gonet's is not
// used because its Read sleeps through ICMP errors.
type udpConn struct {
	ep          tcpip.Endpoint
	wq          *waiter.Queue
	local       *net.UDPAddr
	remote      net.Addr // nil when not connected
	six         bool     // an IPv6 endpoint, which wants IPv4 destinations mapped
	closed      atomic.Bool
	read, write deadline
}

func newUDPConn(wq *waiter.Queue, ep tcpip.Endpoint, connected, six bool) *udpConn {
	c := &udpConn{ep: ep, wq: wq, local: new(net.UDPAddr), six: six}
	if a, err := ep.GetLocalAddress(); err == nil {
		c.local = net.UDPAddrFromAddrPort(addrPort(a))
	}
	if a, err := ep.GetRemoteAddress(); err == nil && connected {
		c.remote = net.UDPAddrFromAddrPort(addrPort(a))
	}
	return c
}

// retry calls f until it does not say ErrWouldBlock, waiting for events in between.
func (c *udpConn) retry(op string, to net.Addr, events waiter.EventMask, d *deadline, f func() tcpip.Error) error {
	fail := func(err error) error { return &net.OpError{Op: op, Net: "udp", Source: c.local, Addr: to, Err: err} }
	if d.passed() {
		return fail(os.ErrDeadlineExceeded)
	}
	var ready chan struct{}
	for {
		err := f()
		if _, wait := err.(*tcpip.ErrWouldBlock); !wait {
			switch {
			case err == nil:
				return nil
			case c.closed.Load() || isClosed(err):
				return fail(net.ErrClosed)
			}
			return fail(errno(err))
		}
		if ready == nil {
			var entry waiter.Entry
			entry, ready = waiter.NewChannelEntry(events | waiter.EventErr | waiter.EventHUp)
			c.wq.EventRegister(&entry)
			defer c.wq.EventUnregister(&entry)
			continue // it may have become possible before we registered
		}
		select {
		case <-ready:
		case <-d.wait():
			return fail(os.ErrDeadlineExceeded)
		}
	}
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
	return n, net.UDPAddrFromAddrPort(addrPort(from)), nil
}

func (c *udpConn) readFrom(b []byte) (n int, from tcpip.FullAddress, err error) {
	err = c.retry("read", c.remote, waiter.ReadableEvents, &c.read, func() tcpip.Error {
		w := tcpip.SliceWriter(b)
		r, err := c.ep.Read(&w, tcpip.ReadOptions{NeedRemoteAddr: true})
		n, from = r.Count, r.RemoteAddr
		return err
	})
	return n, from, err
}

func (c *udpConn) Write(b []byte) (int, error) { return c.writeTo(b, c.remote, nil) }

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
	return c.writeTo(b, to, &tcpip.FullAddress{Addr: tcpip.AddrFromSlice(ip), Port: uint16(ua.Port)})
}

func (c *udpConn) writeTo(b []byte, name net.Addr, to *tcpip.FullAddress) (n int, err error) {
	r := bytes.NewReader(b)
	err = c.retry("write", name, waiter.WritableEvents, &c.write, func() tcpip.Error {
		r.Reset(b)
		sent, err := c.ep.Write(r, tcpip.WriteOptions{To: to})
		n = int(sent)
		return err
	})
	return n, err
}

func (c *udpConn) Close() error {
	if c.closed.Swap(true) {
		return &net.OpError{Op: "close", Net: "udp", Source: c.local, Addr: c.remote, Err: net.ErrClosed}
	}
	c.ep.Close()
	return nil
}

func (c *udpConn) LocalAddr() net.Addr  { return c.local }
func (c *udpConn) RemoteAddr() net.Addr { return c.remote }

func (c *udpConn) SetDeadline(t time.Time) error {
	c.read.set(t)
	c.write.set(t)
	return nil
}
func (c *udpConn) SetReadDeadline(t time.Time) error  { c.read.set(t); return nil }
func (c *udpConn) SetWriteDeadline(t time.Time) error { c.write.set(t); return nil }

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
