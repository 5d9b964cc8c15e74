package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// datagramBuf holds any UDP datagram.
const datagramBuf = 64 << 10

var datagramBufs = sync.Pool{New: func() any { return new([datagramBuf]byte) }}

// splice copies both ways between an inbound connection and its backend until both directions have ended. The end
// of one direction is passed on as a half-close; an error ends both, with a RST where that can be said.
// It owns both and closes them, at the latest when ctx ends.
func splice(ctx context.Context, in *tcpConn, backend net.Conn) {
	var broken atomic.Bool
	release := closeWith(ctx, in, backend)
	var wg sync.WaitGroup
	wg.Go(func() { copyStream(backend, in, &broken) })
	copyStream(in, backend, &broken)
	wg.Wait()
	release()
	if broken.Load() {
		abort(in)
		abort(backend)
		return
	}
	in.Close()
	backend.Close()
}

// copyStream copies src to dst until src ends, then half-closes dst. Any other end breaks the connection: both
// sides are shut so that the other direction ends too.
func copyStream(dst, src net.Conn, broken *atomic.Bool) {
	switch _, err := io.Copy(dst, src); {
	case err == nil:
		if h, ok := dst.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
			return
		} // else dst cannot be half-closed (or is gone): the whole connection ends with this direction
	case !errors.Is(err, os.ErrDeadlineExceeded): // else the other direction ended the connection
		broken.Store(true)
	}
	// Wake the other direction wherever it waits; the deadline, unlike Close, leaves the choice of FIN or RST open.
	past := time.Unix(1, 0)
	dst.SetDeadline(past)
	src.SetDeadline(past)
}

// abort closes c, with a RST if it is a TCP connection of the host or of a Stack.
func abort(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// spliceUDP passes datagrams both ways until neither has had one for idle, or either fails. It owns both.
func spliceUDP(ctx context.Context, in, backend net.Conn, idle time.Duration) {
	defer closeWith(ctx, in, backend)()
	var last atomic.Int64 // when the last datagram passed, since start
	var over atomic.Bool  // one direction has ended
	start := time.Now()
	pass := func(dst, src net.Conn) {
		defer dst.SetReadDeadline(time.Unix(1, 0)) // wakes the other direction, which then sees over
		defer over.Store(true)
		buf := datagramBufs.Get().(*[datagramBuf]byte)
		defer datagramBufs.Put(buf)
		for {
			left := idle - (time.Since(start) - time.Duration(last.Load()))
			if left <= 0 {
				return
			}
			src.SetReadDeadline(time.Now().Add(left))
			if over.Load() {
				return
			}
			n, err := src.Read(buf[:])
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue // the other direction may have been busy meanwhile
			}
			if err != nil {
				return
			}
			last.Store(int64(time.Since(start)))
			dst.Write(buf[:n]) // a datagram that cannot be sent is lost, as datagrams are; a dead socket shows in Read
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { pass(backend, in) })
	pass(in, backend)
	wg.Wait()
	in.Close()
	backend.Close()
}

// closeWith closes the connections when ctx ends, until the returned function is called; that waits if it is at it.
func closeWith(ctx context.Context, conns ...net.Conn) (release func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		for _, c := range conns {
			c.Close()
		}
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}
