package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	a4, a6 = netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd68:6564:6765::1")
	b4, b6 = netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd68:6564:6765::2")
)

// wire carries packets from one Stack to another as a tunnel would, until from is closed. see may refuse a packet. Every
// other buffer is lent, and afterwards what was in it is not any more: nobody may keep it.
func wire(from, to *Stack, see func([]byte) bool) {
	bufs, sizes := make([][]byte, batchSize), make([]int, batchSize)
	for i := 0; i < len(bufs); i += 2 {
		bufs[i] = make([]byte, 65535+16)
	}
	const offset = 16 // as WireGuard leaves room for its header
	out := make([][]byte, 0, batchSize)
	for {
		n, err := from.Read(bufs, sizes, offset)
		if err != nil {
			return
		}
		out = out[:0]
		for i := range n {
			if p := bufs[i][:offset+sizes[i]]; see == nil || see(p[offset:]) {
				out = append(out, p)
			}
		}
		if _, err := to.Write(out, offset); err != nil && !errors.Is(err, os.ErrClosed) {
			panic(err)
		}
		for i := 1; i < n; i += 2 {
			b := bufs[i][:cap(bufs[i])]
			copy(b, scribble[:len(b)])
			bufs[i] = nil
		}
	}
}

var scribble = bytes.Repeat([]byte{0xee}, 1<<17)

// pair returns two Stacks joined by a wire, both gone after the test.
func pair(t testing.TB, oa, ob Options, see func([]byte) bool) (a, b *Stack) {
	t.Helper()
	a, b = newStack(t, oa, a4, a6), newStack(t, ob, b4, b6)
	var wg sync.WaitGroup
	wg.Go(func() { wire(a, b, see) })
	wg.Go(func() { wire(b, a, see) })
	t.Cleanup(func() {
		a.Close()
		b.Close()
		wg.Wait()
	})
	return a, b
}

func newStack(t testing.TB, o Options, addrs ...netip.Addr) *Stack {
	t.Helper()
	o.Addrs = addrs
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func port(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

// families runs a test for each address family with the two ends' addresses.
func families(t *testing.T, test func(t *testing.T, a, b netip.Addr)) {
	t.Run("IPv4", func(t *testing.T) { test(t, a4, b4) })
	t.Run("IPv6", func(t *testing.T) { test(t, a6, b6) })
}

// valid checks a packet as a careful receiver would: lengths, MTU, header and transport checksums.
func valid(p []byte, mtu int) error {
	if len(p) > mtu {
		return fmt.Errorf("%d bytes exceed the mtu %d", len(p), mtu)
	}
	var proto uint8
	var pseudo uint16
	var body []byte
	switch header.IPVersion(p) {
	case 4:
		h := header.IPv4(p)
		if !h.IsValid(len(p)) || int(h.TotalLength()) != len(p) || !h.IsChecksumValid() {
			return fmt.Errorf("bad IPv4 header % x", p[:min(len(p), 20)])
		}
		if h.More() || h.FragmentOffset() != 0 {
			return nil // the transport checksum covers all fragments
		}
		proto, body = h.Protocol(), h.Payload()
		pseudo = header.PseudoHeaderChecksum(h.TransportProtocol(), h.SourceAddress(), h.DestinationAddress(), uint16(len(body)))
	case 6:
		h := header.IPv6(p)
		if !h.IsValid(len(p)) || int(h.PayloadLength())+header.IPv6MinimumSize != len(p) {
			return fmt.Errorf("bad IPv6 header % x", p[:min(len(p), 40)])
		}
		proto, body = h.NextHeader(), h.Payload()
		pseudo = header.PseudoHeaderChecksum(tcpip.TransportProtocolNumber(proto), h.SourceAddress(), h.DestinationAddress(), uint16(len(body)))
	default:
		return errors.New("not IP")
	}
	switch proto {
	case uint8(header.IPv6FragmentHeader):
		return nil
	case uint8(header.ICMPv4ProtocolNumber):
		pseudo = 0
	case uint8(header.UDPProtocolNumber):
		if len(body) < header.UDPMinimumSize || header.UDP(body).Checksum() == 0 {
			return errors.New("no UDP checksum")
		}
	}
	if checksum.Checksum(body, pseudo) != 0xffff {
		return fmt.Errorf("bad checksum in protocol %d", proto)
	}
	return nil
}

func checked(t testing.TB, mtu int) func([]byte) bool {
	return func(p []byte) bool {
		if err := valid(p, mtu); err != nil {
			t.Errorf("packet out of the stack: %v", err)
		}
		return true
	}
}

func TestDevice(t *testing.T) {
	s := newStack(t, Options{MTU: 1400, Name: "mesh0"}, a4)
	if mtu, err := s.MTU(); mtu != 1400 || err != nil {
		t.Errorf("MTU() = %d, %v", mtu, err)
	}
	if name, err := s.Name(); name != "mesh0" || err != nil {
		t.Errorf("Name() = %q, %v", name, err)
	}
	if e := <-s.Events(); e != tun.EventUp {
		t.Errorf("first event %v, want EventUp", e)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if e, ok := <-s.Events(); ok {
		t.Errorf("event %v after Close, want a closed channel", e)
	}
	if _, err := s.Read([][]byte{make([]byte, 2000)}, make([]int, 1), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	if _, err := s.Write([][]byte{make([]byte, 20)}, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
	if _, err := s.DialContext(t.Context(), "tcp", port(b4, 80)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dial after Close: %v", err)
	}
	if _, err := s.ListenTCP(port(a4, 80)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Listen after Close: %v", err)
	}
	if err := s.SetAddrs(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("SetAddrs after Close: %v", err)
	}
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{{MTU: 1279}, {MTU: 65536}, {Addrs: []netip.Addr{{}}}, {Addrs: []netip.Addr{netip.IPv4Unspecified()}},
		{Addrs: []netip.Addr{netip.MustParseAddr("224.0.0.1")}}} {
		if s, err := New(o); err == nil {
			s.Close()
			t.Errorf("New(%+v) succeeded", o)
		}
	}
}

// TestTransfer moves 50 MB each way at once over one connection of each family, all checksums verified.
func TestTransfer(t *testing.T) {
	const size = 50 << 20
	families(t, func(t *testing.T, _, to netip.Addr) {
		a, b := pair(t, Options{}, Options{}, checked(t, 1280))
		l, err := b.ListenTCP(port(to, 80))
		if err != nil {
			t.Fatal(err)
		}
		exchange := func(c net.Conn, seed uint64, sums chan<- [2][32]byte) {
			defer c.Close()
			sent, got := sha256.New(), sha256.New()
			var wg sync.WaitGroup
			wg.Go(func() {
				r := io.LimitReader(rand.NewChaCha8([32]byte{byte(seed)}), size)
				if n, err := io.Copy(io.MultiWriter(c, sent), r); n != size || err != nil {
					t.Errorf("sent %d: %v", n, err)
				}
				c.(interface{ CloseWrite() error }).CloseWrite()
			})
			if n, err := io.Copy(got, c); n != size || err != nil {
				t.Errorf("received %d: %v", n, err)
			}
			wg.Wait()
			sums <- [2][32]byte{[32]byte(sent.Sum(nil)), [32]byte(got.Sum(nil))}
		}
		near, far := make(chan [2][32]byte, 1), make(chan [2][32]byte, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				far <- [2][32]byte{}
				return
			}
			exchange(c, 2, far)
		}()
		c, err := a.DialContext(timeout(t), "tcp", port(to, 80))
		if err != nil {
			t.Fatal(err)
		}
		exchange(c, 1, near)
		n, f := <-near, <-far
		if n[0] != f[1] || n[1] != f[0] {
			t.Error("what arrived is not what was sent")
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read of a closed connection: %v", err)
		}
	})
}

func TestUDP(t *testing.T) {
	families(t, func(t *testing.T, from, to netip.Addr) {
		a, b := pair(t, Options{}, Options{}, checked(t, 1280))
		for _, listen := range []netip.Addr{to, {}} { // own address, wildcard
			pc, err := b.ListenUDP(port(listen, 53))
			if err != nil {
				t.Fatal(err)
			}
			c, err := a.DialContext(t.Context(), "udp", port(to, 53))
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{0, 1, 1200, 5000, 60000} { // the last two in fragments
				msg := bytes.Repeat([]byte{byte(size)}, size)
				if _, err := c.Write(msg); err != nil {
					t.Fatalf("write %d bytes: %v", size, err)
				}
				buf := make([]byte, 65535)
				n, peer, err := pc.ReadFrom(buf)
				if err != nil || !bytes.Equal(buf[:n], msg) {
					t.Fatalf("read %d bytes, want %d: %v", n, size, err)
				}
				if ap := peer.(*net.UDPAddr).AddrPort(); ap.Addr().Unmap() != from || peer.String() != c.LocalAddr().String() {
					t.Fatalf("from %v, want %v", peer, c.LocalAddr())
				}
				if _, err := pc.WriteTo(msg, peer); err != nil {
					t.Fatal(err)
				}
				if n, err := c.Read(buf); err != nil || n != size {
					t.Fatalf("reply of %d bytes, want %d: %v", n, size, err)
				}
			}
			c.Close()
			pc.Close()
			if _, _, err := pc.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("ReadFrom after Close: %v", err)
			}
		}
	})
}

func TestDeadline(t *testing.T) {
	a, b := pair(t, Options{}, Options{}, nil)
	l, _ := b.ListenTCP(port(b4, 80))
	go func() {
		if c, err := l.Accept(); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}()
	for _, network := range []string{"tcp", "udp"} {
		c, err := a.DialContext(timeout(t), network, port(b4, 80))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		var ne net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("%s: %v, want a timeout", network, err)
		}
	}
}

// TestOwnAddress reaches a stack's own listener and address from itself.
func TestOwnAddress(t *testing.T) {
	s := newStack(t, Options{}, a4, a6)
	l, err := s.ListenTCP(netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	p := uint16(l.Addr().(*net.TCPAddr).Port)
	for _, to := range []netip.Addr{a4, a6} {
		c, err := s.DialContext(timeout(t), "tcp", port(to, p))
		if err != nil {
			t.Fatalf("%v: %v", to, err)
		}
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if in.RemoteAddr().String() != c.LocalAddr().String() || in.LocalAddr().String() != port(to, p).String() {
			t.Errorf("accepted %v <- %v, dialled from %v", in.LocalAddr(), in.RemoteAddr(), c.LocalAddr())
		}
		c.Close()
		in.Close()
		if _, err := s.Ping(timeout(t), to); err != nil {
			t.Error(err)
		}
	}
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
}

func TestRefused(t *testing.T) {
	families(t, func(t *testing.T, _, to netip.Addr) {
		refuse := func(context.Context, string, netip.AddrPort, netip.AddrPort) (net.Conn, error) {
			return nil, errors.New("no")
		}
		for name, accept := range map[string]Accept{"without forwarder": nil, "by forwarder": refuse} {
			t.Run(name, func(t *testing.T) {
				a, _ := pair(t, Options{}, Options{Accept: accept}, checked(t, 1280))
				if _, err := a.DialContext(timeout(t), "tcp", port(to, 81)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("tcp: %v", err)
				}
				c, err := a.DialContext(timeout(t), "udp", port(to, 81))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.Write([]byte("anyone?"))
				if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("udp: %v", err)
				}
			})
		}
	})
}

func TestDialHonoursContext(t *testing.T) {
	s := newStack(t, Options{}, a4) // nothing reads it: no answer ever
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error)
	go func() { _, err := s.DialContext(ctx, "tcp", port(b4, 80)); got <- err }()
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := s.DialContext(ctx, "tcp", port(b4, 80))
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("timed out: %v", err)
	}
	go func() { _, err := s.DialContext(t.Context(), "tcp", port(b4, 80)); got <- err }()
	s.Close()
	if err := <-got; !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	for _, bad := range []netip.AddrPort{{}, port(b4, 0), port(netip.IPv4Unspecified(), 80)} {
		if _, err := s.DialContext(t.Context(), "tcp", bad); err == nil {
			t.Errorf("dialled %v", bad)
		}
	}
}

func TestDialFrom(t *testing.T) {
	extra := netip.MustParseAddr("100.64.0.9")
	a, b := pair(t, Options{}, Options{}, nil)
	if err := a.SetAddrs([]netip.Addr{a4, extra}); err != nil {
		t.Fatal(err)
	}
	l, err := b.ListenTCP(port(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.DialFrom(timeout(t), "tcp", port(extra, 0), port(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if got := in.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); got != extra {
		t.Errorf("came from %v, want %v", got, extra)
	}
	if _, err := a.DialFrom(timeout(t), "tcp", port(b4, 0), port(b4, 80)); err == nil {
		t.Error("dialled from an address that is not ours")
	}
}

// TestSetAddrs takes an address away under a live connection, and gives another.
func TestSetAddrs(t *testing.T) {
	a, b := pair(t, Options{}, Options{}, nil)
	l, err := b.ListenTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), 80))
	if err != nil {
		t.Fatal(err)
	}
	dial := func(to netip.Addr) (net.Conn, net.Conn) {
		t.Helper()
		c, err := a.DialContext(timeout(t), "tcp", port(to, 80))
		if err != nil {
			t.Fatal(err)
		}
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); in.Close() })
		return c, in
	}
	_, in4 := dial(b4)
	c6, in6 := dial(b6)
	moved := netip.MustParseAddr("100.64.7.7")
	if err := b.SetAddrs([]netip.Addr{moved, b6}); err != nil {
		t.Fatal(err)
	}
	if _, err := in4.Read(make([]byte, 1)); err == nil {
		t.Error("a connection of an address that is gone still reads")
	}
	dial(moved)
	c6.Write([]byte("6"))
	if n, err := in6.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("a connection of an address that stayed: %v", err)
	}
}

// TestReadShortBuffer drops the packet that does not fit and goes on with the next.
func TestReadShortBuffer(t *testing.T) {
	s := newStack(t, Options{}, a4)
	c, err := s.DialContext(t.Context(), "udp", port(b4, 9))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(make([]byte, 1000))
	c.Write([]byte("fits"))
	bufs, sizes := [][]byte{make([]byte, 100), make([]byte, 100)}, make([]int, 2)
	if n, err := s.Read(bufs, sizes, 10); n != 1 || err != nil || sizes[0] != 28+4 || string(bufs[0][10+28:10+32]) != "fits" {
		t.Errorf("Read = %d, %v, sizes %v", n, err, sizes)
	}
}
