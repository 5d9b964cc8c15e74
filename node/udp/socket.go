package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

const (
	// MaxRun is how many datagrams a run that is written may have: the kernel's UDP_MAX_SEGMENTS.
	MaxRun = 64
	// MaxRunBytes is how long it may be: with its headers it is one IPv4 packet.
	MaxRunBytes = 65535 - 20 - 8

	bufferBytes = 7 << 20 // what the system is asked to queue: some milliseconds of a fast link, as in wireguard-go
	runBytes    = 1 << 16 // no datagram and no run is longer
)

// Socket sends datagrams. What it is made of stays open until Close, which ends Readers too. Any goroutine may write.
type Socket struct {
	net.PacketConn
	udp *net.UDPConn // PacketConn; nil if it is something else
	sys *sender      // nil where datagrams go one by one
}

// New makes a Socket of pc, and asks the system for large buffers.
func New(pc net.PacketConn) *Socket {
	s := &Socket{PacketConn: pc}
	if s.udp, _ = pc.(*net.UDPConn); s.udp != nil {
		s.sys = newSender(s.udp)
	}
	return s
}

// SyscallConn implements syscall.Conn; nil without an error is a socket that is none of the system's.
func (s *Socket) SyscallConn() (syscall.RawConn, error) {
	if c, ok := s.PacketConn.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, nil
}

// Write sends each of bufs as a datagram, in order, and does not keep them. A datagram that is longer than the link
// takes is left out, which is told when all others are sent; any other error ends it at once.
func (s *Socket) Write(bufs [][]byte, to netip.AddrPort) error {
	if s.sys != nil {
		return s.sys.write(bufs, nil, 0, to)
	}
	for _, b := range bufs {
		if err := s.WriteOne(b, to); err != nil {
			return err
		}
	}
	return nil
}

// WriteRun sends datagrams of size bytes each, of which the last may be shorter.
func (s *Socket) WriteRun(run []byte, size int, to netip.AddrPort) error {
	size = max(size, 1)
	if s.sys != nil && len(run) > size {
		return s.sys.write(nil, run, size, to)
	}
	for len(run) > 0 {
		n := min(size, len(run))
		if err := s.WriteOne(run[:n], to); err != nil {
			return err
		}
		run = run[n:]
	}
	return nil
}

// WriteOne sends one datagram.
func (s *Socket) WriteOne(b []byte, to netip.AddrPort) error {
	if s.udp != nil {
		_, err := s.udp.WriteToUDPAddrPort(b, to)
		return err
	}
	_, err := s.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return err
}

// ReadOne waits for one datagram. It is not for a Socket that has a Reader.
func (s *Socket) ReadOne(b []byte) (n int, from netip.AddrPort, err error) {
	if s.udp != nil {
		n, from, err = s.udp.ReadFromUDPAddrPort(b)
		return n, unmap(from), err
	}
	n, a, err := s.ReadFrom(b)
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	if u, ok := a.(*net.UDPAddr); ok {
		return n, unmap(u.AddrPort()), nil
	}
	if from, err = netip.ParseAddrPort(a.String()); err != nil {
		return 0, netip.AddrPort{}, fmt.Errorf("udp: a datagram's source is a %T: %w", a, err)
	}
	return n, unmap(from), nil
}

// unmap is an IPv4 address for one that a socket of both families has mapped into IPv6.
func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Reader receives the datagrams of a Socket, for one goroutine at a time.
type Reader struct {
	s   *Socket
	sys *receiver // nil where datagrams come one by one
	buf []byte    // Next's, then

	run  []byte // what is left of the last for Lend
	size int
	from netip.AddrPort
}

// Poll is Lend that does not wait: 0 without an error is that there is nothing. A Reader that only polls may be beside one
// that waits; either gets a datagram.
func (r *Reader) Poll(bufs [][]byte, sizes []int, from []netip.AddrPort) (int, error) {
	if r.sys == nil {
		return 0, errors.ErrUnsupported
	}
	if !r.Left() {
		if err := r.sys.poll(); err != nil || !r.sys.more() {
			return 0, err
		}
	}
	return r.Lend(bufs, sizes, from)
}

// Left reports whether the last Lend or Poll had no room for all that has come.
func (r *Reader) Left() bool { return len(r.run) > 0 || r.sys != nil && r.sys.more() }

// Reader has the system join datagrams from now on.
func (s *Socket) Reader() *Reader {
	r := &Reader{s: s}
	if s.udp != nil {
		r.sys = newReceiver(s.udp)
	}
	return r
}

// Rest gives back the memory that a transfer has left, if the Reader waits. It may be called from any goroutine.
func (r *Reader) Rest() {
	if r.sys != nil {
		r.sys.rest()
	}
}

// Next waits for a run, of datagrams of size bytes each, of which the last may be shorter. It is good until the next
// call. An error may pass (an ICMP error, on some systems), unless it is net.ErrClosed.
func (r *Reader) Next() (run []byte, size int, from netip.AddrPort, err error) {
	if r.sys != nil {
		if !r.sys.more() {
			if err := r.sys.wait(); err != nil {
				return nil, 0, netip.AddrPort{}, err
			}
		}
		run, size, from = r.sys.next()
		return run, size, from, nil
	}
	if r.buf == nil {
		r.buf = make([]byte, runBytes)
	}
	n, from, err := r.s.ReadOne(r.buf)
	return r.buf[:n], n, from, err
}

// Lend waits for datagrams, and makes of each one of bufs. They lie where the system has put them, and are the caller's
// to change until the next call. sizes and from, as long as bufs, tell how long they are and who sent them:
//
//	one of the system's │ a │ b │ c │     what comes as a run lies in one piece, and none reaches into the next
//	              bufs[n] ▲   ▲   ▲
func (r *Reader) Lend(bufs [][]byte, sizes []int, from []netip.AddrPort) (n int, err error) {
	if r.sys == nil {
		run, _, a, err := r.Next()
		if err != nil {
			return 0, err
		}
		bufs[0], sizes[0], from[0] = run, len(run), a
		return 1, nil
	}
	for n < len(bufs) {
		if len(r.run) == 0 {
			if n > 0 && !r.sys.more() {
				break
			}
			if r.run, r.size, r.from, err = r.Next(); err != nil {
				return 0, err // n is 0
			}
			if len(r.run) == 0 { // an empty datagram
				bufs[n], sizes[n], from[n] = nil, 0, r.from
				n++
				continue
			}
		}
		k := min(r.size, len(r.run))
		bufs[n], sizes[n], from[n] = r.run[:k:k], k, r.from
		r.run = r.run[k:]
		n++
	}
	return n, nil
}
