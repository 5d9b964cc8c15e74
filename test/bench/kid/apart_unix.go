//go:build unix

package kid

import "syscall"

// apart keeps Ctrl-C from kids: their parent ends them in order.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
