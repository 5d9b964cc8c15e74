package derp

import (
	"crypto/tls"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	userTimeout  = 15 * time.Second // unacknowledged data for that long ends a connection
	notSentLowat = 64 << 10         // what the kernel may hold unsent: the rest waits in our queue, where it can be dropped
)

// tune sets up the socket below a connection. Where it cannot, the connection works still.
func tune(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	rc, err := t.SyscallConn()
	if err != nil {
		return
	}
	rc.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowat)
	})
}
