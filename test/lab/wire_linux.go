package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Line is what a wire does to packets, the same both ways.
type Line struct {
	Delay  time.Duration // one way
	Jitter time.Duration // up to so much more; order is kept
	Loss   float64       // the share of packets lost, 0 to 1
	Late   float64       // the share of packets that those of the next Delay/2 overtake
	Dup    float64       // the share of packets that arrive twice
	MTU    int           // larger packets vanish without a word: a black hole; 0 for none
	Rate   int           // bits a second, behind a queue of 50 ms; 0 for no limit
	Down   bool          // nothing passes
}

// Wire joins two namespaces by TUN devices whose other ends are here, in this process.
//
//	ns a ─ tun ─ read ─ loss, MTU, rate ─ queue until due ─ write ─ tun ─ ns b
type Wire struct {
	ends [2]*os.File
	line atomic.Pointer[Line]
	far  string // the device of namespace b
	wg   sync.WaitGroup
}

const (
	wireQueue = 8192 // packets in flight, each way
	rateQueue = 50 * time.Millisecond
)

// flying is a packet on its way.
type flying struct {
	due time.Time
	b   []byte
}

// newWire makes a device in each namespace.
func newWire(a Space, nameA string, b Space, nameB string, l Line) (*Wire, error) {
	w := &Wire{far: nameB}
	w.line.Store(&l)
	for i, end := range []struct {
		Space
		name string
	}{{a, nameA}, {b, nameB}} {
		f, err := end.tun(end.name)
		if err != nil {
			return nil, errors.Join(err, w.close())
		}
		w.ends[i] = f
	}
	for i := range w.ends {
		queue := make(chan flying, wireQueue)
		w.wg.Go(func() { w.read(w.ends[i], w.ends[1-i], queue) })
		w.wg.Go(func() { write(w.ends[1-i], queue) })
	}
	return w, nil
}

// tun makes a TUN device in the namespace, up.
func (s Space) tun(name string) (f *os.File, err error) {
	err = s.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("/dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("make device %s in %s: %w", name, s.ns, err)
		}
		f = os.NewFile(uintptr(fd), name) // after TUNSETIFF: before it the runtime cannot poll it
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f, s.IP("link set "+name+" txqueuelen 4096 up", "link set lo up")
}

// Line is what the wire does now.
func (w *Wire) Line() Line { return *w.line.Load() }

// Set changes what the wire does to packets from now on.
func (w *Wire) Set(change func(*Line)) {
	l := w.Line()
	change(&l)
	w.line.Store(&l)
}

func (w *Wire) read(f, to *os.File, out chan<- flying) {
	defer close(out)
	var late sync.WaitGroup
	defer late.Wait()
	var last, free time.Time
	buf := make([]byte, 1<<16)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return // closed
		}
		l, now := w.line.Load(), time.Now()
		if l.Down || l.MTU > 0 && n > l.MTU || l.Loss > 0 && rand.Float64() < l.Loss {
			continue
		}
		due := now
		if l.Rate > 0 {
			if free.Sub(now) > rateQueue {
				continue
			}
			if free.Before(now) {
				free = now
			}
			free = free.Add(time.Duration(n) * 8 * time.Second / time.Duration(l.Rate))
			due = free
		}
		due = due.Add(l.Delay)
		if l.Jitter > 0 {
			due = due.Add(rand.N(l.Jitter))
		}
		if due.Before(last) {
			due = last
		}
		last = due
		p := flying{due, append([]byte(nil), buf[:n]...)}
		if l.Late > 0 && rand.Float64() < l.Late {
			late.Go(func() {
				time.Sleep(time.Until(p.due) + l.Delay/2)
				to.Write(p.b)
			})
			continue
		}
		for range 1 + copies(l.Dup) {
			select {
			case out <- p:
			default: // full
			}
		}
	}
}

// copies is one more with that probability.
func copies(share float64) int {
	if share > 0 && rand.Float64() < share {
		return 1
	}
	return 0
}

func write(f *os.File, in <-chan flying) {
	for p := range in {
		if d := time.Until(p.due); d > 0 {
			time.Sleep(d)
		}
		f.Write(p.b) // a device that is down refuses: the packet is lost
	}
}

func (w *Wire) close() (err error) {
	for _, f := range w.ends {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	w.wg.Wait()
	return err
}
