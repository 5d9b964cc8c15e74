// Package fair queues packets so that a request does not wait behind the megabytes of a transfer. It is the scheduler
// of fq_codel (RFC 8290) without CoDel's timing.
//
//	flow ─ hash ─▶ lane ─┬─ fresh: flows that had nothing waiting, one turn each, first
//	                     └─ old:   the others, a turn of 64 KiB after the other
//
// Packets of a flow stay in order. A full queue loses packets of the flow that fills it.
package fair

import "encoding/binary"

const (
	// lanes is over how many flows are spread. Two flows that meet in one share its turns.
	lanes = 256
	// quantum is what a lane may send in its turn: the longest packet.
	quantum = 64 << 10
)

// Queue is a queue of bounded length. It is for one goroutine at a time.
type Queue[T any] struct {
	lose       func(T)
	n          int // packets
	bytes, max int
	slots      []slot[T]
	free       int16 // list of slots
	lanes      [lanes]lane
	fresh, old list // of lanes
}

// slot holds a packet, or is free.
type slot[T any] struct {
	pkt  T
	size int32
	next int16 // of the same lane, or of the free ones
}

// lane is the packets of some flows, in order.
type lane struct {
	list         // of slots
	n      int16 // packets
	bytes  int32
	credit int32 // bytes left in this turn; can be less than none
	next   int16 // lane in the same list
	active bool  // in a list
}

// list is a singly linked list of slots or lanes, by their index.
type list struct{ head, tail int16 }

// none ends a list.
const none = -1

// New makes a queue of so many packets, 32767 at most, and bytes. It gives lose what there was no room for.
func New[T any](packets int16, bytes int, lose func(T)) *Queue[T] {
	q := &Queue[T]{lose: lose, max: bytes, slots: make([]slot[T], packets), fresh: list{none, none}, old: list{none, none}}
	for i := range q.slots {
		q.slots[i].next = int16(i) + 1
	}
	q.slots[packets-1].next = none
	for i := range q.lanes {
		q.lanes[i].list = list{none, none}
	}
	return q
}

// Len is how many packets wait.
func (q *Queue[T]) Len() int { return q.n }

// Bytes is how many bytes wait.
func (q *Queue[T]) Bytes() int { return q.bytes }

// Put queues a packet of so many bytes, and reports whether it is queued. If it is, others may have gone for it.
func (q *Queue[T]) Put(flow uint32, size int, pkt T) bool {
	to := int16(flow * 0x9e3779b1 >> 24) // Fibonacci hashing: the upper bits depend on all
	for q.free == none || q.bytes+size > q.max && q.n > 0 {
		most := q.longest(to)
		if most == to {
			q.lose(pkt)
			return false
		}
		q.lose(q.pull(most))
	}
	s := q.free
	q.free = q.slots[s].next
	q.slots[s] = slot[T]{pkt, int32(size), none}
	l := &q.lanes[to]
	if l.tail == none {
		l.head = s
	} else {
		q.slots[l.tail].next = s
	}
	l.tail = s
	l.n++
	l.bytes += int32(size)
	q.n++
	q.bytes += size
	if !l.active {
		l.active, l.credit = true, quantum
		q.append(&q.fresh, to)
	}
	return true
}

// longest is the lane that has the most of what is scarce, of equal ones this.
func (q *Queue[T]) longest(this int16) int16 {
	most := this
	for i := range q.lanes {
		l, m := &q.lanes[i], &q.lanes[most]
		if q.free == none && l.n > m.n || q.free != none && l.bytes > m.bytes {
			most = int16(i)
		}
	}
	return most
}

// Get takes the packet whose turn it is, if there is one.
func (q *Queue[T]) Get() (pkt T, ok bool) {
	for {
		from := &q.fresh
		if from.head == none {
			from = &q.old
		}
		i := from.head
		if i == none {
			return pkt, false
		}
		l := &q.lanes[i]
		switch {
		case l.credit <= 0: // its turn is over
			l.credit += quantum
			q.shift(from)
			q.append(&q.old, i)
		case l.n == 0 && from == &q.fresh && q.old.head != none: // else it could come back as fresh and starve the old
			q.shift(from)
			q.append(&q.old, i)
		case l.n == 0:
			q.shift(from)
			l.active = false
		default:
			l.credit -= q.slots[l.head].size
			return q.pull(i), true
		}
	}
}

// pull takes the oldest packet of a lane that has one.
func (q *Queue[T]) pull(i int16) T {
	l := &q.lanes[i]
	s := l.head
	p := q.slots[s]
	if l.head = p.next; l.head == none {
		l.tail = none
	}
	l.n--
	l.bytes -= p.size
	q.n--
	q.bytes -= int(p.size)
	q.slots[s] = slot[T]{next: q.free}
	q.free = s
	return p.pkt
}

// append puts a lane, which is in no list, at the end of one.
func (q *Queue[T]) append(to *list, i int16) {
	q.lanes[i].next = none
	if to.tail == none {
		to.head = i
	} else {
		q.lanes[to.tail].next = i
	}
	to.tail = i
}

// shift takes the first lane out of a list.
func (q *Queue[T]) shift(from *list) {
	if from.head = q.lanes[from.head].next; from.head == none {
		from.tail = none
	}
}

// Flow tells flows apart by an IP packet's addresses, protocol and, of TCP and UDP that is not fragmented, ports. All
// the rest between two hosts is one flow, because only the first fragment of a datagram has ports, and a flow's
// datagrams must not overtake each other.
//
//	IPv4  │ 6-7 flags and fragment offset │ 9 protocol    │ 12-19 addresses │ 20-23 ports, if there are no options
//	IPv6  │                               │ 6 next header │  8-39 addresses │ 40-43 ports, if there are no extensions
func Flow(p []byte) uint32 {
	var h uint32
	at := 0
	var proto byte
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		h, proto = Mix(h, p[12:20]), p[9]
		if p[0] == 0x45 && binary.BigEndian.Uint16(p[6:])&0x3fff == 0 {
			at = 20
		}
	case len(p) >= 40 && p[0]>>4 == 6:
		h, proto, at = Mix(h, p[8:40]), p[6], 40
	default:
		return 0
	}
	if at > 0 && (proto == tcp || proto == udp) && len(p) >= at+4 {
		h = Mix(h, p[at:at+4]) ^ uint32(proto)
	}
	return h
}

// Bare reports whether an IP packet without options or extensions is nothing but an acknowledgement of TCP. Those belong
// to what is sent the other way, and gain nothing from being early: they only come in smaller batches.
func Bare(p []byte) bool {
	at, end := 0, 0
	switch {
	case len(p) >= 20 && p[0] == 0x45 && p[9] == tcp:
		at, end = 20, int(binary.BigEndian.Uint16(p[2:]))
	case len(p) >= 40 && p[0]>>4 == 6 && p[6] == tcp:
		at, end = 40, 40+int(binary.BigEndian.Uint16(p[4:]))
	default:
		return false
	}
	const flags, ack = 13, 0x10
	return len(p) >= at+20 && p[at+flags] == ack && at+int(p[at+12]>>4)*4 == end
}

const tcp, udp = 6, 17

// Mix adds bytes, a multiple of 4, to a hash.
func Mix(h uint32, b []byte) uint32 {
	for ; len(b) >= 4; b = b[4:] {
		h = (h ^ binary.NativeEndian.Uint32(b)) * 0x01000193
	}
	return h
}
