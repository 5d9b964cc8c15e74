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
	"time"
)

var (
	lan4, lan6 = netip.MustParseAddr("10.33.0.5"), netip.MustParseAddr("fd00:33::5")
	lan        = []netip.Prefix{netip.MustParsePrefix("10.33.0.0/16"), netip.MustParsePrefix("fd00:33::/48")}
)

// carriers is families with an address behind b as the far end.
func carriers(t *testing.T, test func(t *testing.T, from, to, beside netip.Addr)) {
	t.Run("IPv4", func(t *testing.T) { test(t, a4, lan4, netip.MustParseAddr("10.34.0.5")) })
	t.Run("IPv6", func(t *testing.T) { test(t, a6, lan6, netip.MustParseAddr("fd00:34::5")) })
}

// A stack that carries a prefix takes connections to any address in it, tells Accept which, and takes no others; and
// it is a stack as before beside that.
func TestCarry(t *testing.T) {
	carriers(t, func(t *testing.T, from, to, beside netip.Addr) {
		dial := backend(t, echo)
		asked := make(chan netip.AddrPort, 10)
		a, b := pair(t, Options{}, Options{Accept: func(ctx context.Context, network string, local, remote netip.AddrPort) (net.Conn, error) {
			asked <- local
			if remote.Addr() != from {
				t.Errorf("Accept: from %v, want %v", remote, from)
			}
			return dial(ctx, network, local, remote)
		}}, checked(t, 1280))
		ctx := timeout(t)
		if err := b.Carry(lan); err != nil {
			t.Fatal(err)
		}
		c, err := a.DialContext(ctx, "tcp", port(to, 80))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if at := <-asked; at != port(to, 80) {
			t.Errorf("Accept was asked about %v, want %v", at, port(to, 80))
		}
		msg := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
		var wg sync.WaitGroup
		wg.Go(func() {
			c.Write(msg)
			c.(interface{ CloseWrite() error }).CloseWrite()
		})
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, msg) {
			t.Errorf("%d bytes came back of %d: %v", len(got), len(msg), err)
		}
		wg.Wait()

		if _, err := a.DialContext(ctx, "tcp", port(beside, 80)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("beside the prefix: %v, want refused", err)
		}
		// Own addresses are as they were, in both directions.
		own := map[bool]netip.Addr{true: b4, false: b6}[from.Is4()]
		d, err := a.DialContext(ctx, "tcp", port(own, 81))
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		if at := <-asked; at != port(own, 81) {
			t.Errorf("Accept was asked about %v, want %v", at, port(own, 81))
		}
		l, err := a.ListenTCP(port(from, 82))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if d, err = b.DialContext(ctx, "tcp", port(from, 82)); err != nil {
			t.Fatal(err)
		}
		d.Close()
		// What is carried no longer is refused; what is open goes on.
		if err := b.Carry(nil); err != nil {
			t.Fatal(err)
		}
		if _, err := a.DialContext(ctx, "tcp", port(to, 80)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after Carry(nil): %v, want refused", err)
		}
	})
}

func TestCarryUDP(t *testing.T) {
	carriers(t, func(t *testing.T, _, to, beside netip.Addr) {
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
		a, b := pair(t, Options{}, Options{Accept: func(context.Context, string, netip.AddrPort, netip.AddrPort) (net.Conn, error) {
			return net.Dial("udp", server.LocalAddr().String())
		}}, checked(t, 1280))
		if err := b.Carry(lan); err != nil {
			t.Fatal(err)
		}
		for _, msg := range []string{"x", string(bytes.Repeat([]byte("y"), 5000))} {
			c, err := a.DialContext(timeout(t), "udp", port(to, 53))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			buf := make([]byte, 65535)
			c.Write([]byte(msg))
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != msg {
				t.Errorf("read %d bytes, want %d: %v", n, len(msg), err)
			}
		}
		c, err := a.DialContext(timeout(t), "udp", port(beside, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("beside the prefix: %v, want refused", err)
		}
	})
}

// A ping is answered if the host that is meant has answered one, and by nobody else.
func TestCarryPing(t *testing.T) {
	carriers(t, func(t *testing.T, _, to, beside netip.Addr) {
		dead := to.Next()
		a, b := pair(t, Options{}, Options{
			Accept: func(context.Context, string, netip.AddrPort, netip.AddrPort) (net.Conn, error) {
				return nil, errors.New("no")
			},
			Echo: func(ctx context.Context, dst netip.Addr, data []byte) error {
				if dst != to || len(data) != 16 {
					return errors.New("no answer")
				}
				return nil
			},
		}, checked(t, 1280))
		if err := b.Carry(lan); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Ping(timeout(t), to); err != nil {
			t.Errorf("ping %v: %v", to, err)
		}
		for _, who := range []netip.Addr{dead, beside} {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			if _, err := a.Ping(ctx, who); err == nil {
				t.Errorf("%v answers a ping and is not there", who)
			}
			cancel()
		}
		own := map[bool]netip.Addr{true: b4, false: b6}[to.Is4()]
		if _, err := a.Ping(timeout(t), own); err != nil {
			t.Errorf("ping the carrier itself: %v", err)
		}
	})
}

// Pieces of pings are dropped: put together, the stack would answer them for whoever is meant.
func TestCarryPingInPieces(t *testing.T) {
	c := &carrier{}
	four := append([]byte{0x45, 0, 0, 28, 0, 1, 0x20, 0, 64, 1, 0, 0, 100, 64, 0, 1, 10, 33, 0, 5}, 8, 0, 0, 0, 0, 1, 0, 1)
	later := bytes.Clone(four)
	later[6], later[7] = 0, 4
	six := make([]byte, 56)
	six[0], six[6], six[40] = 0x60, 44, 58
	for _, p := range [][]byte{four, later, six} {
		if !c.ping(p) {
			t.Errorf("% x is not dropped", p)
		}
	}
	for n := range len(six) {
		c.ping(six[:n]) // whatever its length
	}
	tcp := bytes.Clone(four)
	tcp[9] = 6
	if c.ping(tcp) {
		t.Error("TCP is taken for a ping")
	}
}

func TestCarryCloses(t *testing.T) {
	started := make(chan struct{})
	hold := func(ctx context.Context) { close(started); <-ctx.Done() }
	a, b := pair(t, Options{}, Options{
		Accept: func(ctx context.Context, _ string, _, _ netip.AddrPort) (net.Conn, error) {
			return nil, errors.New("no")
		},
		Echo: func(ctx context.Context, _ netip.Addr, _ []byte) error { hold(ctx); return nil },
	}, nil)
	if err := b.Carry(lan); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { a.Ping(ctx, lan4) })
	<-started
	b.Close()
	if err := b.Carry(lan); err == nil {
		t.Error("a closed stack carries")
	}
	cancel()
	wg.Wait()
}
