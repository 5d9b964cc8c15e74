package ostun

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/hedge-mesh/hedge/node/arena"
)

// Device is an interface of the operating system. Its methods may be called from any goroutine, Read and each of Lanes from one.
type Device struct {
	tun.Device // what moves the packets: our driver on Linux, or wireguard-go's
	sys        system
	name       string
	events     chan tun.Event // nil where the driver's own are to be used

	setting sync.Mutex // held while the interface changes
	config  Config
	mtu     int
	closed  bool

	waiting atomic.Bool // there are packets in inject
	mu      sync.Mutex
	inject  [][]byte
	woken   bool // Read is to return, with or without packets
}

// system is what an interface is set by.
type system interface {
	ipv6() bool           // whether this host has it
	have() (state, error) // what the interface is now
	do(op) error
	close()
}

// Options is what an interface is made with.
type Options struct {
	Name string // empty for [DefaultName]
	// PathMTU, if set, says what size of packet reaches an address now, 0 if that is not known, and whether the address
	// is the receiver's own rather than one behind it. TCP segments are as long as that, and not as the interface's MTU,
	// on systems where they can be. It is called from Read.
	PathMTU func(netip.Addr) (mtu int, end bool)
}

// Open makes the interface, without addresses and routes, and removes what an earlier process left behind. The error
// says what is missing to be permitted to.
func Open(o Options) (*Device, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	d, err := open(o)
	if err != nil {
		return nil, err
	}
	if d.name, err = d.Device.Name(); err != nil {
		_ = d.Device.Close()
		return nil, fmt.Errorf("network interface %s: %w", o.Name, err)
	}
	return d, nil
}

// Set makes the interface what c says. After an error it is in between; Set may be called again.
func (d *Device) Set(c Config) error {
	d.setting.Lock()
	defer d.setting.Unlock()
	if d.closed {
		return os.ErrClosed
	}
	wide, _ := d.Device.(wide)
	if c.MTU == 0 && wide != nil {
		c.MTU = WideMTU
	}
	c.Paths = d.config.Paths
	w, err := want(c, d.sys.ipv6())
	if err != nil {
		return err
	}
	if err := d.become(w); err != nil {
		return err
	}
	if wide != nil {
		wide.setMTU(w.mtu)
	}
	d.config = c
	if d.mtu != w.mtu && d.events != nil {
		select {
		case d.events <- tun.EventMTUUpdate:
		default: // one that says the same is waiting
		}
	}
	d.mtu = w.mtu
	return nil
}

// wide is a driver for which an interface may be wider than what its routes lead to: it answers what does not fit.
type wide interface {
	setMTU(int)
	tell(paths map[netip.Addr]int) // what the kernel is told of single addresses
}

// SetPaths says how long packets to single addresses of peers may be, where that is not 1280 bytes: programs then hand
// longer datagrams down whole, and the kernel cuts to that where it may, or answers for the path (RFC 1191, RFC 8201).
// It replaces what was said before, at once, and is kept by Set. Where an interface has one MTU for all, nothing changes.
// What cannot be set stays at 1280, and the error says why.
func (d *Device) SetPaths(paths map[netip.Addr]int) error {
	d.setting.Lock()
	defer d.setting.Unlock()
	if d.closed {
		return os.ErrClosed
	}
	wide, ok := d.Device.(wide)
	if !ok {
		return nil
	}
	c := d.config
	c.Paths = paths
	if c.MTU == 0 {
		d.config = c // nothing has been set yet
		return nil
	}
	have, err := want(d.config, d.sys.ipv6())
	if err != nil {
		return err
	}
	w, err := want(c, d.sys.ipv6())
	if err != nil {
		return err
	}
	wide.tell(paths)
	d.config = c
	for _, o := range plan(have, w) {
		if e := d.sys.do(o); e != nil {
			err = errors.Join(err, fmt.Errorf("network interface %s: %v: %w", d.name, o, e))
		}
	}
	return err
}

func (d *Device) become(w state) error {
	have, err := d.sys.have()
	if err != nil {
		return fmt.Errorf("network interface %s: %w", d.name, err)
	}
	for _, o := range plan(have, w) {
		if err := d.sys.do(o); err != nil {
			return fmt.Errorf("network interface %s: %v: %w", d.name, o, err)
		}
	}
	return nil
}

// Events implements tun.Device.
func (d *Device) Events() <-chan tun.Event {
	if d.events == nil {
		return d.Device.Events()
	}
	return d.events
}

// Close takes away all that was set, and the interface.
func (d *Device) Close() error {
	d.setting.Lock()
	defer d.setting.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	err := d.become(state{}) // the rules above all: the rest goes with the interface, unless it was made to stay
	d.sys.close()
	err = errors.Join(err, d.Device.Close())
	if d.events != nil {
		close(d.events)
	}
	return err
}

// maxInject bounds the packets that wait for Read.
const maxInject = 1024

// Inject makes Read return packets that the kernel has not sent, copied. Those that do not fit are lost.
func (d *Device) Inject(pkts [][]byte) {
	f := d.File()
	if f == nil {
		return // no way to wake Read here
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range pkts {
		if len(d.inject) < maxInject {
			d.inject = append(d.inject, append([]byte(nil), p...))
		}
	}
	d.waiting.Store(len(d.inject) > 0)
	_ = f.SetReadDeadline(time.Unix(1, 0)) // wakes it
	d.wake()
}

// laned is a driver that can be read by two.
type laned interface {
	lanes(isSparse func(pkt []byte) bool) (read func(bufs [][]byte, sizes []int, offset int) (int, error), ok bool)
	wake()
}

// wake has the driver look at its deadline, where it does not wait by the runtime's poller.
func (d *Device) wake() {
	if l, ok := d.Device.(laned); ok {
		l.wake()
	}
}

// Lanes makes two readers, to be called by a goroutine each before anything is read: the first for packets of flows that
// send little, as isSparse says, and Read for all others. isSparse is called by one goroutine at a time, with packets as the
// kernel has them. There are none where that cannot be.
func (d *Device) Lanes(isSparse func(pkt []byte) bool) []func(bufs [][]byte, sizes []int, offset int) (int, error) {
	if l, ok := d.Device.(laned); ok {
		if first, ok := l.lanes(isSparse); ok {
			return []func([][]byte, []int, int) (int, error){first, d.Read}
		}
	}
	return nil
}

// Lends reports whether Read replaces a buffer that is nil by memory of its own, which is good until the next call of the
// same reader.
func (d *Device) Lends() bool {
	l, ok := d.Device.(interface{ lends() bool })
	return ok && l.lends()
}

// Wake makes Read return in a while, at once if that is 0, with 0 packets if there are none by then. It reports whether that
// can be done here.
func (d *Device) Wake(in time.Duration) bool {
	f := d.File()
	if f == nil {
		return false
	}
	at := time.Unix(1, 0)
	if in > 0 {
		at = time.Now().Add(in)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.inject) > 0 {
		return true // it is woken already
	}
	d.woken = true
	ok := f.SetReadDeadline(at) == nil
	d.wake()
	return ok
}

// Read implements tun.Device. It returns no packets and no error after Wake.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		if d.waiting.Load() {
			return d.injected(bufs, sizes, offset), nil
		}
		n, err := d.Device.Read(bufs, sizes, offset)
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		d.mu.Lock()
		woken := d.woken
		d.woken = false
		if len(d.inject) == 0 {
			_ = d.File().SetReadDeadline(time.Time{})
		}
		d.mu.Unlock()
		if woken {
			return 0, nil
		}
	}
}

// injected gives what Inject has left.
func (d *Device) injected(bufs [][]byte, sizes []int, offset int) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n < len(d.inject) && n < len(bufs) {
		if bufs[n] == nil {
			bufs[n] = make([]byte, offset+len(d.inject[n]), offset+len(d.inject[n])+arena.After)
		}
		sizes[n] = copy(bufs[n][offset:], d.inject[n])
		n++
	}
	d.inject = d.inject[n:]
	if len(d.inject) == 0 {
		d.inject = nil
		d.waiting.Store(false)
		d.woken = false // whoever asked for that has it
		_ = d.File().SetReadDeadline(time.Time{})
	}
	return n
}
