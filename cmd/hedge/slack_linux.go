package main

import (
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How late the kernel may wake a thread of a node for a timer. By default that is 50 µs.
//
//	sysmon, a thread of Go's runtime      sysmonSlack
//	all others                            slack
//	… of a node with an interface         keenSlack, with makeRoom
//
// While a Go program is busy with system calls that last, sysmon sleeps for 20 µs and looks who is in one, to give the
// processor that it holds to others: a wake-up every 70 µs and many handovers, which cost a node that moves data a tenth to a
// quarter of its work. A thread that has nothing to do sleeps for 3 µs before it takes the goroutine that another is to run
// next. In user space it had better be late, for the other mostly runs it. With an interface that goroutine may have a packet
// of a flow that sends little, and the other be in a system call. Of the timers that a node has itself none is of less than
// milliseconds.
const (
	usualSlack  = 50 * time.Microsecond
	sysmonSlack = 5 * time.Millisecond
	slack       = 500 * time.Microsecond
	keenSlack   = time.Nanosecond
)

// slice is for how long a thread has a core before another that woke for it gets it. That is 1.4 ms by default with two
// cores and 2.8 with many, in which a packet of a flow that sends little waits behind the threads that move a transfer.
// Since Linux 6.12 a thread may choose (sched_setattr(2), sched_runtime of SCHED_OTHER).
const slice = 500 * time.Microsecond

// again says that slacken has been here.
const again = "HEDGE_BEGUN_AGAIN"

// slacken gives all threads of a node their slack and this slice. One gets them from the thread that makes it, and sysmon
// is there before us; but execve(2) keeps those of its caller, so the program begins anew, once, as the same process. Where
// that is not possible, or not permitted, the node runs as it would have.
func slacken(args []string) {
	if _, done := os.LookupEnv(again); done {
		os.Unsetenv(again)
		hasten(slack)
		return
	}
	if len(args) == 0 || args[0] != "node" && !slices.Contains(args, "--foreground") {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	later, shorter := setSlack(), setSlice()
	if !later && !shorter {
		return
	}
	if self, err := os.Executable(); err == nil {
		_ = syscall.Exec(self, os.Args, append(os.Environ(), again+"=1"))
	}
}

// setSlack sets sysmon's for this thread, unless somebody has set one, as systemd's TimerSlackNSec= does.
func setSlack() bool {
	was, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	return err == nil && was == int(usualSlack) && unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(sysmonSlack), 0, 0, 0) == nil
}

// hasten gives a shorter slack to all threads that run goroutines, if we have set theirs. The way to a thread is a goroutine
// that keeps it: as many at once as there are threads are on all of them but sysmon, which runs none. As long as threads are
// left that have nothing to do the runtime makes no more, so we leave enough of them: one that sysmon makes would have
// sysmon's slack.
func hasten(d time.Duration) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	hurryOne(d)
	n := max(threads, len(tasks))
	var there, all sync.WaitGroup
	there.Add(n)
	for range n {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			hurryOne(d)
			there.Done()
			there.Wait()
		})
	}
	all.Wait()
}

// threads is how many there are to be from the beginning. A node has 13, with these 20.
const threads = 8

// hurryOne sets this thread's slack, if it is one that we have set.
func hurryOne(d time.Duration) {
	was, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err == nil && slices.Contains([]time.Duration{sysmonSlack, slack}, time.Duration(was)) {
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(d), 0, 0, 0)
	}
}

// setSlice sets this thread's, if it is of the usual kind and may run for longer. Kernels that know of none say 0.
func setSlice() bool {
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil || a.Policy != unix.SCHED_NORMAL || a.Runtime <= uint64(slice) {
		return false
	}
	a.Runtime = uint64(slice)
	return unix.SchedSetAttr(0, a, 0) == nil
}
