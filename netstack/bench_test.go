package netstack

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
)

// Benchmarks name the baseline of the stack alone: two Stacks in one process joined by a copy, no cryptography.

func BenchmarkTCP(b *testing.B) {
	for _, mtu := range []struct {
		name string
		mtu  int
	}{{"mtu=1280", 1280}, {"mtu=1420", 1420}, {"mtu=65535", 65535}} {
		b.Run(mtu.name, func(b *testing.B) {
			x, y := pair(b, Options{MTU: mtu.mtu}, Options{MTU: mtu.mtu}, nil)
			l, err := y.ListenTCP(port(b4, 80))
			if err != nil {
				b.Fatal(err)
			}
			stream(b, x, l)
			b.ReportMetric(float64(x.Stats().Dropped)/b.Elapsed().Seconds(), "drops/s")
		})
	}
}

// BenchmarkForward is BenchmarkTCP into a forwarder that splices with a server of the host.
func BenchmarkForward(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	x, _ := pair(b, Options{}, Options{Accept: func(ctx context.Context, _ string, _, _ netip.AddrPort) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}}, nil)
	stream(b, x, l)
}

func stream(b *testing.B, from *Stack, to net.Listener) {
	const chunk = 64 << 10
	done := make(chan int64)
	go func() {
		c, err := to.Accept()
		if err != nil {
			b.Error(err)
			done <- 0
			return
		}
		defer c.Close()
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, chunk))
		done <- n
	}()
	c, err := from.DialContext(timeout(b), "tcp", port(b4, 80))
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, chunk)
	b.SetBytes(chunk)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	c.(interface{ CloseWrite() error }).CloseWrite()
	if n := <-done; n != int64(b.N)*chunk {
		b.Errorf("received %d bytes of %d", n, b.N*chunk)
	}
	b.StopTimer()
	c.Close()
	to.Close()
}

// BenchmarkUDP sends datagrams of 1200 bytes one after the other to a socket that reads them.
func BenchmarkUDP(b *testing.B) {
	x, y := pair(b, Options{}, Options{}, nil)
	pc, err := y.ListenUDP(port(b4, 53))
	if err != nil {
		b.Fatal(err)
	}
	c, err := x.DialContext(timeout(b), "udp", port(b4, 53))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	go func() {
		for buf := make([]byte, 2000); ; {
			if _, _, err := pc.ReadFrom(buf); err != nil {
				return
			}
		}
	}()
	msg := make([]byte, 1200)
	b.SetBytes(int64(len(msg)))
	b.ReportAllocs()
	for range b.N {
		if _, err := c.Write(msg); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	pc.Close()
}

// BenchmarkRead is the device's side of sending: one packet out of the queue into WireGuard's buffer.
func BenchmarkRead(b *testing.B) {
	s := newStack(b, Options{}, a4)
	c, err := s.DialContext(timeout(b), "udp", port(b4, 53))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	msg, bufs, sizes := make([]byte, 1200), [][]byte{make([]byte, 2000)}, make([]int, 1)
	b.SetBytes(int64(len(msg)))
	b.ReportAllocs()
	for range b.N {
		c.Write(msg)
		if n, err := s.Read(bufs, sizes, 16); n != 1 || err != nil {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkPing is a round trip through both stacks.
func BenchmarkPing(b *testing.B) {
	x, _ := pair(b, Options{}, Options{}, nil)
	for range b.N {
		if _, err := x.Ping(context.Background(), b4); err != nil {
			b.Fatal(err)
		}
	}
}
