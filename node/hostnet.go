package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// listenHost listens on one of this node's addresses by the host's sockets, or on all of them for TCP.
func (n *Node) listenHost(network string, at netip.AddrPort) (net.Listener, error) {
	if !at.Addr().IsUnspecified() {
		return net.Listen(network, at.String())
	}
	var all []net.Listener
	port := at.Port()
	for _, a := range n.Addrs() {
		l, err := net.Listen("tcp", netip.AddrPortFrom(a, port).String())
		if err != nil {
			for _, l := range all {
				_ = l.Close()
			}
			return nil, err
		}
		port = l.Addr().(*net.TCPAddr).AddrPort().Port() // chosen by the host for the first, the same for all
		all = append(all, l)
	}
	switch len(all) {
	case 0:
		return nil, fmt.Errorf("listen on port %d: this node has no address yet", port)
	case 1:
		return all[0], nil
	}
	return newListeners(all), nil
}

// listeners accept as one.
type listeners struct {
	all   []net.Listener
	conns chan accepted
	done  chan struct{}
	close sync.Once
	run   sync.WaitGroup
}

type accepted struct {
	conn net.Conn
	err  error
}

func newListeners(all []net.Listener) *listeners {
	s := &listeners{all: all, conns: make(chan accepted), done: make(chan struct{})}
	for _, l := range all {
		s.run.Go(func() {
			for {
				c, err := l.Accept()
				select {
				case s.conns <- accepted{c, err}:
				case <-s.done:
					if err == nil {
						_ = c.Close()
					}
					return
				}
				if errors.Is(err, net.ErrClosed) {
					return
				}
			}
		})
	}
	return s
}

func (s *listeners) Accept() (net.Conn, error) {
	select {
	case a := <-s.conns:
		return a.conn, a.err
	case <-s.done:
		return nil, net.ErrClosed
	}
}

func (s *listeners) Addr() net.Addr { return s.all[0].Addr() }

func (s *listeners) Close() error {
	err := net.ErrClosed
	s.close.Do(func() {
		close(s.done)
		err = nil
		for _, l := range s.all {
			err = errors.Join(err, l.Close())
		}
		s.run.Wait()
	})
	return err
}

// ping measures the way to an address in the tunnel, by an ICMP echo.
func (n *Node) ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	if n.stack != nil {
		return n.stack.Ping(ctx, to)
	}
	start := time.Now()
	err := ping(ctx, to, []byte("hedge"), nil)
	return time.Since(start), err
}
