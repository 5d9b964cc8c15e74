package main

import (
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

// privateModes says that file modes keep others out here.
const privateModes = false

// lockFile locks one byte far past the pid, since a locked byte cannot be read by others.
func lockFile(f *os.File) error {
	return windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0,
		&windows.Overlapped{Offset: 1 << 20})
}

func terminate(p *os.Process) error { return p.Kill() }

func ownSession() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.DETACHED_PROCESS, HideWindow: true}
}

// reloadSignals are those that have a daemon read its files again: none here.
func reloadSignals() []os.Signal { return nil }
