package netstack

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// queued makes a packet of a flow, which says in its mark which one of the flow's it is.
func queued(flow, seq uint32, size int) *stack.PacketBuffer {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(buffer.NewViewSize(size))})
	p.Hash, p.Mark = flow, seq
	return p
}

func TestQueueOrder(t *testing.T) {
	const big = quantum
	for _, c := range []struct {
		name string
		do   string // "a" puts a small packet of flow a, "A" a big one, "." gets one
		want string
	}{
		{"in order", "aaa...", "aaa"},
		{"nothing", ".", "-"},
		{"a request passes a transfer", "AAAAA..b...", "AAbAA"},
		{"transfers take turns", "AAAABBBB........", "ABABABAB"},
		{"small packets share a turn", "abab....", "aabb"},
		{"a new flow has one turn only", "AAAABBBB..CCCC..........", "ABCABCABCABC"},
		{"a flow that has ended is new again", "a.AAA.a...", "aAAAa"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := new(queue)
			q.init()
			var got strings.Builder
			for _, r := range c.do {
				switch {
				case r != '.':
					size := 100
					if r < 'a' {
						size = big
					}
					q.put(queued(uint32(r|0x20), uint32(r), size))
				default:
					if p := q.get(); p != nil {
						got.WriteByte(byte(p.Mark))
						p.DecRef()
					} else {
						got.WriteByte('-')
					}
				}
			}
			if got.String() != c.want {
				t.Errorf("%s gives %s, want %s", c.do, &got, c.want)
			}
		})
	}
}

// TestQueueFull fills the queue with one flow: it loses its own packets, and others none.
func TestQueueFull(t *testing.T) {
	q := new(queue)
	q.init()
	for i := range uint32(queueLen) {
		if lost := q.put(queued(1, i, 100)); lost != nil {
			t.Fatalf("packet %d is lost of %d that fit", i, queueLen)
		}
	}
	last := queued(1, queueLen, 100)
	if lost := q.put(last); lost != last {
		t.Error("the flow that fills the queue got more of it")
	}
	last.DecRef()
	for i := range uint32(10) {
		lost := q.put(queued(2, i, 100))
		if lost == nil || lost.Hash != 1 || lost.Mark != i {
			t.Fatalf("for the other flow's packet %d goes %+v, want the oldest of the first flow", i, lost)
		}
		lost.DecRef()
	}
	seen := map[uint32]int{}
	for p := q.get(); p != nil; p = q.get() {
		seen[p.Hash]++
		p.DecRef()
	}
	if seen[1] != queueLen-10 || seen[2] != 10 {
		t.Errorf("packets by flow: %v", seen)
	}
}

// TestQueueRandom puts and gets at random: every packet comes out once, in the order of its flow, and none waits
// while the queue says that it is empty.
func TestQueueRandom(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		q := new(queue)
		q.init()
		in, out, waiting := map[uint32]uint32{}, map[uint32]uint32{}, 0
		for step := range 20000 {
			if rnd.IntN(100) < 50 && waiting < queueLen {
				flow := 1 + rnd.Uint32N(300) // more than lanes
				in[flow]++
				if lost := q.put(queued(flow, in[flow], 1+rnd.IntN(quantum))); lost != nil {
					t.Fatal("lost before it was full")
				}
				waiting++
				continue
			}
			p := q.get()
			if (p == nil) != (waiting == 0) {
				t.Fatalf("seed %d, step %d: %d wait, got %v", seed, step, waiting, p)
			}
			if p == nil {
				continue
			}
			waiting--
			if out[p.Hash]++; out[p.Hash] != p.Mark {
				t.Fatalf("seed %d, step %d: packet %d of flow %d came as its %dth", seed, step, p.Mark, p.Hash, out[p.Hash])
			}
			p.DecRef()
		}
	}
}

func TestInject(t *testing.T) {
	s := newStack(t, Options{}, a4)
	want := tcpPacket(a4, b4, 1, 0x04, "")
	s.Inject([][]byte{nil, make([]byte, 1281), want})
	bufs, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
	if n, err := s.Read(bufs, sizes, 16); n != 1 || err != nil || !bytes.Equal(bufs[0][16:16+sizes[0]], want) {
		t.Errorf("read %d packets, %v: % x, want % x", n, err, bufs[0][16:16+sizes[0]], want)
	}
	s.Close()
	s.Inject([][]byte{want}) // goes nowhere
}

func BenchmarkQueue(b *testing.B) {
	for _, flows := range []uint32{1, 8, 1000} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			q := new(queue)
			q.init()
			pkts := make([]*stack.PacketBuffer, flows)
			for i := range pkts {
				pkts[i] = queued(uint32(i)+1, 0, 1200)
				q.put(pkts[i])
			}
			b.ReportAllocs()
			for b.Loop() {
				q.put(q.get())
			}
		})
	}
}
