package node

import (
	"sync/atomic"
	"time"

	"github.com/hedge-mesh/hedge/node/device"
)

// spare gives back what the device's buffers take and packets do not need. They are of 64 KiB, most packets of less than
// a page, and the runtime clears a buffer wherever its memory has been used before, which takes all of its 16 pages:
//
//	new     nothing at its start            ▶ all but the start is given back, before it is filled first
//	long    what came out while packets of  ▶ the same, once there are none any more
//	        more than longPacket passed
//
// Each reader of the device has a batch of them, of 8 MiB, and keeps it.
type spare struct {
	long atomic.Int64 // until when there are long packets, in nanoseconds; 0 if there never were
}

const (
	longPacket = 2048 // bytes
	longRest   = time.Second
	longMark   = 1 // at longAt of a buffer: a byte of the message type, which is always 0 on the wire
	longAt     = 1
)

// pass notes how long the longest of some packets is.
func (s *spare) pass(n int, now time.Time) {
	if n <= longPacket {
		return
	}
	if until := now.UnixNano() + int64(longRest); until-s.long.Load() > int64(longRest)/10 {
		s.long.Store(until)
	}
}

func (s *spare) isLong(now time.Time) bool {
	until := s.long.Load()
	return until != 0 && now.UnixNano() < until
}

// leave notes buffers whose packets have come out of the device.
func (s *spare) leave(bufs [][]byte, now time.Time) {
	if !s.isLong(now) {
		return
	}
	for _, b := range bufs {
		if len(b) >= device.MessageTransportHeaderSize {
			b[longAt] = longMark
		}
	}
}

// trim looks at buffers that are to be filled.
func (s *spare) trim(bufs [][]byte) {
	for _, b := range bufs {
		switch {
		case len(b) != device.MaxMessageSize:
		case [device.MessageTransportHeaderSize]byte(b) == [device.MessageTransportHeaderSize]byte{}:
			release(b[longPacket:])
		case b[longAt] == longMark && !s.isLong(time.Now()):
			b[longAt] = 0
			release(b[longPacket:])
		}
	}
}
