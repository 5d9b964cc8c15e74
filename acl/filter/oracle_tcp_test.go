package filter

import "time"

// talk is one TCP connection as the oracle sees it: RFC 9293 and the four bounds of the filter's doc, in plain numbers.
// Where an end is in its stream is counted from its own SYN, which is 0, in 64 bits: so nothing here ever wraps.
type talk struct {
	stage   stage
	crossed bool
	asked   uint32 // where a challenge to the opener wants its RST; 0 for none
	end     [2]voice
}

const (
	opens1 = 0 // the opener's place in talk.end
	opens2 = 1
)

type stage int

const (
	saidSYN stage = iota
	saidSYNACK
	talking
	leaving // a FIN was seen
	left    // both FINs are acknowledged
	broken  // an RST was seen
)

// life is how long each stage lasts without a segment.
var life = map[stage]time.Duration{saidSYN: 2 * time.Minute, saidSYNACK: time.Minute, talking: 24 * time.Hour, leaving: time.Hour,
	left: time.Minute, broken: 10 * time.Second}

// voice is one end.
type voice struct {
	iss      uint32
	scaling  int   // what its SYN offers, -1 for nothing
	unit     int64 // what its windows count in
	sent     int64 // behind the last byte that it has sent
	may      int64 // and that it may send
	offered  int64 // the largest window that it has offered, and all that the other took beyond
	hears    bool  // it has acknowledged anything
	heard    int64 // the highest acknowledgment that it has sent
	together int64 // behind what it has sent without a hole
	ended    bool  // it has sent a FIN
	fin      int64 // behind it
}

// place is where near sequence number seq lies in the stream of v.
func (v *voice) place(seq uint32) int64 { return v.sent + int64(int32(seq-v.iss-uint32(v.sent))) }

func (v *voice) seq(place int64) uint32 { return v.iss + uint32(place) }

// greet is a SYN or SYN+ACK of v.
func (v *voice) greet(p *said) {
	n := int64(1 + p.data)
	*v = voice{iss: p.seq, scaling: p.scale, unit: 1, sent: n, may: n, offered: max(1, int64(p.win)), together: n}
}

// agree comes when both SYNs are known: who answered may send what the first SYN offered.
func (t *talk) agree(answers, asked *voice) {
	for _, v := range []*voice{answers, asked} {
		v.unit = 1
		if answers.scaling >= 0 && asked.scaling >= 0 {
			v.unit = 1 << min(v.scaling, 14)
		}
	}
	answers.may += asked.offered
}

// anew reports whether a SYN from an end begins another connection.
func (t *talk) anew(p *said, who int) bool {
	return p.kind() == syn && (t.stage >= left || t.stage == saidSYN && who == opens1 && p.seq != t.end[opens1].iss)
}

func (p *said) kind() uint8 { return p.flags & (fin | syn | rst | ackFlag) }

// hear judges a segment of one end. cross says whether the rules would let that end open the connection too.
func (t *talk) hear(p *said, who int, cross func() Reason) Reason {
	me, other := &t.end[who], &t.end[1-who]
	switch p.kind() {
	case syn:
		switch {
		case who == opens1: // the same again, or one who forgot: a challenge will tell it
			return ByFlow
		case t.stage == saidSYN:
			if r := cross(); r != ByRule {
				return r
			}
			me.greet(p)
			t.agree(me, other)
			other.may = other.sent + me.offered
			t.stage, t.crossed = saidSYNACK, true
			return ByFlow
		case t.crossed && t.stage == saidSYNACK && p.seq == me.iss:
			return ByFlow
		}
		return TCPState
	case syn | ackFlag:
		return t.answer(p, who)
	}
	if t.stage == saidSYN {
		return t.tooEarly(p, who)
	}
	if t.stage == broken {
		if p.flags&rst != 0 {
			return ByFlow
		}
		return TCPState
	}
	return t.stream(p, me, other, who)
}

func (t *talk) answer(p *said, who int) Reason {
	me, other := &t.end[who], &t.end[1-who]
	acks := other.place(p.ack)
	switch {
	case t.crossed && t.stage <= talking:
		if p.seq != me.iss || acks < 1 || acks > other.sent {
			return TCPSeq
		}
		me.hears, me.heard = true, acks
		t.move(who)
		return ByFlow
	case who == opens1:
		return TCPState
	case t.stage == saidSYN:
		if acks < 1 || acks > other.sent {
			return TCPSeq
		}
		me.greet(p)
		t.agree(me, other)
		me.hears, me.heard, other.may = true, acks, acks+me.offered
		t.stage = saidSYNACK
		return ByFlow
	case t.stage <= leaving && p.seq == me.iss:
		return ByFlow
	}
	return TCPState
}

// tooEarly judges what is no SYN while nobody has answered the first.
func (t *talk) tooEarly(p *said, who int) Reason {
	opener := &t.end[opens1]
	switch {
	case p.flags&rst != 0 && who == opens2:
		if p.flags&ackFlag == 0 || p.ack != opener.seq(opener.sent) {
			return TCPSeq
		}
		t.stage = broken
		return ByFlow
	case p.flags&rst != 0:
		if p.seq == opener.seq(opener.sent) || t.asked != 0 && p.seq == t.asked {
			t.asked = 0
			return ByFlow
		}
		return TCPSeq
	case who == opens2 && p.kind() == ackFlag && p.data == 0:
		t.asked = p.ack
		return ByFlow
	}
	return TCPState
}

// The least that an acknowledgment may lie back.
const backlog = 66000

func (t *talk) stream(p *said, me, other *voice, who int) Reason {
	from := me.place(p.seq)
	to := from + int64(p.data)
	if p.flags&fin != 0 {
		to++
	}
	acks := other.place(p.ack)
	switch {
	case from > me.may+other.offered, to < me.sent-other.offered-1:
		return TCPSeq
	case p.flags&ackFlag == 0, p.flags&rst != 0 && p.ack == 0:
	case acks > other.sent, acks < other.sent-max(me.offered, backlog)-1:
		return TCPSeq
	}
	if p.flags&rst != 0 {
		if from == me.sent || from == me.together || other.hears && from == other.heard {
			t.stage = broken
		}
		return ByFlow
	}
	window := int64(p.win) * me.unit
	me.offered = max(me.offered, window)
	me.sent = max(me.sent, to)
	if from <= me.together {
		me.together = max(me.together, to)
	}
	if to > me.may {
		other.offered = min(other.offered+to-me.may, 1<<30)
		me.may = to
	}
	if p.flags&fin != 0 {
		me.ended, me.fin = true, to
	}
	if acks > me.heard || !me.hears {
		me.hears, me.heard = true, acks
		other.together = max(other.together, acks)
	}
	other.may = max(other.may, acks+max(1, window))
	t.move(who)
	return ByFlow
}

// move goes to the next stage if all for it has been said.
func (t *talk) move(who int) {
	me, other := &t.end[who], &t.end[1-who]
	if t.stage == saidSYNACK && me.hears && me.heard >= 1 && (who == opens1 || t.crossed && other.hears) {
		t.stage = talking
	}
	if (me.ended || other.ended) && t.stage < leaving {
		t.stage = leaving
	}
	if me.ended && other.ended && me.heard >= other.fin && other.heard >= me.fin {
		t.stage = left
	}
}

// segment makes p, of end who of t (nil for no connection), a segment: mostly one that a TCP would send now, and else one
// at or beyond the bounds of what may pass.
func (r *trial) segment(p *said, t *talk, who int) {
	w := r.w
	p.win, p.scale, p.data = pick(w, []uint16{0, 1, 500, 20000, 65535}), w.IntN(20)-6, pick(w, []int{0, 0, 0, 1, 100, 1000})
	p.scale = min(max(p.scale, -1), 13)
	p.flags = pick(w, []uint8{syn, syn, syn, syn | ece | cwr, syn | ackFlag, ackFlag, ackFlag | fin, rst, rst | ackFlag, ackFlag | psh, uint8(w.Uint32())})
	p.seq, p.ack = w.Uint32(), w.Uint32()
	if t == nil {
		if p.flags&syn != 0 && w.IntN(4) > 0 {
			p.data = 0
		}
		return
	}
	r.stage[t.stage]++
	me, other := &t.end[who], &t.end[1-who]
	unheard := t.stage == saidSYN && who == opens2 // whose iss nobody knows
	near := func(v *voice, places ...int64) uint32 {
		return v.seq(pick(w, places) + pick(w, []int64{0, 0, 0, 0, -1, 1}))
	}
	back := max(me.offered, backlog)
	switch natural := w.IntN(10) < 7; {
	case natural && t.stage == saidSYN:
		if p.flags = syn; unheard && w.IntN(5) > 0 {
			p.flags = pick(w, []uint8{syn | ackFlag, syn | ackFlag, rst | ackFlag, ackFlag})
		}
		if p.ack = other.seq(other.sent); !unheard {
			p.seq = me.iss
		}
		p.data = 0
	case natural && t.stage < left:
		if p.flags = ackFlag | psh; w.IntN(30) == 0 {
			p.flags |= fin
		}
		if p.seq, p.ack = me.seq(me.sent), other.seq(other.sent); me.ended {
			p.data = 0
		}
		if t.stage == saidSYNACK && w.IntN(3) == 0 && (who == opens2 || t.crossed) {
			p.flags, p.seq = syn|ackFlag, me.iss
		}
	case natural:
		p.flags = pick(w, []uint8{syn, ackFlag})
	case unheard:
		p.ack = near(other, other.sent, 1, 0, other.sent+1)
	default:
		p.seq = near(me, me.sent, me.together, other.heard, 0, me.sent-int64(p.data), me.sent-other.offered-1-int64(p.data), me.may,
			me.may+other.offered, me.sent+w.Int64N(1<<22), me.sent-w.Int64N(1<<22))
		p.ack = near(other, other.sent, other.sent, other.together, me.heard, other.sent-back-1, other.sent-w.Int64N(1<<20), other.sent+w.Int64N(1<<20))
	}
}
