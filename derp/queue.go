package derp

import (
	"slices"
	"sync"

	"github.com/hedge-mesh/hedge/node/key"
)

// block is a message in the making: whole packets, of which buf[off:] still wait.
type block struct {
	buf []byte // capacity MaxMessage
	off int
	n   int // packets in buf[off:]
}

var blocks = sync.Pool{New: func() any { return &block{buf: make([]byte, 0, MaxMessage)} }}

func newBlock() *block { return blocks.Get().(*block) }

func (b *block) free() {
	b.buf, b.off, b.n = b.buf[:0], 0, 0
	blocks.Put(b)
}

func (b *block) bytes() []byte { return b.buf[b.off:] }

// fits reports whether n bytes more go in, after moving what waits to the front if that helps.
func (b *block) fits(n int) bool {
	if len(b.buf)+n <= MaxMessage {
		return true
	}
	if len(b.bytes())+n > MaxMessage {
		return false
	}
	b.buf, b.off = b.buf[:copy(b.buf, b.bytes())], 0
	return true
}

// dropAt removes the packet at i, an index into buf, and returns its length.
func (b *block) dropAt(i int) int {
	p, _, _ := cutPacket(b.buf[i:]) // only whole packets are in a block
	if b.n--; i == b.off {
		b.off += len(p)
	} else {
		b.buf = slices.Delete(b.buf, i, i+len(p))
	}
	return len(p)
}

// queue holds the packets that wait to be written to one connection.
//
//	push ──▶ data    ▮▮▮▮▮▮▮▮▮▮   whole messages; a full queue drops its oldest packets
//	                     │
//	pushUrgent ──▶ ▮▮▮   │        at most one message, of at most maxUrgentPackets, goes first
//	                ╰──▶ pop ──▶ writer
//
// It has memory only while something waits. Its methods may be called from any goroutine.
type queue struct {
	maxBytes, maxPackets int
	// maxSame is how many urgent packets may carry the same key, which on a relay is the sender's; 0 for no limit.
	// A sender over it loses its own oldest one; when all senders together are too many, the newest is lost.
	maxSame int

	mu             sync.Mutex
	data           []*block
	bytes, packets int // in data
	urgent         *block
	busy           bool // somebody is popping, and goes on until pop returns nil
	finishing      bool // takes no more; what waits still goes out
	dead           bool // takes no more, and nobody may start to pop
	writers        sync.WaitGroup
}

const (
	maxUrgentPackets = 32
	maxUrgentSame    = 8
	moveSize         = 1200 // bytes of a message that follows a node
)

// push takes a run of n whole packets, unless the queue takes nothing more. It returns how many packets, of these or
// older ones, were dropped to make room, and whether the caller must start a writer, which calls writers.Done at its end.
func (q *queue) push(run []byte, n int) (dropped int, start, taken bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.finishing || q.dead {
		return 0, false, false
	}
	b := q.tail(len(run))
	b.buf = append(b.buf, run...)
	b.n += n
	q.bytes += len(run)
	q.packets += n
	return q.trim(), q.wake(), true
}

// pushPackets is push for packets that are not yet in wire form.
func (q *queue) pushPackets(k [key.Size]byte, pkts [][]byte) (dropped int, start, taken bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.finishing || q.dead {
		return 0, false, false
	}
	for _, p := range pkts {
		b := q.tail(headerLen + len(p))
		b.buf = appendPacket(b.buf, k, p)
		b.n++
		q.bytes += headerLen + len(p)
		q.packets++
	}
	return q.trim(), q.wake(), true
}

// pushUrgent is push for one packet that goes before all data. It may be the one that is dropped.
func (q *queue) pushUrgent(k [key.Size]byte, payload []byte) (dropped int, start, taken bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.finishing || q.dead {
		return 0, false, false
	}
	if q.urgent == nil {
		q.urgent = newBlock()
	}
	b := q.urgent
	if first, n := b.count(k, q.maxSame == 0); n > 0 && (n == q.maxSame || q.maxSame == 0 && n == maxUrgentPackets) {
		b.dropAt(first)
		dropped++
	}
	if b.n == maxUrgentPackets || !b.fits(headerLen+len(payload)) {
		return dropped + 1, q.wake(), true
	}
	b.buf = appendPacket(b.buf, k, payload)
	b.n++
	return dropped, q.wake(), true
}

// count finds the packets of key k, or all of them: where the first is, and how many.
func (b *block) count(k [key.Size]byte, all bool) (first, n int) {
	for i := b.off; i < len(b.buf); {
		p, _, _ := cutPacket(b.buf[i:])
		if all || [key.Size]byte(p) == k {
			if n++; n == 1 {
				first = i
			}
		}
		i += len(p)
	}
	return first, n
}

// tail returns a block with room for n bytes at its end.
func (q *queue) tail(n int) *block {
	if len(q.data) > 0 {
		if b := q.data[len(q.data)-1]; b.fits(n) {
			return b
		}
	}
	b := newBlock()
	q.data = append(q.data, b)
	return b
}

// trim drops the oldest packets until the queue is within its bounds.
func (q *queue) trim() (dropped int) {
	for q.bytes > q.maxBytes || q.packets > q.maxPackets {
		b := q.data[0]
		q.bytes -= b.dropAt(b.off)
		q.packets--
		dropped++
		if b.n == 0 {
			q.data = slices.Delete(q.data, 0, 1)
			b.free()
		}
	}
	return dropped
}

func (q *queue) wake() (start bool) {
	if q.busy || q.dead {
		return false
	}
	q.busy = true
	q.writers.Add(1)
	return true
}

// waiting reports whether there is a writer at work, or one that waits.
func (q *queue) waiting() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.busy
}

// pop returns the next message, which the caller frees, or nil: then the caller is no longer the writer, and
// last says that nothing will ever follow.
func (q *queue) pop() (b *block, last bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.dead:
	case q.urgent != nil && q.urgent.n > 0:
		b, q.urgent = q.urgent, nil
		return b, false
	case len(q.data) > 0:
		b = q.data[0]
		q.data = slices.Delete(q.data, 0, 1)
		q.bytes -= len(b.bytes())
		q.packets -= b.n
		return b, false
	}
	q.release()
	if !q.finishing {
		q.busy = false // otherwise it stays so: no second writer says goodbye
	}
	return nil, q.finishing
}

// finish lets what waits go out, or not, and then has pop return last. It takes nothing more.
func (q *queue) finish(discard bool) (start bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.finishing || q.dead {
		return false
	}
	if discard {
		q.release()
	}
	q.finishing = true
	return q.wake()
}

// clear drops all that waits.
func (q *queue) clear() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.release()
}

// kill frees all and waits for the writer, whose connection the caller has closed.
func (q *queue) kill() {
	q.mu.Lock()
	q.dead = true
	q.release()
	q.mu.Unlock()
	q.writers.Wait()
}

// moveTo gives what waits to a queue that is not in use yet, after a row of n packets. Those go in short messages: a long one
// is not there before a new connection's second flight.
func (q *queue) moveTo(to *queue, row []byte, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.finishing || q.dead {
		return
	}
	to.data, to.bytes, to.packets, to.urgent = q.data, q.bytes, q.packets, q.urgent
	q.data, q.bytes, q.packets, q.urgent = nil, 0, 0, nil
	var first []*block
	to.bytes, to.packets = to.bytes+len(row), to.packets+n
	for p, rest, err := cutPacket(row); err == nil; p, rest, err = cutPacket(rest) {
		if last := len(first) - 1; last < 0 || len(first[last].buf)+len(p) > moveSize {
			first = append(first, newBlock())
		}
		b := first[len(first)-1]
		b.buf, b.n = append(b.buf, p...), b.n+1
	}
	to.data = append(first, to.data...)
	to.trim()
}

func (q *queue) release() {
	for i, b := range q.data {
		b.free()
		q.data[i] = nil
	}
	if q.urgent != nil {
		q.urgent.free()
	}
	q.data, q.bytes, q.packets, q.urgent = q.data[:0], 0, 0, nil
}
