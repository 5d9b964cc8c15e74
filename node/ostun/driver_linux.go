package ostun

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/hedge-mesh/hedge/node/fair"
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

	reading sync.Mutex // all of the following
	waiting *fair.Queue[held]
	long    uint32     // the flow of the last long packet
	others  time.Time  // when a short one of another flow came behind others
	in      *bigBuffer // of the next read; nil until there is one
	split   splitter
	cut     held // what split cuts
	refusal refusal
	batch   [][]byte // Read's, and so on
	sizes   []int
	offset  int
	got     int
	readErr error
	fill    func(fd uintptr) bool // take, which would else be made anew for each call

	writing sync.Mutex // all of the following
	join    joiner
	iov     []unix.Iovec
	err     error
	writev  func(fd uintptr) bool // writes iov, and reports whether it could be
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
	d := &driver{name: name, fits: fits, waiting: fair.New(backlogPackets, backlogBytes, held.release)}
	d.mtu.Store(MinMTU)
	d.tell(nil)
	switch {
	case unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloadTCP|offloadECN|offloadUSO) == nil:
		d.join.uso = true
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
	d.fill = d.take
	d.join.out = make([][]byte, 0, conn.IdealBatchSize)
	d.iov = make([]unix.Iovec, 0, conn.IdealBatchSize)
	d.writev = func(fd uintptr) bool {
		for {
			_, _, e := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&d.iov[0])), uintptr(len(d.iov)))
			switch e {
			case 0:
				d.err = nil
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				return false
			default:
				d.err = e
			}
			return true
		}
	}
	return d, nil
}

// Read implements tun.Device. It waits for one packet, and takes with it what else the kernel has queued, flow by flow:
// a batch costs the device a few handovers between goroutines and the socket one call, however many packets it is.
func (d *driver) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.reading.Lock()
	defer d.reading.Unlock()
	d.batch, d.sizes, d.offset = bufs, sizes, offset
	d.got, d.readErr = 0, nil
	err := d.raw.Read(d.fill)
	d.batch, d.sizes = nil, nil
	switch {
	case d.got > 0:
		return d.got, nil // what was wrong then still is at the next call
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, err
	case err != nil:
		return 0, os.ErrClosed // a RawConn has no other error, and says this one in its own way
	}
	return 0, gone(d.readErr)
}

// take is one attempt to fill the batch, and reports whether there is anything to return.
func (d *driver) take(fd uintptr) bool {
	d.drain(fd)
	for d.got < len(d.batch) {
		if d.split.more() {
			d.sizes[d.got] = d.split.next(d.batch[d.got][d.offset:])
			d.got++
			continue
		}
		d.cut.release()
		var ok bool
		if d.cut, ok = d.waiting.Get(); !ok {
			return d.got > 0 || d.readErr != nil
		}
		if d.split.start(d.cut.bytes, d.fits) {
			d.limit(fd)
		}
	}
	return true // the rest is for the next call
}

// Write implements tun.Device. It writes to the packets, and to the 10 bytes before each.
func (d *driver) Write(bufs [][]byte, offset int) (int, error) {
	if offset < vnetLen {
		return 0, errors.New("ostun: no room for a virtio_net_hdr")
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	d.join.mtu = MinMTU // also of a wider interface: the host may forward what it gets
	var first error
	written := 0
	for len(bufs) > 0 {
		if len(bufs[0]) <= offset {
			bufs = bufs[1:]
			continue
		}
		n, parts := d.join.next(bufs, offset)
		if err := d.put(parts); err == nil {
			written += n
		} else if first == nil {
			first = gone(err)
		}
		bufs = bufs[n:]
	}
	return written, first
}

// put is one writev.
func (d *driver) put(parts [][]byte) error {
	for _, b := range parts {
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(len(b))
		d.iov = append(d.iov, v)
	}
	err := d.raw.Write(d.writev)
	clear(d.iov) // the buffers are not ours to keep
	d.iov = d.iov[:0]
	if err != nil {
		return err
	}
	return d.err
}

// gone is [os.ErrClosed] for an interface that somebody has deleted.
func gone(err error) error {
	if errors.Is(err, unix.EBADFD) {
		return os.ErrClosed
	}
	return err
}

func (d *driver) setMTU(mtu int)           { d.mtu.Store(int32(mtu)) }
func (d *driver) File() *os.File           { return d.file }
func (d *driver) MTU() (int, error)        { return int(d.mtu.Load()), nil }
func (d *driver) Name() (string, error)    { return d.name, nil }
func (d *driver) Events() <-chan tun.Event { return nil }
func (d *driver) Close() error             { return d.file.Close() }
func (d *driver) BatchSize() int           { return conn.IdealBatchSize }
