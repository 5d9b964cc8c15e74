package derp

import (
	"slices"
	"sync"
	"time"
)

// tail is what a session's WebSocket was given last. A node whose address changed comes by a new connection, while the old
// one has on its way what nobody will ever get; it says how many messages it got, and the rest goes out by the new one.
//
//	queue ──▶ tail ──▶ WebSocket, the old ──▶ 1 2 3 … heard │ lost with the node's address
//	            │                                           ╰──────────╮
//	            ╰──▶ the front of the new one's queue ◀── as many back ╯
//
// A transfer leaves no tail: it repeats by itself what it misses.
type tail struct {
	mu    sync.Mutex
	total uint64 // messages, of which the last are in row
	row   []byte // whole packets, the oldest first
	marks []mark // of the messages that they went in
}

// mark is one message.
type mark struct {
	no   uint64 // 1 for the first
	at   time.Time
	n    int // packets
	size int // bytes in row
}

const (
	tailBytes = 32 << 10
	tailLong  = 8 << 10     // a message of more is a transfer's
	tailKeeps = time.Second // longer than a node takes to come back, and than packets are of use
)

// add takes a message of n packets that is about to be written; none for one that is of use to nobody later.
func (t *tail) add(msg []byte, n int, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total++
	switch {
	case n == 0:
		return
	case len(msg) > tailLong:
		t.cut(len(t.marks))
		return
	case len(t.row)+len(msg) > tailBytes:
		t.cut((len(t.marks) + 1) / 2) // not one by one: each moves the others
	}
	t.row = append(t.row, msg...)
	t.marks = append(t.marks, mark{t.total, now, n, len(msg)})
}

// cut drops the first messages. The caller holds mu.
func (t *tail) cut(messages int) {
	size := 0
	for _, m := range t.marks[:messages] {
		size += m.size
	}
	t.row, t.marks = slices.Delete(t.row, 0, size), slices.Delete(t.marks, 0, messages)
}

// rest gives the memory back if nothing was written for long.
func (t *tail) rest(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.marks); n == 0 || now.Sub(t.marks[n-1].at) > tailKeeps {
		t.row, t.marks = nil, nil
	}
}

// after is a copy of the messages after the first heard ones, and how many packets are in them; those that are too old to be
// of use left out.
func (t *tail) after(heard uint64, now time.Time) (row []byte, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	size := 0
	for _, m := range slices.Backward(t.marks) {
		if m.no <= heard || now.Sub(m.at) > tailKeeps {
			break
		}
		size, n = size+m.size, n+m.n
	}
	return slices.Clone(t.row[len(t.row)-size:]), n
}
