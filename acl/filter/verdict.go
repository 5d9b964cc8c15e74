package filter

import (
	"fmt"
	"net/netip"

	"github.com/hedge-mesh/hedge/acl"
)

// Verdict is what becomes of one packet. The zero Verdict denies.
type Verdict struct {
	Allow  bool
	Reason Reason
	Rule   *acl.Rule  // the rule that admitted or denied it; nil when there is none
	Peer   acl.NodeID // the other end; zero when unknown
}

// Answer reports whether a peer's denied packet should be answered, through the tunnel, with what [Reject] makes of it.
func (v Verdict) Answer() bool { return v.Reason == TCPLost }

// String says it for people who do not have the packet at hand; [Filter.Explain] names both ends too.
func (v Verdict) String() string {
	switch {
	case v.Allow && v.Rule != nil:
		return fmt.Sprintf("allowed by %s (%v)", v.Rule.Path, v.Rule.Pos)
	case v.Allow:
		return "allowed: " + v.Reason.text()
	case v.Rule != nil:
		return fmt.Sprintf("denied by %s (%v): %s", v.Rule.Path, v.Rule.Pos, v.Reason.text())
	}
	return "denied: " + v.Reason.text()
}

// Reason says why, one word for each way a verdict can come about. Its String is fit for a metrics label.
type Reason uint8

// The reasons. Those before NoPolicy allow.
const (
	Unknown       Reason = iota // the zero Reason, and a denial
	ByRule                      // a rule admits it: the first packet of a flow
	ByFlow                      // part of a flow that a rule admitted
	Related                     // an ICMP error about such a flow
	ByFragment                  // follows its first fragment
	NoPolicy                    // no configuration yet
	Malformed                   // not a well-formed IP packet of a kind we read
	IPOptions                   // IPv4 options
	ExtHeader                   // an IPv6 extension header or option that is refused
	SrcNotOwned                 // in: the source is no peer's; out: the source is not ours
	DstNotOwned                 // in: the destination is not ours; out: it is no peer's
	NoRule                      // no rule admits it
	DenyRule                    // a deny rule matches
	RuleExpired                 // only rules past their end match
	RuleShut                    // only rules outside their window match
	ClockDoubt                  // only rules with a window match, and the clock is in doubt
	TCPNoFlow                   // not a SYN, and no flow
	TCPLost                     // the same, of a peer that may connect anew and should be told to: see Verdict.Answer
	TCPFlags                    // a combination of flags that no TCP sends
	TCPState                    // the flow is not in a state for this segment
	TCPSeq                      // outside the windows of the flow
	NoFlow                      // SCTP without its INIT
	ICMPType                    // neither echo nor error
	ICMPNoRequest               // an echo reply to no request
	ICMPNoFlow                  // an error about no flow of ours
	ICMPSize                    // an error longer than errors may be
	FragTiny                    // a first fragment without the whole transport header
	FragNoFirst                 // a later fragment whose first was not admitted
	FragOverlap                 // overlaps another fragment or exceeds the datagram
	FragFull                    // too many datagrams in pieces
	FlowsFull                   // the flow table is full
	PeerFull                    // this peer has all the flows it may have
	FlowGone                    // the flow was idle too long, or ended (in cuts and flow records)
	reasonCount
)

var reasons = [reasonCount]struct{ label, text string }{
	Unknown:       {"unknown", "no verdict"},
	ByRule:        {"rule", "a rule admits it"},
	ByFlow:        {"flow", "part of an admitted flow"},
	Related:       {"related", "an ICMP error about an admitted flow"},
	ByFragment:    {"fragment", "a fragment of an admitted packet"},
	NoPolicy:      {"no_policy", "this node has no policy yet"},
	Malformed:     {"malformed", "not a well-formed IP packet"},
	IPOptions:     {"ip_options", "IPv4 options are refused"},
	ExtHeader:     {"ext_header", "this IPv6 extension header is refused"},
	SrcNotOwned:   {"src_not_owned", "the source address does not belong to the sender"},
	DstNotOwned:   {"dst_not_owned", "the destination address does not belong to the receiver"},
	NoRule:        {"no_rule", "no rule admits it"},
	DenyRule:      {"deny_rule", "a deny rule matches"},
	RuleExpired:   {"rule_expired", "the rule has expired"},
	RuleShut:      {"rule_shut", "it is outside the rule's window"},
	ClockDoubt:    {"clock_doubt", "the rule has a window, and the clock of this node is in doubt"},
	TCPNoFlow:     {"tcp_no_flow", "TCP without a connection opened through this filter"},
	TCPLost:       {"tcp_lost", "a TCP connection that is not known here, perhaps since a restart"},
	TCPFlags:      {"tcp_flags", "impossible TCP flags"},
	TCPState:      {"tcp_state", "the TCP connection is not in a state for this segment"},
	TCPSeq:        {"tcp_seq", "TCP sequence or acknowledgment outside the window"},
	NoFlow:        {"no_flow", "no association opened through this filter"},
	ICMPType:      {"icmp_type", "only ICMP echo and errors are carried"},
	ICMPNoRequest: {"icmp_no_request", "an echo reply to no request"},
	ICMPNoFlow:    {"icmp_no_flow", "an ICMP error about no known flow"},
	ICMPSize:      {"icmp_size", "an ICMP error longer than the standards allow"},
	FragTiny:      {"frag_tiny", "a first fragment without the whole header"},
	FragNoFirst:   {"frag_no_first", "a fragment whose first was not admitted"},
	FragOverlap:   {"frag_overlap", "overlapping fragments"},
	FragFull:      {"frag_full", "too many datagrams in fragments"},
	FlowsFull:     {"flows_full", "the flow table is full"},
	PeerFull:      {"peer_full", "this peer has as many flows as it may"},
	FlowGone:      {"flow_gone", "the flow has ended"},
}

// String is the label: "no_rule".
func (r Reason) String() string {
	if r >= reasonCount {
		return "unknown"
	}
	return reasons[r].label
}

func (r Reason) text() string {
	if r >= reasonCount {
		r = Unknown
	}
	return reasons[r].text
}

// Cut is a live flow that was ended because nothing admits it any more.
type Cut struct {
	Peer     acl.NodeID
	Src, Dst netip.AddrPort // Src opened the flow; for ICMP echo both ports are its identifier
	Proto    uint8
	Why      Verdict
	Rule     *acl.Rule // the rule that had admitted it
	Revision uint64    // the last one that admitted it
	// ToPeer and ToSelf end it at once: whole packets for the tunnel and for the local stack, to be sent past this
	// filter in this order. They are RSTs for TCP, one or, if segments are missing, two; for the rest ICMP
	// "administratively prohibited", and none for an end that has sent nothing.
	ToPeer, ToSelf [][]byte
}
