//go:build !unix

package kid

import "syscall"

func apart() *syscall.SysProcAttr { return nil }
