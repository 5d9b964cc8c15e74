package node

import (
	"os"

	"golang.org/x/sys/windows"
)

const noFollow = 0

// tryLock locks f for as long as it is open; errLocked if another process has. The locked byte lies beyond the
// process number, which others must be able to read.
func tryLock(f *os.File) error {
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY,
		0, 1, 0, &windows.Overlapped{OffsetHigh: 1})
	if err == windows.ERROR_LOCK_VIOLATION {
		return errLocked
	}
	return err
}

// syncDir does nothing: NTFS journals names by itself, and directories cannot be flushed.
func syncDir(string) error { return nil }
