//go:build !linux

package derp

import (
	"net"
	"syscall"
)

func tune(net.Conn) {}

// LimitSegments does nothing here: the system finds what its paths carry.
func LimitSegments(_, _ string, _ syscall.RawConn) error { return nil }
