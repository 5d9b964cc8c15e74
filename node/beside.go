package node

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hedge-mesh/hedge/netstack"
	"github.com/hedge-mesh/hedge/node/device"
)

// beside is a host's interface with a stack beside it that carries for others, as that of a node without an interface
// does: the kernel forwards nothing, and gets nothing that is not for an own address.
//
//	wireguard ── Write ── to an own address? ─┬─ yes: the host's interface ── its kernel
//	                                          └─ no: the stack ── Options.Accept ── a socket of the host
//	wireguard ◀── Read ──┬── the host's interface
//	                     └── the stack, which wakes it
//
// The stack is there once there is something to carry.
type beside struct {
	host
	options netstack.Options

	mu     sync.Mutex // of making the stack, and of closing it
	closed bool
	stack  atomic.Pointer[netstack.Stack]
	own    atomic.Pointer[[]netip.Addr]

	more  atomic.Bool // the stack may have something to read
	turns uint        // of Read's one goroutine
}

// While the stack has always more, the host has every fourth turn, and this long to have something.
const (
	hostTurn = 4
	hostWait = 20 * time.Microsecond
)

var errNoCarrier = errors.New("on this system a node with an interface (--tun) carries nothing for others: run it without")

func newBeside(h host, o netstack.Options) *beside {
	b := &beside{host: h, options: o}
	b.options.Readable = b.readable
	b.own.Store(new([]netip.Addr))
	return b
}

// readable may be called from anywhere in the stack.
func (b *beside) readable() {
	if !b.more.Swap(true) {
		b.host.Wake(0)
	}
}

// can says why nothing is carried here, or nil.
func (b *beside) can() error {
	if b == nil || b.host.File() == nil {
		return errNoCarrier
	}
	return nil
}

// set replaces the addresses that are the host's to take in, and the prefixes that are carried.
func (b *beside) set(own []netip.Addr, carry []netip.Prefix) error {
	b.own.Store(&own)
	s, err := b.carrier(len(carry) > 0)
	if s == nil || err != nil {
		return err
	}
	return s.Carry(carry)
}

// carrier is the stack, made if it is needed and there is none.
func (b *beside) carrier(needed bool) (*netstack.Stack, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stack.Load()
	if s != nil || !needed || b.closed {
		return s, nil
	}
	if err := b.can(); err != nil {
		return nil, err
	}
	s, err := netstack.New(b.options)
	if err == nil {
		b.stack.Store(s)
	}
	return s, err
}

// Read implements tun.Device.
func (b *beside) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		if b.more.Load() {
			if b.turns++; b.turns%hostTurn == 0 {
				b.host.Wake(hostWait)
			} else if n := b.poll(bufs, sizes, offset); n > 0 {
				return n, nil
			}
		}
		if n, err := b.host.Read(bufs, sizes, offset); n > 0 || err != nil {
			return n, err
		}
	}
}

// Lends implements device.Lender: as the host's does. The stack takes buffers as they come.
func (b *beside) Lends() bool {
	l, ok := b.host.(device.Lender)
	return ok && l.Lends()
}

// Lanes are the host's, with what the stack has in the second.
func (b *beside) Lanes(isSparse func(pkt []byte) bool) []readFunc {
	l, ok := b.host.(laned)
	if !ok {
		return nil
	}
	fns := l.Lanes(isSparse)
	if len(fns) > 0 {
		fns[len(fns)-1] = b.Read
	}
	return fns
}

// poll reads what the stack has.
func (b *beside) poll(bufs [][]byte, sizes []int, offset int) int {
	b.more.Store(false) // before looking: who adds to it from now on says so
	s := b.stack.Load()
	if s == nil {
		return 0
	}
	n, err := s.Poll(bufs, sizes, offset)
	if err != nil || n == 0 {
		return 0
	}
	b.more.Store(true) // perhaps
	return n
}

// Write implements tun.Device.
func (b *beside) Write(bufs [][]byte, offset int) (int, error) {
	own := *b.own.Load()
	var first error
	written := 0
	for len(bufs) > 0 {
		mine, n := isFor(own, bufs[0], offset), 1
		for n < len(bufs) && isFor(own, bufs[n], offset) == mine {
			n++
		}
		k, err := n, error(nil)
		if mine {
			k, err = b.host.Write(bufs[:n], offset)
		} else if s := b.stack.Load(); s != nil {
			_, _ = s.Write(bufs[:n], offset) // once it is closed there is nobody to carry for
		}
		written += k
		if first == nil {
			first = err
		}
		bufs = bufs[n:]
	}
	return written, first
}

// isFor reports whether a packet is for one of these addresses.
func isFor(own []netip.Addr, b []byte, offset int) bool {
	if len(b) <= offset {
		return false
	}
	switch p := b[offset:]; {
	case len(p) >= 20 && p[0]>>4 == 4:
		return slices.Contains(own, netip.AddrFrom4([4]byte(p[16:])))
	case len(p) >= 40 && p[0]>>4 == 6:
		return slices.Contains(own, netip.AddrFrom16([16]byte(p[24:])))
	}
	return false
}

// Close implements tun.Device.
func (b *beside) Close() error {
	err := b.host.Close()
	b.mu.Lock()
	b.closed = true
	s := b.stack.Load()
	b.mu.Unlock()
	if s != nil {
		err = errors.Join(err, s.Close())
	}
	return err
}
