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
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
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
		before := timeouts(a)
		wait(t, "two timeouts", func() bool { return timeouts(a) >= before+2 })
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

// TestOutageAmidLoss: a stream that was repairing losses when an outage came goes on afterwards. What RACK had taken for lost
// before, and TCP had not come to send again, made it enter fast recovery after each timeout: two segments, and the next timeout.
func TestOutageAmidLoss(t *testing.T) {
	for _, every := range []int64{2, 3, 4, 5, 8, 16, 32, 64} {
		var phase, n atomic.Int64
		see := func(p []byte) bool {
			switch phase.Load() {
			case 1: // a flight, of which some are lost
				if len(p) > 500 && n.Add(1) > 400 {
					phase.CompareAndSwap(1, 2)
					return false
				}
				return len(p) <= 500 || n.Load()%every != 0
			case 2: // and then all
				return false
			}
			return true
		}
		a, b := pair(t, Options{}, Options{}, see)
		got := streamTo(t, a, b, b4)
		wait(t, "4 megabytes", func() bool { return got.Load() > 4<<20 })
		phase.Store(1)
		before := timeouts(a)
		wait(t, "a timeout", func() bool { return timeouts(a) > before })
		phase.Store(0)
		before, k := timeouts(a), got.Load()
		// It takes one timeout to begin again. On a busy machine some may follow for want of a processor; who crawls has 1,700.
		const most = 20
		wait(t, "4 megabytes more", func() bool { return got.Load() > k+4<<20 || timeouts(a) > before+most })
		if m := timeouts(a) - before; m > most {
			t.Errorf("one of %d lost: %d bytes and %d timeouts after the outage", every, got.Load()-k, m)
		} else {
			t.Logf("one of %d lost: %d timeouts after the outage", every, m)
		}
		for _, e := range a.ip.RegisteredEndpoints() {
			if ep, ok := e.(*tcp.Endpoint); ok && tcp.EndpointState(ep.State()) == tcp.StateEstablished {
				wait(t, "SACK to be back", func() bool { ep.LockUser(); defer ep.UnlockUser(); return ep.SACKPermitted })
			}
		}
		a.Close()
		b.Close()
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
	before := timeouts(a)
	for n := 0; timeouts(a) == before; n++ {
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

// TestOutageOfOneWhoIsWrittenTo: one that has lost all it had on its way sends it again though the other keeps writing, more
// often than in two round trips.
func TestOutageOfOneWhoIsWrittenTo(t *testing.T) {
	var cut atomic.Bool
	x, y := newStack(t, Options{}, a4), newStack(t, Options{}, b4)
	var wg sync.WaitGroup
	wg.Go(func() { slowly(x, y, 40*time.Millisecond, func([]byte) bool { return true }) })
	var lost atomic.Int64 // when the last was
	wg.Go(func() {
		slowly(y, x, 40*time.Millisecond, func(p []byte) bool {
			if cut.Load() && len(p) > 500 {
				lost.Store(time.Now().UnixNano())
			}
			return !cut.Load()
		})
	})
	l, err := x.ListenTCP(port(a4, 80))
	if err != nil {
		t.Fatal(err)
	}
	c, err := y.DialContext(timeout(t), "tcp", port(a4, 80))
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var got atomic.Int64
	wg.Go(func() {
		for b := make([]byte, 64<<10); ; {
			n, err := d.Read(b)
			if got.Add(int64(n)); err != nil {
				return
			}
		}
	})
	wg.Go(func() { io.Copy(io.Discard, c) })
	wg.Go(func() {
		for b := make([]byte, 64<<10); ; {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if _, err := d.Write([]byte{1}); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() { c.Close(); d.Close(); x.Close(); y.Close(); wg.Wait() })
	wait(t, "a megabyte", func() bool { return got.Load() > 1<<20 })
	cut.Store(true)
	wait(t, "a whole window to be lost", func() bool {
		at := lost.Load()
		return at != 0 && time.Since(time.Unix(0, at)) > 60*time.Millisecond
	})
	cut.Store(false)
	k := got.Load()
	wait(t, "a megabyte more", func() bool { return got.Load() > k+1<<20 })
}

// timeouts is how often a retransmission timer of TCP has run out.
func timeouts(s *Stack) uint64 { return s.ip.Stats().TCP.Timeouts.Value() }

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

// TestGoBack is what makes a connection one that goes back, and when it no longer is.
func TestGoBack(t *testing.T) {
	for _, c := range []struct {
		name     string
		timeouts uint64 // since the segments before
		seq      uint32 // those before: 1000 to 101000
		n        int
		want     bool
	}{
		{"a timeout", 1, 1000, 1200, true},
		{"a fast retransmission", 0, 1000, 1200, false},
		{"little is on its way", 1, 98000, 1200, false},
		{"something new", 1, 101000, 1200, false},
		{"an acknowledgment", 1, 101000, 0, false},
	} {
		var timeouts uint64
		g := &goBack{timeouts: func() uint64 { return timeouts }}
		const first = 1<<32 - 50000 // sequence numbers wrap
		now := time.Unix(0, 0)
		sees := func(seq uint32, n int, after time.Duration, back, heard bool) {
			t.Helper()
			now = now.Add(after)
			g.see(first+seq, n, now)
			if h := g.anew.Swap(false); g.back != back || h != heard {
				t.Errorf("%s: then %d bytes at %d: back %v, heard %v; want %v, %v", c.name, n, seq, g.back, h, back, heard)
			}
		}
		sees(1000, 50000, 0, false, false)
		sees(51000, 50000, 0, false, false)
		timeouts = c.timeouts
		sees(c.seq, c.n, 0, c.want, false)
		if !c.want {
			continue
		}
		timeouts++ // the same once more
		sees(c.seq, c.n, maxRTO, true, false)
		sees(c.seq+uint32(c.n), c.n, 0, true, true) // it was acknowledged
		sees(c.seq+2*uint32(c.n), c.n, 0, true, false)
		sees(101000, 0, maxRTO, true, false) // an acknowledgment of ours
		sees(101000, 1, 0, false, false)     // new: it is over
		sees(1000, 1200, 0, false, false)
		timeouts++
		sees(1000, 1200, 0, true, false)
		sees(2200, 1200, 0, true, true)
		if g.bare {
			t.Error("no SACK after the first timeout")
		}
		timeouts++
		sees(2200, 1200, maxRTO, true, false)
		if !g.bare {
			t.Error("two segments from one timeout to the next, and still SACK")
		}
		sees(101001, 0, maxRTO, true, false)
		sees(101001, 0, maxRTO, false, false) // nothing went for so long: all has arrived
		if g.bare {
			t.Error("no SACK when all has arrived")
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
		stamp(h)
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
