package bind

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/node/device"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/udp"
)

// What is marked as of a flow that sends little is sent by the companion and read there, also after the sockets have
// been exchanged; everything else is not.
func TestSparseApart(t *testing.T) {
	b, err := New(Config{Node: key.ExchangePublic(key.NewNode()), Disco: key.NewDisco(), Machine: key.NewMachine(), Loopback: true,
		Interfaces: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Stop()
	for round := range 2 {
		if round == 1 {
			s4, s6, err := b.listen(0)
			if err != nil {
				t.Fatal(err)
			}
			b.exchange(s4, s6)
		}
		fns, port, err := b.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		want := 1 // the relays'
		for _, f := range []*family{&b.udp4, &b.udp6} {
			if s := f.cur.Load(); s != nil {
				want++
				if s.sparse != nil {
					want++
				}
			}
		}
		if len(fns) != want || b.udp4.cur.Load().sparse == nil {
			t.Errorf("%d functions receive, want %d", len(fns), want)
		}
		to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
		if err := b.udp4.write([][]byte{buffer('a', false), buffer('B', true), buffer('c', false), buffer('D', true)}, to); err != nil {
			t.Fatal(err)
		}
		for sparse, want := range map[bool]string{true: "BD", false: "ac"} {
			got := ""
			for len(got) < len(want) {
				bufs, sizes, from := make([][]byte, udp.Batch), make([]int, udp.Batch), make([]netip.AddrPort, udp.Batch)
				for i := range bufs {
					bufs[i] = make([]byte, device.MaxMessageSize)
				}
				if err := b.udp4.cur.Load().SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
					t.Fatal(err)
				}
				n, err := b.udp4.read(sparse, b.ses, bufs, sizes, from)
				if err != nil {
					t.Fatal(err)
				}
				for i := range n {
					if from[i] != to {
						t.Errorf("from %v, want the one port, %v", from[i], to)
					}
					got += string(bufs[i][:1])
				}
			}
			if got != want {
				t.Errorf("sparse %v: %q is read, want %q", sparse, got, want)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The reader of flows that send little has what is theirs whether it waits or not, from a new pair of sockets too, and ends
// with the session.
func TestSparseReader(t *testing.T) {
	l := newLone(t)
	l.Watch()
	far, err := l.far.Beside(func(string, string, syscall.RawConn) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	at := l.nearAt
	for session := range 3 {
		fns, _, err := l.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		got, failed := make(chan int), make(chan error, 1)
		go func() { // which keeps its thread
			bufs, sizes, eps := make([][]byte, udp.Batch), make([]int, udp.Batch), make([]conn.Endpoint, udp.Batch)
			for i := range bufs {
				bufs[i] = make([]byte, device.MaxMessageSize)
			}
			for {
				n, err := fns[1](bufs, sizes, eps)
				if err != nil {
					failed <- err
					return
				}
				for _, size := range sizes[:n] {
					got <- size
				}
			}
		}()
		for i := range 10 {
			if session == 2 && i == 5 {
				s4, s6, err := l.listen(0)
				if err != nil {
					t.Fatal(err)
				}
				l.exchange(s4, s6)
				at = netip.AddrPortFrom(at.Addr(), l.Port())
			}
			if err := far.Write(batchOf(1, 900+i, uint64(10*session+i+1)), at); err != nil {
				t.Fatal(err)
			}
			if size := <-got; size != 900+i {
				t.Errorf("session %d: a datagram of %d bytes, want %d", session, size, 900+i)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-failed; !errors.Is(err, net.ErrClosed) {
			t.Errorf("session %d ends with %v", session, err)
		}
	}
}

// Where flows that send little are heard, whoever reads a transfer's socket takes their datagrams first; else their own
// reader does.
func TestSparseFirst(t *testing.T) {
	l := newLone(t)
	fns, _, err := l.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	bufs, sizes, eps := make([][]byte, udp.Batch), make([]int, udp.Batch), make([]conn.Endpoint, udp.Batch)
	from := make([]netip.AddrPort, udp.Batch)
	for i := range bufs {
		bufs[i] = make([]byte, device.MaxMessageSize)
	}
	few, err := l.far.Beside(func(string, string, syscall.RawConn) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer few.Close()
	read := func() []int {
		n, err := fns[0](bufs, sizes, eps)
		if err != nil {
			t.Fatal(err)
		}
		return sizes[:n]
	}
	hear := func() { l.turns.hear(l.now() + int64(time.Hour)) } // for as long as the test takes
	send := func(first uint64) {
		for i, s := range []*udp.Socket{l.far, few} {
			if err := s.Write(batchOf(1, 1000-i, first+uint64(i)), l.nearAt); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range l.udp4.cur.Load().both() { // both are there
			rc, err := s.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			rc.Control(func(fd uintptr) {
				if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n != 1 {
					t.Fatal(n, err)
				}
			})
		}
	}
	send(1)
	if got := read(); !slices.Equal(got, []int{1000}) {
		t.Errorf("datagrams of %d bytes come first, and nobody is heard that sends little", got)
	}
	send(3)
	for _, want := range [][]int{{999, 999}, {1000}} {
		hear()
		if got := read(); !slices.Equal(got, want) {
			t.Errorf("datagrams of %d bytes come, want %d", got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		if l.udp4.peek(bufs, sizes, from) != 0 {
			t.Fatal("there is one more")
		}
	}); n != 0 {
		t.Errorf("%v allocations to look in vain", n)
	}
}

// What was taken of flows that send little, and had no room in a batch, is of the next also if they have fallen silent.
func TestSparseLeft(t *testing.T) {
	l := newLone(t)
	fns, _, err := l.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	few, err := l.far.Beside(func(string, string, syscall.RawConn) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer few.Close()
	if err := few.Write(batchOf(5, 999, 1), l.nearAt); err != nil { // one run
		t.Fatal(err)
	}
	if err := l.far.Write(batchOf(1, 1000, 6), l.nearAt); err != nil {
		t.Fatal(err)
	}
	bufs, sizes, eps := make([][]byte, 2), make([]int, 2), make([]conn.Endpoint, 2)
	for i, want := range [][]int{{999, 999}, {999, 999}, {999}, {1000}} {
		if i == 0 {
			l.turns.hear(l.now() + int64(time.Hour))
		} else {
			l.turns.sparse.Store(0)
		}
		n, err := fns[0](bufs, sizes, eps)
		if err != nil {
			t.Fatal(err)
		}
		if got := sizes[:n]; !slices.Equal(got, want) {
			t.Fatalf("batch %d has datagrams of %d bytes, want %d", i, got, want)
		}
	}
}

// A datagram that is too long for the system keeps none of the other kind back.
func TestSparseTooLong(t *testing.T) {
	l := newLone(t)
	long := make([]byte, device.MaxMessageSize)
	const size = 65_488
	MarkSparse(long, size, true)
	long = long[:wgOverhead+size]
	if !isSparse(long) {
		t.Fatal("it is not marked")
	}
	if err := l.udp4.write([][]byte{long, buffer('a', false)}, l.farAt); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("%v, want EMSGSIZE", err)
	}
	if err := l.far.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, _, err := l.far.ReadOne(b); err != nil || n == 0 || b[0] != 'a' {
		t.Errorf("%q comes: %v", b[:n], err)
	}
}
