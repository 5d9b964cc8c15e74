//go:build unix

package process

import (
	"syscall"
	"time"
)

// cpu is the time that all cores together have spent on this process, in user and in kernel mode.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
