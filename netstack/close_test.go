package netstack

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestListenerCloseUnblocksAccept(t *testing.T) {
	s := newStack(t, Options{}, a4)
	for _, end := range []string{"listener", "stack"} {
		l, err := s.ListenTCP(port(a4, 80))
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan error)
		go func() { _, err := l.Accept(); got <- err }()
		if end == "listener" {
			l.Close()
		} else {
			s.Close()
		}
		if err := <-got; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s closed: Accept says %v", end, err)
		}
	}
}

// TestQueueBound sends into a stack nobody reads: each socket is held back by its own send buffer, and all of
// them together by the queue, whose losses are counted.
func TestQueueBound(t *testing.T) {
	s := newStack(t, Options{}, a4)
	for socket := range 1000 {
		c, err := s.DialContext(t.Context(), "udp", port(b4, 9))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		for n := 0; ; n++ {
			if _, err := c.Write([]byte("x")); errors.Is(err, os.ErrDeadlineExceeded) {
				break
			} else if s.Stats().Dropped > 0 {
				t.Logf("socket %d: %v", socket, err)
				return
			} else if err != nil || n > queueLen {
				t.Fatalf("write %d: %v", n, err)
			}
		}
	}
	t.Error("nothing was ever dropped")
}

// TestCloseWhileWriting is the race that makes other stacks panic or hang: packets being queued, read and
// delivered while Close runs.
func TestCloseWhileWriting(t *testing.T) {
	for i := range 150 {
		s, err := New(Options{Addrs: []netip.Addr{a4}})
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.DialContext(t.Context(), "udp", port(b4, 9))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var read atomic.Int64
		started := make(chan struct{})
		wg.Go(func() {
			bufs, sizes := [][]byte{make([]byte, 2000), make([]byte, 2000)}, make([]int, 2)
			for {
				n, err := s.Read(bufs, sizes, 0)
				if err != nil {
					return
				}
				read.Add(int64(n))
				for j := range n { // send it back: an echo of our own packet, to be refused as a martian
					s.Write(bufs[j:j+1], 0)
				}
			}
		})
		wg.Go(func() {
			for k := 0; ; k++ {
				if _, err := c.Write([]byte("x")); errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) {
					return
				} else if k == i {
					close(started)
				} else if k > 1e6 {
					t.Errorf("writes go on after Close: %v", err)
					return
				}
			}
		})
		wg.Go(func() { s.DialContext(t.Context(), "tcp", port(b4, 80)) })
		<-started
		wg.Go(func() { s.Close() })
		s.Close()
		wg.Wait()
		if _, err := s.Read(nil, nil, 0); !errors.Is(err, os.ErrClosed) {
			t.Fatal(err)
		}
	}
}

// TestCloseWhileTransferring closes one end, then the other, in the middle of a transfer.
func TestCloseWhileTransferring(t *testing.T) {
	for i := range 20 {
		a, b := pair(t, Options{}, Options{}, nil)
		l, err := b.ListenTCP(port(b4, 80))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		flowing := make(chan struct{})
		wg.Go(func() {
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			io.CopyN(io.Discard, c, 100<<10)
			close(flowing)
			if _, err := io.Copy(io.Discard, c); err == nil {
				t.Error("a reset connection ended with EOF")
			}
		})
		c, err := a.DialContext(timeout(t), "tcp", port(b4, 80))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for chunk := make([]byte, 64<<10); ; {
				if _, err := c.Write(chunk); err != nil {
					return
				}
			}
		})
		<-flowing
		if i%2 == 0 {
			a.Close()
			b.Close()
		} else {
			b.Close()
			a.Close()
		}
		wg.Wait()
	}
}
