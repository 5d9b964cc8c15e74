package bind

import "golang.org/x/sys/unix"

// giveWay lets other threads have the processor, if any wait for it (sched_yield(2)). It is a raw system call: it takes
// no longer than being preempted does, and the runtime would start a thread more.
func giveWay() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
