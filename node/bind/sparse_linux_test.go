package bind

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

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
