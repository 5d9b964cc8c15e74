package derp

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/hedge-mesh/hedge/node/key"
)

// udpsock is a UDP socket that moves runs of datagrams of one size in one system call, where the system can (UDP GSO and
// GRO). Several goroutines may write, one may read.
type udpsock struct {
	pc  net.PacketConn
	udp *net.UDPConn // pc, or nil if it is something else
	gso atomic.Bool
	oob []byte // the reader's
}

const (
	maxRun      = 64    // datagrams in a run: the kernel's UDP_MAX_SEGMENTS
	maxRunBytes = 65000 // and bytes, which with headers must fit one IP packet
)

func newUDPSock(pc net.PacketConn) *udpsock {
	s := &udpsock{pc: pc}
	if s.udp, _ = pc.(*net.UDPConn); s.udp != nil {
		s.tune()
	}
	return s
}

// read waits for a run of datagrams of size each, of which the last may be shorter. B must have 64 KiB.
func (s *udpsock) read(b []byte) (run []byte, size int, from netip.AddrPort, err error) {
	if s.udp == nil || s.oob == nil {
		n, from, err := readFrom(s.pc, b)
		return b[:n], n, from, err
	}
	n, oobn, _, from, err := s.udp.ReadMsgUDPAddrPort(b, s.oob)
	if err != nil {
		return nil, 0, from, err
	}
	size = runSize(s.oob[:oobn])
	if size <= 0 || size > n {
		size = n
	}
	return b[:n], size, from, nil
}

// write sends a run of datagrams of size each, of which the last may be shorter: at most maxRun, and maxRunBytes in all.
func (s *udpsock) write(run []byte, size int, to netip.AddrPort) error {
	if len(run) > size && s.gso.Load() {
		err := s.writeRun(run, size, to)
		now, ever := refusesRuns(err)
		if !now {
			return err
		}
		if ever {
			s.gso.Store(false)
		}
	}
	for len(run) > 0 {
		n := min(size, len(run))
		if err := writeTo(s.pc, run[:n], to); err != nil {
			return err
		}
		run = run[n:]
	}
	return nil
}

// runBufs are for runs that are being made.
var runBufs = sync.Pool{New: func() any { b := make([]byte, 0, 1<<16); return &b }}

// sendRow sends the packets of a row, each in a datagram of its own. Those to or from the relay itself, and those whose
// datagram would be longer than use, are moved together at the row's beginning and returned, with their number; and so
// are those that come after an error. With keep all are.
func (s *udpsock) sendRow(out *seal, to netip.AddrPort, use int, row []byte, keep bool) (rest []byte, left int, err error) {
	p := runBufs.Get().(*[]byte)
	defer runBufs.Put(p)
	run, size, ended := (*p)[:0], 0, false // ended: the last of the run is shorter than the others
	flush := func() {
		if len(run) > 0 {
			err = s.write(run, size, to)
		}
		run, size, ended = run[:0], 0, false
	}
	rest = row[:0]
	for len(row) > 0 {
		pkt, more, bad := cutPacket(row)
		if bad != nil { // whole packets only are in a row
			break
		}
		row = more
		n := len(pkt) + datagramOverhead
		no := err != nil || n > use || [key.Size]byte(pkt) == [key.Size]byte{}
		if no || keep {
			rest = append(rest, pkt...) // never past pkt itself
			left++
		}
		if no {
			continue
		}
		if ended || size != 0 && n > size || len(run)+n > maxRunBytes || len(run) == maxRun*size && size != 0 {
			if flush(); err != nil {
				if !keep {
					rest = append(rest, pkt...)
					left++
				}
				continue
			}
		}
		from := len(run)
		run = out.end(append(out.start(run, dgMessage), pkt...), from)
		if size == 0 {
			size = n
		}
		ended = n < size
	}
	if err == nil {
		flush()
	}
	return rest, left, err
}
