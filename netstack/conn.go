package netstack

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// tcpConn is a gVisor TCP endpoint as a net.Conn. Reads and writes allocate nothing here, which gonet's do each time
// that they wait. See copy.go for ReadFrom and WriteTo.
type tcpConn struct {
	ep            tcpip.Endpoint
	local, remote *net.TCPAddr // outlive Close
	closed        atomic.Bool
	still         stillness

	in  side
	dst tcpip.SliceWriter // Read's, guarded by in.mu, as an io.Writer must be somewhere
	out side
	src bytes.Reader // Write's, guarded by out.mu
}

func newTCPConn(wq *waiter.Queue, ep tcpip.Endpoint) *tcpConn {
	c := &tcpConn{ep: ep, local: new(net.TCPAddr), remote: new(net.TCPAddr)}
	if a, err := ep.GetLocalAddress(); err == nil {
		c.local = net.TCPAddrFromAddrPort(addrPort(a))
	}
	if a, err := ep.GetRemoteAddress(); err == nil {
		c.remote = net.TCPAddrFromAddrPort(addrPort(a))
	}
	c.in.register(wq, waiter.ReadableEvents)
	c.out.register(wq, waiter.WritableEvents)
	c.still.stats, _ = ep.Stats().(*tcp.Stats)
	newGoBack(ep)
	keepAlive(ep)
	return c
}

// fail gives an error the operation and the addresses that package net would give it.
func (c *tcpConn) fail(op string, err error) error {
	if c.closed.Load() {
		err = net.ErrClosed
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

func (c *tcpConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	for {
		n, err := c.tryRead(b)
		if n > 0 || err != nil {
			return n, err
		}
		if err := c.in.wait(); err != nil {
			return 0, c.fail("read", err)
		}
	}
}

// tryRead reads what there is; nothing and no error is nothing yet. The caller holds in.mu.
func (c *tcpConn) tryRead(b []byte) (int, error) {
	if c.in.limit.passed() {
		return 0, c.fail("read", os.ErrDeadlineExceeded)
	}
	c.in.begin()
	c.dst = b
	r, err := c.ep.Read(&c.dst, tcpip.ReadOptions{})
	c.dst = nil
	switch err.(type) {
	case nil:
		c.ep.ModerateRecvBuf(r.Count)
		return r.Count, nil
	case *tcpip.ErrWouldBlock:
		return 0, nil
	case *tcpip.ErrClosedForReceive:
		if !c.closed.Load() {
			return 0, io.EOF
		}
	}
	return 0, c.fail("read", errno(err))
}

func (c *tcpConn) Write(b []byte) (int, error) {
	c.still.wait(&c.closed)
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	defer c.src.Reset(nil)
	for n := 0; ; {
		if c.out.limit.passed() {
			return n, c.fail("write", os.ErrDeadlineExceeded)
		}
		if n == len(b) {
			return n, nil
		}
		c.out.begin()
		c.src.Reset(b[n:])
		wrote, err := c.ep.Write(&c.src, tcpip.WriteOptions{})
		n += int(wrote)
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			if err := c.out.wait(); err != nil {
				return n, c.fail("write", err)
			}
		default:
			return n, c.fail("write", errno(err))
		}
	}
}

func (c *tcpConn) Close() error {
	if c.closed.Swap(true) {
		return c.fail("close", net.ErrClosed)
	}
	c.ep.Close()
	return nil
}

func (c *tcpConn) CloseRead() error  { return c.shutdown(tcpip.ShutdownRead) }
func (c *tcpConn) CloseWrite() error { return c.shutdown(tcpip.ShutdownWrite) }

func (c *tcpConn) shutdown(how tcpip.ShutdownFlags) error {
	if err := c.ep.Shutdown(how); err != nil {
		return c.fail("close", errno(err))
	}
	return nil
}

func (c *tcpConn) LocalAddr() net.Addr  { return c.local }
func (c *tcpConn) RemoteAddr() net.Addr { return c.remote }

func (c *tcpConn) SetDeadline(t time.Time) error {
	c.in.limit.set(t)
	c.out.limit.set(t)
	return nil
}
func (c *tcpConn) SetReadDeadline(t time.Time) error  { c.in.limit.set(t); return nil }
func (c *tcpConn) SetWriteDeadline(t time.Time) error { c.out.limit.set(t); return nil }

// SetLinger is as of net.TCPConn: with 0, Close sends a RST instead of a FIN.
func (c *tcpConn) SetLinger(sec int) error {
	c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: sec >= 0, Timeout: time.Duration(max(sec, 0)) * time.Second})
	return nil
}

// side is reading from an endpoint, or writing to it.
type side struct {
	mu    sync.Mutex // one at a time
	entry waiter.Entry
	ready chan struct{} // has one when it may be possible again
	limit deadline
}

// begin forgets what has happened before it is tried.
func (s *side) begin() {
	select {
	case <-s.ready:
	default:
	}
}

// wake says that it may be possible again.
func (s *side) wake() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// register has an endpoint's events wake who waits, from now until the endpoint is gone.
func (s *side) register(wq *waiter.Queue, events waiter.EventMask) {
	s.entry, s.ready = waiter.NewChannelEntry(events | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&s.entry)
}

// wait returns when something has happened since it was tried, or os.ErrDeadlineExceeded.
func (s *side) wait() error {
	select {
	case <-s.ready:
		return nil
	case <-s.limit.wait():
		return os.ErrDeadlineExceeded
	}
}

// listener is a net.Listener of a gVisor endpoint.
type listener struct {
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	addr *net.TCPAddr
	done chan struct{} // closed by Close
	once sync.Once
}

func newListener(wq *waiter.Queue, ep tcpip.Endpoint) *listener {
	l := &listener{ep: ep, wq: wq, addr: new(net.TCPAddr), done: make(chan struct{})}
	if a, err := ep.GetLocalAddress(); err == nil {
		l.addr = net.TCPAddrFromAddrPort(addrPort(a))
	}
	return l
}

// Accept waits for a connection. The only errors it returns are net.ErrClosed: of the listener or of its Stack.
func (l *listener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp)
	l.wq.EventRegister(&entry)
	defer l.wq.EventUnregister(&entry)
	for {
		ep, wq, err := l.ep.Accept(nil)
		switch err.(type) {
		case nil:
			return newTCPConn(wq, ep), nil
		case *tcpip.ErrWouldBlock:
		default:
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
		}
		select {
		case <-ready:
		case <-l.done:
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
		}
	}
}

func (l *listener) Close() error {
	err := error(&net.OpError{Op: "close", Net: "tcp", Addr: l.addr, Err: net.ErrClosed})
	l.once.Do(func() {
		close(l.done)
		l.ep.Close()
		err = nil
	})
	return err
}

func (l *listener) Addr() net.Addr { return l.addr }

// addrPort turns gVisor's address into Go's; the empty address is the IPv6 wildcard, which stands for both families.
func addrPort(a tcpip.FullAddress) netip.AddrPort {
	ip, ok := netip.AddrFromSlice(a.Addr.AsSlice())
	if !ok {
		ip = netip.IPv6Unspecified()
	}
	return netip.AddrPortFrom(ip.Unmap(), a.Port)
}
