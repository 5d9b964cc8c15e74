package main

import (
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// slack is how late the kernel may wake a node's threads for a timer. By default that is 50 µs.
//
// While a Go program is busy with system calls that last, a thread of the runtime (sysmon) sleeps for 20 µs and looks who
// is in one, to give the processor that it holds to others: a wake-up every 70 µs and many handovers, which cost a
// node that moves data a tenth to a quarter of its work. Of the timers that a node has itself none is of less than milliseconds.
const slack = 500 * time.Microsecond

// slice is for how long a thread has a core before another that woke for it gets it. That is 1.4 ms by default with two
// cores and 2.8 with many, in which a packet of a flow that sends little waits behind the threads that move a transfer.
// Since Linux 6.12 a thread may choose (sched_setattr(2), sched_runtime of SCHED_OTHER).
const slice = 500 * time.Microsecond

// again says that slacken has been here.
const again = "HEDGE_BEGUN_AGAIN"

// slacken gives all threads of a node this slack and this slice. One gets them from the thread that makes it, and sysmon
// is there before us; but execve(2) keeps those of its caller, so the program begins anew, once, as the same process. Where
// that is not possible, or not permitted, the node runs as it would have.
func slacken(args []string) {
	if _, done := os.LookupEnv(again); done {
		os.Unsetenv(again)
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

// setSlack sets this thread's, unless somebody has, as systemd's TimerSlackNSec= does.
func setSlack() bool {
	was, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	return err == nil && was < int(slack) && was != 0 && unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0) == nil
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
