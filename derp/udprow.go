package derp

import (
	"net/netip"
	"sync"

	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/udp"
)

// runBufs are for runs that are being made.
var runBufs = sync.Pool{New: func() any { b := make([]byte, 0, 1<<16); return &b }}

// sendRow sends the packets of a row, each in a datagram of its own. Those to or from the relay itself, and those whose
// datagram would be longer than use, are moved together at the row's beginning and returned, with their number; and so
// are those that come after an error. With keep all are.
func sendRow(s *udp.Socket, out *seal, to netip.AddrPort, use int, row []byte, keep bool) (rest []byte, left int, err error) {
	p := runBufs.Get().(*[]byte)
	defer runBufs.Put(p)
	run, size, ended := (*p)[:0], 0, false // ended: the last of the run is shorter than the others
	flush := func() {
		if len(run) > 0 {
			err = s.WriteRun(run, size, to)
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
		if ended || size != 0 && n > size || len(run)+n > udp.MaxRunBytes || len(run) == udp.MaxRun*size && size != 0 {
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
