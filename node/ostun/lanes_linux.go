package ostun

import (
	"os"
	"sync"
	"time"

	"github.com/hedge-mesh/hedge/node/fair"
	"github.com/hedge-mesh/hedge/node/sentry"
)

// backlog is what was read of the kernel, and who reads on. Where there are two readers one of them has the descriptor:
//
//	who has it │ the reader of sparse flows                 │ the reader of all others
//	───────────┼────────────────────────────────────────────┼─────────────────────────────────────────────
//	sparse     │ waits for the kernel, by a sentry          │ waits for what that leaves
//	rest       │ waits for a packet of its flows            │ waits for the kernel, by Go's poller
//
// The second row is a transfer that is alone: nobody else is woken for it. It begins after sparseStays in which there was
// nothing else, and ends with the first packet of a flow that sends little.
type backlog struct {
	isSparse func(pkt []byte) bool // nil: there is one reader, and it has the descriptor
	sentry   *sentry.Sentry
	stays    time.Duration // sparseStays, but for tests

	// of whoever has the descriptor
	in      *bigBuffer // of the next read; nil until there is one
	long    uint32     // the flow of the last long packet
	others  time.Time  // when a short one of another flow came behind others
	heard   time.Time  // when one of a flow that sends little came
	readErr error

	mu      sync.Mutex // all of the following
	turn    reader     // who has the descriptor
	waiting *fair.Queue[held]
	ahead   []held // of flows that send little
	woken   bool   // rest's reader is to return
	closed  bool
	changed [2]sync.Cond // for each reader
}

// reader is one of the two.
type reader int

const (
	rest reader = iota
	sparse
)

const (
	// sparseStays is for how long flows that send little are expected to go on.
	sparseStays = 100 * time.Millisecond
	// mostAhead is how many of their packets are taken of the kernel at once. More stay there: elsewhere those that come
	// next would overtake them.
	mostAhead = 128
)

func (b *backlog) init() {
	b.waiting = fair.New(backlogPackets, backlogBytes, held.release)
	b.ahead = make([]held, 0, mostAhead)
	for i := range b.changed {
		b.changed[i].L = &b.mu
	}
}

// put queues a packet for its turn, and says how many bytes wait then.
func (b *backlog) put(flow uint32, n int, h held) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting.Put(flow, n, h)
	return b.waiting.Bytes()
}

// putAhead is for one that has not to wait, and gives the descriptor to who sends those: what is of whoever has it, rest's
// reader may not touch from then on.
func (b *backlog) putAhead(h held) {
	b.heard = time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ahead = append(b.ahead, h)
	if b.turn != sparse {
		b.turn = sparse
		b.changed[sparse].Signal()
	}
}

// get is the next packet for a reader.
func (b *backlog) get(me reader) (h held, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case me == rest:
		return b.waiting.Get()
	case len(b.ahead) > 0:
		h = b.ahead[0]
		n := copy(b.ahead, b.ahead[1:])
		b.ahead[n] = held{}
		b.ahead = b.ahead[:n]
		return h, true
	}
	return h, false
}

// await waits until a reader has the descriptor, or something to send, which may be what is left of the packet it cuts. It
// reports whether it has the descriptor: then there is nothing to send but, for rest's reader, what it finds when it asks the
// kernel. To wait for the kernel while something lies ahead would be to wait for the next packet. Who is woken has what there
// is first: a stack beside the interface may wake it all the time.
func (b *backlog) await(me reader, left bool) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		switch {
		case b.closed:
			return false, os.ErrClosed
		case me == sparse && len(b.ahead) > 0:
			return false, nil
		case b.turn == me:
			return true, nil // and the deadline wakes it
		case left || me == rest && b.waiting.Len() > 0:
			return false, nil
		case me == rest && b.woken:
			b.woken = false
			return false, os.ErrDeadlineExceeded
		}
		b.changed[me].Wait()
	}
}

// is reports whether a reader has the descriptor.
func (b *backlog) is(me reader) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.turn == me
}

// leave tells rest's reader that there is something for it, and gives it the descriptor if it is the only one.
func (b *backlog) leave() {
	alone := time.Since(b.heard) > b.stays
	b.mu.Lock()
	defer b.mu.Unlock()
	if alone {
		b.turn = rest
	}
	b.changed[rest].Signal()
}

// wake has rest's reader return, with an error that says that it is past a deadline.
func (b *backlog) wake() {
	if b.isSparse == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.woken = true
	b.changed[rest].Signal()
}

// end has both readers return.
func (b *backlog) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.changed[rest].Signal()
	b.changed[sparse].Signal()
}

// lanes makes two readers of the driver, before it is read. The second is Read.
func (d *driver) lanes(isSparse func([]byte) bool) (readSparse func([][]byte, []int, int) (int, error), ok bool) {
	s, err := sentry.New(d.raw)
	if err != nil {
		return nil, false
	}
	d.isSparse, d.sentry, d.stays, d.turn, d.heard = isSparse, s, sparseStays, sparse, time.Now()
	return d.readSparse, true
}

// readSparse is Read for flows that send little.
func (d *driver) readSparse(bufs [][]byte, sizes []int, offset int) (int, error) {
	l := &d.lane[sparse]
	l.begin(bufs, sizes, offset)
	defer l.end()
	for {
		if err := d.raw.Control(l.look); err != nil {
			return 0, os.ErrClosed
		}
		if l.got > 0 {
			return l.got, nil
		}
		if mine, err := d.await(sparse, false); err != nil {
			return 0, err
		} else if !mine {
			continue
		}
		if ready, err := d.sentry.Wait(-1); err != nil {
			return 0, err
		} else if !ready {
			continue
		}
		if err := d.raw.Control(d.step); err != nil {
			return 0, os.ErrClosed
		}
		if d.readErr != nil {
			return 0, gone(d.readErr)
		}
	}
}

// Close implements tun.Device.
func (d *driver) Close() error {
	d.end()
	if d.sentry != nil {
		return d.sentry.Close(d.file)
	}
	return d.file.Close()
}
