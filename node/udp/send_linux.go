package udp

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Batch is how many datagrams it pays to have buffers for.
const Batch = 128

// sender gives messages to the kernel.
type sender struct {
	raw  syscall.RawConn
	six  bool // the socket's family is AF_INET6
	runs atomic.Bool

	mu   sync.Mutex // of what follows; the kernel takes one message at a time from a socket anyway
	m    *messages  // nil until something is written
	zone zones      // the last
}

func newSender(c *net.UDPConn) *sender {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	s := &sender{raw: raw}
	if raw.Control(func(fd uintptr) {
		for _, opt := range [...]int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, opt, bufferBytes) // best effort, and past the limit if we may
		}
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		s.six = err == nil && domain == unix.AF_INET6
		_, err = unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT)
		s.runs.Store(err == nil)
	}) != nil {
		return nil // closed
	}
	return s
}

// messages is what a write works with: what is left to send, and the messages for as much of it as there is room.
type messages struct {
	bufs [][]byte // of [Socket.Write]
	run  []byte   // of [Socket.WriteRun]
	size int

	n, at int // messages, and how many of them are sent
	err   syscall.Errno
	send  func(fd uintptr) bool // try, which would else be made anew for each call
	name  unix.RawSockaddrInet6 // or a RawSockaddrInet4
	hdrs  [Batch]mmsghdr
	iovs  [Batch]unix.Iovec
	count [Batch]int // datagrams of each message
	opts  [Batch]segmentOption
}

// segmentOption is the control message that says how long the datagrams of a run are (udp(7), UDP_SEGMENT).
type segmentOption struct {
	unix.Cmsghdr
	size uint16
	_    [6]byte // CmsgSpace(2) is no longer than that
}

func newMessages() *messages {
	m := new(messages)
	m.send = m.try
	for i := range m.hdrs {
		m.hdrs[i].hdr.Name = (*byte)(unsafe.Pointer(&m.name))
		o := &m.opts[i]
		o.Level, o.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		o.SetLen(unix.CmsgLen(2))
	}
	return m
}

// write sends datagrams: either each of bufs, or those of a run.
func (s *sender) write(bufs [][]byte, run []byte, size int, to netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = newMessages()
	}
	m := s.m
	m.bufs, m.run, m.size = bufs, run, size
	defer m.forget()
	if err := s.address(m, to); err != nil {
		return err
	}
	runs := s.runs.Load()
	var long error
	for m.pack(runs) {
		for m.at < m.n {
			m.err = 0
			if err := s.raw.Write(m.send); err != nil {
				return err
			}
			if m.err == 0 {
				continue
			}
			if m.count[m.at] > 1 && refusesRuns(m.err) {
				if m.err == unix.EIO { // the network card's driver cannot sum, and never will
					s.runs.Store(false)
				}
				runs = false
				break // from here on one by one
			}
			err := os.NewSyscallError("sendmmsg", m.err)
			if m.err != unix.EMSGSIZE {
				return err
			}
			long = err
			m.at++
		}
		m.drop()
	}
	return long
}

// forget lets go of the caller's memory.
func (m *messages) forget() {
	clear(m.iovs[:])
	m.bufs, m.run = nil, nil
}

// try is a sendmmsg, and another where that has not sent all.
func (m *messages) try(fd uintptr) bool {
	for m.at < m.n {
		n, _, e := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&m.hdrs[m.at])), uintptr(m.n-m.at), unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			m.at += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			m.err = e
			return true
		}
	}
	return true
}

// refusesRuns reports whether an error may be due to UDP_SEGMENT: EINVAL is also a size above the link's.
func refusesRuns(e syscall.Errno) bool {
	return e == unix.EIO || e == unix.EINVAL || e == unix.EMSGSIZE
}

// pack makes messages of what is left to send, of runs one each, and reports whether there are any.
func (m *messages) pack(runs bool) bool {
	m.n, m.at = 0, 0
	bufs, run := m.bufs, m.run
	for iovs := 0; m.n < Batch && iovs < Batch; m.n++ {
		n, size := 1, m.size
		switch {
		case len(run) > 0:
			if runs && size > 0 {
				n = min((len(run)+size-1)/size, MaxRun, max(MaxRunBytes/size, 1))
			}
			piece := run[:min(n*size, len(run))]
			m.iov(iovs, piece)
			m.message(m.n, iovs, 1, n, size)
			iovs++
			run = run[len(piece):]
		case len(bufs) > 0:
			size = len(bufs[0])
			if runs {
				n = runOf(bufs[:min(len(bufs), Batch-iovs)])
			}
			for i, b := range bufs[:n] {
				m.iov(iovs+i, b)
			}
			m.message(m.n, iovs, n, n, size)
			iovs += n
			bufs = bufs[n:]
		default:
			return m.n > 0
		}
	}
	return true
}

func (m *messages) iov(i int, b []byte) {
	m.iovs[i].Base = unsafe.SliceData(b)
	m.iovs[i].SetLen(len(b))
}

// message makes one of some iovs, which hold n datagrams.
func (m *messages) message(i, iov, iovs, n, size int) {
	h := &m.hdrs[i].hdr
	h.Iov = &m.iovs[iov]
	h.SetIovlen(iovs)
	h.Namelen = unix.SizeofSockaddrInet6
	if m.name.Family == unix.AF_INET {
		h.Namelen = unix.SizeofSockaddrInet4
	}
	h.Control = nil
	h.SetControllen(0)
	m.count[i] = n
	if n > 1 {
		m.opts[i].size = uint16(size)
		h.Control = (*byte)(unsafe.Pointer(&m.opts[i]))
		h.SetControllen(unix.CmsgSpace(2))
	}
}

// runOf is how many of bufs, of which there is one at least, make a run.
func runOf(bufs [][]byte) int {
	size, total := len(bufs[0]), len(bufs[0])
	for n := 1; n < len(bufs); n++ {
		next := len(bufs[n])
		total += next
		if n == MaxRun || next > size || next == 0 || total > MaxRunBytes {
			return n
		}
		if next < size {
			return n + 1 // a shorter one ends a run
		}
	}
	return len(bufs)
}

// drop takes away what has been sent.
func (m *messages) drop() {
	n := 0
	for _, k := range m.count[:m.at] {
		n += k
	}
	if m.run != nil {
		m.run = m.run[min(n*m.size, len(m.run)):]
	} else {
		m.bufs = m.bufs[n:]
	}
}

// address makes m's the kernel's form of to.
func (s *sender) address(m *messages, to netip.AddrPort) error {
	a := to.Addr()
	switch {
	case s.six && a.IsValid():
		m.name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: a.As16()}
		setPort(&m.name.Port, to.Port())
		if a.Zone() != "" {
			m.name.Scope_id = s.scope(a.Zone())
		}
	case a.Is4() || a.Is4In6():
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&m.name))
		*v4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.As4()}
		setPort(&v4.Port, to.Port())
	default:
		return &net.AddrError{Err: "no address of the socket's family", Addr: to.String()}
	}
	return nil
}

// scope is the number of a zone.
func (s *sender) scope(name string) uint32 {
	if s.zone.name == name {
		return s.zone.id
	}
	id, err := strconv.ParseUint(name, 10, 32)
	if err != nil {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return 0
		}
		id = uint64(i.Index)
	}
	s.zone = zones{uint32(id), name}
	return uint32(id)
}
