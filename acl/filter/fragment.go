package filter

import (
	"slices"
	"sync"
	"time"
)

// fragments remembers which datagrams in pieces were admitted by their first piece. Nothing is stored or put
// together: a piece passes if the first passed before it and it overlaps none of the others. So what a receiver can
// put together is what was judged.
//
//	first ─ judged as a packet ─ admitted ─ datagram{spans seen, end} ─ later piece fits ─ passes
//	                                                                  └ overlaps ─ the rest of it is refused
//
// Sources: RFC 1858, RFC 3128 (tiny and overlapping), RFC 5722 (overlap refuses the datagram), RFC 8200 section 4.5.
type fragments struct {
	mu             sync.Mutex
	table          map[fragKey]*datagram
	oldest, newest *datagram // by deadline
	max, perPeer   int
}

type fragKey struct {
	src, dst addr
	id       uint32
	proto    uint8
	dir      uint8
}

type datagram struct {
	older, newer *datagram
	key          fragKey
	flow         tuple // that its first piece is of
	verdict      Verdict
	peer         *peer
	epoch        uint32
	deadline     int64
	spans        [maxSpans]span
	n            int
	end          uint32 // of the last piece; zero until it was seen
	refused      bool
}

type span struct{ from, to uint32 }

const (
	maxSpans = 16
	fragLife = int64(15 * time.Second)
)

func keyOf(p *packet, d int) fragKey {
	return fragKey{p.src, p.dst, p.id, p.fragProto, uint8(d)}
}

// first enters a datagram whose first fragment has verdict v, which allows it.
func (t *fragments) first(p *packet, d int, v Verdict, owner *peer, epoch uint32, now int64) Verdict {
	var flow tuple
	nameOf(p, d).to(&flow)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(now)
	key := keyOf(p, d)
	if g := t.table[key]; g != nil {
		g.refused = true
		return Verdict{Reason: FragOverlap, Peer: v.Peer}
	}
	if int(owner.frags) >= t.perPeer {
		for g := t.oldest; g != nil; g = g.newer { // make room at the same peer's cost
			if g.peer == owner {
				t.drop(g)
				break
			}
		}
	}
	if len(t.table) >= t.max {
		return Verdict{Reason: FragFull, Peer: v.Peer}
	}
	g := &datagram{key: key, flow: flow, verdict: v, peer: owner, epoch: epoch, deadline: now + fragLife, older: t.newest}
	g.spans[0], g.n = span{0, p.fragLen}, 1
	if t.newest != nil {
		t.newest.newer = g
	} else {
		t.oldest = g
	}
	t.newest = g
	t.table[key] = g
	owner.frags++
	return v
}

// later judges a fragment that is not the first. When the rules have changed since the first, live says whether they
// still admit its flow.
func (t *fragments) later(p *packet, d int, epoch uint32, now int64, live func(*tuple) bool) Verdict {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(now)
	g := t.table[keyOf(p, d)]
	if g == nil {
		return Verdict{Reason: FragNoFirst}
	}
	switch {
	case g.epoch != epoch && !live(&g.flow):
		g.refused = true
		return Verdict{Reason: FragNoFirst, Peer: g.verdict.Peer}
	case g.refused, !g.add(span{uint32(p.off), uint32(p.off) + p.fragLen}, p.more):
		g.refused = true
		return Verdict{Reason: FragOverlap, Peer: g.verdict.Peer}
	}
	g.epoch = epoch
	v := g.verdict
	v.Reason = ByFragment
	if g.n == 1 && g.spans[0].to == g.end {
		t.drop(g)
	}
	return v
}

// add reports whether a new piece fits beside the others: no overlap, one end, not too many holes.
func (g *datagram) add(s span, more bool) bool {
	if !more {
		if g.end != 0 || s.to < g.spans[g.n-1].to {
			return false
		}
		g.end = s.to
	}
	if g.end != 0 && s.to > g.end {
		return false
	}
	spans := g.spans[:g.n]
	i, _ := slices.BinarySearchFunc(spans, s, func(a, b span) int { return int(a.from) - int(b.from) })
	if i < len(spans) && spans[i].from < s.to || spans[i-1].to > s.from { // spans[0] begins at 0, so i > 0
		return false
	}
	joinsLeft, joinsRight := spans[i-1].to == s.from, i < len(spans) && spans[i].from == s.to
	switch {
	case joinsLeft && joinsRight:
		spans[i-1].to = spans[i].to
		spans = slices.Delete(spans, i, i+1)
	case joinsLeft:
		spans[i-1].to = s.to
	case joinsRight:
		spans[i].from = s.from
	case len(spans) == maxSpans:
		return false
	default:
		spans = slices.Insert(spans, i, s) // within g.spans
	}
	g.n = len(spans)
	return true
}

func (t *fragments) expire(now int64) {
	for t.oldest != nil && now >= t.oldest.deadline {
		t.drop(t.oldest)
	}
}

func (t *fragments) drop(g *datagram) {
	if g.older != nil {
		g.older.newer = g.newer
	} else {
		t.oldest = g.newer
	}
	if g.newer != nil {
		g.newer.older = g.older
	} else {
		t.newest = g.older
	}
	g.peer.frags--
	delete(t.table, g.key)
}

func (t *fragments) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.table)
}
