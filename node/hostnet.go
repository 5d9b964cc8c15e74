package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
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

// ping sends an ICMP echo request through the device, and waits for its answer.
func (n *Node) ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	if n.stack != nil {
		return n.stack.Ping(ctx, to)
	}
	c, addr, err := openPing(to)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_, plain := addr.(*net.UDPAddr)
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	kind, reply, proto := icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply), 1
	if to.Is6() {
		kind, reply, proto = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	id, seq := os.Getpid()&0xffff, int(time.Now().UnixNano()&0xffff)
	b, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: seq, Data: []byte("hedge")}}).Marshal(nil)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err := c.WriteTo(b, addr); err != nil {
		return 0, err
	}
	for buf := make([]byte, 1500); ; {
		k, from, err := c.ReadFrom(buf)
		if err != nil {
			return 0, err
		}
		took := time.Since(start)
		m, err := icmp.ParseMessage(proto, buf[:k])
		if err != nil || m.Type != reply || from.String() != addr.String() {
			continue // a raw socket sees everybody's
		}
		// The kernel gives a socket without rights an identifier of its own, and only answers that bear it.
		if e, ok := m.Body.(*icmp.Echo); ok && e.Seq == seq && (plain || e.ID == id) {
			return took, nil
		}
	}
}

// openPing opens a socket for ICMP echo: one that takes no rights where those are had, and a raw one else.
func openPing(to netip.Addr) (*icmp.PacketConn, net.Addr, error) {
	plain, raw, any := "udp4", "ip4:icmp", "0.0.0.0"
	if to.Is6() {
		plain, raw, any = "udp6", "ip6:ipv6-icmp", "::"
	}
	if c, err := icmp.ListenPacket(plain, any); err == nil {
		return c, &net.UDPAddr{IP: to.AsSlice()}, nil
	}
	c, err := icmp.ListenPacket(raw, any)
	return c, &net.IPAddr{IP: to.AsSlice()}, err
}
