package filter

import "encoding/binary"

// TCP flags.
const (
	fin = 1 << iota
	syn
	rst
	psh
	ackFlag
	urg
	ece
	cwr
)

// sane reports whether any TCP sends these flags together: SYN, SYN+ACK, RST, RST+ACK, or ACK with or without FIN.
func sane(flags uint8) bool {
	switch flags & (fin | syn | rst | ackFlag) {
	case syn, syn | ackFlag:
		return flags&(psh|urg) == 0
	case rst, rst | ackFlag, ackFlag, fin | ackFlag:
		return true
	}
	return false
}

// The states of a flow. Only TCP goes past replied.
//
//	        SYN              SYN+ACK              ACK                FIN           FIN acked twice
//	─ rule ────── synSent ──────────── synReceived ─── established ───── closing ─────────────── timeWait
//	                 │                     │                │               │
//	                 └─────────────────────┴── RST ─────────┴───────────────┴── closed
//
// Two SYNs that cross are one connection (RFC 9293 section 3.5), if the rules would let either end open it; then both
// ends send SYN+ACK.
type state uint8

const (
	fresh   state = iota // one way so far
	replied              // both ways
	synSent
	synReceived
	established
	closing
	timeWait
	closed_
	stateCount
)

var stateNames = [stateCount]string{"new", "replied", "syn-sent", "syn-received", "established", "closing", "time-wait", "closed"}

// tcpSide is what one end has sent and may send. It follows "Real Stateful TCP Packet Filtering in IP Filter" (van
// Rooij, 2000), as netfilter does.
type tcpSide struct {
	end    uint32 // highest sequence number sent, plus one
	maxEnd uint32 // highest sequence number the other end allows
	maxWin uint32 // largest window this end has offered, scaled
	acked  uint32 // highest acknowledgment this end has sent
	whole  uint32 // everything before it was seen in order: what the other end has, if nothing is lost after us
	first  uint32 // sequence number of the first byte after the SYN
	finEnd uint32 // end of the FIN
	scale  uint8
	scaled bool // offered scaling
	fin    ending
	acks   bool // acked is set
}

// ending is how far an end is with its FIN. That this is acknowledged is kept, since sequence numbers come round.
type ending uint8

const (
	finNone ending = iota
	finSent
	finAcked
)

// crossing is what segment says of a SYN that crosses another: the rules decide. It is never a verdict.
const crossing = reasonCount

func before(a, b uint32) bool { return int32(a-b) < 0 }

// ahead is how far a lies ahead of b. Two windows of the largest size side by side are too much for before.
func ahead(a, b uint32) int64 { return int64(int32(a - b)) }

// maxAckWindow is how far back an acknowledgment may lie at least (netfilter's MAXACKWINCONST).
const maxAckWindow = 66000

// open starts a flow with its SYN; d is the side that sent it.
func (f *flow) open(p *packet, d int) {
	f.side = [2]tcpSide{}
	f.state, f.loose, f.crossed, f.challenge = synSent, false, false, 0
	f.side[d].start(p)
}

// reopens reports whether a SYN from side d is a new connection on the ports of an old one, to be judged afresh.
func (f *flow) reopens(p *packet, d int) bool {
	if p.flags&(fin|syn|rst|ackFlag) != syn {
		return false
	}
	return f.state >= timeWait || f.state == synSent && d == f.opener() && p.seq+1 != f.side[d].first
}

// start takes a side's SYN or SYN+ACK.
func (s *tcpSide) start(p *packet) {
	end := p.seq + 1 + p.data
	*s = tcpSide{end: end, maxEnd: end, maxWin: max(uint32(p.win), 1), whole: end, first: p.seq + 1}
	s.scale, s.scaled = windowScale(p.l4)
}

// windowScale reads the window scale option (RFC 7323 section 2) of a SYN.
func windowScale(b []byte) (uint8, bool) {
	b = b[20 : int(b[12]>>4)*4]
	for len(b) > 0 && b[0] != 0 {
		if b[0] == 1 {
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			break
		}
		if b[0] == 3 && b[1] == 3 {
			return min(b[2], 14), true
		}
		b = b[b[1]:]
	}
	return 0, false
}

// segment moves a flow on by one segment from side d, which must have sane flags. SYNs that would open a new
// connection over an old one are the caller's. It returns ByFlow if the segment may pass.
func (f *flow) segment(p *packet, d int) Reason {
	snd, rcv := &f.side[d], &f.side[1-d]
	opener := d == f.opener()
	kind := p.flags & (fin | syn | rst | ackFlag)
	if p.frag {
		f.loose = true // its length is not known, so neither is what it will make the other end acknowledge
	}
	switch {
	case kind == syn:
		if !opener && f.state == synSent {
			return crossing
		}
		if !opener && !(f.crossed && f.state == synReceived && p.seq+1 == snd.first) {
			return TCPState
		}
		// Again, or of an end that forgot the connection and will be told so by a challenge (RFC 5961 section 4).
		return ByFlow
	case kind == syn|ackFlag:
		return f.synAck(p, snd, rcv, opener)
	case f.state == synSent:
		return f.early(p, snd, rcv, opener)
	case f.state == closed_:
		if kind&rst != 0 {
			return ByFlow
		}
		return TCPState
	}
	return f.stream(p, snd, rcv, opener)
}

// cross takes the SYN of side d, which crossed that of the other.
func (f *flow) cross(p *packet, d int) {
	snd, rcv := &f.side[d], &f.side[1-d]
	snd.start(p)
	f.meet(snd, rcv)
	rcv.maxEnd = rcv.end + snd.maxWin
	f.state, f.crossed = synReceived, true
}

// meet agrees on what both SYNs have said.
func (f *flow) meet(snd, rcv *tcpSide) {
	if !snd.scaled || !rcv.scaled {
		snd.scale, rcv.scale = 0, 0
	}
	snd.maxEnd += rcv.maxWin
}

// synAck takes the second segment of a handshake, or sees it again.
func (f *flow) synAck(p *packet, snd, rcv *tcpSide, opener bool) Reason {
	switch {
	case f.crossed && f.state <= established:
		if p.seq+1 != snd.first || before(rcv.end, p.ack) || before(p.ack, rcv.first) {
			return TCPSeq
		}
		snd.acked, snd.acks = p.ack, true
		f.progress(snd, rcv, opener)
		return ByFlow
	case opener:
		return TCPState
	case f.state == synSent:
		if before(rcv.end, p.ack) || before(p.ack, rcv.first) {
			return TCPSeq
		}
		snd.start(p)
		f.meet(snd, rcv)
		snd.acked, snd.acks = p.ack, true
		rcv.maxEnd = p.ack + snd.maxWin
		f.state = synReceived
		return ByFlow
	case f.state <= closing && p.seq+1 == snd.first: // again, for it has not heard the answer
		return ByFlow
	}
	return TCPState
}

// early judges what is neither SYN nor SYN+ACK while the handshake waits for its second segment.
func (f *flow) early(p *packet, snd, rcv *tcpSide, opener bool) Reason {
	switch {
	case p.flags&rst != 0 && !opener: // refused
		if p.flags&ackFlag == 0 || p.ack != rcv.end {
			return TCPSeq
		}
		f.state = closed_
		return ByFlow
	case p.flags&rst != 0: // given up, or the answer to a challenge
		if p.seq == snd.end || f.challenge != 0 && p.seq == f.challenge {
			f.challenge = 0
			return ByFlow
		}
		return TCPSeq
	case !opener && p.flags&(fin|ackFlag) == ackFlag && p.data == 0:
		// The challenge of an end that still has an older connection of these ports: it may ask, and be reset.
		f.challenge = p.ack
		return ByFlow
	}
	return TCPState
}

// stream checks that a segment lies where its sender may send and acknowledges what was sent, and moves the windows,
// and the state with them.
//
//	I    seq     <= the highest the receiver allows + its largest window
//	II   seq+len >= the sender's end - the receiver's largest window
//	III  ack     <= the receiver's end
//	IV   ack     >= the receiver's end - the sender's largest window
//
// The extra window in I is for senders that take the window of an old acknowledgment that was overtaken (gVisor does):
// they overshoot by a little, and the receiver knows best what to do with it.
func (f *flow) stream(p *packet, snd, rcv *tcpSide, opener bool) Reason {
	end := p.seq + p.length()
	at := ahead(p.seq, snd.end)
	if at > ahead(snd.maxEnd, snd.end)+int64(rcv.maxWin) || at+int64(end-p.seq) < -int64(rcv.maxWin)-1 {
		return TCPSeq
	}
	if p.flags&ackFlag != 0 && !f.loose && !(p.flags&rst != 0 && p.ack == 0) { // some stacks send RST+ACK without one
		if at := ahead(p.ack, rcv.end); at > 0 || at < -int64(max(snd.maxWin, maxAckWindow))-1 {
			return TCPSeq
		}
	}
	if p.flags&rst != 0 {
		// Only an RST at the very place ends the connection; any other gets a challenge (RFC 5961 section 3).
		if p.seq == snd.end || p.seq == snd.whole || rcv.acks && p.seq == rcv.acked {
			f.state = closed_
		}
		return ByFlow
	}
	win := uint32(p.win) << snd.scale
	snd.maxWin = max(snd.maxWin, win)
	if before(snd.end, end) {
		snd.end = end
	}
	if !before(snd.whole, p.seq) && before(snd.whole, end) {
		snd.whole = end
	}
	if before(snd.maxEnd, end) {
		rcv.maxWin = min(rcv.maxWin+end-snd.maxEnd, 1<<30) // more no window can be (RFC 7323 section 2.3)
		snd.maxEnd = end
	}
	if !snd.acks || before(snd.acked, p.ack) {
		snd.acked, snd.acks = p.ack, true
		if before(rcv.whole, p.ack) && !before(rcv.end, p.ack) {
			rcv.whole = p.ack
		}
	}
	if edge := p.ack + max(win, 1); before(rcv.maxEnd, edge) {
		rcv.maxEnd = edge
	}
	if p.flags&fin != 0 {
		snd.fin, snd.finEnd = finSent, end
	}
	if f.state != established || p.flags&fin != 0 {
		f.progress(snd, rcv, opener)
	}
	return ByFlow
}

// length is what the segment takes of the sequence space.
func (p *packet) length() uint32 {
	n := p.data
	if p.flags&syn != 0 {
		n++
	}
	if p.flags&fin != 0 {
		n++
	}
	return n
}

func (f *flow) progress(snd, rcv *tcpSide, opener bool) {
	if f.state == synReceived && (opener || f.crossed && rcv.acks) && snd.acks && !before(snd.acked, rcv.first) {
		f.state = established
	}
	if snd.fin|rcv.fin == finNone {
		return
	}
	f.state = max(f.state, closing)
	rcv.hear(snd)
	snd.hear(rcv)
	if snd.fin == finAcked && rcv.fin == finAcked {
		f.state = timeWait
	}
}

// hear notes that the other end has acknowledged the FIN of s, if it has.
func (s *tcpSide) hear(other *tcpSide) {
	if s.fin == finSent && other.acks && !before(other.acked, s.finEnd) {
		s.fin = finAcked
	}
}

// resets builds the RSTs that end the connection at side d, as if from the other. d heeds one at the very place where it
// expects the next byte, ignores one before it, and answers one after it with a challenge, which [Reject] answers (RFC 5961
// section 3). But it challenges seldom, twice a second in Linux and gVisor, and an RST of the other end that overtook its last
// segments may have had that challenge. So there is one at each place that it may be:
//
//	─── sent and seen in order ───┬─── segments are missing ───┬──▶
//	                            whole                         end, if those have come since
func (f *flow) resets(d int) [][]byte {
	from := &f.side[1-d]
	if before(from.whole, from.end) {
		return [][]byte{f.reset(d, from.whole), f.reset(d, from.end)}
	}
	return [][]byte{f.reset(d, from.end)}
}

// reset builds one at a place.
func (f *flow) reset(d int, seq uint32) []byte {
	to := &f.side[d]
	src, dst := f.tuple.remote, f.tuple.local
	sport, dport := f.tuple.rport(), f.tuple.lport()
	if d == theirs {
		src, dst, sport, dport = dst, src, dport, sport
	}
	b := make([]byte, headerLen(src)+20)
	l4 := putIP(b, src, dst, protoTCP)
	binary.BigEndian.PutUint16(l4, sport)
	binary.BigEndian.PutUint16(l4[2:], dport)
	binary.BigEndian.PutUint32(l4[4:], seq)
	binary.BigEndian.PutUint32(l4[8:], to.end)
	l4[12], l4[13] = 5<<4, rst|ackFlag
	binary.BigEndian.PutUint16(l4[16:], checksum(l4, pseudo(src, dst, protoTCP, len(l4))))
	return b
}
