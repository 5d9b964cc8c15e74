package filter

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"unsafe"
)

// A port's cell is that of the last interval that begins at or before it, whatever the intervals are.
func TestPortTable(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		first, span := []int32{0}, 1+r.Int32N(65535)
		for range r.IntN(1 << r.IntN(12)) {
			first = append(first, 1+(65535-span)/2+r.Int32N(span))
		}
		slices.Sort(first)
		first = slices.Compact(first)
		var cells []cell
		for i := range first {
			cells = append(cells, cell{int32(i), noRule})
		}
		table, want := newPortTable(first, cells), 0
		for port := range int32(65536) {
			if want+1 < len(first) && first[want+1] == port {
				want++
			}
			if got := table.at(uint16(port)); got != cells[want] {
				t.Fatalf("seed %d: port %d is in interval %d, want %d of %v", seed, port, got.accept, want, first)
			}
		}
	}
}

// What a program remembers is what its tables say: of any port, asked in any order, again and again, by several at once,
// and with more rules than an answer has bits for.
func TestRecent(t *testing.T) {
	var first []int32
	var tcp, udp []cell
	for i := range int32(4096) {
		first = append(first, i*16)
		tcp = append(tcp, cell{accept: noRule - i%7, deny: i - 1})
		udp = append(udp, cell{accept: shut(i << 10), deny: i << 10}) // the upper ones are too large to keep
	}
	g := &program{tcp: newPortTable(first, tcp), udp: newPortTable(first, udp), sctp: newPortTable(first[:1], []cell{closed}),
		icmp: [2]cell{{1, 2}, {3, 4}}, other: []otherCell{{47, cell{5, 6}}}}
	var wg sync.WaitGroup
	for seed := range uint64(4) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 4))
			ports := []uint16{0, 8, 16, 65535, 65527, 443, 53}
			for range 20000 {
				port := ports[r.IntN(len(ports))]
				if r.IntN(4) == 0 {
					port = uint16(r.Uint32())
					ports[r.IntN(len(ports))] = port
				}
				for proto, want := range map[uint8]cell{protoTCP: tcp[port/16], protoUDP: udp[port/16], protoSCTP: closed,
					protoICMP: {1, 2}, protoICMPv6: {3, 4}, 47: {5, 6}, 0: closed} {
					if got := g.at(proto, port); got != want {
						t.Errorf("protocol %d, port %d: %v, want %v", proto, port, got, want)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

// A program's and a table's first cache lines are what a verdict reads of them.
func TestProgramLayout(t *testing.T) {
	if at := unsafe.Offsetof(program{}.recent); at != 64 {
		t.Errorf("answers are at %d, want a line of their own", at)
	}
	if size := unsafe.Sizeof(program{}); size%64 != 0 {
		t.Errorf("a program takes %d bytes, so that they do not begin with a line", size)
	}
	if at, size := unsafe.Offsetof(flow{}.deadline), unsafe.Sizeof(flow{}); at != 64 || size != 128 {
		t.Errorf("a flow takes %d bytes, its second half is at %d, want two lines", size, at)
	}
}
