package node

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"pgregory.net/rapid"
)

// Who goes in waits for who is inside, and for nobody who does not come out.
func TestWindow(t *testing.T) {
	took := func(d *door) time.Duration {
		start := time.Now()
		d.wait()
		return time.Since(start)
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(new(company))
		d := &door{window: w}
		w.enter(windowSize - 1)
		if n := took(d); n != 0 {
			t.Errorf("waited %v though there was room", n)
		}
		w.enter(100)
		time.AfterFunc(5*time.Millisecond, func() { w.leave(50) })
		time.AfterFunc(15*time.Millisecond, func() { w.leave(50) })
		if n := took(d); n != 15*time.Millisecond {
			t.Errorf("waited %v, want until there was room", n)
		}
		w.enter(10 * windowSize) // all lost
		if n := took(d); n != windowPatience {
			t.Errorf("waited %v for what is lost, want %v", n, windowPatience)
		}
		w.enter(10 * windowSize)
		if n := took(d); n != 0 {
			t.Errorf("waited %v again", n)
		}
		w.enter(windowLoose)
		if n := took(d); n != windowPatience {
			t.Errorf("waited %v for what is beyond the loose bound, want %v", n, windowPatience)
		}
		w.enter(10 * windowSize)
		<-time.After(windowRest)
		if n := took(d); n != windowPatience {
			t.Errorf("waited %v after a rest, want %v", n, windowPatience)
		}
		w.leave(1000) // what had been written off
		if n := w.inside.Load(); n != 0 {
			t.Errorf("%d inside", n)
		}
	})
}

// However packets come and go, and however many wait, everybody gets in.
func TestWindowNeverStops(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		loss := rapid.IntRange(0, 100).Draw(r, "percent lost")
		waiters := rapid.IntRange(1, 4).Draw(r, "who wait")
		batch := rapid.IntRange(1, 128).Draw(r, "packets in a batch")
		synctest.Test(t, func(t *testing.T) {
			w := newWindow(new(company))
			start := time.Now()
			var wg sync.WaitGroup
			for i := range waiters {
				wg.Go(func() {
					d := &door{window: w}
					for k := range 50 {
						d.wait()
						if most := int64(windowSize + waiters*128); w.inside.Load() > most && time.Now().UnixNano() > w.rest.Load() {
							t.Errorf("%d inside, over %d", w.inside.Load(), most)
						}
						w.enter(batch)
						if (i*50+k)*37%100 >= loss {
							time.AfterFunc(time.Millisecond, func() { w.leave(batch) })
						}
					}
				})
			}
			wg.Wait()
			if d := time.Since(start); d > time.Minute {
				t.Errorf("took %v", d)
			}
		})
	})
}

// Only packets that come out of the tunnel again are counted.
func TestWindowed(t *testing.T) {
	data, keepalive, handshake := make([]byte, 100), make([]byte, 32), make([]byte, 148)
	data[0], keepalive[0], handshake[0] = 4, 4, 1
	f := &feed{pkts: [][]byte{data, keepalive, handshake, data}}
	w := &windowed{Bind: f, out: newWindow(new(company)), in: newWindow(new(company)), spare: new(spare), screen: func(_ []byte, ep conn.Endpoint) (conn.Endpoint, bool) { return ep, true }}
	fns, _, err := w.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	bufs, sizes := readBufs(16, 2048)
	if n, err := fns[0](bufs, sizes, make([]conn.Endpoint, 16)); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	if n := w.in.inside.Load(); n != 2 {
		t.Errorf("%d inside, want 2", n)
	}
	w.out.enter(3)
	for _, b := range [][][]byte{{data, data}, {handshake}, {keepalive}} {
		if err := w.Send(b, nil); err != nil {
			t.Error(err)
		}
	}
	if n := w.out.inside.Load(); n != 1 {
		t.Errorf("%d inside, want 1", n)
	}
	one := [][]byte{data}
	if n := testing.AllocsPerRun(100, func() { w.out.enter(1); _ = w.Send(one, nil) }); n > 0 {
		t.Errorf("%v allocations to send a packet", n)
	}
}

// feed is a conn.Bind that receives what it is given, all at once, and sends to nobody.
type feed struct {
	conn.Bind
	pkts [][]byte
}

func (f *feed) Send([][]byte, conn.Endpoint) error { return nil }

func (f *feed) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		for i, p := range f.pkts {
			sizes[i] = copy(bufs[i], p)
		}
		return len(f.pkts), nil
	}}, port, nil
}
