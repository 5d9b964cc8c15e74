package fair

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// item is a packet of a flow, the so manieth.
type item struct{ flow, seq uint32 }

func TestOrder(t *testing.T) {
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
			q := New(100, 100*quantum, func(p rune) { t.Errorf("%c is lost", p) })
			var got strings.Builder
			for _, r := range c.do {
				if r != '.' {
					size := 100
					if r < 'a' {
						size = quantum
					}
					q.Put(uint32(r|0x20), size, r)
				} else if p, ok := q.Get(); ok {
					got.WriteRune(p)
				} else {
					got.WriteByte('-')
				}
			}
			if got.String() != c.want {
				t.Errorf("%s gives %s, want %s", c.do, &got, c.want)
			}
		})
	}
}

// One flow fills the queue, with packets or with bytes: it loses its own, and others none.
func TestFull(t *testing.T) {
	const packets = 1000
	for _, c := range []struct {
		name  string
		room  int16 // for packets
		bytes int
		size  int // of the flow's that fills it
		goes  int // packets of it that make room for ten of the other flow
		other int // their size
	}{
		{"by packets", packets, packets * 1000, 100, 10, 100},
		{"by bytes", 2 * packets, packets * 1000, 1000, 1, 100},
		{"by bytes, small ones", 2 * packets, packets * 10, 10, 100, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			var lost []item
			q := New(c.room, c.bytes, func(p item) { lost = append(lost, p) })
			for i := range uint32(packets) {
				if !q.Put(1, c.size, item{1, i}) || len(lost) > 0 {
					t.Fatalf("packet %d is lost of %d that fit", i, packets)
				}
			}
			if q.Put(1, c.size, item{1, packets}) || !slices.Equal(lost, []item{{1, packets}}) {
				t.Errorf("the flow that fills the queue got more of it; lost %v", lost)
			}
			lost = nil
			for i := range uint32(10) {
				if !q.Put(2, c.other, item{2, i}) {
					t.Errorf("packet %d of the other flow is lost", i)
				}
			}
			for i, p := range lost {
				if p != (item{1, uint32(i)}) {
					t.Fatalf("lost %v, want the oldest of the first flow", lost)
				}
			}
			if len(lost) != c.goes {
				t.Errorf("%d went for the others, want %d", len(lost), c.goes)
			}
			seen := map[uint32]int{}
			for p, ok := q.Get(); ok; p, ok = q.Get() {
				seen[p.flow]++
			}
			if seen[1] != packets-c.goes || seen[2] != 10 || q.Len() != 0 || q.bytes != 0 {
				t.Errorf("packets by flow: %v; %d and %d bytes are left", seen, q.Len(), q.bytes)
			}
		})
	}
}

// What is longer than the whole queue is held alone.
func TestLong(t *testing.T) {
	q := New(4, 100, func(int) {})
	if !q.Put(1, 1000, 7) || q.Put(1, 1000, 8) {
		t.Error("not the first only")
	}
	if p, ok := q.Get(); !ok || p != 7 {
		t.Error("it is not there")
	}
}

// Packets put and got at random: every one comes out once, in the order of its flow, and none waits while the queue
// says that it is empty.
func TestRandom(t *testing.T) {
	const packets = 4096
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		q := New(packets, packets*quantum, func(item) { t.Error("lost before it was full") })
		in, out, waiting := map[uint32]uint32{}, map[uint32]uint32{}, 0
		for step := range 20000 {
			if rnd.IntN(100) < 50 && waiting < packets {
				flow := 1 + rnd.Uint32N(300) // more than lanes
				in[flow]++
				q.Put(flow, 1+rnd.IntN(quantum), item{flow, in[flow]})
				waiting++
				continue
			}
			p, ok := q.Get()
			if ok != (waiting > 0) || ok && q.Len() != waiting-1 {
				t.Fatalf("seed %d, step %d: %d wait, got %v", seed, step, waiting, ok)
			}
			if !ok {
				continue
			}
			waiting--
			if out[p.flow]++; out[p.flow] != p.seq {
				t.Fatalf("seed %d, step %d: packet %d of flow %d came as its %dth", seed, step, p.seq, p.flow, out[p.flow])
			}
		}
	}
}

// v4 is a packet whose addresses, protocol, fragment field and first bytes are given.
func v4(first, proto byte, frag uint16, dst byte, ports ...byte) []byte {
	p := append([]byte{first, 0, 0, 0, 0, 0, byte(frag >> 8), byte(frag), 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, dst}, ports...)
	return append(p, "payload"...)
}

func v6(next, dst byte, ports ...byte) []byte {
	p := make([]byte, 40)
	p[0], p[6], p[39] = 0x60, next, dst
	return append(append(p, ports...), "payload"...)
}

func TestFlow(t *testing.T) {
	for _, c := range []struct {
		name string
		a, b []byte
		same bool
	}{
		{"ports of TCP", v4(0x45, 6, 0, 2, 1, 2, 3, 4), v4(0x45, 6, 0, 2, 1, 2, 3, 5), false},
		{"ports of UDP", v4(0x45, 17, 0, 2, 1, 2, 3, 4), v4(0x45, 17, 0, 2, 1, 2, 3, 5), false},
		{"what follows them", v4(0x45, 6, 0, 2, 1, 2, 3, 4, 5), v4(0x45, 6, 0, 2, 1, 2, 3, 4, 6), true},
		{"addresses", v4(0x45, 6, 0, 2, 1, 2, 3, 4), v4(0x45, 6, 0, 3, 1, 2, 3, 4), false},
		{"fragments", v4(0x45, 17, 0x2000, 2, 1, 2, 3, 4), v4(0x45, 17, 100, 2, 5, 6, 7, 8), true},
		{"do not fragment", v4(0x45, 17, 0x4000, 2, 1, 2, 3, 4), v4(0x45, 17, 0x4000, 2, 1, 2, 3, 5), false},
		{"options", v4(0x46, 6, 0, 2, 1, 2, 3, 4), v4(0x46, 6, 0, 2, 5, 6, 7, 8), true},
		{"ICMP", v4(0x45, 1, 0, 2, 8, 0, 3, 4), v4(0x45, 1, 0, 2, 8, 0, 3, 5), true},
		{"ports of IPv6", v6(6, 1, 1, 2, 3, 4), v6(6, 1, 1, 2, 3, 5), false},
		{"addresses of IPv6", v6(6, 1, 1, 2, 3, 4), v6(6, 2, 1, 2, 3, 4), false},
		{"extensions of IPv6", v6(44, 1, 1, 2, 3, 4), v6(44, 1, 1, 2, 3, 5), true},
		{"nonsense", nil, []byte{0x45}, true},
	} {
		if got := Flow(c.a) == Flow(c.b); got != c.same {
			t.Errorf("%s: one flow %v, want %v", c.name, got, c.same)
		}
	}
}

func TestBare(t *testing.T) {
	// segment is one of TCP, with so many bytes of options and payload.
	segment := func(six bool, flags byte, options, payload int) []byte {
		h := make([]byte, 20+options+payload)
		h[12], h[13] = byte((20+options)/4)<<4, flags
		if six {
			p := append(v6(6, 1)[:40], h...)
			p[5] = byte(len(h))
			return p
		}
		p := append(v4(0x45, 6, 0, 2)[:20], h...)
		p[3] = byte(len(p))
		return p
	}
	for _, c := range []struct {
		name string
		p    []byte
		want bool
	}{
		{"an acknowledgement", segment(false, 0x10, 0, 0), true},
		{"with options", segment(false, 0x10, 12, 0), true},
		{"of IPv6", segment(true, 0x10, 12, 0), true},
		{"data", segment(false, 0x10, 12, 1), false},
		{"data of IPv6", segment(true, 0x10, 0, 1), false},
		{"SYN", segment(false, 0x02, 0, 0), false},
		{"FIN", segment(false, 0x11, 0, 0), false},
		{"RST", segment(true, 0x14, 0, 0), false},
		{"UDP", v4(0x45, 17, 0, 2, 1, 2, 3, 4), false},
		{"cut off", segment(false, 0x10, 0, 0)[:30], false},
		{"nothing", nil, false},
	} {
		if got := Bare(c.p); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func FuzzFlow(f *testing.F) {
	f.Add(v4(0x45, 6, 0, 2, 1, 2, 3, 4))
	f.Add(v6(6, 1, 1, 2, 3, 4))
	f.Fuzz(func(t *testing.T, p []byte) {
		if Flow(p) != Flow(slices.Clone(p)) {
			t.Error("a packet is of two flows")
		}
		Bare(p)
	})
}

func BenchmarkQueue(b *testing.B) {
	for _, flows := range []uint32{1, 8, 1000} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			q := New(4096, 1<<30, func(uint32) {})
			for i := range flows {
				q.Put(i+1, 1200, i+1)
			}
			b.ReportAllocs()
			for b.Loop() {
				i, _ := q.Get()
				q.Put(i, 1200, i)
			}
		})
	}
}

func BenchmarkFlow(b *testing.B) {
	p := v4(0x45, 6, 0, 2, 1, 2, 3, 4)
	b.ReportAllocs()
	for b.Loop() {
		Flow(p)
	}
}
