package sentry

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// socket is one that others can write to, and its sentry. Both are closed in the end, whoever waits.
func socket(tb testing.TB) (*Sentry, *net.UDPConn, func()) {
	tb.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	s, err := New(raw)
	if err != nil {
		tb.Fatal(err)
	}
	return s, c, func() {
		if _, err := c.WriteTo([]byte("hello"), c.LocalAddr()); err != nil {
			tb.Error(err)
		}
	}
}

// result is what a Wait gave.
type result struct {
	ready bool
	err   error
}

// wait begins one in a goroutine of its own, which keeps its thread.
func wait(s *Sentry, in time.Duration) <-chan result {
	done := make(chan result, 1)
	go func() {
		ready, err := s.Wait(in)
		done <- result{ready, err}
	}()
	return done
}

func TestWait(t *testing.T) {
	for _, c := range []struct {
		name   string
		in     time.Duration
		before func(s *Sentry, write func())
		after  func(s *Sentry, c *net.UDPConn, write func())
		want   result
	}{
		{"something is there", -1, func(_ *Sentry, write func()) { write() }, nil, result{true, nil}},
		{"something comes", -1, nil, func(_ *Sentry, _ *net.UDPConn, write func()) { write() }, result{true, nil}},
		{"nothing comes for so long", 10 * time.Millisecond, nil, nil, result{false, nil}},
		{"nothing, and nobody waits", 0, nil, nil, result{false, nil}},
		{"woken", -1, nil, func(s *Sentry, _ *net.UDPConn, _ func()) { s.Wake() }, result{false, nil}},
		{"woken before", -1, func(s *Sentry, _ func()) { s.Wake() }, nil, result{false, nil}},
		{"closed", -1, nil, func(s *Sentry, c *net.UDPConn, _ func()) { s.Close(c) }, result{false, os.ErrClosed}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, conn, write := socket(t)
			defer s.Close(conn)
			if c.before != nil {
				c.before(s, write)
			}
			done := wait(s, c.in)
			if c.after != nil {
				c.after(s, conn, write)
			}
			if got := <-done; got.ready != c.want.ready || !errors.Is(got.err, c.want.err) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// Who is closed waits no more, and to close or wake it again is nothing.
func TestClosed(t *testing.T) {
	s, c, _ := socket(t)
	if err := s.Close(c); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(c); err == nil {
		t.Error("the socket was open")
	}
	s.Wake()
	if got := <-wait(s, -1); !errors.Is(got.err, os.ErrClosed) {
		t.Errorf("got %v", got)
	}
}

// A sentry that is woken as fast as it waits loses no Wake that comes after its Wait has ended.
func TestWakes(t *testing.T) {
	s, c, _ := socket(t)
	defer s.Close(c)
	turns := make(chan result)
	go func() {
		for range 1000 {
			ready, err := s.Wait(-1)
			turns <- result{ready, err}
		}
		close(turns)
	}()
	s.Wake()
	n := 0
	for r := range turns {
		if r.ready || r.err != nil {
			t.Fatal(r)
		}
		n++
		s.Wake()
	}
	if n != 1000 {
		t.Errorf("%d turns", n)
	}
}

func TestAllocations(t *testing.T) {
	s, c, write := socket(t)
	defer s.Close(c)
	write()
	done := make(chan float64)
	go func() { done <- testing.AllocsPerRun(100, func() { _, _ = s.Wait(-1) }) }()
	if n := <-done; n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A ping and its answer, each to a thread that waits: by Go's poller, and by a sentry.
func BenchmarkWait(b *testing.B) {
	for _, way := range []string{"poller", "sentry"} {
		b.Run(way, func(b *testing.B) {
			s, c, _ := socket(b)
			defer s.Close(c)
			far, err := net.DialUDP("udp4", nil, c.LocalAddr().(*net.UDPAddr))
			if err != nil {
				b.Fatal(err)
			}
			defer far.Close()
			go func() {
				buf := make([]byte, 16)
				for {
					if way == "sentry" {
						if _, err := s.Wait(-1); err != nil {
							return
						}
					}
					_, from, err := c.ReadFromUDPAddrPort(buf)
					if errors.Is(err, net.ErrClosed) {
						return
					}
					_, _ = c.WriteToUDPAddrPort(buf[:1], from)
				}
			}()
			buf := make([]byte, 16)
			for b.Loop() {
				_, _ = far.Write(buf[:1])
				if _, err := far.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
