package netstack

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Datagrams are as long as their path carries, those that are longer come in fragments of that size, and all come whole.
func TestDatagramPath(t *testing.T) {
	families(t, func(t *testing.T, _, at netip.Addr) {
		var mtu, longest atomic.Int64
		var end atomic.Bool
		fits := func(netip.Addr) (int, bool) { return int(mtu.Load()), end.Load() }
		see := func(p []byte) bool {
			longest.Store(max(longest.Load(), int64(len(p))))
			return true
		}
		a, b := pair(t, Options{PathMTU: fits}, Options{PathMTU: fits}, see)
		l, err := b.ListenUDP(port(at, 80))
		if err != nil {
			t.Fatal(err)
		}
		c, err := a.DialContext(timeout(t), "udp", port(at, 80))
		if err != nil {
			t.Fatal(err)
		}
		headers := 20 + 8
		if at.Is6() {
			headers = 40 + 8
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		l.SetDeadline(time.Now().Add(time.Minute))
		for _, step := range []struct {
			name string
			mtu  int64
			end  bool
			most int // bytes of a packet
		}{
			{"nothing known", 0, false, 1280}, {"a LAN", 1440, true, 1440}, {"jumbo frames", 8928, true, 8928}, {"one host", 65472, true, 65472},
			{"a short path", 1216, true, 1216}, {"the shortest", 512, true, 512}, {"nonsense", 7, true, 1280},
			{"a host behind a peer", 8928, false, 1280}, {"and a short path", 1216, false, 1216},
		} {
			mtu.Store(step.mtu)
			end.Store(step.end)
			for _, size := range []int{0, 1, 400, 1250, 1252, step.most - headers, step.most - headers + 1, 8000, 60_000, 65_507} {
				longest.Store(0)
				msg, buf := make([]byte, size), make([]byte, 1<<16)
				rand.Read(msg)
				if _, err := c.Write(msg); err != nil {
					t.Fatalf("%s: %d bytes: %v", step.name, size, err)
				}
				n, from, err := l.ReadFrom(buf)
				if err != nil || !bytes.Equal(buf[:n], msg) || from.String() != c.LocalAddr().String() {
					t.Fatalf("%s: of %d bytes %d came from %v: %v", step.name, size, n, from, err)
				}
				if _, err := l.WriteTo(msg, from); err != nil {
					t.Fatalf("%s: %d bytes back: %v", step.name, size, err)
				}
				if n, err = c.Read(buf); err != nil || !bytes.Equal(buf[:n], msg) {
					t.Fatalf("%s: of %d bytes %d came back: %v", step.name, size, n, err)
				}
				switch n := int(longest.Load()); {
				case size+headers <= step.most && n != size+headers, n > step.most, size+headers > step.most && n < step.most-15:
					t.Errorf("%s: %d bytes in packets of up to %d, want %d", step.name, size, n, min(size+headers, step.most))
				}
			}
		}
		if _, err := c.Write(make([]byte, 65_536)); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("more than a datagram can be: %v, want %v", err, syscall.EMSGSIZE)
		}
	})
}

// The bytes of a datagram, as gVisor's endpoints send them but for IPv4's id.
func TestDatagramGolden(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"100.64.0.1:1000", "100.64.0.2:53", "4500 001e 0102 0000 4011 b14a 64400001 64400002  03e8 0035 000a ???? 6869"},
		{"[fd7a::1]:1000", "[fd7a::2]:53", "60000000 000a 11 40 fd7a0000000000000000000000000001 fd7a0000000000000000000000000002  03e8 0035 000a ???? 6869"},
	} {
		v := encodeDatagram([]byte("hi"), netip.MustParseAddrPort(c.from), netip.MustParseAddrPort(c.to), 0x0102)
		p := bytes.Clone(v.AsSlice())
		v.Release()
		at := len(p) - 2 - header.UDPMinimumSize
		u := header.UDP(p[at:])
		src, dst := gAddr(netip.MustParseAddrPort(c.from).Addr()), gAddr(netip.MustParseAddrPort(c.to).Addr())
		if !u.IsChecksumValid(src, dst, checksum.Checksum(u.Payload(), 0)) {
			t.Error("a wrong checksum")
		}
		got := hex.EncodeToString(p[:at+6]) + "????" + hex.EncodeToString(u.Payload())
		if want := strings.ReplaceAll(c.want, " ", ""); got != want {
			t.Errorf("%s to %s\n got %s\nwant %s", c.from, c.to, got, want)
		}
	}
}

// A sum that comes out as 0, which would say that there is none, is sent as its other form.
func TestDatagramSum(t *testing.T) {
	from, to := netip.MustParseAddrPort("100.64.0.1:1000"), netip.MustParseAddrPort("100.64.0.2:53")
	v := encodeDatagram([]byte{0, 0}, from, to, 0)
	sum := header.UDP(v.AsSlice()[header.IPv4MinimumSize:]).Checksum()
	v.Release()
	v = encodeDatagram(binary.BigEndian.AppendUint16(nil, sum), from, to, 0)
	defer v.Release()
	if got := header.UDP(v.AsSlice()[header.IPv4MinimumSize:]).Checksum(); got != 0xffff {
		t.Errorf("the sum is %#x", got)
	}
}

// A socket waits when too much of it does, and goes on when that is read; it fails when its address goes.
func TestDatagramRoom(t *testing.T) {
	s := newStack(t, Options{}, a4)
	c, err := s.DialContext(timeout(t), "udp", port(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, 1000)
	n := 0
	for c.(*udpConn).dgrams.queued.Load() < datagramRoom {
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
		n++
	}
	c.SetWriteDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Write(msg); !isTimeout(err) {
		t.Errorf("a full socket: %v", err)
	}
	c.SetWriteDeadline(time.Time{})
	wrote := make(chan error, 1)
	go func() { _, err := c.Write(msg); wrote <- err }()
	bufs, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
	for range n + 1 {
		if _, err := s.Read(bufs, sizes, 0); err != nil || sizes[0] != len(msg)+28 {
			t.Fatal(sizes[0], err)
		}
	}
	if err := <-wrote; err != nil {
		t.Errorf("when there is room again: %v", err)
	}
	if n := c.(*udpConn).dgrams.queued.Load(); n != 0 {
		t.Errorf("%d bytes wait, and all was read", n)
	}
	if err := s.SetAddrs(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(msg); !errors.Is(err, net.ErrClosed) {
		t.Errorf("from an address that is gone: %v, want %v", err, net.ErrClosed)
	}
}
