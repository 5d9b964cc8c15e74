package bind

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/node/device"
	"github.com/hedge-mesh/hedge/node/sentry"
	"github.com/hedge-mesh/hedge/node/udp"
)

// Packets of flows that send little pass what bulk flows have filled: they have a socket of their own at both ends, on
// the same port, so that they wait neither in the receiver's buffer nor for a batch. Which packets these are only the
// reader of the tunnel can tell. WireGuard's device takes a packet from there to Send in one buffer:
//
//	│ header 16 │ packet, padded to 16 │ tag 16 │ mark │ …      as much as is lent for it, or device.MaxMessageSize bytes
//	 ▲ Send gets this much                       ▲ in memory that is at hand: the end of the buffer would cost a miss
const sparseMark = 0xa5

// MarkSparse says of a packet of so many bytes in a buffer of the device's whether it is one of a flow that sends little.
func MarkSparse(buf []byte, size int, sparse bool) {
	buf = buf[:cap(buf)]
	at := wgOverhead + (size+15)&^15
	if at >= len(buf) {
		return
	}
	buf[at] = 0
	if sparse {
		buf[at] = sparseMark
	}
}

// isSparse reports what MarkSparse has said. Of packets that were not read from the tunnel it may be either.
func isSparse(pkt []byte) bool {
	left := cap(pkt) - len(pkt)
	return left > 0 && (left <= device.PaddingMultiple || cap(pkt) == device.MaxMessageSize) && pkt[:len(pkt)+1][len(pkt)] == sparseMark
}

// divideSparse moves packets of flows that send little to the front, each kind in its order.
func divideSparse(bufs [][]byte) (sparse, rest [][]byte) {
	var later [udp.Batch][]byte
	if len(bufs) > len(later) {
		return nil, bufs
	}
	if !slices.ContainsFunc(bufs, isSparse) {
		return nil, bufs
	}
	k, n := 0, 0
	for _, b := range bufs {
		if isSparse(b) {
			bufs[k] = b
			k++
		} else {
			later[n] = b
			n++
		}
	}
	copy(bufs[k:], later[:n])
	return bufs[:k], bufs[k:]
}

// companion gives a socket that is to be a family's its own for flows that send little, where there can be one. Who reads
// a family is settled when the device opens us, so that where there was none there will be none.
func (b *Bind) companion(f *family, s *sock) {
	if old := f.cur.Load(); old != nil && old.sparse == nil {
		return
	}
	two, err := s.Beside(b.control)
	if err != nil {
		return
	}
	s.sparse = &sock{Socket: two, reader: two.Reader(), peek: two.Reader(), port: s.port}
	if c, err := two.SyscallConn(); err == nil {
		s.sparse.sentry, _ = sentry.New(c) // without one its reader waits as others do
	}
}

// Watch has packets of flows that send little received by threads of their own, from the next Open on. That is for a device
// that hands them to the kernel. Goroutines that they wake would be late: they wait for the thread, which waits.
func (b *Bind) Watch() {
	b.udp4.watched.Store(true)
	b.udp6.watched.Store(true)
}

// watch is what a companion's reader does: it is there as soon as something comes. 0 without an error is that nothing has.
func (s *sock) watch(bufs [][]byte, sizes []int, from []netip.AddrPort) (int, error) {
	if n, err := s.reader.Poll(bufs, sizes, from); n > 0 || err != nil {
		return n, err
	}
	_, err := s.sentry.Wait(-1)
	return 0, err
}

// peek takes what waits in the companion, if nobody watches it. One goroutine at a time may.
func (f *family) peek(bufs [][]byte, sizes []int, from []netip.AddrPort) int {
	s := f.cur.Load()
	if s == nil || s.sparse == nil || f.watched.Load() {
		return 0
	}
	n, _ := s.sparse.peek.Poll(bufs, sizes, from)
	return n
}

// left reports whether peek had no room for all that it has taken.
func (f *family) left() bool {
	s := f.cur.Load()
	return s != nil && s.sparse != nil && s.sparse.peek.Left()
}

// Close ends the companion too.
func (s *sock) Close() error {
	if s.sparse != nil {
		s.sparse.Close()
	}
	if s.sentry != nil {
		return s.sentry.Close(s.Socket)
	}
	return s.Socket.Close()
}

// SetReadDeadline is for both.
func (s *sock) SetReadDeadline(at time.Time) error {
	var err error
	if s.sparse != nil {
		err = s.sparse.SetReadDeadline(at)
	}
	if s.sentry != nil {
		s.sentry.Wake() // its reader looks what is the matter
	}
	return errors.Join(err, s.Socket.SetReadDeadline(at))
}

// both are a socket and its companion.
func (s *sock) both() []*udp.Socket {
	all := []*udp.Socket{s.Socket}
	if s.sparse != nil {
		all = append(all, s.sparse.Socket)
	}
	return all
}
