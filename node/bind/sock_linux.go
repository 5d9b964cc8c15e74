package bind

import (
	"net"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const batchSize = conn.IdealBatchSize

// newBatcher uses recvmmsg(2) and sendmmsg(2). UDP GSO and GRO would come in here.
func newBatcher(network string, pc net.PacketConn) batcher {
	c, ok := pc.(*net.UDPConn)
	switch {
	case !ok:
		return single{pc}
	case network == "udp4":
		return ipv4.NewPacketConn(c)
	}
	return ipv6.NewPacketConn(c)
}

// tune asks for buffers that hold some milliseconds of a fast link, past the system's limit if we may.
func tune(c syscall.RawConn) {
	const size = 7 << 20 // as wireguard-go
	c.Control(func(fd uintptr) {
		for _, opt := range [...]int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, opt, size) // best effort
		}
	})
}

func setMark(c syscall.RawConn, mark uint32) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	}); e != nil {
		return e
	}
	return err
}
