package derp

import (
	"crypto/tls"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	userTimeout  = 15 * time.Second // unacknowledged data for that long ends a connection
	notSentLowat = 64 << 10         // what the kernel may hold unsent: the rest waits in our queue, where it can be dropped
)

// maxSegment is the TCP segment that passes wherever IPv6 does, in a packet of 1280 bytes. A relay's connection must not wait
// for an ICMP message that some network on its way does not pass on, and has no use for longer ones.
const maxSegment = 1280 - 40 - 20

// LimitSegments is for net.Dialer.Control and net.ListenConfig.Control, or from within them: TCP connections of that socket
// send and ask for segments that fit any path (RFC 9293 section 3.7.1). It fails only with the socket.
func LimitSegments(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, maxSegment) // refused for sockets of UDP, which Control sees too
	})
}

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
