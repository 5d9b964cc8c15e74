package filter

import "math/bits"

// exactTable knows the nodes' own addresses: whose each is, and its class, which is the same whatever it is used as. It
// uses open addressing at no more than half full; only a coordinator chooses its keys. Slots are kept small, for those
// of many peers must fit a cache.
type exactTable struct {
	v4 []slot4 // powers of two
	v6 []slot6

	shift4, shift6 uint8 // 64 less the logarithm of their sizes
}

type slot4 struct {
	ip    uint32
	class int32 // plus one: an empty slot has zero
	owner *peer // nil is this node
}

type slot6 struct {
	ip    addr
	class int32
	owner *peer
}

func (t *exactTable) init(n4, n6 int) {
	size := func(n int) int {
		size := 8
		for size < 2*n {
			size *= 2
		}
		return size
	}
	t.v4, t.v6 = make([]slot4, size(n4)), make([]slot6, size(n6))
	t.shift4, t.shift6 = uint8(65-bits.Len(uint(len(t.v4)))), uint8(65-bits.Len(uint(len(t.v6))))
}

// slotOf is Fibonacci hashing (Knuth, The Art of Computer Programming, volume 3, section 6.4): addresses in sequence lie
// far apart, and so do not meet.
func slotOf(hi, lo uint64, shift uint8) int {
	return int((lo ^ hi*0xd6e8feb86659fd93) * 0x9e3779b97f4a7c15 >> (shift & 63))
}

// add keeps the first of two owners of an address.
func (t *exactTable) add(a addr, owner *peer, class int32) {
	if a.is4() {
		for i := slotOf(0, uint64(uint32(a.lo)), t.shift4); ; i++ {
			switch s := &t.v4[i&(len(t.v4)-1)]; {
			case s.class == 0:
				*s = slot4{uint32(a.lo), class + 1, owner}
				return
			case s.ip == uint32(a.lo):
				return
			}
		}
	}
	for i := slotOf(a.hi, a.lo, t.shift6); ; i++ {
		switch s := &t.v6[i&(len(t.v6)-1)]; {
		case s.class == 0:
			*s = slot6{a, class + 1, owner}
			return
		case s.ip == a:
			return
		}
	}
}

// get returns a class below zero for an address that is nobody's own. A table must be initialised.
func (t *exactTable) get(a *addr) (owner *peer, class int32) {
	if a.is4() {
		for i := slotOf(0, uint64(uint32(a.lo)), t.shift4); ; i++ {
			if s := &t.v4[i&(len(t.v4)-1)]; s.ip == uint32(a.lo) || s.class == 0 {
				return s.owner, s.class - 1
			}
		}
	}
	for i := slotOf(a.hi, a.lo, t.shift6); ; i++ {
		if s := &t.v6[i&(len(t.v6)-1)]; s.ip.lo == a.lo && s.ip.hi == a.hi || s.class == 0 {
			return s.owner, s.class - 1
		}
	}
}

// locate finds the place of a.
func (s *snapshot) locate(a *addr) place {
	if owner, class := s.exact.get(a); class >= 0 {
		at := place{owner: owner, kind: own, src: class, dst: class, hsrc: class, hdst: class}
		if owner == nil {
			at.kind, at.here = nobody, own
		}
		return at
	}
	if !a.martian() {
		if at, ok := s.routes.Lookup(a.netip()); ok {
			return at
		}
	}
	return place{}
}
