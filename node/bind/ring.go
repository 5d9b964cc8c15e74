package bind

import (
	"net"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

// ring is a bounded queue of packets from relays to the device: many write, one reads. When full it drops the oldest,
// which is worth least to what is inside.
type ring struct {
	mu      sync.Mutex
	slots   [ringSize]slot
	head, n int
	dropped uint64
	ready   chan struct{} // one token while there may be packets

	lent []slot // of who reads: what it returned last
}

const (
	ringSize = 1024
	slotSize = 2048 // larger packets are allocated
)

type slot struct {
	buf *[slotSize]byte
	big []byte // instead of buf
	n   int
	ep  conn.Endpoint
}

var slotBufs = sync.Pool{New: func() any { return new([slotSize]byte) }}

func (s *slot) free() {
	if s.buf != nil {
		slotBufs.Put(s.buf)
	}
	*s = slot{}
}

// push copies a packet in.
func (r *ring) push(pkt []byte, ep conn.Endpoint) {
	s := slot{n: len(pkt), ep: ep}
	if len(pkt) <= slotSize {
		s.buf = slotBufs.Get().(*[slotSize]byte)
		copy(s.buf[:], pkt)
	} else {
		s.big = append(s.big, pkt...)
	}
	r.mu.Lock()
	if r.n == ringSize {
		r.slots[r.head].free()
		r.head = (r.head + 1) % ringSize
		r.n--
		r.dropped++
	}
	r.slots[(r.head+r.n)%ringSize] = s
	r.n++
	r.mu.Unlock()
	select {
	case r.ready <- struct{}{}:
	default:
	}
}

// pop waits for packets and lends them until the next call, until done.
func (r *ring) pop(done <-chan struct{}, bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for i := range r.lent {
		r.lent[i].free()
	}
	r.lent = r.lent[:0]
	for {
		select {
		case <-done:
			return 0, net.ErrClosed
		case <-r.ready:
		}
		r.mu.Lock()
		n := min(r.n, len(bufs))
		for i := range n {
			s := &r.slots[r.head]
			bufs[i], sizes[i], eps[i] = s.big, s.n, s.ep
			if s.buf != nil {
				bufs[i] = s.buf[:s.n]
			}
			r.lent = append(r.lent, *s)
			*s = slot{}
			r.head = (r.head + 1) % ringSize
			r.n--
		}
		more := r.n > 0
		r.mu.Unlock()
		if more {
			select {
			case r.ready <- struct{}{}:
			default:
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}
