package udp

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/hedge-mesh/hedge/test/lab"
)

// control runs f on a socket's descriptor.
func control(t *testing.T, s *Socket, f func(fd int) error) {
	t.Helper()
	rc, err := s.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := rc.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
}

// take reads n datagrams, and returns the length of each.
func take(t *testing.T, s *Socket, n int) (lengths []int) {
	t.Helper()
	r := s.Reader()
	bufs, sizes, from := places(Batch)
	s.SetReadDeadline(time.Now().Add(10 * time.Second))
	for len(lengths) < n {
		k, err := r.Lend(bufs, sizes, from)
		if err != nil {
			t.Fatalf("%v after %d datagrams of %d", err, len(lengths), n)
		}
		lengths = append(lengths, sizes[:k]...)
	}
	return lengths
}

// Where the kernel takes no runs, they go one by one, and the next run is tried again.
func TestRefused(t *testing.T) {
	tx, _ := listen(t, "udp4", "127.0.0.1:0", nil)
	rx, dst := listen(t, "udp4", "127.0.0.1:0", nil)
	control(t, tx, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) })
	out := buffers(40, 500)
	if err := tx.Write(out, dst); err != nil {
		t.Fatal(err)
	}
	if err := tx.WriteRun(make([]byte, 20*500), 500, dst); err != nil {
		t.Fatal(err)
	}
	take(t, rx, 60)
	if !tx.sys.runs.Load() {
		t.Error("runs are given up for an error that may pass")
	}
}

// A transfer leaves buffers, which a reader that waits gives back, and has again with the next one. While it does not wait
// they are in use.
func TestRest(t *testing.T) {
	tx, _ := listen(t, "udp4", "127.0.0.1:0", nil)
	rx, dst := listen(t, "udp4", "127.0.0.1:0", nil)
	rx.SetReadDeadline(time.Now().Add(10 * time.Second))
	r := rx.Reader()
	send := func(n int) {
		for i := range n {
			if err := tx.Write([][]byte{make([]byte, 100+i%2)}, dst); err != nil { // of different sizes, which are not joined
				t.Fatal(err)
			}
		}
	}
	next := func() {
		if _, _, _, err := r.Next(); err != nil {
			t.Error(err)
		}
	}
	held := func() (n int, waits bool) {
		r.sys.mu.Lock()
		defer r.sys.mu.Unlock()
		for i, b := range r.sys.bufs {
			if b != nil {
				n++
			}
			if (b == nil) != (r.sys.iovs[i].Base == nil) {
				t.Errorf("buffer %d: there is one, and the kernel is not told of it, or the reverse", i)
			}
		}
		return n, r.sys.waits
	}
	for range 3 {
		for n, tries := 0, 0; n < mostMessages; n, _ = held() {
			if tries++; tries > 100 {
				t.Fatalf("%d buffers, want %d", n, mostMessages)
			}
			send(2 * mostMessages)
			for range 2 * mostMessages {
				next()
			}
		}
		r.Rest()
		if n, _ := held(); n != mostMessages {
			t.Fatalf("%d buffers are left to a reader that has what lies in %d", n, mostMessages)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			next()
		}()
		for _, waits := held(); !waits; _, waits = held() {
			runtime.Gosched()
		}
		r.Rest()
		if n, _ := held(); n != leastMessages {
			t.Errorf("%d buffers are kept, want %d", n, leastMessages)
		}
		send(1)
		<-done
	}
}

// What is longer than the link is left out; the rest goes on, whether or not it was in one run with it.
func TestLink(t *testing.T) {
	h := lab.New(t).Host("a")
	if out, err := h.Command(t.Context(), "ip", "link", "set", "lo", "mtu", "600", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	open := func() (s *Socket, a netip.AddrPort) {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { DontFragment(c); return nil }}
		if err := h.Do(func() error {
			pc, err := lc.ListenPacket(context.Background(), "udp4", "127.0.0.1:0")
			if err == nil {
				s, a = New(pc), pc.LocalAddr().(*net.UDPAddr).AddrPort()
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s, a
	}
	tx, _ := open()
	rx, dst := open()
	var out [][]byte
	for _, n := range []int{1000, 1000, 1000, 500, 500, 300, 900, 200} {
		out = append(out, make([]byte, n))
	}
	if err := tx.Write(out, dst); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("%v, want EMSGSIZE", err)
	}
	if got := fmt.Sprint(take(t, rx, 4)); got != "[500 500 300 200]" {
		t.Errorf("%v bytes came", got)
	}
}

// A link that takes less than is sent makes the writer wait, and nothing is lost.
func TestFull(t *testing.T) {
	h := lab.New(t).Host("a")
	for _, line := range []string{"ip link set lo up", "tc qdisc add dev lo root tbf rate 16mbit burst 20kb limit 4mb"} {
		args := strings.Fields(line)
		if out, err := h.Command(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%v: %s", err, out)
		}
	}
	var tx, rx *Socket
	var dst netip.AddrPort
	if err := h.Do(func() error {
		tx, _ = listen(t, "udp4", "127.0.0.1:0", nil)
		rx, dst = listen(t, "udp4", "127.0.0.1:0", nil)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	control(t, tx, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10) })
	out := buffers(500, 700)
	if err := tx.Write(out, dst); err != nil {
		t.Fatal(err)
	}
	take(t, rx, len(out))
}

// The control messages of a received run, as amd64 and arm64 write them.
var controls = []struct {
	name, bytes string
	size        int
}{
	{"a run", "1400000000000000 11000000 68000000 20050000 00000000", 1312},
	{"behind another", "1800000000000000 00000000 02000000 4000000000000000 1400000000000000 11000000 68000000 20050000 00000000", 1312},
	{"none", "", 0},
	{"cut", "1400000000000000 11000000 68000000 2005", 0},
	{"no length", "0000000000000000 11000000 68000000 20050000 00000000", 0},
	{"a length past the end", "ff00000000000000 11000000 68000000 20050000 00000000", 0},
	{"negative", "1400000000000000 11000000 68000000 ffffffff 00000000", 0},
}

func TestSegmentSize(t *testing.T) {
	if unix.SizeofCmsghdr != 16 {
		t.Skip("not of 64 bits")
	}
	for _, c := range controls {
		b, err := hex.DecodeString(strings.ReplaceAll(c.bytes, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := segmentSize(b); got != c.size {
			t.Errorf("%s: %d, want %d", c.name, got, c.size)
		}
	}
}

func FuzzSegmentSize(f *testing.F) {
	for _, c := range controls {
		b, _ := hex.DecodeString(strings.ReplaceAll(c.bytes, " ", ""))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := segmentSize(b); n < 0 || n > 0 && len(b) < unix.CmsgLen(4) {
			t.Errorf("%d from %d bytes", n, len(b))
		}
	})
}

// Zones are named as netip and net name them.
func TestZones(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Skip(err)
	}
	sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: netip.MustParseAddr("fe80::1").As16(), Scope_id: uint32(lo.Index)}
	setPort(&sa.Port, 4711)
	var z zones
	if got := z.source(&sa).String(); got != "[fe80::1%lo]:4711" {
		t.Error(got)
	}
	sa.Scope_id = 1 << 30
	if got := z.source(&sa).String(); got != "[fe80::1%1073741824]:4711" {
		t.Error(got)
	}
	var s sender
	for _, c := range []struct {
		name string
		want uint32
	}{{"lo", uint32(lo.Index)}, {"lo", uint32(lo.Index)}, {"77", 77}, {"nothing has this name", 0}} {
		if got := s.scope(c.name); got != c.want {
			t.Errorf("zone %s is %d, want %d", c.name, got, c.want)
		}
	}
	if a := (&zones{}).source(&unix.RawSockaddrInet6{Family: unix.AF_UNIX}); a.IsValid() {
		t.Errorf("%v of no family of ours", a)
	}
}

// BenchmarkBatch moves 64 datagrams through loopback, by this package and by golang.org/x/net in turns; "x" is how long
// this package takes for what x/net takes 1 for.
func BenchmarkBatch(b *testing.B) {
	for _, size := range []int{128, 1312} {
		for _, runs := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/runs=%v", size, runs), func(b *testing.B) {
				tx, _ := listen(b, "udp4", "127.0.0.1:0", nil)
				rx, dst := listen(b, "udp4", "127.0.0.1:0", nil)
				tx.sys.runs.Store(runs)
				r := rx.Reader()
				out := buffers(64, size)
				bufs, sizes, from := places(Batch)
				ours := func() {
					if err := tx.Write(out, dst); err != nil {
						b.Fatal(err)
					}
					for got := 0; got < len(out); {
						n, err := r.Lend(bufs, sizes, from)
						if err != nil {
							b.Fatal(err)
						}
						got += n
					}
				}
				theirs := xnet(b, out, bufs)
				var took [2]time.Duration
				for b.Loop() {
					for i, f := range []func(){ours, theirs} {
						t := time.Now()
						f()
						took[i] += time.Since(t)
					}
				}
				b.ReportMetric(float64(took[0])/float64(b.N*len(out)), "ns/datagram")
				b.ReportMetric(float64(took[0])/float64(took[1]), "x")
			})
		}
	}
}

// xnet is the same without runs, which x/net does not know of.
func xnet(b *testing.B, out, bufs [][]byte) func() {
	open := func() (*ipv4.PacketConn, net.Addr) {
		pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { pc.Close() })
		return ipv4.NewPacketConn(pc), pc.LocalAddr()
	}
	tx, _ := open()
	rx, dst := open()
	in, send := make([]ipv6.Message, len(bufs)), make([]ipv6.Message, len(out))
	for i := range in {
		in[i].Buffers = [][]byte{bufs[i]}
	}
	for i := range send {
		send[i].Buffers, send[i].Addr = [][]byte{out[i]}, dst
	}
	return func() {
		for ms := send; len(ms) > 0; {
			n, err := tx.WriteBatch(ms, 0)
			if err != nil {
				b.Fatal(err)
			}
			ms = ms[n:]
		}
		for got := 0; got < len(out); {
			n, err := rx.ReadBatch(in, 0)
			if err != nil {
				b.Fatal(err)
			}
			got += n
		}
	}
}
