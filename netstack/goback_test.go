package netstack

import (
	"io"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// TestOutage: a stream that lost all of its packets for longer than TCP's timeouts goes on at once as fast as before. What
// went again after each timeout was two segments, when acknowledgments of it were taken for news of loss.
func TestOutage(t *testing.T) {
	for _, at := range []netip.Addr{b4, b6} {
		var cut atomic.Bool
		a, b := pair(t, Options{}, Options{}, func([]byte) bool { return !cut.Load() })
		n := streamTo(t, a, b, at)
		start := time.Now()
		wait(t, "16 megabytes", func() bool { return n.Load() > 16<<20 })
		usual := time.Since(start)
		cut.Store(true)
		before := a.timeouts()
		wait(t, "two timeouts", func() bool { return a.timeouts() >= before+2 })
		cut.Store(false)
		resume, k := time.Now(), n.Load()
		wait(t, "more", func() bool { return n.Load() > k })
		resumed := time.Now()
		wait(t, "16 megabytes more", func() bool { return n.Load() > k+16<<20 })
		t.Logf("%v: resumed after %v, 16 MB more after %v", at, resumed.Sub(resume), time.Since(resumed))
		if d := time.Since(resumed); d > max(8*time.Second, 10*usual) {
			t.Errorf("%v: 16 MB took %v after an outage, and %v before", at, d, usual)
		}
	}
}

// TestOutageOfOneWhoWrites: a program that goes on writing does not keep TCP from sending again what was lost.
func TestOutageOfOneWhoWrites(t *testing.T) {
	var cut atomic.Bool
	a, b := pair(t, Options{}, Options{}, func([]byte) bool { return !cut.Load() })
	l, err := b.ListenTCP(port(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.DialContext(timeout(t), "tcp", port(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for range 1000 { // until a round trip is known
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(d, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	cut.Store(true)
	before := a.timeouts()
	for n := 0; a.timeouts() == before; n++ {
		if n == 400<<10 { // the buffer is not full yet
			t.Fatal("TCP has never timed out")
		}
		start := time.Now()
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		for time.Since(start) < 5*time.Microsecond {
		}
	}
}

// streamTo writes from a to b, until both are closed. It returns how many bytes have come.
func streamTo(t testing.TB, a, b *Stack, at netip.Addr) *atomic.Int64 {
	t.Helper()
	l, err := b.ListenTCP(port(at, 80))
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.DialContext(timeout(t), "tcp", port(at, 80))
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	n := new(atomic.Int64)
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(struct{ io.Writer }{c}, zeros{}) })
	wg.Go(func() { io.Copy(counter{n}, struct{ io.Reader }{d}) })
	t.Cleanup(func() { c.Close(); d.Close(); wg.Wait() })
	return n
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) { c.n.Add(int64(len(b))); return len(b), nil }

// TestGoBack is what makes a connection one that goes back.
func TestGoBack(t *testing.T) {
	const ms = int64(time.Millisecond)
	for _, c := range []struct {
		name     string
		timeouts uint64 // since the segments before
		seq      uint32 // those before: 1000 to 101000
		n        int
		after    int64
		want     bool
	}{
		{"a timeout", 1, 1000, 1200, 200 * ms, true},
		{"somebody else's timeout, and a fast retransmission", 1, 1000, 1200, 20 * ms, false},
		{"no timeout", 0, 1000, 1200, 200 * ms, false},
		{"a probe of the tail", 1, 99800, 1200, 200 * ms, false},
		{"little is on its way", 1, 90000, 1200, 200 * ms, false},
		{"something new", 1, 101000, 1200, 200 * ms, false},
	} {
		var timeouts uint64
		g := &goBack{timeouts: func() uint64 { return timeouts }}
		const first = 1 << 31 // sequence numbers wrap
		g.see(7, first+1000, 50000, ms)
		g.see(7, first+51000, 50000, ms)
		timeouts = c.timeouts
		if got, heard := g.see(7, first+c.seq, c.n, ms+c.after); got != c.want || heard {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if c.want {
			sees := func(seq uint32, n int, after int64, back, heard bool) {
				t.Helper()
				if b, h := g.see(7, first+seq, n, after+c.after); b != back || h != heard {
					t.Errorf("%s: then %d: back %v, heard %v; want %v, %v", c.name, seq, b, h, back, heard)
				}
			}
			timeouts++ // the same once more
			sees(c.seq, c.n, 400*ms, true, false)
			sees(c.seq+uint32(c.n), c.n, 401*ms, true, true) // it was acknowledged
			sees(c.seq+2*uint32(c.n), c.n, 402*ms, true, false)
			sees(101000, 1, 403*ms, false, false) // new: it is over
			sees(1000, 1200, 404*ms, false, false)
		}
	}
}

// TestStamp: only the time itself gets older, wherever it is among the options.
func TestStamp(t *testing.T) {
	for _, c := range []struct{ opts, want []byte }{
		{[]byte{1, 1, 8, 10, 0, 0, 1, 0, 9, 9, 9, 9}, []byte{1, 1, 8, 10, 0, 0, 0, 252, 9, 9, 9, 9}},
		{[]byte{5, 10, 1, 2, 3, 4, 5, 6, 7, 8, 8, 10, 0, 0, 0, 0, 9, 9, 9, 9}, []byte{5, 10, 1, 2, 3, 4, 5, 6, 7, 8, 8, 10, 255, 255, 255, 252, 9, 9, 9, 9}},
		{[]byte{0, 1, 8, 10, 0, 0, 1, 0, 9, 9, 9, 9}, []byte{0, 1, 8, 10, 0, 0, 1, 0, 9, 9, 9, 9}}, // after the end
		{[]byte{1, 1, 1, 8}, []byte{1, 1, 1, 8}},       // cut off
		{[]byte{2, 0, 8, 10}, []byte{2, 0, 8, 10}},     // no length
		{[]byte{3, 200, 8, 10}, []byte{3, 200, 8, 10}}, // too long
		{[]byte{8, 4, 0, 9}, []byte{8, 4, 0, 9}},       // not its length
		{nil, nil},
	} {
		h := make(header.TCP, header.TCPMinimumSize+len(c.opts))
		copy(h[header.TCPMinimumSize:], c.opts)
		h.SetDataOffset(uint8(len(h)))
		want := append(append([]byte(nil), h[:header.TCPMinimumSize]...), c.want...)
		new(goBack).stamp(h)
		if string(h) != string(want) {
			t.Errorf("options %x: %x, want %x", c.opts, h[header.TCPMinimumSize:], c.want)
		}
	}
}

// slowly carries packets from one Stack to another, each after a while and all in order, until from is closed.
func slowly(from, to *Stack, delay time.Duration, see func([]byte) bool) {
	type batch struct {
		due  time.Time
		pkts [][]byte
	}
	queue := make(chan batch, 4096)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(queue)
	wg.Go(func() {
		for b := range queue {
			<-time.After(time.Until(b.due))
			to.Write(b.pkts, 0)
		}
	})
	bufs, sizes := make([][]byte, batchSize), make([]int, batchSize)
	for i := range bufs {
		bufs[i] = make([]byte, 65535)
	}
	for {
		n, err := from.Read(bufs, sizes, 0)
		if err != nil {
			return
		}
		b := batch{due: time.Now().Add(delay)}
		for i := range n {
			if p := bufs[i][:sizes[i]]; see(p) {
				b.pkts = append(b.pkts, append([]byte(nil), p...))
			}
		}
		if len(b.pkts) > 0 {
			queue <- b
		}
	}
}

// BenchmarkOutage is what a stream carries in the 3 s after an outage of 1.4 s, and before it.
func BenchmarkOutage(b *testing.B) {
	for _, rtt := range []time.Duration{time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond} {
		b.Run("rtt="+rtt.String(), func(b *testing.B) {
			var cut atomic.Bool
			see := func([]byte) bool { return !cut.Load() }
			x, y := newStack(b, Options{}, a4), newStack(b, Options{}, b4)
			var wg sync.WaitGroup
			wg.Go(func() { slowly(x, y, rtt/2, see) })
			wg.Go(func() { slowly(y, x, rtt/2, see) })
			b.Cleanup(func() { x.Close(); y.Close(); wg.Wait() })
			n := streamTo(b, x, y, b4)
			in := func(d time.Duration) float64 {
				before := n.Load()
				<-time.After(d)
				return float64(n.Load()-before) / 1e6
			}
			var before, after float64
			for range b.N {
				in(time.Second)
				before += in(3 * time.Second)
				cut.Store(true)
				in(1400 * time.Millisecond)
				cut.Store(false)
				after += in(3 * time.Second)
			}
			b.ReportMetric(before/float64(b.N), "MB-before")
			b.ReportMetric(after/float64(b.N), "MB-after")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkLoss is what a stream carries in 3 s where one packet in so many is lost, after 2 s.
func BenchmarkLoss(b *testing.B) {
	for _, c := range []struct {
		rtt  time.Duration
		each uint32
	}{{time.Millisecond, 100}, {40 * time.Millisecond, 100}, {40 * time.Millisecond, 1000}, {40 * time.Millisecond, 10000}, {80 * time.Millisecond, 1000}} {
		b.Run("rtt="+c.rtt.String()+"/one-in="+strconv.Itoa(int(c.each)), func(b *testing.B) {
			lossy := func(p []byte) bool { return len(p) < 500 || rand.Uint32N(c.each) != 0 }
			x, y := newStack(b, Options{}, a4), newStack(b, Options{}, b4)
			var wg sync.WaitGroup
			wg.Go(func() { slowly(x, y, c.rtt/2, lossy) })
			wg.Go(func() { slowly(y, x, c.rtt/2, lossy) })
			b.Cleanup(func() { x.Close(); y.Close(); wg.Wait() })
			n := streamTo(b, x, y, b4)
			<-time.After(2 * time.Second)
			var sum float64
			for range b.N {
				before := n.Load()
				<-time.After(3 * time.Second)
				sum += float64(n.Load()-before) / 1e6
			}
			b.ReportMetric(sum/float64(b.N), "MB")
			b.ReportMetric(0, "ns/op")
		})
	}
}
