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
	// backlogRest is how many packets are taken of the kernel ahead, two batches, by the one of two readers that has the
	// descriptor only while nobody sends little. In a flood more would be read only to be lost.
	backlogRest  = 256
	backlogBytes = 4 << 20
	// backlogAlone is how much is taken of the kernel ahead as long as no flow is seen to wait behind another: what has
	// left the processor's cache when its turn comes costs a transfer a tenth more.
	backlogAlone = 128 << 10
	backlogAll   = 1 << 30 // else: the flow that has too much loses what is too much
	// backlogBehind is how many that wait are taken after one that does not, before that goes on.
	backlogBehind = 4
	// backlogOthers is for how long one is expected after the last.
	backlogOthers = time.Second
)

// drain moves what the kernel has queued to the backlog, where flows take turns. In the kernel all wait in one line, of up to
// 500 packets of 64 KiB, and TCP knows of no limit: the kernel takes a packet as sent once it is in that line. It reports
// whether there was anything that waits for its turn, and whether the kernel has nothing more: only then may it be waited for
// by Go's poller, which tells of what comes, and not of what is there.
func (d *driver) drain(fd uintptr, me reader) (some, empty bool) {
	most := backlogAlone
	if me == sparse || time.Since(d.others) < backlogOthers {
		most = backlogAll
	}
	ahead, behind := 0, 0
	reads := backlogPackets
	if me == rest && d.isSparse != nil {
		reads = backlogRest
	}
	for range reads {
		if d.in == nil {
			d.in = bigBuffers.Get().(*bigBuffer)
		}
		n, err := unix.Read(int(fd), d.in[:])
		switch err {
		case nil:
			if n <= vnetLen {
				continue
			}
			h, flow, other := d.hold(n)
			if d.isSparse != nil && d.isSparse(h.bytes[vnetLen:]) {
				d.putAhead(h)
				if ahead++; me != sparse || ahead == mostAhead {
					return some, false // it is the other's now
				}
				continue
			}
			some = true
			waiting := d.put(flow, n, h)
			if other && waiting > n {
				d.others, most = time.Now(), backlogAll
			}
			if behind++; waiting >= most || ahead > 0 && behind >= backlogBehind {
				return some, false
			}
		case unix.EINTR:
		case unix.EAGAIN:
			return some, true
		default:
			d.readErr = err
			return some, false
		}
	}
	return some, false
}

// hold takes what has been read into in out of it, or in with it, and says whose it is, and whether it is a short packet of
// another flow than the long ones.
func (d *driver) hold(n int) (h held, flow uint32, other bool) {
	h = held{bytes: d.in[:n], big: d.in}
	flow = fair.Flow(h.bytes[vnetLen:])
	if n > len(smallBuffer{}) {
		d.in, d.long = nil, flow
		return h, flow, false
	}
	h.big, h.small = nil, smallBuffers.Get().(*smallBuffer)
	h.bytes = h.small[:copy(h.small[:], d.in[:n])]
	return h, flow, flow != d.long && !fair.Bare(h.bytes[vnetLen:])
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
