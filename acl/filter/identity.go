package filter

import (
	"net/netip"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// since is now on the filter's own clock: ns since its first Set, by the monotonic clock if now has one.
func (s *snapshot) since(now time.Time) int64 { return int64(now.Sub(s.base)) }

// parties finds the peer at the other end of a packet in direction d, and checks that either address belongs to who
// uses it. The reason is ByRule when they do.
func (s *snapshot) parties(src, dst *addr, d int) (*peer, Reason) {
	owner, _, r := s.classify(src, dst, d)
	return owner, r
}

// classify does the same and finds the classes of both.
func (s *snapshot) classify(src, dst *addr, d int) (owner *peer, at way, r Reason) {
	if s.conf == nil {
		return nil, at, NoPolicy
	}
	a, from := s.exact.get(src)
	b, to := s.exact.get(dst)
	if from < 0 || to < 0 {
		return s.around(src, dst, d)
	}
	local, remote := a, b // the owners of a packet of ours
	if owner = b; d == theirs {
		local, remote, owner = b, a, a
	}
	switch {
	case d == theirs && remote == nil, d == ours && local != nil:
		return nil, at, SrcNotOwned
	case d == theirs && local != nil, d == ours && remote == nil:
		return owner, at, DstNotOwned
	}
	return owner, way{from, to}, ByRule
}

// around is classify when not both are nodes' own addresses.
func (s *snapshot) around(src, dst *addr, d int) (owner *peer, at way, r Reason) {
	from, to := s.locate(src), s.locate(dst)
	if d == theirs {
		switch {
		case from.owner == nil:
			return nil, at, SrcNotOwned
		case to.here == nobody:
			return from.owner, at, DstNotOwned
		}
		return from.owner, way{from.src, to.hdst}, ByRule
	}
	switch {
	case from.here == nobody:
		return nil, at, SrcNotOwned
	case to.owner == nil:
		return nil, at, DstNotOwned
	}
	return to.owner, way{from.hsrc, to.dst}, ByRule
}

// admit judges a new flow by identity and rules, and says until when it need not be judged again.
func (s *snapshot) admit(src, dst *addr, proto uint8, port uint16, d int, m moment) (Verdict, *peer, int64) {
	owner, at, r := s.classify(src, dst, d)
	v := Verdict{Reason: r}
	if owner != nil {
		v.Peer = owner.id
	}
	if r != ByRule {
		return v, owner, 0
	}
	reason, rule, until := s.rule(src, dst, at, proto, port, m)
	v.Reason, v.Allow = reason, reason == ByRule
	if rule != noRule {
		v.Rule = &s.rules[rule]
	}
	return v, owner, until
}

// owned is a denial: for reason r, or because an address is not its user's, which counts first.
func (s *snapshot) owned(p *packet, d int, r Reason) Verdict {
	owner, how := s.parties(&p.src, &p.dst, d)
	v := Verdict{Reason: r}
	if how != ByRule {
		v.Reason = how
	}
	if owner != nil {
		v.Peer = owner.id
	}
	return v
}

// Peer is the peer that addr belongs to: its own address or the longest of the prefixes approved for peers.
func (f *Filter) Peer(addr netip.Addr) (acl.NodeID, bool) {
	s := f.snap.Load()
	if s.conf == nil || !addr.IsValid() {
		return 0, false
	}
	a := addrOf(addr.Unmap())
	at := s.locate(&a)
	if at.owner == nil {
		return 0, false
	}
	return at.owner.id, true
}
