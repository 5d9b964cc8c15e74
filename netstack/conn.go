package netstack

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// tcpConn is gonet's connection with the errors of package net and addresses that outlive Close.
type tcpConn struct {
	*gonet.TCPConn
	ep            tcpip.Endpoint
	local, remote *net.TCPAddr
	closed        atomic.Bool
	still         stillness
}

func newTCPConn(wq *waiter.Queue, ep tcpip.Endpoint) *tcpConn {
	c := &tcpConn{TCPConn: gonet.NewTCPConn(wq, ep), ep: ep, local: new(net.TCPAddr), remote: new(net.TCPAddr)}
	if a, err := ep.GetLocalAddress(); err == nil {
		c.local = net.TCPAddrFromAddrPort(addrPort(a))
	}
	if a, err := ep.GetRemoteAddress(); err == nil {
		c.remote = net.TCPAddrFromAddrPort(addrPort(a))
	}
	c.still.stats, _ = ep.Stats().(*tcp.Stats)
	keepAlive(ep)
	return c
}

func (c *tcpConn) fix(op string, err error) error {
	if err == nil || err == io.EOF && !c.closed.Load() {
		return err
	}
	return fix(err, c.closed.Load(), op, "tcp", c.local, c.remote)
}

func (c *tcpConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	return n, c.fix("read", err)
}

func (c *tcpConn) Write(b []byte) (int, error) {
	c.still.wait(&c.closed)
	n, err := c.TCPConn.Write(b)
	return n, c.fix("write", err)
}

func (c *tcpConn) Close() error {
	if c.closed.Swap(true) {
		return &net.OpError{Op: "close", Net: "tcp", Source: c.local, Addr: c.remote, Err: net.ErrClosed}
	}
	return c.TCPConn.Close()
}

func (c *tcpConn) CloseRead() error     { return c.fix("close", c.TCPConn.CloseRead()) }
func (c *tcpConn) CloseWrite() error    { return c.fix("close", c.TCPConn.CloseWrite()) }
func (c *tcpConn) LocalAddr() net.Addr  { return c.local }
func (c *tcpConn) RemoteAddr() net.Addr { return c.remote }

// abort closes c with a RST instead of a FIN, as a socket with SO_LINGER 0 does.
func (c *tcpConn) abort() {
	c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	c.Close()
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
