package ostun

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hedge-mesh/hedge/node/fair"
)

// What waits at most between the kernel and WireGuard.
const (
	backlogPackets = 1024
	backlogBytes   = 4 << 20
	// backlogAlone is how much is taken of the kernel ahead as long as no flow is seen to wait behind another: what has
	// left the processor's cache when its turn comes costs a transfer a tenth more.
	backlogAlone = 128 << 10
	backlogAll   = 1 << 30 // else: the flow that has too much loses what is too much
	// backlogOthers is for how long one is expected after the last.
	backlogOthers = time.Second
)

// drain moves what the kernel has queued to a fair queue. There all flows wait in one line, of up to 500 packets of 64
// KiB, and TCP knows of no limit: the kernel takes a packet as sent once it is in that line.
func (d *driver) drain(fd uintptr) {
	most := backlogAlone
	if time.Since(d.others) < backlogOthers {
		most = backlogAll
	}
	for i := 0; i < backlogPackets && d.waiting.Bytes() < most; i++ {
		if d.in == nil {
			d.in = bigBuffers.Get().(*bigBuffer)
		}
		n, err := unix.Read(int(fd), d.in[:])
		switch err {
		case nil:
			if n <= vnetLen {
				continue
			}
			h := held{bytes: d.in[:n], big: d.in}
			flow := fair.Flow(h.bytes[vnetLen:])
			if n <= len(smallBuffer{}) {
				h.big, h.small = nil, smallBuffers.Get().(*smallBuffer)
				h.bytes = h.small[:copy(h.small[:], d.in[:n])]
				if flow != d.long && d.waiting.Len() > 0 && !fair.Bare(h.bytes[vnetLen:]) {
					d.others, most = time.Now(), backlogAll
				}
			} else {
				d.in, d.long = nil, flow
			}
			d.waiting.Put(flow, n, h)
		case unix.EINTR:
		case unix.EAGAIN:
			return
		default:
			d.readErr = err
			return
		}
	}
}

// held is a packet of the kernel's with its vnet, in a buffer of one of two sizes.
type held struct {
	bytes []byte
	big   *bigBuffer
	small *smallBuffer
}

type (
	bigBuffer   [vnetLen + maxPacket]byte
	smallBuffer [2 << 10]byte
)

var (
	bigBuffers   = sync.Pool{New: func() any { return new(bigBuffer) }}
	smallBuffers = sync.Pool{New: func() any { return new(smallBuffer) }}
)

// release gives the buffer back.
func (h held) release() {
	switch {
	case h.big != nil:
		bigBuffers.Put(h.big)
	case h.small != nil:
		smallBuffers.Put(h.small)
	}
}
