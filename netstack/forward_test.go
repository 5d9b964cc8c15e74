package netstack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// backend is a TCP server of the host, for forwarders to splice with.
func backend(t testing.TB, serve func(*net.TCPConn)) Accept {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return func(ctx context.Context, network string, local, remote netip.AddrPort) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}
}

func echo(c *net.TCPConn) {
	defer c.Close()
	io.Copy(c, c)
	c.CloseWrite()
}

// TestForward splices with a real server, and sees the true addresses.
func TestForward(t *testing.T) {
	families(t, func(t *testing.T, from, to netip.Addr) {
		type call struct {
			network       string
			local, remote netip.AddrPort
		}
		calls := make(chan call, 1)
		dial := backend(t, echo)
		a, b := pair(t, Options{}, Options{Accept: func(ctx context.Context, network string, local, remote netip.AddrPort) (net.Conn, error) {
			calls <- call{network, local, remote}
			return dial(ctx, network, local, remote)
		}}, checked(t, 1280))
		c, err := a.DialContext(timeout(t), "tcp", port(to, 5432))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, want := <-calls, (call{"tcp", port(to, 5432), c.LocalAddr().(*net.TCPAddr).AddrPort()}); got.local != want.local || got.remote.String() != want.remote.String() || got.network != "tcp" || got.remote.Addr() != from {
			t.Errorf("Accept(%v), want %v", got, want)
		}
		if st := b.Stats(); st.Conns != 1 {
			t.Errorf("stats %+v, want one connection", st)
		}
		// Half-close: the server answers all it got after we have said that we are done, and its end reaches us.
		msg := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
		go func() {
			c.Write(msg)
			c.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, msg) {
			t.Errorf("echoed %d of %d bytes: %v", len(got), len(msg), err)
		}
	})
}

// TestForwardServerEndsFirst is the half-close the other way: the server is done, the client goes on.
func TestForwardServerEndsFirst(t *testing.T) {
	got := make(chan string, 1)
	a, _ := pair(t, Options{}, Options{Accept: backend(t, func(c *net.TCPConn) {
		defer c.Close()
		io.WriteString(c, "bye")
		c.CloseWrite()
		b, _ := io.ReadAll(c)
		got <- string(b)
	})}, nil)
	c, err := a.DialContext(timeout(t), "tcp", port(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); string(b) != "bye" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	io.WriteString(c, "after")
	c.Close()
	if s := <-got; s != "after" {
		t.Errorf("server read %q", s)
	}
}

// TestForwardReset passes a RST on, in either direction.
func TestForwardReset(t *testing.T) {
	got := make(chan error, 1)
	a, _ := pair(t, Options{}, Options{Accept: backend(t, func(c *net.TCPConn) {
		defer c.Close()
		b := make([]byte, 1)
		io.ReadFull(c, b)
		c.Write(b)
		if b[0] == 's' {
			c.SetLinger(0)
			return
		}
		_, err := c.Read(b)
		got <- err
	})}, nil)
	for _, who := range []string{"server", "client"} {
		c, err := a.DialContext(timeout(t), "tcp", port(b4, 80))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, who[:1])
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil { // both ends of the splice are there
			t.Fatal(err)
		}
		if who == "server" {
			_, err = c.Read(make([]byte, 1))
			c.Close()
		} else {
			abort(c)
			err = <-got
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s reset: the other side got %v", who, err)
		}
	}
}

// TestAcceptBeforeSynAck shows that a connection is not accepted before Accept has said yes.
func TestAcceptBeforeSynAck(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	dial := backend(t, echo)
	synAck := make(chan struct{}, 10)
	a, _ := pair(t, Options{}, Options{Accept: func(ctx context.Context, n string, l, r netip.AddrPort) (net.Conn, error) {
		close(asked)
		<-answer
		return dial(ctx, n, l, r)
	}}, func(p []byte) bool {
		if header.IPv4(p).Protocol() == 6 && header.TCP(header.IPv4(p).Payload()).Flags() == header.TCPFlagSyn|header.TCPFlagAck {
			synAck <- struct{}{}
		}
		return true
	})
	done := make(chan error, 1)
	go func() {
		c, err := a.DialContext(timeout(t), "tcp", port(b4, 80))
		if err == nil {
			c.Close()
		}
		done <- err
	}()
	<-asked
	select {
	case <-synAck:
		t.Error("SYN-ACK before Accept returned")
	case err := <-done:
		t.Errorf("dial ended before Accept returned: %v", err)
	default:
	}
	close(answer)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestForwardUDP(t *testing.T) {
	families(t, func(t *testing.T, from, to netip.Addr) {
		server, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for b := make([]byte, 65535); ; {
				n, from, err := server.ReadFrom(b)
				if err != nil {
					return
				}
				server.WriteTo(b[:n], from)
			}
		})
		defer wg.Wait()
		defer server.Close()
		hold := make(chan struct{})
		a, b := pair(t, Options{}, Options{UDPIdle: 100 * time.Millisecond, Accept: func(ctx context.Context, n string, l, r netip.AddrPort) (net.Conn, error) {
			if n != "udp" || l != port(to, 53) || r.Addr() != from {
				return nil, errors.New("unexpected")
			}
			<-hold
			return net.Dial("udp", server.LocalAddr().String())
		}}, checked(t, 1280))
		c, err := a.DialContext(timeout(t), "udp", port(to, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		msgs := []string{"one", "two", string(bytes.Repeat([]byte("x"), 9000)), ""}
		for _, m := range msgs { // all of them wait for Accept
			c.Write([]byte(m))
		}
		close(hold)
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		for _, m := range msgs {
			buf := make([]byte, 65535)
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != m {
				t.Errorf("read %d bytes, want %d: %v", n, len(m), err)
			}
		}
		wait(t, "the idle flow to end", func() bool { return b.Stats().Flows == 0 })
		c.Write([]byte("again")) // a new flow
		if n, err := c.Read(make([]byte, 10)); n != 5 || err != nil {
			t.Errorf("after idle: %d, %v", n, err)
		}
	})
}

// TestForwardUDPBurst: what WireGuard kept for its session comes in one piece, and Accept takes its time.
func TestForwardUDPBurst(t *testing.T) {
	hold, got := make(chan struct{}), make(chan int)
	backend, server := net.Pipe()
	a, b := pair(t, Options{}, Options{Accept: func(ctx context.Context, _ string, l, _ netip.AddrPort) (net.Conn, error) {
		if l.Port() != 7 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		<-hold
		return backend, nil
	}}, nil)
	send := func(to uint16, n, size int) {
		c, err := a.DialContext(timeout(t), "udp", port(b4, to))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		for range n {
			if _, err := c.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
		}
	}
	kept := func(to uint16) (n, size int) {
		b.fwd.mu.Lock()
		defer b.fwd.mu.Unlock()
		for id, f := range b.fwd.udp {
			if id.LocalPort == to {
				return len(f.kept), f.size
			}
		}
		return 0, 0
	}
	send(7, 120, 100)
	wait(t, "all to be kept", func() bool { n, _ := kept(7); return n == 120 })
	go func() {
		n := 0
		for range 120 {
			if _, err := server.Read(make([]byte, 200)); err != nil {
				break
			}
			n++
		}
		got <- n
	}()
	close(hold)
	if n := <-got; n != 120 {
		t.Errorf("%d of 120 arrived", n)
	}
	send(8, 100, 1000)
	send(9, 1, 1)
	wait(t, "all to be seen", func() bool { n, _ := kept(9); return n == 1 })
	if n, size := kept(8); size < flowKept || size > flowKept+1100 {
		t.Errorf("%d datagrams of %d bytes are kept, the limit is %d", n, size, flowKept)
	}
}

// wait polls for a condition that nothing announces.
func wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick, end := time.NewTicker(time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestUDPIdle keeps a flow alive by traffic in one direction only, with fake time.
func TestUDPIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, peer := net.Pipe()
		backend, server := net.Pipe()
		go io.Copy(io.Discard, peer)
		go io.Copy(io.Discard, server)
		start := time.Now()
		done := make(chan time.Duration)
		go func() { spliceUDP(t.Context(), in, backend, time.Minute); done <- time.Since(start) }()
		for range 5 {
			<-time.After(50 * time.Second) // of the bubble's clock
			if _, err := server.Write([]byte("x")); err != nil {
				t.Fatalf("the flow ended after %v", time.Since(start))
			}
		}
		if d := <-done; d != 250*time.Second+time.Minute {
			t.Errorf("ended after %v", d)
		}
		peer.Close()
		server.Close()
	})
}

// TestQuotas floods with SYNs and datagrams from one peer and from many; what is held stays within the limits.
func TestQuotas(t *testing.T) {
	block := make(chan struct{})
	s := newStack(t, Options{MaxPending: 16, MaxConns: 64, MaxFlows: 16, Accept: func(ctx context.Context, n string, l, r netip.AddrPort) (net.Conn, error) {
		<-block
		return nil, errors.New("no")
	}}, a4)
	send := func(peer netip.Addr, n int) {
		for i := range n {
			s.Write([][]byte{syn(peer, uint16(1000+i)), datagram(peer, uint16(1000+i)), syn(peer, uint16(1000+i))}, 0)
		}
	}
	send(b4, 100)
	if st := s.Stats(); st.Pending != 4 || st.Flows != 4 || st.Conns != 4 || st.Refused == 0 {
		t.Errorf("one peer: %+v, want a quarter of each", st)
	}
	peer := b4
	for range 10 {
		peer = peer.Next()
		send(peer, 10)
	}
	if st := s.Stats(); st.Pending != 16 || st.Flows != 16 || st.Conns != 16 {
		t.Errorf("many peers: %+v", st)
	}
	close(block)
	wait(t, "all to be refused", func() bool { st := s.Stats(); return st.Pending+st.Flows+st.Conns == 0 })
}

// TestCloseInHandshake closes while a forwarded connection waits for an ACK that never comes.
func TestCloseInHandshake(t *testing.T) {
	for range 20 {
		s := newStack(t, Options{Accept: backend(t, echo)}, a4)
		s.Write([][]byte{syn(b4, 1234)}, 0)
		if n, err := s.Read([][]byte{make([]byte, 2000)}, make([]int, 1), 0); n != 1 || err != nil { // the SYN-ACK
			t.Fatal(n, err)
		}
		s.Close()
	}
}

// TestCloseEndsSplices closes a Stack with live splices and a pending Accept; the backends' connections end.
func TestCloseEndsSplices(t *testing.T) {
	ended := make(chan struct{}, 10)
	dial := backend(t, func(c *net.TCPConn) {
		echo(c)
		ended <- struct{}{}
	})
	pending := make(chan struct{}, 2)
	a, b := pair(t, Options{}, Options{Accept: func(ctx context.Context, n string, l, r netip.AddrPort) (net.Conn, error) {
		if l.Port() == 81 {
			pending <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return dial(ctx, n, l, r)
	}}, nil)
	c, err := a.DialContext(timeout(t), "tcp", port(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	u, _ := a.DialContext(timeout(t), "udp", port(b4, 81))
	defer u.Close()
	u.Write([]byte("x"))
	<-pending
	b.Close()
	<-ended
	if st := b.Stats(); st.Conns != 0 || st.Flows != 0 || st.Pending != 0 {
		t.Errorf("after Close: %+v", st)
	}
}

func syn(from netip.Addr, sport uint16) []byte {
	b := ip4(from, header.TCPProtocolNumber, header.TCPMinimumSize)
	h := header.TCP(b[20:])
	h.Encode(&header.TCPFields{SrcPort: sport, DstPort: 80, SeqNum: 1, DataOffset: 20, Flags: header.TCPFlagSyn, WindowSize: 65535})
	h.SetChecksum(^h.CalculateChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, header.IPv4(b).SourceAddress(), header.IPv4(b).DestinationAddress(), 20)))
	return b
}

func datagram(from netip.Addr, sport uint16) []byte {
	b := ip4(from, header.UDPProtocolNumber, header.UDPMinimumSize+1)
	h := header.UDP(b[20:])
	h.Encode(&header.UDPFields{SrcPort: sport, DstPort: 53, Length: uint16(len(h))})
	b[28] = 'x'
	h.SetChecksum(^checksum.Checksum(h, header.PseudoHeaderChecksum(header.UDPProtocolNumber, header.IPv4(b).SourceAddress(), header.IPv4(b).DestinationAddress(), uint16(len(h)))))
	return b
}

func ip4(from netip.Addr, proto tcpip.TransportProtocolNumber, size int) []byte {
	b := make([]byte, 20+size)
	h := header.IPv4(b)
	h.Encode(&header.IPv4Fields{TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(proto), SrcAddr: tcpip.AddrFromSlice(from.AsSlice()), DstAddr: tcpip.AddrFromSlice(a4.AsSlice())})
	h.SetChecksum(^h.CalculateChecksum())
	return b
}
