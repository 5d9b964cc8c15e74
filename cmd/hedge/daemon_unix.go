//go:build unix

package main

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// privateModes says that file modes keep others out here.
const privateModes = true

func lockFile(f *os.File) error        { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
func terminate(p *os.Process) error    { return p.Signal(syscall.SIGTERM) }
func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// reloadSignals are those that have a daemon read its files again.
func reloadSignals() []os.Signal { return []os.Signal{syscall.SIGHUP} }
