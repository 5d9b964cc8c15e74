package filter

import (
	"fmt"
	"math/bits"
	"net/netip"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// Explain says a verdict in one sentence with names: "denied: no rule lets web reach db on tcp/5432".
func (f *Filter) Explain(v Verdict, src, dst netip.AddrPort, proto uint8) string {
	s := f.snap.Load()
	if s.conf == nil {
		return v.String()
	}
	from, to, on := s.who(src.Addr()), s.who(dst.Addr()), service(proto, dst.Port())
	switch {
	case v.Allow && v.Rule != nil:
		return fmt.Sprintf("allowed: %s may reach %s on %s by %s (%v)", from, to, on, v.Rule.Path, v.Rule.Pos)
	case v.Allow:
		return fmt.Sprintf("allowed: %s may reach %s on %s: %s", from, to, on, v.Reason.text())
	}
	switch v.Reason {
	case NoRule:
		return fmt.Sprintf("denied: no rule lets %s reach %s on %s", from, to, on)
	case DenyRule:
		return fmt.Sprintf("denied: %s (%v) forbids %s to reach %s on %s", v.Rule.Path, v.Rule.Pos, from, to, on)
	case RuleExpired:
		return fmt.Sprintf("denied: %s (%v) let %s reach %s on %s only until %s", v.Rule.Path, v.Rule.Pos, from, to, on,
			v.Rule.Expires.UTC().Format(time.RFC3339))
	case RuleShut, ClockDoubt:
		return fmt.Sprintf("denied: %s (%v) lets %s reach %s on %s only at %s", v.Rule.Path, v.Rule.Pos, from, to, on, s.shutText(v))
	case SrcNotOwned:
		return fmt.Sprintf("denied: source %v belongs to no known peer and is not ours to send from", src.Addr())
	case DstNotOwned:
		if v.Peer == 0 {
			return fmt.Sprintf("denied: destination %v belongs to no peer that this node may know", dst.Addr())
		}
		return fmt.Sprintf("denied: destination %v is not at the receiver", dst.Addr())
	}
	return fmt.Sprintf("denied: %s to %s on %s: %s", from, to, on, v.Reason.text())
}

// who names the owner of an address, or the address behind it.
func (s *snapshot) who(a netip.Addr) string {
	if !a.IsValid() {
		return "nobody"
	}
	a = a.Unmap()
	key := addrOf(a)
	at := s.locate(&key)
	name, how := "", at.kind
	switch {
	case at.here != nobody:
		name, how = s.names[s.conf.Self.ID], at.here
	case at.owner != nil:
		name = s.names[at.owner.id]
	}
	switch {
	case name == "":
		return a.String()
	case how == own:
		return name
	}
	return fmt.Sprintf("%v (behind %s)", a, name)
}

func service(proto uint8, port uint16) string {
	switch proto {
	case protoTCP:
		return fmt.Sprintf("tcp/%d", port)
	case protoUDP:
		return fmt.Sprintf("udp/%d", port)
	case protoSCTP:
		return fmt.Sprintf("sctp/%d", port)
	case protoICMP:
		return "icmp"
	case protoICMPv6:
		return "ipv6-icmp"
	}
	return fmt.Sprintf("protocol %d", proto)
}

// Flow describes one live flow.
type Flow struct {
	Peer              acl.NodeID
	Src, Dst          netip.AddrPort // Src opened it; for ICMP echo both ports are its identifier
	Proto             uint8
	Inbound           bool   // opened by the peer
	State             string // "established"; for protocols without states "new" or "replied"
	Rule              *acl.Rule
	Revision          uint64 // that last judged it
	Opened, Last      time.Time
	BytesIn, BytesOut uint64
}

// Flows calls yield for each live flow until it returns false; `for fl := range f.Flows`. Flows that have idled too
// long are among them until they are swept.
func (f *Filter) Flows(yield func(Flow) bool) {
	base := f.snap.Load().base
	var batch []Flow
	for i := range f.shards {
		sh := &f.shards[i]
		batch = batch[:0]
		sh.mu.Lock()
		for g, tags := range sh.tags {
			for m := tags & high; m != 0; m &= m - 1 {
				batch = append(batch, sh.flows[g*8+bits.TrailingZeros64(m)>>3].describe(base, sh.revision))
			}
		}
		sh.mu.Unlock() // before yield, which may take its time
		for _, fl := range batch {
			if !yield(fl) {
				return
			}
		}
	}
}

func (fl *flow) describe(base time.Time, revision uint64) Flow {
	d := Flow{Peer: fl.peer.id, Proto: fl.tuple.proto(), Inbound: fl.inbound, State: stateNames[fl.state], Rule: fl.rule,
		Revision: revision, Opened: base.Add(time.Duration(fl.opened)), Last: base.Add(time.Duration(fl.deadline - fl.idle())),
		BytesIn: fl.bytes[theirs], BytesOut: fl.bytes[ours]}
	d.Src, d.Dst = fl.addrPorts()
	return d
}

// Stats are counters since New, and gauges of now.
type Stats struct {
	In, Out   [reasonCount]uint64 // packets by Reason
	Flows     int
	Fragments int // datagrams in pieces
	Revision  uint64
}

// Stats returns the counters. Range over [Reasons] to read them.
func (f *Filter) Stats() Stats {
	st := Stats{Flows: int(f.flows.Load()), Fragments: f.frags.len()}
	if s := f.snap.Load(); s.conf != nil {
		st.Revision = s.conf.Revision
	}
	for r := range reasonCount {
		st.In[r], st.Out[r] = f.counts[theirs][r].Load(), f.counts[ours][r].Load()
	}
	for i := range f.shards {
		sh := &f.shards[i]
		sh.mu.Lock()
		for r := range reasonCount {
			st.In[r] += sh.passed[theirs][r]
			st.Out[r] += sh.passed[ours][r]
		}
		sh.mu.Unlock()
	}
	return st
}

// Reasons are all reasons, in order.
func Reasons() []Reason {
	all := make([]Reason, reasonCount)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// Allows reports whether verdicts for this reason allow.
func (r Reason) Allows() bool { return ByRule <= r && r <= ByFragment }
