package derp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// tune asks for buffers that hold some milliseconds of a fast link, past the system's limit if we may, and for runs.
func (s *udpsock) tune() {
	const size = 7 << 20 // as wireguard-go
	rc, err := s.udp.SyscallConn()
	if err != nil {
		return
	}
	rc.Control(func(fd uintptr) {
		for _, opt := range [...]int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, opt, size) // best effort
		}
		_, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT)
		s.gso.Store(err == nil)
		// Kernels before 5.12 cannot be asked for UDP_GRO, and join badly.
		if _, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO); err == nil &&
			unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1) == nil {
			s.oob = make([]byte, unix.CmsgSpace(4))
		}
	})
}

// runSize is the size of the datagrams in a joined run, 0 if it is none.
func runSize(oob []byte) int {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0
		}
		if h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4 {
			return int(binary.NativeEndian.Uint32(data))
		}
		oob = rest
	}
	return 0
}

func (s *udpsock) writeRun(run []byte, size int, to netip.AddrPort) error {
	o := runOptions.Get().(*[]byte)
	defer runOptions.Put(o)
	binary.NativeEndian.PutUint16((*o)[unix.CmsgLen(0):], uint16(size))
	_, _, err := s.udp.WriteMsgUDPAddrPort(run, *o, to)
	return err
}

// runOptions are control messages that want only the size.
var runOptions = sync.Pool{New: func() any {
	o := make([]byte, unix.CmsgSpace(2))
	at := 4 // 32-bit: the length has 4 bytes
	if unix.SizeofCmsghdr == 16 {
		at = 8
		binary.NativeEndian.PutUint64(o, uint64(unix.CmsgLen(2)))
	} else {
		binary.NativeEndian.PutUint32(o, uint32(unix.CmsgLen(2)))
	}
	binary.NativeEndian.PutUint32(o[at:], unix.SOL_UDP)
	binary.NativeEndian.PutUint32(o[at+4:], unix.UDP_SEGMENT)
	return &o
}}

// refusesRuns reports whether an error may be due to UDP_SEGMENT, and whether it will be so again: EIO is a network card's
// driver that cannot sum, EINVAL a size above the link's.
func refusesRuns(err error) (now, ever bool) {
	ever = errors.Is(err, unix.EIO)
	return ever || errors.Is(err, unix.EINVAL), ever
}
