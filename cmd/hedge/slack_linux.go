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

// again says that slacken has been here.
const again = "HEDGE_BEGUN_AGAIN"

// slacken gives all threads of a node this slack. One gets it from the thread that makes it, and sysmon is there before
// us; but execve(2) keeps that of its caller, so the program begins anew, once, as the same process. Where that is not
// possible the node runs as it would have.
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
	if was, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil || was >= int(slack) || was == 0 {
		return // set for us, as systemd's TimerSlackNSec= does
	}
	self, err := os.Executable()
	if err != nil || unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0) != nil {
		return
	}
	_ = syscall.Exec(self, os.Args, append(os.Environ(), again+"=1"))
}
