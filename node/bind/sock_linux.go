package bind

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	batchSize   = conn.IdealBatchSize
	maxSegments = 64    // the kernel's UDP_MAX_SEGMENTS and UDP_GRO_CNT_MAX
	maxGSO      = 65507 // bytes in one IPv4 datagram
)

// mmsg uses recvmmsg(2) and sendmmsg(2), and lets the kernel split and join runs of datagrams of one size (UDP GSO, GRO).
type mmsg struct {
	b interface {
		ReadBatch(ms []ipv6.Message, flags int) (int, error)
		WriteBatch(ms []ipv6.Message, flags int) (int, error)
	}
	v4  bool
	gso atomic.Bool
	gro bool
	ms  []ipv6.Message // the reader's
}

func newBatcher(network string, pc net.PacketConn) batcher {
	c, ok := pc.(*net.UDPConn)
	if !ok {
		return single{pc}
	}
	m := &mmsg{v4: network == "udp4", ms: make([]ipv6.Message, batchSize)}
	if m.v4 {
		m.b = ipv4.NewPacketConn(c)
	} else {
		m.b = ipv6.NewPacketConn(c)
	}
	for i := range m.ms {
		m.ms[i].Buffers = make([][]byte, 1)
		m.ms[i].OOB = make([]byte, unix.CmsgSpace(4))
	}
	if rc, err := c.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			_, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT)
			m.gso.Store(err == nil)
			// Kernels before 5.12 cannot be asked for UDP_GRO, and join badly.
			if _, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO); err == nil {
				m.gro = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1) == nil
			}
		})
	}
	return m
}

func (m *mmsg) read(bufs [][]byte, sizes []int, from []netip.AddrPort) (int, error) {
	// A joined run is read into one of the last buffers and split into those from the first on.
	at := 0
	if m.gro {
		at = len(bufs) - max(1, min(len(bufs), batchSize)/maxSegments)
	}
	ms := m.ms[:min(len(bufs)-at, len(m.ms))]
	for i := range ms {
		ms[i].Buffers[0] = bufs[at+i]
		ms[i].N, ms[i].NN, ms[i].OOB = 0, 0, ms[i].OOB[:cap(ms[i].OOB)]
	}
	k, err := m.b.ReadBatch(ms, 0)
	if err != nil {
		return 0, err
	}
	n := 0
	for i := range ms[:k] {
		a, ok := ms[i].Addr.(*net.UDPAddr)
		if !ok {
			continue
		}
		src := a.AddrPort()
		run := bufs[at+i][:ms[i].N]
		if !m.gro {
			sizes[n], from[n] = len(run), src
			n++
			continue
		}
		size := segmentSize(ms[i].OOB[:ms[i].NN])
		if size <= 0 {
			size = max(len(run), 1)
		}
		for n <= at+i && len(run) > 0 {
			sizes[n], from[n] = copy(bufs[n], run[:min(size, len(run))]), src
			run = run[sizes[n]:]
			n++
		}
	}
	return n, nil
}

// segmentSize is the size of the datagrams in a joined run, 0 if it is none.
func segmentSize(oob []byte) int {
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

// messages is scratch for one write.
type messages struct {
	ms  []ipv6.Message
	oob [][]byte
	to  net.UDPAddr
	ip  [16]byte
}

var messagePool = sync.Pool{New: func() any {
	m := &messages{ms: make([]ipv6.Message, batchSize), oob: make([][]byte, batchSize)}
	for i := range m.oob {
		m.oob[i] = make([]byte, unix.CmsgSpace(2))
		h := unix.Cmsghdr{Level: unix.SOL_UDP, Type: unix.UDP_SEGMENT}
		h.SetLen(unix.CmsgLen(2))
		putHeader(m.oob[i], h)
	}
	return m
}}

func (m *mmsg) write(bufs [][]byte, to netip.AddrPort) error {
	s := messagePool.Get().(*messages)
	defer messagePool.Put(s)
	if m.v4 {
		ip := to.Addr().As4()
		s.to.IP = s.ip[:copy(s.ip[:], ip[:])]
	} else {
		s.ip = to.Addr().As16()
		s.to.IP = s.ip[:]
	}
	s.to.Port = int(to.Port())
	gso := m.gso.Load() && len(bufs) > 1
	for len(bufs) > 0 {
		n, ms := s.pack(bufs, gso)
		for len(ms) > 0 {
			k, err := m.b.WriteBatch(ms, 0)
			if err != nil && gso && refusesGSO(err) {
				if errors.Is(err, unix.EIO) { // the network card's driver cannot sum: never again
					m.gso.Store(false)
				}
				gso, n = false, n-count(ms)
				break
			}
			if err != nil {
				return err
			}
			ms = ms[k:]
		}
		bufs = bufs[n:]
	}
	return nil
}

// pack makes messages of the first n packets, runs of one size in one message each.
func (s *messages) pack(bufs [][]byte, gso bool) (n int, ms []ipv6.Message) {
	for i := range s.ms {
		if n == len(bufs) {
			return n, s.ms[:i]
		}
		size, run, total := len(bufs[n]), 1, len(bufs[n])
		for gso && n+run < len(bufs) && run < maxSegments {
			next := len(bufs[n+run])
			if next > size || total+next > maxGSO {
				break
			}
			run++
			total += next
			if next < size { // a shorter one ends the run
				break
			}
		}
		msg := &s.ms[i]
		msg.Buffers, msg.Addr, msg.OOB = bufs[n:n+run], &s.to, nil
		if run > 1 {
			binary.NativeEndian.PutUint16(s.oob[i][unix.CmsgLen(0):], uint16(size))
			msg.OOB = s.oob[i]
		}
		n += run
	}
	return n, s.ms
}

// count is how many packets messages hold.
func count(ms []ipv6.Message) (n int) {
	for i := range ms {
		n += len(ms[i].Buffers)
	}
	return n
}

// refusesGSO reports whether an error may be due to UDP_SEGMENT: EINVAL is a size above the link's.
func refusesGSO(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)
}

func putHeader(b []byte, h unix.Cmsghdr) {
	if unix.SizeofCmsghdr == 16 { // 64-bit: the length is a word
		binary.NativeEndian.PutUint64(b, uint64(h.Len))
		b = b[8:]
	} else {
		binary.NativeEndian.PutUint32(b, uint32(h.Len))
		b = b[4:]
	}
	binary.NativeEndian.PutUint32(b, uint32(h.Level))
	binary.NativeEndian.PutUint32(b[4:], uint32(h.Type))
}

// tune asks for buffers that hold some milliseconds of a fast link, past the system's limit if we may.
func tune(c syscall.RawConn) {
	const size = 7 << 20 // as wireguard-go
	c.Control(func(fd uintptr) {
		for _, opt := range [...]int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, opt, size) // best effort
		}
		dontFragment(fd)
	})
}

const systemTTL = true

// writeTTL sends one packet with a time to live, by ancillary data (ip(7)), so that other packets keep theirs.
func writeTTL(pc net.PacketConn, pkt []byte, to netip.AddrPort, ttl int) error {
	c, ok := pc.(*net.UDPConn)
	if !ok {
		return syscall.EOPNOTSUPP
	}
	oob := make([]byte, unix.CmsgSpace(4))
	h := unix.Cmsghdr{Level: unix.IPPROTO_IP, Type: unix.IP_TTL}
	h.SetLen(unix.CmsgLen(4))
	putHeader(oob, h)
	binary.NativeEndian.PutUint32(oob[unix.CmsgLen(0):], uint32(ttl))
	_, _, err := c.WriteMsgUDPAddrPort(pkt, oob, to)
	return err
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
