package node

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// window bounds how many packets are inside the WireGuard device in one direction. Its own queues hold 1,024 batches, in
// which a transfer's packets pile up, each in a buffer of 64 KiB, and make everybody else's wait.
//
//	tunnel.Read ── enter ──▶ device ── leave ──▶ bind.Send          what is over the bound stays in the stack's queue,
//	tunnel.Write ◀── leave ── device ◀── enter ── bind's receivers  or in the socket
//
// The device also drops packets, and does not say so. So nobody waits long: when nothing at all has come out for
// windowPatience, in which whoever else wanted a processor had one, what is inside is written off, and for windowRest
// the bound is loose. A peer whose packets all get lost costs the others little.
type window struct {
	inside atomic.Int64
	left   atomic.Uint64 // times that some came out
	rest   atomic.Int64  // the bound is loose until then
	ready  chan struct{} // capacity 1: some came out while somebody waited
	wanted atomic.Int32  // who wait

	company *company
}

const (
	windowSize     = 256  // packets: two batches, one being sealed and one being sent
	windowLoose    = 4096 // packets, while it is not known how many are inside
	windowPatience = windowTurns * 2500 * time.Microsecond
	windowTurns    = 8 // in as many parts, since on a busy machine the device may get no processor for longer
	windowRest     = time.Second
)

func newWindow(c *company) *window { return &window{ready: make(chan struct{}, 1), company: c} }

// enter notes packets that go in.
func (w *window) enter(n int) {
	if n > 0 {
		w.inside.Add(int64(n))
	}
}

// leave notes packets that came out.
func (w *window) leave(n int) {
	if w.inside.Add(-int64(n)) < 0 {
		w.inside.Store(0) // keepalives, or what was written off
	}
	w.left.Add(1)
	if w.wanted.Load() > 0 {
		w.wake()
	}
}

func (w *window) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// door is where one goroutine waits before a window.
type door struct {
	*window
	last  int // packets that went in by it the last time
	spare *spare
	given int         // of the buffers that it fills, as many may be others than the last time
	timer *time.Timer // of the first wait on
}

// fill is wait for who then fills some of bufs, and says with filled how many.
func (d *door) fill(bufs [][]byte) {
	d.spare.trim(bufs[:min(d.given, len(bufs))])
	d.given = 0
	d.wait()
}

func (d *door) filled(n int) { d.given = n }

// bound is how many packets may be inside.
func (d *door) bound() int64 {
	now := time.Now()
	if rest := d.rest.Load(); rest != 0 && now.UnixNano() < rest {
		return windowLoose
	}
	if d.last > companyFew && d.company.some(now) {
		return companyInside
	}
	return windowSize
}

// enter notes packets that go in.
func (d *door) enter(n int) {
	d.last = n
	d.window.enter(n)
}

// wait returns when there is room, or when it is not worth waiting for.
func (d *door) wait() {
	if d.inside.Load() < companyInside {
		return
	}
	bound := d.bound()
	if d.inside.Load() < bound {
		return
	}
	if d.timer == nil {
		d.timer = time.NewTimer(windowPatience)
	}
	d.wanted.Add(1)
	defer d.wanted.Add(-1)
	left, turns := d.left.Load(), 0
	for d.inside.Load() >= bound {
		d.timer.Reset(windowPatience / windowTurns)
		select {
		case <-d.ready:
		case <-d.timer.C:
			runtime.Gosched() // behind all who can run
			turns++
		}
		if now := d.left.Load(); now != left {
			left, turns = now, 0
		} else if turns == windowTurns {
			turns = 0
			d.inside.Store(0)
			d.rest.Store(time.Now().Add(windowRest).UnixNano())
		}
	}
	d.timer.Stop()
	if d.wanted.Load() > 1 {
		d.wake() // the next one too
	}
}

// windowed is a Bind whose packets pass two windows, and whose handshakes are screened.
type windowed struct {
	conn.Bind
	out, in *window
	spare   *spare
	screen  func(pkt []byte, ep conn.Endpoint) (conn.Endpoint, bool) // false: the device is not to have it
}

// Send implements conn.Bind.
func (b *windowed) Send(bufs [][]byte, ep conn.Endpoint) error {
	err := b.Bind.Send(bufs, ep)
	if len(bufs) > 0 && isData(bufs[0]) {
		b.spare.leave(bufs, time.Now())
		b.out.leave(len(bufs))
		letGo(bufs)
	}
	return err
}

// Open implements conn.Bind.
func (b *windowed) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := b.Bind.Open(port)
	for i, fn := range fns {
		d := &door{window: b.in, spare: b.spare}
		fns[i] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			d.fill(bufs)
			most := b.in.company.batch(len(bufs))
			n, err := fn(bufs[:most], sizes[:most], eps[:most])
			d.filled(n)
			data := 0
			for j := range n {
				pkt := bufs[j][:sizes[j]]
				if isData(pkt) {
					data++
				} else if ep, ok := b.screen(pkt, eps[j]); ok {
					eps[j] = ep
				} else {
					sizes[j] = 0
				}
			}
			d.enter(data)
			return n, err
		}
	}
	return fns, port, err
}

// isData reports whether a WireGuard packet carries one of ours: it is no handshake message and no keepalive.
func isData(pkt []byte) bool {
	return len(pkt) > device.MessageKeepaliveSize && pkt[0] == device.MessageTransportType
}
