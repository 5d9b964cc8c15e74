package filter

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// Config is what a filter enforces. The filter keeps it: do not change it afterwards.
type Config struct {
	Self acl.Node
	// Peers are who may be talked to. If two carry the same prefix the first of them owns it; WireGuard's allowed
	// addresses must say the same.
	Peers []acl.Node
	// Mesh are the prefixes of the mesh's own addresses: each belongs to the node that has it and to nobody else, so
	// no route or exit covers one. Without them, a node that a deny hides would be reached "through the exit".
	Mesh     []netip.Prefix
	View     acl.View
	Revision uint64
	// NotBefore has certainly passed, such as when the policy was made: a clock behind it is in doubt. Zero if unknown.
	NotBefore time.Time
}

// Options bound a filter's memory. Zero fields mean the defaults.
type Options struct {
	MaxFlows            int // 131,072, of some 300 bytes each; taken as they are needed
	MaxFlowsPerPeer     int // 16,384
	MaxFragments        int // datagrams in pieces: 1,024
	MaxFragmentsPerPeer int // 64
}

func (o Options) withDefaults() Options {
	for _, x := range []struct {
		field *int
		value int
	}{{&o.MaxFlows, 1 << 17}, {&o.MaxFlowsPerPeer, 1 << 14}, {&o.MaxFragments, 1 << 10}, {&o.MaxFragmentsPerPeer, 64}} {
		if *x.field <= 0 {
			*x.field = x.value
		}
	}
	return o
}

// Filter judges packets. All its methods may be called from several goroutines.
type Filter struct {
	snap    atomic.Pointer[snapshot]
	opt     Options
	seed    seed
	flows   atomic.Int64
	shards  [1 << shardBits]shard
	frags   fragments
	counts  [2][reasonCount]atomic.Uint64
	setting sync.Mutex
	// under setting, down to believed
	peers    map[acl.NodeID]*peer
	reviewed moment // when the last review was
	pending  []Cut  // that nobody was told of yet
	believed belief
}

// New returns a filter that denies everything until Set.
func New(opt Options) *Filter {
	f := &Filter{opt: opt.withDefaults(), peers: make(map[acl.NodeID]*peer)}
	for i := range f.seed {
		f.seed[i] = rand.Uint64() | 1
	}
	f.frags = fragments{table: make(map[fragKey]*datagram), max: f.opt.MaxFragments, perPeer: f.opt.MaxFragmentsPerPeer}
	f.snap.Store(&snapshot{})
	return f
}

// Set makes c what is enforced, from the next packet on, and judges every live flow again. It returns the flows
// that it ended. A nil c denies everything.
func (f *Filter) Set(c *Config, now time.Time) []Cut {
	f.setting.Lock()
	defer f.setting.Unlock()
	old := f.snap.Load()
	s := &snapshot{epoch: old.epoch + 1}
	if c != nil {
		s = compile(c, old.epoch+1, f.peer)
	}
	if s.base = old.base; s.base.IsZero() {
		s.base = now
		f.believed = belief{now, now.UnixNano(), ClockJumped}
	}
	s.believed = f.believed
	s.doubt = s.doubts(now)
	f.warm(old, s, s.moment(now).late)
	f.snap.Store(s)
	cuts := append(f.pending, f.review(s, now)...)
	f.pending = nil
	f.forget(c)
	return cuts
}

// peer is called under setting.
func (f *Filter) peer(id acl.NodeID) *peer {
	p := f.peers[id]
	if p == nil {
		p = &peer{id: id}
		f.peers[id] = p
	}
	return p
}

// forget drops the counts of peers that are gone; review has ended their flows.
func (f *Filter) forget(c *Config) {
	present := make(map[acl.NodeID]bool)
	if c != nil {
		for i := range c.Peers {
			present[c.Peers[i].ID] = true
		}
	}
	for id, p := range f.peers {
		if !present[id] && p.flows.Load() == 0 {
			delete(f.peers, id)
		}
	}
}

// review goes through all flows under snapshot s: it forgets the idle and cuts those that nothing admits any more.
// If the clock was set back, or might now be earlier than it was, what it said of windows and ends since counts for
// nothing: a deny that was over may be in force again.
func (f *Filter) review(s *snapshot, now time.Time) (cuts []Cut) {
	at, m := s.since(now), s.moment(now)
	back := s.timed && (m.late < f.reviewed.late || m.early < f.reviewed.early)
	f.reviewed = m
	for i := range f.shards {
		sh := &f.shards[i]
		sh.mu.Lock()
		sh.sweep(len(sh.flows), func(fl *flow) bool {
			if at >= fl.deadline {
				f.release(fl.peer)
				return true
			}
			if back {
				fl.expires = math.MinInt64
			}
			v := sh.current(fl, s, m)
			if v.Allow {
				return false
			}
			cuts = append(cuts, fl.cut(v, sh.revision))
			f.release(fl.peer)
			return true
		})
		sh.epoch, sh.revision = s.epoch, s.revision()
		sh.mu.Unlock()
	}
	return cuts
}

// warm compiles for s what is in use under old, so that packets need not wait for it when s comes into force. It does
// so much of it and leaves the rest to the packets that ask.
func (f *Filter) warm(old, s *snapshot, wall int64) {
	if s.conf == nil || old == s && len(s.windowed) == 0 {
		return
	}
	work := maxWarm
	for i := range old.programs.slots {
		g := old.programs.slots[i].Load()
		if g == nil || old == s && g.from <= wall && wall < g.until {
			continue
		}
		for d := range 2 { // whoever owns them now
			if _, at, r := s.classify(&g.asker, &g.asked, d); r == ByRule {
				work -= 64 + s.program(&g.asker, &g.asked, at, wall).work
			}
		}
		if work < 0 {
			return
		}
	}
}

// maxWarm is some 50 ms of compiling, counted in matches.
const maxWarm = 1 << 18

func (fl *flow) cut(why Verdict, revision uint64) Cut {
	c := Cut{Peer: fl.peer.id, Proto: fl.tuple.proto(), Why: why, Rule: fl.rule, Revision: revision}
	c.Src, c.Dst = fl.addrPorts()
	switch {
	case fl.tuple.proto() != protoTCP:
		c.ToPeer, c.ToSelf = fl.prohibited(theirs), fl.prohibited(ours)
	case fl.state < timeWait:
		c.ToPeer, c.ToSelf = fl.resets(theirs), fl.resets(ours)
	}
	return c
}

// current says whether a flow is still admitted under s, judging it again if s is not what judged this shard last or
// time has changed what is in force. A flow whose remote address has gone to another peer is not: the flow of one
// admits no other.
func (sh *shard) current(fl *flow, s *snapshot, m moment) Verdict {
	if sh.epoch == s.epoch && m.late < fl.expires {
		return Verdict{Allow: true, Reason: ByFlow, Rule: fl.rule, Peer: fl.peer.id}
	}
	src, dst, back, port := fl.ends()
	v, owner, until := s.admit(&src, &dst, fl.tuple.proto(), port, fl.opener(), m)
	if !v.Allow && fl.crossed { // either end may be its opener
		if w, o, u := s.admit(&dst, &src, fl.tuple.proto(), back, 1-fl.opener(), m); w.Allow {
			v, owner, until = w, o, u
		}
	}
	if owner != nil && owner.id != fl.peer.id {
		v = Verdict{Reason: SrcNotOwned, Peer: owner.id}
		if !fl.inbound {
			v.Reason = DstNotOwned
		}
	}
	if !v.Allow {
		return v
	}
	fl.rule, fl.expires = v.Rule, until
	v.Reason = ByFlow
	return v
}

// In judges a decrypted packet from the tunnel.
func (f *Filter) In(pkt []byte, now time.Time) Verdict { return f.judge(pkt, now, theirs) }

// Out judges a packet of this node's, or of a network it carries, on its way to the tunnel.
func (f *Filter) Out(pkt []byte, now time.Time) Verdict { return f.judge(pkt, now, ours) }

func (f *Filter) judge(pkt []byte, now time.Time, d int) Verdict {
	var p packet
	if r, ok := p.parse(pkt); !ok {
		return f.count(Verdict{Reason: r}, d)
	}
	if p.frag {
		return f.count(f.fragment(&p, now, d), d)
	}
	v, counted := f.whole(&p, now, d)
	if !counted {
		f.counts[d][v.Reason].Add(1)
	}
	return v
}

func (f *Filter) count(v Verdict, d int) Verdict {
	f.counts[d][v.Reason].Add(1)
	return v
}

// fragment judges one of several fragments.
func (f *Filter) fragment(p *packet, now time.Time, d int) Verdict {
	s := f.snap.Load()
	if p.off > 0 {
		v := f.frags.later(p, d, s.epoch, s.since(now), func(t *tuple) bool { return f.live(t, now) })
		if v.Peer == 0 {
			v = s.owned(p, d, v.Reason)
		}
		return v
	}
	v, _ := f.whole(p, now, d)
	if !v.Allow {
		return v
	}
	owner, r := s.parties(&p.src, &p.dst, d)
	if r != ByRule || owner.id != v.Peer { // a Set came between
		return Verdict{Reason: FragNoFirst, Peer: v.Peer}
	}
	return f.frags.first(p, d, v, owner, s.epoch, s.since(now))
}

// live reports whether a flow is there and admitted.
func (f *Filter) live(t *tuple, now time.Time) bool {
	h := t.name().hash(&f.seed)
	sh := &f.shards[h>>(64-shardBits)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := f.snap.Load()
	fl := sh.find(t.name(), h)
	return fl != nil && s.since(now) < fl.deadline && sh.current(fl, s, s.moment(now)).Allow
}

// whole judges a packet with a transport header. It reports whether it has counted the packet; a fragment it has not,
// which has another table to pass.
func (f *Filter) whole(p *packet, now time.Time, d int) (Verdict, bool) {
	switch p.proto {
	case protoTCP:
		if !sane(p.flags) {
			return f.snap.Load().owned(p, d, TCPFlags), false
		}
	case protoICMP, protoICMPv6:
		switch p.icmp {
		case icmpError:
			return f.related(p, now, d), false
		case icmpOther:
			return f.snap.Load().owned(p, d, ICMPType), false
		}
	}
	if s := f.snap.Load(); s.timed && s.doubt == Believed && s.doubts(now) != Believed {
		f.stepped(now)
	}
	n := nameOf(p, d)
	h := n.hash(&f.seed)
	sh := &f.shards[h>>(64-shardBits)]
	sh.mu.Lock()
	s := f.snap.Load() // under the lock, so that review comes either before this or after
	at := s.since(now)
	fl := sh.find(n, h)
	var v Verdict
	if fl != nil && at < fl.deadline && !(p.proto == protoTCP && fl.reopens(p, d)) {
		v = sh.onFlow(fl, p, s, now, d)
		if v.Allow {
			fl.deadline = at + fl.idle()
			fl.bytes[d] += uint64(p.size)
		}
	} else {
		v = f.onNew(sh, fl, n, h, p, s, now, d)
	}
	if !p.frag {
		sh.passed[d][v.Reason]++
	}
	sh.mu.Unlock()
	return v, !p.frag
}

// onFlow judges a packet of a live flow, which moves on by it.
func (sh *shard) onFlow(fl *flow, p *packet, s *snapshot, now time.Time, d int) Verdict {
	v := Verdict{Allow: true, Reason: ByFlow, Rule: fl.rule, Peer: fl.peer.id}
	if sh.epoch != s.epoch || fl.expires != math.MaxInt64 {
		if v = sh.current(fl, s, s.moment(now)); !v.Allow {
			return v // Set or Tick will cut it
		}
	}
	if p.proto == protoTCP {
		switch r := fl.segment(p, d); r {
		case ByFlow:
		case crossing:
			w, _, _ := s.admit(&p.src, &p.dst, p.proto, p.dport, d, s.moment(now))
			if !w.Allow {
				return w
			}
			fl.cross(p, d)
		default:
			return Verdict{Reason: r, Peer: fl.peer.id}
		}
	} else if fl.state == fresh && d != fl.opener() {
		fl.state = replied
	}
	return v
}

// onNew judges a packet without a live flow, and makes one if a rule admits it. A dead flow in its place goes.
func (f *Filter) onNew(sh *shard, old *flow, n name, h uint64, p *packet, s *snapshot, now time.Time, d int) Verdict {
	why := opens(p)
	if why != ByRule && !(why == TCPNoFlow && d == theirs && p.flags&rst == 0) {
		return s.owned(p, d, why)
	}
	v, owner, until := s.admit(&p.src, &p.dst, p.proto, p.dport, d, s.moment(now))
	at := s.since(now)
	if why != ByRule {
		return lost(v, owner, at)
	}
	if !v.Allow {
		return v
	}
	fl := old
	if fl == nil || fl.peer != owner { // otherwise its place is reserved already
		if old != nil {
			f.release(old.peer)
			sh.remove(old)
		}
		if r := f.room(sh, owner, at); r != ByRule {
			return Verdict{Reason: r, Peer: owner.id}
		}
		fl = sh.insert(n, h)
	}
	fl.inbound, fl.state, fl.crossed = d == theirs, fresh, false
	fl.peer, fl.rule, fl.expires, fl.opened = owner, v.Rule, until, at
	fl.bytes[d], fl.bytes[1-d] = uint64(p.size), 0
	if p.proto == protoTCP {
		if fl.sides == nil {
			sh.connect(fl)
		}
		fl.open(p, d)
	}
	fl.deadline = at + fl.idle()
	return v
}

// room reserves a place for a flow of p, if need be after taking out dead ones.
func (f *Filter) room(sh *shard, p *peer, at int64) Reason {
	dead := func(fl *flow) bool {
		if at < fl.deadline {
			return false
		}
		f.release(fl.peer)
		return true
	}
	if 2*int(p.flows.Load()) > f.opt.MaxFlowsPerPeer || 2*int(f.flows.Load()) > f.opt.MaxFlows {
		sh.sweep(8, dead)
	}
	r := f.reserve(p)
	if r != ByRule {
		sh.sweep(64, dead)
		r = f.reserve(p)
	}
	return r
}

// lost is the verdict on a segment of a peer for a connection that is not known here, as after a restart. v is what
// the rules say of a new connection to its port.
func lost(v Verdict, owner *peer, at int64) Verdict {
	switch v.Reason {
	case NoPolicy, SrcNotOwned, DstNotOwned:
		return v
	}
	if v.Allow && owner.answer(at) {
		return Verdict{Reason: TCPLost, Peer: v.Peer}
	}
	return Verdict{Reason: TCPNoFlow, Peer: v.Peer}
}

// answer reports whether a peer may be sent one more packet that it did not ask for: 100 at once, 100 a second.
func (p *peer) answer(at int64) bool {
	const every, burst = int64(10 * time.Millisecond), int64(time.Second)
	for {
		old := p.answered.Load()
		next := max(old, at) + every
		if next > at+burst {
			return false
		}
		if p.answered.CompareAndSwap(old, next) {
			return true
		}
	}
}

// opens reports whether p may be the first packet of a flow (ByRule), or why not.
func opens(p *packet) Reason {
	switch p.proto {
	case protoTCP:
		if p.flags&(fin|syn|rst|ackFlag) != syn {
			return TCPNoFlow
		}
	case protoSCTP: // INIT, with a verification tag of zero (RFC 9260 section 8.5.1)
		if b := p.l4; b[4]|b[5]|b[6]|b[7] != 0 || b[12] != 1 {
			return NoFlow
		}
	case protoICMP, protoICMPv6:
		if p.icmp != icmpRequest {
			return ICMPNoRequest
		}
	}
	return ByRule
}

// reserve takes a place in the table for a flow of p. A peer has its quota, and the last quarter of the table is for
// peers with few flows: whoever fills the table, others can still be reached. Nobody's flow is evicted for another.
func (f *Filter) reserve(p *peer) Reason {
	few := int64(max(f.opt.MaxFlows/1024, 1))
	mine, all := int64(p.flows.Add(1)), f.flows.Add(1)
	r := ByRule
	switch most := int64(f.opt.MaxFlows); {
	case mine > int64(f.opt.MaxFlowsPerPeer):
		r = PeerFull
	case all > most, all > most-most/4 && mine > few:
		r = FlowsFull
	}
	if r != ByRule {
		f.release(p)
	}
	return r
}

func (f *Filter) release(p *peer) {
	p.flows.Add(-1)
	f.flows.Add(-1)
}

// related judges an ICMP error: it must be about a packet of a live flow that went the other way, come from the peer
// of that flow, go to who sent that packet, and be no longer than errors may be (RFC 1812, RFC 4443), since what it
// quotes could be anything.
func (f *Filter) related(p *packet, now time.Time, d int) Verdict {
	s := f.snap.Load()
	var q packet
	switch {
	case p.frag, !p.v6 && p.size > 576, p.v6 && p.size > 1280:
		return s.owned(p, d, ICMPSize)
	case p.v6 && p.l4[0] == 2 && p.l4[4]|p.l4[5] == 0 && int(p.l4[6])<<8|int(p.l4[7]) < 1280:
		return s.owned(p, d, ICMPType) // an MTU that no IPv6 link has (RFC 8021)
	case !q.quote(p.l4[8:], p.v6), q.src != p.dst:
		return s.owned(p, d, ICMPNoFlow)
	}
	owner, r := s.parties(&p.src, &p.dst, d)
	if r != ByRule {
		return Verdict{Reason: r}
	}
	n := nameOf(&q, 1-d)
	h := n.hash(&f.seed)
	sh := &f.shards[h>>(64-shardBits)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s = f.snap.Load()
	fl := sh.find(n, h)
	if fl == nil || s.since(now) >= fl.deadline || fl.peer.id != owner.id {
		return Verdict{Reason: ICMPNoFlow, Peer: owner.id}
	}
	v := sh.current(fl, s, s.moment(now))
	if v.Allow {
		v.Reason = Related
	}
	return v
}

// Check says whether a new flow would be allowed, and changes nothing. If src is ours it is judged as Out would,
// otherwise as In would.
func (f *Filter) Check(src, dst netip.AddrPort, proto uint8, now time.Time) Verdict {
	s := f.snap.Load()
	if s.conf == nil {
		return Verdict{Reason: NoPolicy}
	}
	from, to := addrOf(src.Addr().Unmap()), addrOf(dst.Addr().Unmap())
	if from.is4() != to.is4() || proto == protoICMP && !from.is4() || proto == protoICMPv6 && from.is4() {
		return Verdict{Reason: Malformed}
	}
	d := theirs
	if s.locate(&from).here != nobody {
		d = ours
	}
	v, _, _ := s.admit(&from, &to, proto, dst.Port(), d, s.moment(now))
	return v
}
