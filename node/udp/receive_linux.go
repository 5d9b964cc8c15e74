package udp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2): a message, and how many bytes were moved.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

const (
	leastMessages = 2  // for one call to take, so that there is one behind a run
	mostMessages  = 32 // each has a buffer of 64 KiB
)

// receiver takes messages from the kernel.
type receiver struct {
	raw   syscall.RawConn
	recv  func(fd uintptr) bool // try, which would else be made anew for each call
	look  func(fd uintptr)      // try, for whoever does not wait
	err   error
	zones zones

	ask    int // messages of the next call
	n, at  int // of the last one: how many came, how many are handed out
	hdrs   [mostMessages]mmsghdr
	iovs   [mostMessages]unix.Iovec
	names  [mostMessages]unix.RawSockaddrInet6 // or a RawSockaddrInet4
	oob    [mostMessages][oobBytes]byte
	bufs   [mostMessages][]byte // nil until they are asked for
	joined bool

	mu    sync.Mutex // guards waits, and while that is so the buffers, iovs and ask
	waits bool       // the reader does, and nobody has what lies in the buffers
}

const oobBytes = 32 // CmsgSpace(4), and more than it is on any machine

func newReceiver(c *net.UDPConn) *receiver {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	r := &receiver{raw: raw}
	r.recv, r.look = r.try, func(fd uintptr) { r.try(fd) }
	raw.Control(func(fd uintptr) {
		// Kernels before 5.12 cannot be asked for UDP_GRO, and join badly.
		if _, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO); err == nil {
			r.joined = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1) == nil
		}
	})
	for i := range r.hdrs {
		h := &r.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Control = &r.oob[i][0]
		r.clear(i)
	}
	return r
}

// clear makes a message as it has to be for a call: the kernel has written how much of it was used.
func (r *receiver) clear(i int) {
	h := &r.hdrs[i].hdr
	h.Namelen = uint32(unsafe.Sizeof(r.names[i]))
	h.SetControllen(oobBytes)
	h.Flags = 0
}

func (r *receiver) more() bool { return r.at < r.n }

// wait is one recvmmsg that something has come for.
func (r *receiver) wait() error {
	r.begin()
	if err := r.raw.Read(r.recv); err != nil {
		return err
	}
	return r.end()
}

// rest gives back what a transfer leaves, up to all buffers, if the reader waits: else they are its own.
func (r *receiver) rest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waits {
		r.ask = leastMessages
		clear(r.bufs[r.ask:])
		clear(r.iovs[r.ask:])
	}
}

// own takes the buffers for the reader, and makes those that there are none of.
func (r *receiver) own() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waits, r.ask = false, max(r.ask, leastMessages)
	for i := range r.ask {
		if r.bufs[i] == nil {
			r.bufs[i] = make([]byte, runBytes)
			r.iovs[i].Base = &r.bufs[i][0]
			r.iovs[i].SetLen(runBytes)
		}
	}
}

// disown leaves them while the reader waits.
func (r *receiver) disown() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waits = true
}

// poll is one recvmmsg, whether or not there is anything.
func (r *receiver) poll() error {
	r.begin()
	if err := r.raw.Control(r.look); err != nil {
		return err
	}
	return r.end()
}

func (r *receiver) begin() {
	for i := range r.n {
		r.clear(i)
	}
	r.n, r.at, r.err = 0, 0, nil
}

func (r *receiver) end() error {
	if r.n > 0 { // else ask is not ours: see rest
		r.adapt()
	}
	return r.err
}

func (r *receiver) try(fd uintptr) bool {
	r.own()
	for {
		n, _, e := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.hdrs)), uintptr(r.ask), unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			r.n = int(n)
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			r.disown()
			return false
		default:
			r.err = os.NewSyscallError("recvmmsg", e)
		}
		return true
	}
}

// adapt asks the next time for twice as many messages if all came and were short, or for fewer if they are long: what
// one call brings is about a batch.
func (r *receiver) adapt() {
	total := 0
	for i := range r.n {
		size := segmentSize(r.control(i))
		total += 1
		if size > 0 {
			total += (int(r.hdrs[i].n) - 1) / size
		}
	}
	switch {
	case r.n == r.ask && 2*total <= Batch:
		r.ask = min(2*r.ask, mostMessages)
	case total > Batch:
		r.ask = max(r.ask/2, leastMessages)
	}
}

func (r *receiver) control(i int) []byte {
	return r.oob[i][:min(int(r.hdrs[i].hdr.Controllen), oobBytes)]
}

// next hands out a message. One that is not whole is empty.
func (r *receiver) next() (run []byte, size int, from netip.AddrPort) {
	i := r.at
	r.at++
	m := &r.hdrs[i]
	if m.hdr.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) == 0 {
		run = r.bufs[i][:min(int(m.n), runBytes)]
	}
	size = segmentSize(r.control(i))
	if size <= 0 || size > len(run) {
		size = len(run)
	}
	return run, size, r.zones.source(&r.names[i])
}

// segmentSize is the size of the datagrams in a joined run, by the control messages that came with it; 0 if it is none.
//
//	length, with this header │ level SOL_UDP 4 │ type UDP_GRO 4 │ size 4     each in the machine's order, see cmsg(3)
func segmentSize(oob []byte) int {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0
		}
		if h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4 {
			return max(0, int(int32(binary.NativeEndian.Uint32(data))))
		}
		oob = rest
	}
	return 0
}

// zones remembers the last zone of a link-local address, which the kernel calls by number and netip by name.
type zones struct {
	id   uint32
	name string
}

// source reads the kernel's address of a datagram's sender; the zero one if it is of no family we know.
func (z *zones) source(sa *unix.RawSockaddrInet6) netip.AddrPort {
	switch sa.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), port(&v4.Port))
	case unix.AF_INET6:
		a := netip.AddrFrom16(sa.Addr).Unmap()
		if sa.Scope_id != 0 && a.Is6() {
			a = a.WithZone(z.zone(sa.Scope_id))
		}
		return netip.AddrPortFrom(a, port(&sa.Port))
	}
	return netip.AddrPort{}
}

func (z *zones) zone(id uint32) string {
	if z.id != id {
		z.id, z.name = id, strconv.FormatUint(uint64(id), 10)
		if i, err := net.InterfaceByIndex(int(id)); err == nil {
			z.name = i.Name
		}
	}
	return z.name
}

// port reads or, with setPort, writes a port, which is in network order wherever it is.
func port(p *uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:]) }

func setPort(p *uint16, v uint16) { binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(p))[:], v) }
