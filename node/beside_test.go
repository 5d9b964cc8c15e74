package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/netstack"
)

// waitingHost is an interface whose Read waits, and can be woken.
type waitingHost struct {
	fakeHost
	out   chan []byte // what its programs send
	wake  chan struct{}
	done  chan struct{}
	mu    sync.Mutex
	wrote [][]byte
}

func newWaitingHost() *waitingHost {
	return &waitingHost{out: make(chan []byte), wake: make(chan struct{}, 1), done: make(chan struct{})}
}

func (h *waitingHost) File() *os.File { return os.Stdin } // there is one: it can be woken
func (h *waitingHost) Close() error   { close(h.done); return nil }

func (h *waitingHost) Wake(in time.Duration) bool {
	time.AfterFunc(in, func() {
		select {
		case h.wake <- struct{}{}:
		default:
		}
	})
	return true
}

func (h *waitingHost) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case p := <-h.out:
		sizes[0] = copy(bufs[0][offset:], p)
		return 1, nil
	case <-h.wake:
		return 0, nil
	case <-h.done:
		return 0, os.ErrClosed
	}
}

func (h *waitingHost) Write(bufs [][]byte, offset int) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range bufs {
		h.wrote = append(h.wrote, bytes.Clone(b[offset:]))
	}
	return len(bufs), nil
}

// besidePeer is a peer's stack, joined to a beside as a tunnel would. Packets to other than the peer go to plain.
func besidePeer(t *testing.T, b *beside, plain chan<- []byte) *netstack.Stack {
	t.Helper()
	peer, err := netstack.New(netstack.Options{Addrs: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd7a::1")}})
	if err != nil {
		t.Fatal(err)
	}
	const offset = 16
	pump := func(read func([][]byte, []int, int) (int, error), write func([][]byte)) {
		bufs, sizes := make([][]byte, 128), make([]int, 128)
		for i := range bufs {
			bufs[i] = make([]byte, offset+65535)
		}
		for {
			n, err := read(bufs, sizes, offset)
			if err != nil {
				return
			}
			out := make([][]byte, 0, n)
			for i := range n {
				out = append(out, bufs[i][:offset+sizes[i]])
			}
			write(out)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { pump(peer.Read, func(p [][]byte) { _, _ = b.Write(p, offset) }) })
	wg.Go(func() {
		pump(b.Read, func(p [][]byte) {
			for len(p) > 0 {
				if q := p[0][offset:]; len(q) > 20 && q[0]>>4 == 4 && q[16] != 100 {
					plain <- bytes.Clone(q)
				} else {
					_, _ = peer.Write(p[:1], offset)
				}
				p = p[1:]
			}
		})
	})
	t.Cleanup(func() { _ = peer.Close(); _ = b.Close(); wg.Wait() })
	return peer
}

// Beside a host's interface the stack takes what is not for the host, and nothing before there is something to carry.
func TestBeside(t *testing.T) {
	h := newWaitingHost()
	accepted := make(chan netip.AddrPort, 8)
	b := newBeside(h, netstack.Options{Accept: func(_ context.Context, _ string, local, _ netip.AddrPort) (net.Conn, error) {
		accepted <- local
		mine, theirs := net.Pipe()
		go func() { // sends for ever
			defer theirs.Close()
			for block := make([]byte, 64<<10); ; {
				if _, err := theirs.Write(block); err != nil {
					return
				}
			}
		}()
		return mine, nil
	}})
	plain := make(chan []byte)
	peer := besidePeer(t, b, plain)
	own := []netip.Addr{netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd7a::2")}
	if err := b.set(own, nil); err != nil || b.stack.Load() != nil {
		t.Fatalf("with nothing to carry: %v, stack %v", err, b.stack.Load())
	}
	pkts := [][]byte{tcp4("100.64.0.1:1", "100.64.0.2:80", 1, 0, tcpSYN), tcp4("100.64.0.1:1", "10.33.0.5:80", 1, 0, tcpSYN),
		{0x45}, {}, tcp4("100.64.0.1:2", "100.64.0.2:80", 1, 0, tcpSYN)}
	if _, err := b.Write(pkts, 0); err != nil {
		t.Fatal(err)
	}
	if len(h.wrote) != 2 || !bytes.Equal(h.wrote[0], pkts[0]) || !bytes.Equal(h.wrote[1], pkts[4]) {
		t.Errorf("the host was given %x, want the two for its address", h.wrote)
	}
	if err := b.set(own, prefixes("10.33.0.0/16")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := peer.DialContext(ctx, "tcp", netip.MustParseAddrPort("10.33.0.5:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if at := <-accepted; at.String() != "10.33.0.5:80" {
		t.Errorf("asked about %v", at)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(io.Discard, c) })
	defer wg.Wait()
	defer c.Close()
	program := tcp4("100.64.0.2:9", "192.0.2.7:80", 1, 0, tcpSYN)
	for i := range 100 {
		select {
		case h.out <- program:
		case <-ctx.Done():
			t.Fatalf("the host had no turn for its packet %d", i)
		}
		select {
		case p := <-plain:
			if !bytes.Equal(p, program) {
				t.Fatalf("%x, want the program's", p)
			}
		case <-ctx.Done():
			t.Fatalf("the program's packet %d was not read", i)
		}
	}
	if len(h.wrote) != 2 {
		t.Errorf("the host was given %x of what is carried", h.wrote[2:])
	}
}

// While the stack has always more to send, the host's programs have their turn.
func TestBesideTurns(t *testing.T) {
	h := newWaitingHost()
	b := newBeside(h, netstack.Options{Accept: func(context.Context, string, netip.AddrPort, netip.AddrPort) (net.Conn, error) { return nil, io.EOF }})
	if err := b.set(nil, prefixes("10.33.0.0/16")); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	const queued = 4000
	carried, program := tcp4("10.33.0.5:80", "100.64.0.1:1", 1, 0, tcpACK), tcp4("100.64.0.2:9", "192.0.2.7:80", 1, 0, tcpSYN)
	for range queued {
		b.stack.Load().Inject([][]byte{carried})
	}
	go func() {
		select {
		case h.out <- program:
		case <-h.done:
		}
	}()
	bufs, sizes := [][]byte{make([]byte, 2048)}, []int{0}
	for i := range queued {
		if n, err := b.Read(bufs, sizes, 0); n != 1 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		if bytes.Equal(bufs[0][:sizes[0]], program) {
			t.Logf("the host's was packet %d", i)
			return
		}
	}
	t.Error("the host had no turn before all that is carried was through")
}

// Where Read cannot be woken nothing is carried, and a node says so rather than offer it.
func TestBesideCannot(t *testing.T) {
	b := newBeside(&fakeHost{}, netstack.Options{})
	if err := b.set(nil, prefixes("10.33.0.0/16")); !errors.Is(err, errNoCarrier) {
		t.Errorf("%v", err)
	}
	n := &Node{cfg: Config{}, beside: b}
	n.routing.Store(&Routing{Exit: true})
	if got := n.offers(); len(got) > 0 {
		t.Errorf("offers %v", got)
	}
	if _, err := b.Write([][]byte{tcp4("100.64.0.1:1", "10.33.0.5:80", 1, 0, tcpSYN)}, 0); err != nil {
		t.Error(err)
	}
}
