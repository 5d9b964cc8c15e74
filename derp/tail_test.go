package derp

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestTail(t *testing.T) {
	t0 := time.Unix(1000, 0)
	msg := func(size int) []byte { return make([]byte, size) }
	for _, c := range []struct {
		name  string
		fill  func(*tail)
		heard uint64
		n     int // packets
		size  int
	}{
		{"nothing was written", func(*tail) {}, 1, 0, 0},
		{"all was heard", func(x *tail) { x.add(msg(10), 1, t0) }, 1, 0, 0},
		{"the last two were not", func(x *tail) {
			x.add(nil, 0, t0) // the welcome
			x.add(msg(10), 1, t0)
			x.add(msg(20), 2, t0)
			x.add(msg(30), 3, t0)
		}, 2, 5, 50},
		{"one is too old", func(x *tail) { x.add(msg(10), 1, t0.Add(-2*tailKeeps)); x.add(msg(20), 1, t0) }, 0, 1, 20},
		{"a transfer leaves none", func(x *tail) { x.add(msg(10), 1, t0); x.add(msg(tailLong+1), 9, t0) }, 0, 0, 0},
		{"but what follows it", func(x *tail) { x.add(msg(tailLong+1), 9, t0); x.add(msg(10), 1, t0) }, 0, 1, 10},
		{"more heard than written", func(x *tail) { x.add(msg(10), 1, t0) }, 1 << 63, 0, 0},
		{"rested", func(x *tail) { x.add(msg(10), 1, t0); x.rest(t0.Add(2 * tailKeeps)) }, 0, 0, 0},
		{"not yet", func(x *tail) { x.add(msg(10), 1, t0); x.rest(t0) }, 0, 1, 10},
	} {
		var x tail
		c.fill(&x)
		if row, n := x.after(c.heard, t0); n != c.n || len(row) != c.size {
			t.Errorf("%s: %d packets, %d bytes; want %d, %d", c.name, n, len(row), c.n, c.size)
		}
	}
}

// A tail has its bound, and keeps the newest.
func TestTailIsBounded(t *testing.T) {
	var x tail
	now := time.Unix(1000, 0)
	for i := range 10_000 {
		x.add([]byte{byte(i), byte(i >> 8), 2: 0, 999: 0}, 1, now)
		if len(x.row) > tailBytes {
			t.Fatalf("%d bytes", len(x.row))
		}
	}
	if row, n := x.after(9_999, now); n != 1 || int(row[0])|int(row[1])<<8 != 9_999 {
		t.Errorf("%d packets after the last but one", n)
	}
	if _, n := x.after(0, now); n < 5 {
		t.Errorf("only %d are kept", n)
	}
}

// TestMoveLosesNothing: an address has gone, and with it what was on its way by the relay's connection; it comes by the new one,
// and so does what was sent before that was there.
func TestMoveLosesNothing(t *testing.T) {
	r := newRelay(t)
	h := newBlackHole(t, r.addr)
	var moved atomic.Bool
	gate := make(chan struct{})
	a := newClientOf(t, newNode(r.control), r, func(c *ClientConfig, _ *times) {
		c.URLs = []string{"https://" + h.ln.Addr().String()}
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if moved.Load() && network == "udp" {
				return nil, syscall.ENETUNREACH
			}
			if moved.Load() {
				select {
				case <-gate:
				case <-ctx.Done():
				}
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
	}).waitUp(t)
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	b.Send(a.pub, [][]byte{data("before")})
	receive(t, "a packet before", a.got)

	h.swallow.Store(true)
	moved.Store(true)
	for i := range 3 {
		b.Send(a.pub, [][]byte{data(fmt.Sprint("to a ", i))})
		eventually(t, "the relay has written it", func() bool { return r.Stats().PacketsOut == uint64(2+i) })
	}
	a.Redial()
	eventually(t, "the client knows", a.held.Load)
	a.Send(b.pub, [][]byte{data("to b")})
	close(gate)
	if got := receive(t, "what was sent meanwhile", b.got); got.data != string(data("to b")) {
		t.Errorf("got %q", got.data)
	}
	for i := range 3 {
		if got := receive(t, "what was on its way", a.got); got.data != string(data(fmt.Sprint("to a ", i))) {
			t.Errorf("got %q for packet %d", got.data, i)
		}
	}
}

// TestMoveWakesUDP: an address has gone while the relay's UDP side was asleep. What is sent then goes that way, which takes a round
// trip, and waits for no new connection, which takes three.
func TestMoveWakesUDP(t *testing.T) {
	r := newRelay(t, func(c *ServerConfig) { c.UDP = true }).withUDP(t)
	h := newBlackHole(t, r.addr)
	var moved atomic.Bool
	a := newClientOf(t, newNode(r.control), r, func(c *ClientConfig, _ *times) {
		c.URLs, c.UDP = []string{"https://" + h.ln.Addr().String()}, []string{r.addr}
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if moved.Load() && network == "udp" {
				return nil, syscall.ENETUNREACH
			}
			if moved.Load() {
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
	}).waitUp(t)
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	eventually(t, "the relay has offered its UDP side", func() bool { return a.bond.Load() != nil })
	h.swallow.Store(true)
	moved.Store(true)
	a.Redial()
	eventually(t, "the client knows", a.held.Load)
	a.Send(b.pub, [][]byte{data("to b")})
	if got := receive(t, "a packet by UDP", b.got); got.data != string(data("to b")) {
		t.Errorf("got %q", got.data)
	}
	b.Send(a.pub, [][]byte{data("to a")})
	if got := receive(t, "the answer", a.got); got.data != string(data("to a")) {
		t.Errorf("got %q", got.data)
	}
}

// TestMoveInVain: where no new connection can be made, packets go by the old one again after a while: it may be alive.
func TestMoveInVain(t *testing.T) {
	r := newRelay(t)
	var moved atomic.Bool
	a := newClientOf(t, newNode(r.control), r, func(c *ClientConfig, _ *times) {
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if moved.Load() {
				return nil, syscall.ENETUNREACH
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
	}).waitUp(t)
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	moved.Store(true)
	a.Redial()
	eventually(t, "packets are held", a.held.Load)
	a.Send(b.pub, [][]byte{data("late")})
	if got := receive(t, "a packet by the old link", b.got); got.data != string(data("late")) {
		t.Errorf("got %q", got.data)
	}
}
