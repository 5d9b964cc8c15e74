//go:build unix

package node

import (
	"os"

	"golang.org/x/sys/unix"
)

// noFollow keeps a state file from being a symbolic link to something else.
const noFollow = unix.O_NOFOLLOW

// tryLock locks f for as long as it is open; errLocked if another process has.
func tryLock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		return errLocked
	}
	return err
}

// syncDir makes changes to the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
