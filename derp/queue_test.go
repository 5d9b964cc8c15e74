package derp

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func newQueue(bytes, packets, same int) *queue {
	q := &queue{maxBytes: bytes, maxPackets: packets, maxSame: same}
	q.wake()
	return q
}

// drain pops everything, as packets.
func drain(q *queue) (all []string) {
	for {
		b, _ := q.pop()
		if b == nil {
			q.wake()
			return all
		}
		for rest := b.bytes(); len(rest) > 0; {
			var p []byte
			p, rest, _ = cutPacket(rest)
			all = append(all, string(p[headerLen:]))
		}
		b.free()
	}
}

func TestQueueDropsOldest(t *testing.T) {
	q := newQueue(1<<20, 3, 0)
	for i := range 5 {
		run := appendPacket(nil, [32]byte{1}, fmt.Append(nil, i))
		want := 0
		if i >= 3 {
			want = 1
		}
		if dropped, _, taken := q.push(run, 1); dropped != want || !taken {
			t.Errorf("push %d: %d dropped, taken %v", i, dropped, taken)
		}
	}
	if got := fmt.Sprint(drain(q)); got != "[2 3 4]" {
		t.Errorf("left are %s", got)
	}
	q = newQueue(1<<20, 3, 0)
	for i := range 5 { // as long as they come, so that two are in a message at most
		q.push(appendPacket(nil, [32]byte{1}, fmt.Appendf(nil, "%d%30000d", i, 0)), 1)
	}
	got := ""
	for _, p := range drain(q) {
		got += fmt.Sprint(p)[:1]
	}
	if got != "234" {
		t.Errorf("of long ones are left %s", got)
	}
}

func TestUrgentGoesFirst(t *testing.T) {
	q := newQueue(1<<20, 100, maxUrgentSame)
	q.push(appendPacket(nil, [32]byte{1}, data("d")), 1)
	q.pushUrgent([32]byte{1}, []byte("u"))
	if got := fmt.Sprintf("%q", drain(q)); got != `["u" "\x04\x00\x00\x00d"]` {
		t.Errorf("order is %s", got)
	}
}

// TestUrgentQuota: a sender with too much that is urgent hurts only itself.
func TestUrgentQuota(t *testing.T) {
	q := newQueue(1<<20, 100, maxUrgentSame)
	q.pushUrgent([32]byte{2}, []byte("victim"))
	for i := range 1000 {
		q.pushUrgent([32]byte{1}, fmt.Append(nil, i))
	}
	got := drain(q)
	if len(got) != 1+maxUrgentSame || got[0] != "victim" || got[maxUrgentSame] != "999" {
		t.Errorf("left are %q", got)
	}
	for i := range byte(100) { // many senders: the first stay
		q.pushUrgent([32]byte{i}, []byte{i})
	}
	if got := drain(q); len(got) != maxUrgentPackets || got[0] != "\x00" {
		t.Errorf("left are %d, first %q", len(got), got[0])
	}
	one := newQueue(1<<20, 100, 0) // a client's own: the newest stay
	for i := range 1000 {
		one.pushUrgent([32]byte{byte(i)}, bytes.Repeat([]byte{byte(i)}, maxUrgent))
	}
	if got := drain(one); len(got) != MaxMessage/(headerLen+maxUrgent) && len(got) != maxUrgentPackets {
		t.Errorf("left are %d", len(got))
	}
}

func TestQueueIsEmptyWhenIdle(t *testing.T) {
	q := newQueue(1<<20, 1000, 0)
	q.push(appendPacket(nil, [32]byte{1}, data("x")), 1)
	q.pushUrgent([32]byte{1}, []byte("x"))
	drain(q)
	if len(q.data) != 0 || q.urgent != nil || q.bytes != 0 || q.packets != 0 {
		t.Errorf("%+v", q)
	}
}

func TestQueueFinish(t *testing.T) {
	q := &queue{maxBytes: 1 << 20, maxPackets: 10}
	_, start, _ := q.push(appendPacket(nil, [32]byte{1}, data("x")), 1)
	if !start {
		t.Error("the first packet starts no writer")
	}
	if q.finish(false) {
		t.Error("finish wants a second writer")
	}
	if _, _, taken := q.push(appendPacket(nil, [32]byte{1}, data("y")), 1); taken {
		t.Error("a finishing queue takes packets")
	}
	if b, _ := q.pop(); b == nil {
		t.Error("what waited is gone")
	}
	if b, last := q.pop(); b != nil || !last {
		t.Error("the writer is not told that it was the last")
	}
	q.writers.Done()
	q.kill()
}

// TestQueueModel: whatever is pushed, what comes out is the newest that fits, in order, and the bounds hold.
func TestQueueModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue(MaxMessage, rapid.IntRange(1, 60).Draw(t, "packets"), 0)
		var model [][]byte
		size := 0
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.IntRange(0, 9).Draw(t, "op") == 0 {
				b, _ := q.pop()
				if b == nil {
					q.wake()
					continue
				}
				for rest := b.bytes(); len(rest) > 0; {
					var p []byte
					p, rest, _ = cutPacket(rest)
					if !bytes.Equal(p, model[0]) {
						t.Fatalf("popped %.50x, want %.50x", p, model[0])
					}
					size -= len(p)
					model = model[1:]
				}
				b.free()
				continue
			}
			var run []byte
			n := rapid.IntRange(1, 5).Draw(t, "n")
			for range n {
				p := bytes.Repeat([]byte{4}, rapid.IntRange(1, 9000).Draw(t, "size"))
				one := appendPacket(nil, [32]byte{byte(len(model))}, p)
				run = append(run, one...)
				model = append(model, one)
				size += len(one)
			}
			dropped, _, _ := q.push(run, n)
			for ; dropped > 0; dropped-- {
				size -= len(model[0])
				model = model[1:]
			}
			if q.bytes != size || q.packets != len(model) || q.bytes > q.maxBytes || q.packets > q.maxPackets {
				t.Fatalf("%d packets, %d bytes; want %d, %d", q.packets, q.bytes, len(model), size)
			}
			if len(q.data) > 2*q.maxBytes/MaxMessage+2 {
				t.Fatalf("%d blocks for %d bytes", len(q.data), q.bytes)
			}
		}
	})
}
