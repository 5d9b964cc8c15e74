package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// queueLen is how many packets wait at most for Read. A packet of TCP shares its payload with the retransmission
	// queue, so that a full queue costs little beside it.
	queueLen = 4096
	// queueLanes is over how many lanes flows are spread. Two flows that meet in one share its turns.
	queueLanes = 256
	// quantum is what a lane may send in its turn: the longest packet.
	quantum = 64 << 10
)

// queue is what waits for Read: a fair one, in which a request does not wait behind the megabytes of a transfer. It is
// the scheduler of fq_codel (RFC 8290) without CoDel's timing: TCP's own windows bound how long a flow's packets wait.
//
//	flow ─ hash ─▶ lane ─┬─ fresh: flows that had nothing waiting, one turn each, first
//	                     └─ old:   the others, a turn of 64 KiB after the other
//
// Packets of a flow stay in order. A full queue loses packets of the lane with the most. The caller holds a lock.
type queue struct {
	n          int
	slots      [queueLen]slot
	free       int16 // list of slots
	lanes      [queueLanes]lane
	fresh, old list // of lanes
}

// slot holds a packet, or is free.
type slot struct {
	pkt  *stack.PacketBuffer
	next int16 // of the same lane, or of the free ones
}

// lane is the packets of some flows, in order.
type lane struct {
	list         // of slots
	n      int16 // packets
	credit int32 // bytes left in this turn; can be less than none
	next   int16 // lane in the same list
	active bool  // in a list
}

// list is a singly linked list of slots or lanes, by their index.
type list struct{ head, tail int16 }

// none ends a list.
const none = -1

func (q *queue) init() {
	for i := range q.slots {
		q.slots[i].next = int16(i) + 1
	}
	q.slots[queueLen-1].next = none
	q.fresh, q.old = list{none, none}, list{none, none}
	for i := range q.lanes {
		q.lanes[i].list = list{none, none}
	}
}

// put queues p, with the caller's reference to it, and returns the packet that had to go for it, which may be p.
func (q *queue) put(p *stack.PacketBuffer) (lost *stack.PacketBuffer) {
	to := laneOf(p)
	if q.free == none {
		most := to
		for i := range q.lanes {
			if q.lanes[i].n > q.lanes[most].n {
				most = int16(i)
			}
		}
		if most == to {
			return p
		}
		lost = q.pull(most)
	}
	s := q.free
	q.free = q.slots[s].next
	q.slots[s] = slot{p, none}
	l := &q.lanes[to]
	if l.tail == none {
		l.head = s
	} else {
		q.slots[l.tail].next = s
	}
	l.tail = s
	l.n++
	q.n++
	if !l.active {
		l.active, l.credit = true, quantum
		q.append(&q.fresh, to)
	}
	return lost
}

// get returns the packet whose turn it is, nil if there is none.
func (q *queue) get() *stack.PacketBuffer {
	for {
		from := &q.fresh
		if from.head == none {
			from = &q.old
		}
		i := from.head
		if i == none {
			return nil
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
			p := q.pull(i)
			l.credit -= int32(p.Size())
			return p
		}
	}
}

// pull takes the oldest packet of a lane that has one.
func (q *queue) pull(i int16) *stack.PacketBuffer {
	l := &q.lanes[i]
	s := l.head
	p := q.slots[s].pkt
	if l.head = q.slots[s].next; l.head == none {
		l.tail = none
	}
	l.n--
	q.n--
	q.slots[s] = slot{nil, q.free}
	q.free = s
	return p
}

// append puts a lane, which is in no list, at the end of one.
func (q *queue) append(to *list, i int16) {
	q.lanes[i].next = none
	if to.tail == none {
		to.head = i
	} else {
		q.lanes[to.tail].next = i
	}
	to.tail = i
}

// shift takes the first lane out of a list.
func (q *queue) shift(from *list) {
	if from.head = q.lanes[from.head].next; from.head == none {
		from.tail = none
	}
}

// laneOf tells a packet's lane. TCP gives each connection a number; all else between two hosts shares one, because
// only the first fragment of a datagram carries ports and a flow's datagrams must not overtake each other.
func laneOf(p *stack.PacketBuffer) int16 {
	h := p.Hash
	if h == 0 {
		switch ip := p.NetworkHeader().Slice(); {
		case len(ip) >= header.IPv6MinimumSize:
			h = mix(h, ip[8:header.IPv6MinimumSize])
		case len(ip) >= header.IPv4MinimumSize:
			h = mix(h, ip[12:header.IPv4MinimumSize])
		}
	}
	return int16(h * 0x9e3779b1 >> 24) // Fibonacci hashing: the upper bits depend on all
}

// mix adds bytes, a multiple of 4, to a hash.
func mix(h uint32, b []byte) uint32 {
	for ; len(b) >= 4; b = b[4:] {
		h = (h ^ binary.NativeEndian.Uint32(b)) * 0x01000193
	}
	return h
}
