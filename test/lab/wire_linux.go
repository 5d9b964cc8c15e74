package lab

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Line is what a wire does to packets, the same both ways.
type Line struct {
	Delay  time.Duration // one way
	Up     time.Duration // so much more from the first namespace, a site's or a server's, to the second
	Jitter time.Duration // up to so much more; order is kept
	Loss   float64       // the share of packets lost, 0 to 1
	Late   float64       // the share of packets that those of the next Delay/2 overtake
	Dup    float64       // the share of packets that arrive twice
	MTU    int           // larger packets vanish without a word: a black hole; 0 for none
	UDP    int           // the same for UDP only
	Rate   int           // bits a second; 0 for no limit
	Queue  time.Duration // before that; 0 for 50 ms
	Down   bool          // nothing passes
}

// Wire joins two namespaces by TUN devices whose other ends are here, in this process.
//
//	ns a ─ tun ─ read ─ loss, MTU, rate ─ queue until due ─ write ─ tun ─ ns b
//
// A thread does that, which goes before all programs where the system lets it: a wire needs no processor. The runtime's own
// timers and readers would not do: they wait in whole milliseconds (epoll_wait(2)), which a relayed packet meets eight times on
// its way there and back, and behind whatever else runs.
type Wire struct {
	ends [2]int // file descriptors
	stop int    // an event that ends the thread
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

// way is one of a wire's two ways.
type way struct {
	from, to   int
	up         bool      // from the first namespace
	last, free time.Time // due of the last packet; when the line can take the next, by its rate
	queue      []flying  // the next first
}

// newWire makes a device in each namespace.
func newWire(a Space, nameA string, b Space, nameB string, l Line) (w *Wire, err error) {
	w = &Wire{ends: [2]int{-1, -1}, far: nameB}
	w.line.Store(&l)
	if w.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	for i, end := range []struct {
		Space
		name string
	}{{a, nameA}, {b, nameB}} {
		if w.ends[i], err = end.tun(end.name); err != nil {
			return nil, errors.Join(err, w.close())
		}
	}
	// A thread that comes back from a system call finds a processor of the runtime's to go on with.
	processors.Do(func() { runtime.GOMAXPROCS(max(16, runtime.GOMAXPROCS(0))) })
	w.wg.Go(w.run)
	return w, nil
}

var processors sync.Once

// tun makes a TUN device in the namespace, up.
func (s Space) tun(name string) (fd int, err error) {
	fd = -1
	err = s.Do(func() error {
		f, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("/dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(f, unix.TUNSETIFF, req)
		}
		if err != nil {
			unix.Close(f)
			return fmt.Errorf("make device %s in %s: %w", name, s.ns, err)
		}
		fd = f
		return nil
	})
	if err != nil {
		return fd, err
	}
	return fd, s.IP("link set "+name+" txqueuelen 4096 up", "link set lo up")
}

// Line is what the wire does now.
func (w *Wire) Line() Line { return *w.line.Load() }

// Set changes what the wire does to packets from now on.
func (w *Wire) Set(change func(*Line)) {
	l := w.Line()
	change(&l)
	w.line.Store(&l)
}

// run is the wire's thread.
func (w *Wire) run() {
	runtime.LockOSThread() // never unlocked: the thread, with its priority, ends with the goroutine
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}, 0)
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // without the right to that priority
	ways := [2]way{{from: w.ends[0], to: w.ends[1], up: true}, {from: w.ends[1], to: w.ends[0]}}
	fds := []unix.PollFd{{Fd: int32(w.ends[0]), Events: unix.POLLIN}, {Fd: int32(w.ends[1]), Events: unix.POLLIN}, {Fd: int32(w.stop), Events: unix.POLLIN}}
	buf := make([]byte, 1<<16)
	for {
		now := time.Now()
		wait := min(ways[0].flush(now), ways[1].flush(now))
		ts := unix.NsecToTimespec(int64(wait))
		if _, err := unix.Ppoll(fds, &ts, nil); err != nil && err != unix.EINTR {
			return
		}
		if fds[2].Revents != 0 {
			return
		}
		for i := range ways {
			switch {
			case fds[i].Revents&unix.POLLERR != 0: // the device is gone
				fds[i].Fd = -1
			case fds[i].Revents != 0:
				ways[i].read(w.line.Load(), buf)
			}
		}
	}
}

// read takes what is there, or the first of it.
func (w *way) read(l *Line, buf []byte) {
	for range 64 {
		n, err := unix.Read(w.from, buf)
		if err != nil {
			return // nothing more, for now
		}
		now := time.Now()
		if l.Down || l.MTU > 0 && n > l.MTU || l.UDP > 0 && n > l.UDP && isUDP(buf) || l.Loss > 0 && rand.Float64() < l.Loss {
			continue
		}
		due := now
		if l.Rate > 0 {
			if w.free.Sub(now) > cmp.Or(l.Queue, rateQueue) {
				continue
			}
			if w.free.Before(now) {
				w.free = now
			}
			w.free = w.free.Add(time.Duration(n) * 8 * time.Second / time.Duration(l.Rate))
			due = w.free
		}
		due = due.Add(l.Delay)
		if w.up {
			due = due.Add(l.Up)
		}
		if l.Jitter > 0 {
			due = due.Add(rand.N(l.Jitter))
		}
		if due.Before(w.last) {
			due = w.last
		}
		w.last = due
		p := flying{due, append([]byte(nil), buf[:n]...)}
		if l.Late > 0 && rand.Float64() < l.Late {
			p.due = due.Add(l.Delay / 2)
			w.add(p)
			continue
		}
		for range 1 + copies(l.Dup) {
			w.add(p)
		}
	}
}

// isUDP reports whether a packet says that it is, of IPv4 or of IPv6 without extensions.
func isUDP(b []byte) bool {
	return b[0]>>4 == 4 && b[9] == unix.IPPROTO_UDP || b[0]>>4 == 6 && b[6] == unix.IPPROTO_UDP
}

// add puts a packet where it belongs: mostly at the end.
func (w *way) add(p flying) {
	if len(w.queue) >= wireQueue {
		return
	}
	i := len(w.queue)
	for i > 0 && w.queue[i-1].due.After(p.due) {
		i--
	}
	w.queue = slices.Insert(w.queue, i, p)
}

// flush writes what is due, and says how long to wait for the next.
func (w *way) flush(now time.Time) time.Duration {
	n := 0
	for ; n < len(w.queue); n++ {
		if wait := w.queue[n].due.Sub(now); wait > 0 {
			w.queue = slices.Delete(w.queue, 0, n)
			return wait
		}
		unix.Write(w.to, w.queue[n].b) // a device that is down refuses: the packet is lost
	}
	clear(w.queue)
	w.queue = w.queue[:0]
	return time.Hour
}

// copies is one more with that probability.
func copies(share float64) int {
	if share > 0 && rand.Float64() < share {
		return 1
	}
	return 0
}

func (w *Wire) close() error {
	_, err := unix.Write(w.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	w.wg.Wait()
	for _, fd := range append(w.ends[:], w.stop) {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	return err
}
