package udp

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// plain hides what kind of socket it is.
type plain struct{ net.PacketConn }

func listen(t testing.TB, network, at string, wrap func(net.PacketConn) net.PacketConn) (*Socket, netip.AddrPort) {
	t.Helper()
	pc, err := net.ListenPacket(network, at)
	if err != nil {
		t.Skipf("this machine has no %s: %v", network, err)
	}
	a := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	if wrap != nil {
		pc = wrap(pc)
	}
	s := New(pc)
	t.Cleanup(func() { s.Close() })
	return s, a
}

// kinds are sockets in pairs that can reach each other.
var kinds = []struct {
	name, network, tx, rx, to string // to: by which tx reaches rx, if not at its address
	wrap                      func(net.PacketConn) net.PacketConn
}{
	{"IPv4", "udp4", "127.0.0.1:0", "127.0.0.1:0", "", nil},
	{"IPv6", "udp6", "[::1]:0", "[::1]:0", "", nil},
	{"IPv4 by a socket of both", "udp", ":0", "127.0.0.1:0", "", nil},
	{"to a socket of both by IPv4", "udp", "127.0.0.1:0", ":0", "127.0.0.1", nil},
	{"not the system's", "udp4", "127.0.0.1:0", "127.0.0.1:0", "", func(pc net.PacketConn) net.PacketConn { New(pc); return plain{pc} }},
}

// places are what Lend fills, and buffers are some to send.
func places(n int) (bufs [][]byte, sizes []int, from []netip.AddrPort) {
	return make([][]byte, n), make([]int, n), make([]netip.AddrPort, n)
}

func buffers(n, size int) (bufs [][]byte) {
	for range n {
		bufs = append(bufs, make([]byte, size))
	}
	return bufs
}

// Datagrams arrive whole, in order, and from whom, however they were joined on the way, however they are read, and
// however little room there is for them.
func TestArrive(t *testing.T) {
	for _, k := range kinds {
		for _, room := range []int{1, 3, Batch, 0} { // 0: by Next
			t.Run(fmt.Sprintf("%s, %d", k.name, room), func(t *testing.T) {
				tx, src := listen(t, k.network, k.tx, k.wrap)
				rx, dst := listen(t, k.network, k.rx, k.wrap)
				if k.to != "" {
					dst = netip.AddrPortFrom(netip.MustParseAddr(k.to), dst.Port())
				}
				if src.Addr().IsUnspecified() {
					src = netip.AddrPortFrom(dst.Addr(), src.Port())
				}
				r := rx.Reader()
				bufs, sizes, from := places(room)
				rnd := rand.New(rand.NewPCG(1, 2))
				for round := range 30 {
					sent := someDatagrams(rnd)
					if err := tx.Write(sent, dst); err != nil {
						t.Fatal(err)
					}
					rx.SetReadDeadline(time.Now().Add(5 * time.Second))
					check := func(b []byte, a netip.AddrPort) {
						if len(sent) == 0 || !bytes.Equal(b, sent[0]) || a != src {
							t.Fatalf("round %d: %d bytes from %v, %d datagrams missing", round, len(b), a, len(sent))
						}
						sent = sent[1:]
					}
					for len(sent) > 0 {
						if room == 0 {
							run, size, a, err := r.Next()
							if err != nil {
								t.Fatalf("round %d: %v, %d datagrams missing", round, err, len(sent))
							}
							for check(run[:min(size, len(run))], a); len(run) > size; check(run[:min(size, len(run))], a) {
								run = run[size:]
							}
							continue
						}
						n, err := r.Lend(bufs, sizes, from)
						if err != nil {
							t.Fatalf("round %d: %v, %d datagrams missing", round, err, len(sent))
						}
						for i := range n {
							check(bufs[i][:sizes[i]], from[i])
							clear(bufs[i][:cap(bufs[i])]) // it is ours, and the next one is not touched
						}
					}
				}
			})
		}
	}
}

// someDatagrams are up to 300, of sizes such that there are runs; not more than a socket of default size holds.
func someDatagrams(rnd *rand.Rand) (sent [][]byte) {
	for range 1 + rnd.IntN(300) {
		size := []int{1312, 1312, 1312, 1312, 96, 32, 0, 1 + rnd.IntN(1400), 2000}[rnd.IntN(9)]
		if len(sent) > 30 {
			size = []int{min(size, 96), 96}[rnd.IntN(2)]
		}
		sent = append(sent, bytes.Repeat([]byte{byte(len(sent))}, size))
	}
	return sent
}

// A run in one piece is the same as its datagrams, also if it is longer than the kernel takes at once.
func TestWriteRun(t *testing.T) {
	for _, k := range kinds[:2] {
		for _, c := range []struct{ length, size int }{{100, 100}, {100, 200}, {300, 100}, {301, 100}, {64 * 1000, 1000}, {150*90 + 7, 90}, {130_000, 40_000}} {
			t.Run(fmt.Sprintf("%s, %d in %d", k.name, c.length, c.size), func(t *testing.T) {
				tx, _ := listen(t, k.network, k.tx, nil)
				rx, dst := listen(t, k.network, k.rx, nil)
				want := make([]byte, c.length)
				for i := range want {
					want[i] = byte(i / c.size)
				}
				if err := tx.WriteRun(want, c.size, dst); err != nil {
					t.Fatal(err)
				}
				rx.SetReadDeadline(time.Now().Add(5 * time.Second))
				b := make([]byte, runBytes)
				for len(want) > 0 {
					n, _, err := rx.ReadOne(b)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(b[:n], want[:min(c.size, len(want))]) {
						t.Fatalf("%d bytes came when %d are left of %d", n, len(want), c.length)
					}
					want = want[n:]
				}
			})
		}
	}
}

// A datagram that nothing carries is left out, and told of.
func TestTooLong(t *testing.T) {
	tx, _ := listen(t, "udp4", "127.0.0.1:0", nil)
	rx, dst := listen(t, "udp4", "127.0.0.1:0", nil)
	if tx.sys == nil {
		t.Skip("one by one")
	}
	err := tx.Write([][]byte{[]byte("a"), make([]byte, 70_000), []byte("b"), []byte("c")}, dst)
	if err == nil {
		t.Error("no error")
	}
	rx.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, runBytes)
	for _, want := range []string{"a", "b", "c"} {
		if n, _, err := rx.ReadOne(b); err != nil || string(b[:n]) != want {
			t.Fatalf("%q, %v; want %q", b[:n], err, want)
		}
	}
}

// A reader that waits ends with its socket's deadline, and with its socket; writing then fails.
func TestClose(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			s, a := listen(t, k.network, k.rx, k.wrap)
			r := s.Reader()
			bufs, sizes, from := places(1)
			ends := make(chan error, 2)
			var wg sync.WaitGroup
			wg.Go(func() {
				for range 2 {
					_, err := r.Lend(bufs, sizes, from)
					ends <- err
				}
			})
			s.SetReadDeadline(time.Unix(1, 0))
			if err := <-ends; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("past its deadline: %v", err)
			}
			s.SetReadDeadline(time.Time{})
			s.Close()
			if err := <-ends; !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("closed: %v", err)
			}
			wg.Wait()
			if _, err := r.Lend(bufs, sizes, from); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read of what is closed: %v", err)
			}
			if err := s.Write([][]byte{{1}}, a); !errors.Is(err, net.ErrClosed) {
				t.Errorf("write to what is closed: %v", err)
			}
		})
	}
}

// Several may write at once, and each datagram arrives as it was.
func TestWriters(t *testing.T) {
	tx, _ := listen(t, "udp4", "127.0.0.1:0", nil)
	rx, dst := listen(t, "udp4", "127.0.0.1:0", nil)
	r := rx.Reader()
	const writers, each = 4, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				b := bytes.Repeat([]byte{byte(w)}, 10+w)
				b[0] = byte(i)
				if err := tx.Write([][]byte{b, b, b}, dst); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var got [writers][]byte
	bufs, sizes, from := places(Batch)
	rx.SetReadDeadline(time.Now().Add(5 * time.Second))
	for left := writers * each * 3; left > 0; {
		n, err := r.Lend(bufs, sizes, from)
		if err != nil {
			t.Fatalf("%v, %d missing", err, left)
		}
		for i := range n {
			b := bufs[i][:sizes[i]]
			w := b[len(b)-1]
			if len(b) != 10+int(w) {
				t.Fatalf("%d bytes of writer %d", len(b), w)
			}
			got[w] = append(got[w], b[0])
		}
		left -= n
	}
	for w, list := range got {
		if len(list) != each*3 || !slices.IsSorted(list) {
			t.Errorf("writer %d: %v", w, list)
		}
	}
}

// Nothing is allocated to send a batch and to receive it.
func TestAllocations(t *testing.T) {
	for _, k := range kinds[:4] {
		t.Run(k.name, func(t *testing.T) {
			tx, _ := listen(t, k.network, k.tx, nil)
			rx, dst := listen(t, k.network, k.rx, nil)
			if tx.sys == nil {
				t.Skip("one by one")
			}
			if k.to != "" {
				dst = netip.AddrPortFrom(netip.MustParseAddr(k.to), dst.Port())
			}
			r := rx.Reader()
			out := buffers(40, 1312)
			out[7], out[23] = out[7][:96], out[23][:0]
			run := make([]byte, 20*1312)
			bufs, sizes, from := places(Batch)
			if n := testing.AllocsPerRun(200, func() {
				if err := errors.Join(tx.Write(out, dst), tx.WriteOne(out[0], dst)); err != nil {
					t.Fatal(err)
				}
				for got := 0; got < 41; {
					n, err := r.Lend(bufs, sizes, from)
					if err != nil {
						t.Fatal(err)
					}
					got += n
				}
				if err := tx.WriteRun(run, 1312, dst); err != nil {
					t.Fatal(err)
				}
				for got := 0; got < len(run); {
					b, _, _, err := r.Next()
					if err != nil {
						t.Fatal(err)
					}
					got += len(b)
				}
			}); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}
