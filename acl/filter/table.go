package filter

import (
	"math/bits"
	"sync"
)

const shardBits = 6

// shard is a part of the flow table: open addressing in groups of eight, of which a word of tags says what is where.
// A search reads the tags, which stay in the processor's cache, and of the flows as a rule only the one it looks for.
//
//	hash ── 6 bits: shard ── some bits: group ── 7 bits: tag
//
//	tags   [0x93 0x00 0xf1 0x01 0xb0 0x00 0x00 0x88]  one group
//	flows  [flow  ─   flow  ─   flow  ─    ─   flow]
type shard struct {
	mu       sync.Mutex
	tags     []uint64 // by group, a power of two of them
	flows    []flow   // eight to a group
	n        int
	buried   int // places whose flow is gone though searches must go on past them
	hand     int // where the next partial sweep goes on
	epoch    uint32
	revision uint64                 // of the snapshot that all flows here were judged by, as is epoch
	spare    []*sides               // of connections that are gone
	passed   [2][reasonCount]uint64 // counters of the packets that found the lock held anyway
	_        [64]byte
}

// What a tag says: nothing was ever here, something was, or (with the highest bit) what the hash of the flow is like.
const (
	vacant = 0x00
	grave  = 0x01
	low    = 0x0101010101010101
	high   = 0x8080808080808080
)

func tagOf(hash uint64) uint64 { return hash&0x7f | 0x80 }

func (s *shard) group(hash uint64) int { return int(hash>>7) & (len(s.tags) - 1) }

// zeros marks the bytes of x that are zero by their highest bit. Only the lowest mark is certain.
func zeros(x uint64) uint64 { return (x - low) &^ x & high }

func (s *shard) find(n name, hash uint64) *flow {
	if len(s.tags) == 0 {
		return nil
	}
	want := tagOf(hash) * low
	for g := s.group(hash); ; g = (g + 1) & (len(s.tags) - 1) {
		tags := s.tags[g]
		for m := zeros(tags ^ want); m != 0; m &= m - 1 {
			if f := &s.flows[g*8+bits.TrailingZeros64(m)>>3]; n.is(&f.tuple) {
				return f
			}
		}
		if zeros(tags) != 0 {
			return nil
		}
	}
}

// insert returns a new flow, of which only the tuple is set: the rest may be that of an old one. Flows may move.
func (s *shard) insert(n name, hash uint64) *flow {
	if 4*(s.n+s.buried+1) > 3*len(s.flows) {
		s.rehash()
	}
	g := s.group(hash)
	for s.tags[g]&high == high {
		g = (g + 1) & (len(s.tags) - 1)
	}
	at := bits.TrailingZeros64(^s.tags[g]&high) &^ 7
	if s.tags[g]>>at&0xff == grave {
		s.buried--
	}
	s.tags[g] = s.tags[g]&^(0xff<<at) | tagOf(hash)<<at
	s.n++
	f := &s.flows[g*8+at>>3]
	n.to(&f.tuple)
	f.hash = uint32(hash)
	return f
}

// rehash makes room: twice as much, or what the graves take if that is enough.
func (s *shard) rehash() {
	flows, tags := s.flows, s.tags
	groups := max(2, len(tags))
	if 2*s.n > len(flows) {
		groups = max(2, 2*len(tags))
	}
	s.flows, s.tags, s.buried = make([]flow, 8*groups), make([]uint64, groups), 0
	for g, t := range tags {
		for m := t & high; m != 0; m &= m - 1 {
			f := &flows[g*8+bits.TrailingZeros64(m)>>3]
			s.n--
			*s.insert(f.tuple.name(), uint64(f.hash)) = *f
		}
	}
}

// sweep goes through the next n places, whole groups of them, and takes out each flow for which gone says so.
func (s *shard) sweep(n int, gone func(*flow) bool) {
	for n = min(n, len(s.flows)); n > 0 && s.n > 0; n -= 8 {
		s.hand = (s.hand + 1) & (len(s.tags) - 1)
		for m := s.tags[s.hand] & high; m != 0; m &= m - 1 {
			if i := s.hand*8 + bits.TrailingZeros64(m)>>3; gone(&s.flows[i]) {
				s.drop(i)
			}
		}
	}
}

// drop takes out the flow at i. If its group has had a vacancy all along no search went on past it.
func (s *shard) drop(i int) {
	f := &s.flows[i]
	if f.sides != nil {
		s.spare = append(s.spare, f.sides)
	}
	f.peer, f.rule, f.sides = nil, nil, nil
	g, at := i/8, i%8*8
	tag := uint64(vacant)
	if zeros(s.tags[g]) == 0 {
		tag = grave
		s.buried++
	}
	s.tags[g] = s.tags[g]&^(0xff<<at) | tag<<at
	if s.n--; s.n == 0 && len(s.flows) > 64 { // a flood is over
		s.flows, s.tags, s.spare, s.buried, s.hand = nil, nil, nil, 0, 0
	}
}

func (s *shard) remove(f *flow) {
	for g := s.group(uint64(f.hash)); ; g = (g + 1) & (len(s.tags) - 1) {
		for i := g * 8; i < g*8+8; i++ {
			if &s.flows[i] == f {
				s.drop(i)
				return
			}
		}
	}
}

// connect gives a new flow the sides of a TCP connection.
func (s *shard) connect(f *flow) {
	if len(s.spare) == 0 {
		chunk := make([]sides, 32)
		for i := range chunk {
			s.spare = append(s.spare, &chunk[i])
		}
	}
	last := len(s.spare) - 1
	f.sides, s.spare = s.spare[last], s.spare[:last]
}
