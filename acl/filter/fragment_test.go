package filter

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// pieces cuts a packet's transport part into fragments of n bytes (a multiple of 8).
func pieces(src, dst string, t l4, id uint16, n int) (frags [][]byte) {
	for off := 0; off < len(t.body); off += n {
		end := min(off+n, len(t.body))
		frags = append(frags, fragOf(src, dst, t.proto, id, off, end < len(t.body), t.body[off:end]))
	}
	return
}

// A legitimate 8 KB datagram passes, in both families and directions, its later pieces in any order.
func TestFragmentsOfLegitimateDatagramPass(t *testing.T) {
	f := newMesh(t)
	for _, ends := range [][2]string{{a4, v4}, {a6, v6}} {
		for id := range uint16(20) {
			frags := pieces(ends[0], ends[1], udp(5000, 53, 8192), id, 1232)
			rand.Shuffle(len(frags)-1, func(i, j int) { frags[i+1], frags[j+1] = frags[j+1], frags[i+1] })
			for i, frag := range frags {
				want := ByFragment
				if i == 0 {
					want = ByFlow
					if id == 0 {
						want = ByRule
					}
				}
				in(t, f, frag, want)
			}
			for i, frag := range pieces(ends[1], ends[0], udp(53, 5000, 8192), id, 1232) {
				want := ByFragment
				if i == 0 {
					want = ByFlow
				}
				out(t, f, frag, want)
			}
		}
	}
	if n := f.frags.len(); n != 0 {
		t.Errorf("%d complete datagrams are remembered", n)
	}
}

// T2.2, each on a fresh table. "udp" is the whole datagram, cut at will; A may send it.
func TestFragmentAttacks(t *testing.T) {
	d := udp(5000, 53, 4000)
	first := func(n int) []byte { return fragOf(a4, v4, protoUDP, 1, 0, true, d.body[:n]) }
	piece := func(off, n int, more bool) []byte { return fragOf(a4, v4, protoUDP, 1, off, more, make([]byte, n)) }
	type hit struct {
		pkt  []byte
		want Reason
	}
	seg := tcpSeg(5000, 22, syn, 1, 0, "0123456789abcdef")
	for _, tt := range []struct {
		name string
		hits []hit
	}{
		{"tiny first, TCP of 8 bytes", []hit{{fragOf(a4, v4, protoTCP, 1, 0, true, seg.body[:8]), FragTiny}, {piece(8, 80, false), FragTiny}}},
		{"tiny first, TCP of 16 bytes", []hit{{fragOf(a4, v4, protoTCP, 1, 0, true, seg.body[:16]), FragTiny},
			{fragOf(a4, v4, protoTCP, 1, 16, false, seg.body[16:]), FragTiny}}},
		{"TCP options cut off", []hit{{fragOf(a4, v4, protoTCP, 1, 0, true, tcpSeg(1, 22, syn, 1, 0, "", make([]byte, 8)...).body[:24]), FragTiny}}},
		{"later without first", []hit{{piece(1480, 1480, true), FragNoFirst}, {piece(2960, 100, false), FragNoFirst}}},
		{"later before first", []hit{{piece(1480, 1480, true), FragNoFirst}, {first(1480), ByRule}, {piece(1480, 1480, true), ByFragment}}},
		{"first denied, then the rest", []hit{{fragOf(x4, v4, protoUDP, 1, 0, true, d.body[:1480]), NoRule},
			{fragOf(x4, v4, protoUDP, 1, 1480, false, d.body[1480:]), FragNoFirst}}},
		{"the rest from another peer", []hit{{first(1480), ByRule}, {fragOf(x4, v4, protoUDP, 1, 1480, false, d.body[1480:]), FragNoFirst}}},
		{"teardrop: inside another", []hit{{first(1480), ByRule}, {piece(1400, 16, false), FragOverlap}, {piece(1480, 100, false), FragOverlap}}},
		{"overlap by 8 bytes", []hit{{first(1480), ByRule}, {piece(1480, 800, true), ByFragment}, {piece(2272, 80, false), FragOverlap},
			{piece(2280, 80, false), FragOverlap}}},
		{"overlap of a later one", []hit{{first(1480), ByRule}, {piece(2960, 80, true), ByFragment}, {piece(2000, 1000, true), FragOverlap}}},
		{"first again with other ports (RFC 3128)", []hit{{first(1480), ByRule}, {fragOf(a4, v4, protoUDP, 1, 0, true, udp(5000, 53, 4000).body[:1480]), FragOverlap},
			{piece(1480, 100, false), FragOverlap}}},
		{"a second offset-0 fragment, denied", []hit{{first(1480), ByRule}, {fragOf(a4, v4, protoUDP, 1, 0, true, udp(5000, 54, 4000).body[:1480]), NoRule}}},
		{"two last fragments", []hit{{first(1480), ByRule}, {piece(2000, 80, false), ByFragment}, {piece(2080, 80, false), FragOverlap}}},
		{"beyond the last", []hit{{first(1480), ByRule}, {piece(2000, 80, false), ByFragment}, {piece(2080, 80, true), FragOverlap}}},
		{"a last before the others' end", []hit{{first(1480), ByRule}, {piece(2960, 80, true), ByFragment}, {piece(1480, 8, false), FragOverlap}}},
		{"ping of death", []hit{{first(1480), ByRule}, {piece(65528, 100, false), Malformed}, {piece(65504, 16, false), Malformed}}},
		{"not a multiple of 8", []hit{{first(1480), ByRule}, {piece(1480, 1481, true), Malformed}, {piece(1480, 0, true), Malformed}}},
		{"same ID, other protocol", []hit{{first(1480), ByRule}, {fragOf(a4, v4, protoTCP, 1, 1480, false, make([]byte, 80)), FragNoFirst}}},
		{"too many holes", func() []hit {
			h := []hit{{first(1480), ByRule}}
			for i := range 15 {
				h = append(h, hit{piece(1600+i*80, 8, true), ByFragment})
			}
			return append(h, hit{piece(8000, 8, true), FragOverlap})
		}()},
		{"UDP shorter than its first fragment", []hit{{fragOf(a4, v4, protoUDP, 1, 0, true, udp(5000, 53, 8).body), Malformed}}},
		{"an ICMP error in fragments", []hit{{fragOf(a4, v4, protoICMP, 1, 0, true, icmp(3, 1, 0, make([]byte, 32)...).body), ICMPSize}}},
		{"v6 headers after the first fragment (RFC 7112)", []hit{{ip6(a6, v6, protoFragment, append([]byte{protoDestOpts, 0, 0, 1, 0, 0, 0, 1}, protoUDP, 1, 1, 4, 0, 0, 0, 0)), FragTiny}}},
		{"v6 fragment in fragment", []hit{{ip6(a6, v6, protoFragment, append([]byte{protoFragment, 0, 0, 1, 0, 0, 0, 1}, make([]byte, 64)...)), ExtHeader}}},
		{"v6 overlap (RFC 5722)", []hit{{fragOf(a6, v6, protoUDP, 1, 0, true, d.body[:1232]), ByRule},
			{fragOf(a6, v6, protoUDP, 1, 1224, false, d.body[1224:2000]), FragOverlap}, {fragOf(a6, v6, protoUDP, 1, 1232, false, d.body[1232:2000]), FragOverlap}}},
		{"v6 atomic fragment is a packet", []hit{{ip6(a6, v6, protoFragment, append([]byte{protoUDP, 0, 0, 0, 0, 0, 0, 1}, udp(5000, 53, 4).body...)), ByRule},
			{ip6(x6, v6, protoFragment, append([]byte{protoTCP, 0, 0, 0, 0, 0, 0, 1}, tcp(1, 22, ackFlag).body...)), TCPNoFlow}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newMesh(t)
			for _, h := range tt.hits {
				in(t, f, h.pkt, h.want)
			}
		})
	}
}

// Half-open datagrams: a peer has its share, at the cost of its own oldest, and all are forgotten in time.
func TestFragmentTableIsBounded(t *testing.T) {
	f := newMesh(t, rule(1, acl.Accept, "*", "v", anyPort))
	body := udp(5000, 53, 4000).body
	in(t, f, fragOf(a4, v4, protoUDP, 1, 0, true, body[:1480]), ByRule)
	for id := range uint16(10000) {
		f.In(fragOf(x4, v4, protoUDP, id, 0, true, body[:1480]), t0)
	}
	if n := f.Stats().Fragments; n != f.opt.MaxFragmentsPerPeer+1 {
		t.Errorf("%d datagrams", n)
	}
	in(t, f, fragOf(x4, v4, protoUDP, 1, 1480, true, body[1480:2960]), FragNoFirst)
	in(t, f, fragOf(x4, v4, protoUDP, 9999, 1480, true, body[1480:2960]), ByFragment)
	in(t, f, fragOf(a4, v4, protoUDP, 1, 1480, false, body[1480:]), ByFragment)
	f.Tick(after(16 * time.Second))
	if n := f.Stats().Fragments; n != 0 {
		t.Errorf("%d datagrams are left", n)
	}
	small := New(Options{MaxFragments: 2})
	small.Set(mesh(1, rule(1, acl.Accept, "*", "v", anyPort)), t0)
	in(t, small, fragOf(x4, v4, protoUDP, 1, 0, true, body[:1480]), ByRule)
	in(t, small, fragOf(x4, v4, protoUDP, 2, 0, true, body[:1480]), ByFlow)
	in(t, small, fragOf(a4, v4, protoUDP, 1, 0, true, body[:1480]), FragFull)
}

// When the rules change, the rest of a datagram passes if they admit its flow as well.
func TestFragmentsAcrossSet(t *testing.T) {
	f := newMesh(t)
	frags := pieces(a4, v4, udp(5000, 53, 4000), 1, 1480)
	in(t, f, frags[0], ByRule)
	f.Set(mesh(2, rule(1, acl.Accept, "a", "v", anyPort)), t0)
	in(t, f, frags[1], ByFragment)
	f.Set(mesh(3, rule(1, acl.Accept, "x", "v", anyPort)), t0)
	in(t, f, frags[2], FragNoFirst)
}

// TCP in fragments, as a network behind a router may send it.
func TestFragmentedTCP(t *testing.T) {
	f := newMesh(t)
	play(t, f, handshake, t0)
	data := string(make([]byte, 2000))
	for i, frag := range pieces(a4, v4, tcpSeg(5000, 22, ackFlag, 1000, 5000, data), 1, 1480) {
		in(t, f, frag, [...]Reason{ByFlow, ByFragment}[i])
	}
	play(t, f, []step{{"> A 5000 3000", ByFlow}, {"< A 3000 5000 x", ByFlow}}, t0)
}
