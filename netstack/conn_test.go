package netstack

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// connect gives both ends of a connection between two Stacks.
func connect(t testing.TB) (*tcpConn, *tcpConn) {
	t.Helper()
	a, b := pair(t, Options{}, Options{}, nil)
	l, err := b.ListenTCP(port(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.DialContext(timeout(t), "tcp", port(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*tcpConn), d.(*tcpConn)
}

// hostPair gives both ends of a connection of the host's.
func hostPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c, d
}

// TestCopy: what goes from a socket of the host through both stacks to another comes whole, with many long buffers to be
// had, with none, and from what is no socket; and a copy that waits has no buffer.
func TestCopy(t *testing.T) {
	for _, c := range []struct {
		name  string
		taken int32
		plain bool // the source is no socket
	}{{"long", 0, false}, {"short", bulkMost, false}, {"reader", 0, true}} {
		t.Run(c.name, func(t *testing.T) {
			bulkUsed.Add(c.taken)
			defer bulkUsed.Add(-c.taken)
			near, far := connect(t)
			app, in := hostPair(t)
			out, server := hostPair(t)
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				var r io.Reader = in
				if c.plain {
					r = struct{ io.Reader }{in}
				}
				if _, err := io.Copy(near, r); err != nil {
					t.Error(err)
				}
				near.CloseWrite()
			})
			wg.Go(func() {
				if _, err := io.Copy(out, far); err != nil {
					t.Error(err)
				}
				out.(*net.TCPConn).CloseWrite()
			})
			data := make([]byte, 3<<20)
			rnd := rand.NewChaCha8([32]byte{7})
			rnd.Read(data)
			wg.Go(func() {
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+rand.IntN(400<<10))
					if _, err := app.Write(rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
			})
			got := make([]byte, len(data))
			server.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.ReadFull(server, got); err != nil {
				t.Fatal(err)
			}
			if sha256.Sum256(got) != sha256.Sum256(data) {
				t.Error("something else came")
			}
			wait(t, "no buffer in use", func() bool { return bulkUsed.Load() == c.taken })
			app.(*net.TCPConn).CloseWrite()
			if n, err := server.Read(got); err != io.EOF {
				t.Errorf("after the end came %d bytes, %v", n, err)
			}
		})
	}
}

// TestCopyFails: a copy that cannot go on says why, and keeps nothing.
func TestCopyFails(t *testing.T) {
	c, d := connect(t)
	if _, err := d.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.WriteTo(fails{}); err != io.ErrClosedPipe || n != 0 {
		t.Errorf("%d bytes, %v", n, err)
	}
	c.SetReadDeadline(time.Unix(1, 0))
	if _, err := c.WriteTo(io.Discard); !isTimeout(err) {
		t.Errorf("past the deadline: %v", err)
	}
	c.Close()
	if _, err := c.ReadFrom(bytes.NewReader(make([]byte, 1))); err == nil {
		t.Error("it reads when it is closed")
	}
	if n := bulkUsed.Load(); n != 0 {
		t.Errorf("%d buffers are in use", n)
	}
}

type fails struct{}

func (fails) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// BenchmarkSplice is a stream from a program of the host through both stacks to another: what SOCKS5 does, without a tunnel.
func BenchmarkSplice(b *testing.B) {
	near, far := connect(b)
	app, in := hostPair(b)
	out, server := hostPair(b)
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(near, in); near.CloseWrite() })
	wg.Go(func() { io.Copy(out, far); out.Close() })
	var n int64
	wg.Go(func() {
		n, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{server}, make([]byte, 128<<10))
	})
	const piece = 128 << 10 // as iperf3
	buf := make([]byte, piece)
	b.SetBytes(piece)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := app.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	app.(*net.TCPConn).CloseWrite()
	wg.Wait()
	if n != int64(b.N)*piece {
		b.Errorf("%d bytes came, of %d", n, b.N*piece)
	}
}
