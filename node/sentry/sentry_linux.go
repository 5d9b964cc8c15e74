package sentry

import (
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// slice is for how long the thread has a core before another that woke for it gets it. The less it asks for, the sooner it
// has its turn itself (sched_setattr(2), since Linux 6.12). It is the least that the kernel takes.
const slice = 100 * time.Microsecond

// Sentry is for one goroutine, and for what wakes that.
type Sentry struct {
	conn  syscall.RawConn
	look  func(fd uintptr) // poll, which would else be made anew for each call
	in    int              // milliseconds
	fds   [2]unix.PollFd   // what is waited for, and what ends waiting
	ready bool
	err   error
	owned bool // the thread

	ending atomic.Bool
	mu     sync.Mutex
	wake   int // an eventfd; -1 when it is closed
}

// New makes one for what c controls.
func New(c syscall.RawConn) (*Sentry, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	s := &Sentry{conn: c, wake: fd}
	s.look = s.poll
	return s, nil
}

// Wait waits until something can be read, or for so long unless in is negative, or until Wake. It reports whether
// something can be read. An error is [os.ErrClosed], mostly. The goroutine that calls it keeps its thread for good.
func (s *Sentry) Wait(in time.Duration) (bool, error) {
	if !s.owned {
		s.owned = true
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and with it what hurry has set
		hurry()
	}
	s.in = -1
	if in >= 0 {
		s.in = int(in.Milliseconds())
	}
	if s.ending.Load() {
		return false, os.ErrClosed
	}
	if err := s.conn.Control(s.look); err != nil {
		return false, os.ErrClosed
	}
	if s.ending.Load() {
		return false, os.ErrClosed
	}
	return s.ready, s.err
}

func (s *Sentry) poll(fd uintptr) {
	s.mu.Lock() // Close waits for the Control that we are in before it closes wake, which the race detector cannot know
	wake := s.wake
	s.mu.Unlock()
	s.fds = [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
	_, err := unix.Poll(s.fds[:], s.in)
	if s.err = nil; err != nil && err != unix.EINTR {
		s.err = os.NewSyscallError("poll", err)
	}
	s.ready = err == nil && s.fds[0].Revents != 0
	if err == nil && s.fds[1].Revents != 0 && !s.ending.Load() {
		var n [8]byte
		_, _ = unix.Read(wake, n[:])
	}
}

// Wake ends a Wait, or the next if there is none.
func (s *Sentry) Wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wake >= 0 {
		_, _ = unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // full is as good
	}
}

// Close ends waiting and closes what is waited for, which would else wait for Wait.
func (s *Sentry) Close(what io.Closer) error {
	first := !s.ending.Swap(true)
	s.Wake()
	err := what.Close()
	if !first { // the first closes wake, when nobody waits any more
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	unix.Close(s.wake)
	s.wake = -1
	return err
}

// hurry is best effort: kernels that know of no slices say 0.
func hurry() {
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil || a.Policy != unix.SCHED_NORMAL || a.Runtime <= uint64(slice) {
		return
	}
	a.Runtime = uint64(slice)
	_ = unix.SchedSetAttr(0, a, 0)
}
