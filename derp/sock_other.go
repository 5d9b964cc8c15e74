//go:build !linux

package derp

import "net"

func tune(net.Conn) {}
