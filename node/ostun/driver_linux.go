package ostun

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/hedge-mesh/hedge/node/arena"
)

// driver moves packets between the kernel's interface and WireGuard, 64 KiB at a time: what it reads is cut to what
// paths carry, what it writes is joined without a copy. It is in the place of wireguard-go's, which cuts to the MTU of
// the interface, and copies to join.
type driver struct {
	file *os.File
	raw  syscall.RawConn
	name string
	fits func(netip.Addr) (int, bool)
	mtu  atomic.Int32
	told atomic.Pointer[limits]

	backlog
	reading sync.Mutex            // of Read
	lane    [2]lane               // for each reader
	fill    func(fd uintptr) bool // fillRest, which would else be made anew for each call
	step    func(fd uintptr)      // drainSparse

	writers [2]writer // so that a few packets need not wait for a batch
}

// lane is a reader's packets, on their way to its batch.
type lane struct {
	split   splitter
	cut     held // what split cuts
	refusal refusal
	lent    arena.Arena // what has no buffer lies in
	batch   [][]byte    // Read's, and so on
	sizes   []int
	offset  int
	got     int
	look    func(fd uintptr) // take, which would else be made anew for each call
}

// writer is what one Write works with.
type writer struct {
	sync.Mutex
	join joiner
	iov  []unix.Iovec
	done bool
	err  error
	once func(fd uintptr)      // writes iov, if it can be without waiting
	wait func(fd uintptr) bool // writes iov, and reports whether it could be
}

// What the kernel may leave to us: the first is older than IFF_VNET_HDR, the others are tried.
const (
	offloadTCP = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	offloadECN = unix.TUN_F_TSO_ECN
	offloadUSO = unix.TUN_F_USO4 | unix.TUN_F_USO6 // Linux 6.2
)

// newDriver drives the interface of a descriptor with IFF_VNET_HDR. The descriptor is the caller's as long as there is
// an error.
func newDriver(fd int, name string, fits func(netip.Addr) (int, bool)) (*driver, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	d := &driver{name: name, fits: fits}
	d.init()
	d.mtu.Store(MinMTU)
	d.tell(nil)
	switch {
	case unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloadTCP|offloadECN|offloadUSO) == nil:
		d.writers[0].join.uso, d.writers[1].join.uso = true, true
	case unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloadTCP|offloadECN) == nil:
	default:
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloadTCP); err != nil {
			return nil, fmt.Errorf("TUNSETOFFLOAD: %w", err)
		}
	}
	d.file = os.NewFile(uintptr(fd), "/dev/net/tun")
	var err error
	if d.raw, err = d.file.SyscallConn(); err != nil {
		return nil, err
	}
	d.fill, d.step = d.fillRest, d.drainSparse
	for i := range d.lane {
		d.lane[i].look = func(fd uintptr) { d.take(fd, reader(i)) }
	}
	for i := range d.writers {
		d.writers[i].init()
	}
	return d, nil
}

// Read implements tun.Device. It waits for one packet, and takes with it what else the kernel has queued, flow by flow:
// a batch costs the device a few handovers between goroutines and the socket one call, however many packets it is.
func (d *driver) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.reading.Lock()
	defer d.reading.Unlock()
	l := &d.lane[rest]
	l.begin(bufs, sizes, offset)
	defer l.end()
	for {
		mine, err := d.await(rest, l.split.more())
		switch {
		case err != nil:
			return 0, err
		case mine:
			err = d.raw.Read(d.fill)
		default:
			err = d.raw.Control(l.look)
		}
		switch {
		case l.got > 0:
			return l.got, nil // what was wrong then still is at the next call
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, err
		case err != nil:
			return 0, os.ErrClosed // a RawConn has no other error, and says this one in its own way
		case mine && d.is(rest) && d.readErr != nil:
			return 0, gone(d.readErr)
		}
	}
}

// fillRest is one attempt to fill the batch, and reports whether not to wait for the kernel now: there is something to
// return, or it is the other's turn, or all of what was taken of the kernel is lost, and there may be more.
func (d *driver) fillRest(fd uintptr) bool {
	_, empty := d.drain(fd, rest)
	d.take(fd, rest)
	return d.lane[rest].got > 0 || !empty
}

func (d *driver) drainSparse(fd uintptr) {
	if some, _ := d.drain(fd, sparse); some {
		d.leave()
	}
}

func (l *lane) begin(bufs [][]byte, sizes []int, offset int) {
	l.batch, l.sizes, l.offset, l.got = bufs, sizes, offset, 0
	l.lent.Reset()
}

func (l *lane) end() { l.batch, l.sizes = nil, nil }

// take fills a reader's batch. What does not fit is for the next call.
func (d *driver) take(fd uintptr, me reader) {
	for l := &d.lane[me]; l.got < len(l.batch); {
		if l.split.more() {
			b := l.batch[l.got]
			if b == nil {
				if b = l.lent.Lend(l.offset, l.split.length()); b == nil {
					return
				}
				l.batch[l.got] = b
			}
			l.sizes[l.got] = l.split.next(b[l.offset:])
			l.got++
			continue
		}
		l.cut.release()
		var ok bool
		if l.cut, ok = d.get(me); !ok {
			return
		}
		if l.split.start(l.cut.bytes, d.fits) {
			d.limit(fd, l)
		}
	}
}

// Write implements tun.Device. It writes to the packets, and to the 10 bytes before each.
func (d *driver) Write(bufs [][]byte, offset int) (int, error) {
	if offset < vnetLen {
		return 0, errors.New("ostun: no room for a virtio_net_hdr")
	}
	w := &d.writers[0]
	if !w.TryLock() {
		w = &d.writers[1]
		w.Lock()
	}
	defer w.Unlock()
	w.join.mtu = MinMTU // also of a wider interface: the host may forward what it gets
	var first error
	written := 0
	for len(bufs) > 0 {
		if len(bufs[0]) <= offset {
			bufs = bufs[1:]
			continue
		}
		n, parts := w.join.next(bufs, offset)
		if err := w.put(d.raw, parts); err == nil {
			written += n
		} else if first == nil {
			first = gone(err)
		}
		bufs = bufs[n:]
	}
	return written, first
}

func (w *writer) init() {
	w.join.out = make([][]byte, 0, conn.IdealBatchSize)
	w.iov = make([]unix.Iovec, 0, conn.IdealBatchSize)
	w.wait = w.writev
	w.once = func(fd uintptr) { w.done = w.writev(fd) }
}

// put is one writev. Of a RawConn only one Write goes on at a time, but it is needed only to wait.
func (w *writer) put(raw syscall.RawConn, parts [][]byte) error {
	for _, b := range parts {
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(len(b))
		w.iov = append(w.iov, v)
	}
	err := raw.Control(w.once)
	if err == nil && !w.done {
		err = raw.Write(w.wait)
	}
	clear(w.iov) // the buffers are not ours to keep
	w.iov = w.iov[:0]
	if err != nil {
		return err
	}
	return w.err
}

func (w *writer) writev(fd uintptr) bool {
	for {
		_, _, e := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&w.iov[0])), uintptr(len(w.iov)))
		switch e {
		case 0:
			w.err = nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default:
			w.err = e
		}
		return true
	}
}

// gone is [os.ErrClosed] for an interface that somebody has deleted.
func gone(err error) error {
	if errors.Is(err, unix.EBADFD) {
		return os.ErrClosed
	}
	return err
}

// lends says that a buffer that is nil is replaced by memory of the lane's, good until its next call.
func (d *driver) lends() bool              { return true }
func (d *driver) setMTU(mtu int)           { d.mtu.Store(int32(mtu)) }
func (d *driver) File() *os.File           { return d.file }
func (d *driver) MTU() (int, error)        { return int(d.mtu.Load()), nil }
func (d *driver) Name() (string, error)    { return d.name, nil }
func (d *driver) Events() <-chan tun.Event { return nil }
func (d *driver) BatchSize() int           { return conn.IdealBatchSize }
