package filter

import (
	"net/netip"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// Config is what a filter enforces. The filter keeps it: do not change it afterwards.
type Config struct {
	Self acl.Node
	// Peers are who may be talked to. If two carry the same prefix the first of them owns it; WireGuard's allowed
	// addresses must say the same.
	Peers    []acl.Node
	View     acl.View
	Revision uint64
}

// Options bound a filter's memory. Zero fields mean the defaults.
type Options struct {
	MaxFlows            int // 131,072
	MaxFlowsPerPeer     int // 16,384
	MaxFragments        int // datagrams in pieces: 1,024
	MaxFragmentsPerPeer int // 64
}

// Filter judges packets. All its methods may be called from several goroutines.
type Filter struct{}

// New returns a filter that denies everything until Set.
func New(opt Options) *Filter { return &Filter{} }

// Set makes c what is enforced, from the next packet on, and judges every live flow again. It returns the flows
// that it ended. A nil c denies everything.
func (f *Filter) Set(c *Config, now time.Time) []Cut { return nil }

// Tick forgets idle flows and returns those cut because their rule has expired. Call it every few seconds, and at
// Deadline.
func (f *Filter) Tick(now time.Time) []Cut { return nil }

// Deadline is when the next rule expires; zero means never.
func (f *Filter) Deadline(now time.Time) time.Time { return time.Time{} }

// In judges a decrypted packet from the tunnel.
func (f *Filter) In(pkt []byte, now time.Time) Verdict { return Verdict{} }

// Out judges a packet of this node's, or of a network it carries, on its way to the tunnel.
func (f *Filter) Out(pkt []byte, now time.Time) Verdict { return Verdict{} }

// Check says whether a new flow would be allowed, and changes nothing. If src is ours it is judged as Out would,
// otherwise as In would.
func (f *Filter) Check(src, dst netip.AddrPort, proto uint8, now time.Time) Verdict {
	return Verdict{}
}

// Peer is the peer that addr belongs to: its own address or the longest of the prefixes approved for peers.
func (f *Filter) Peer(addr netip.Addr) (acl.NodeID, bool) { return 0, false }

// Explain says a verdict in one sentence with names: "denied: no rule lets web reach db on tcp/5432".
func (f *Filter) Explain(v Verdict, src, dst netip.AddrPort, proto uint8) string { return v.String() }

// Tuple reads the ends and the protocol of a packet, for Explain and for records. ICMP echo has its identifier as
// both ports. It reports false if the packet is malformed.
func Tuple(pkt []byte) (src, dst netip.AddrPort, proto uint8, ok bool) { return }

// Reject builds the packet that answers a denied one so that its sender need not wait for a timeout: an RST for TCP,
// ICMP "administratively prohibited" for the rest. It is written to buf, or to new memory if buf is too small (1,280
// bytes always suffice). It is nil when the packet must not be answered (RFC 1122 section 3.2.2, RFC 4443 section
// 2.4). Answer local senders only: answers to the tunnel tell a scanner what exists.
func Reject(pkt, buf []byte) []byte { return nil }

// Flow describes one live flow.
type Flow struct {
	Peer              acl.NodeID
	Src, Dst          netip.AddrPort // Src opened it
	Proto             uint8
	Inbound           bool   // opened by the peer
	State             string // "established"; for protocols without states "new" or "replied"
	Rule              *acl.Rule
	Revision          uint64 // that last judged it
	Opened, Last      time.Time
	BytesIn, BytesOut uint64
}

// Flows calls yield for each live flow until it returns false; `for fl := range f.Flows`.
func (f *Filter) Flows(yield func(Flow) bool) {}

// Stats are counters since New, and gauges of now.
type Stats struct {
	In, Out   [reasonCount]uint64 // packets by Reason
	Flows     int
	Fragments int // datagrams in pieces
	Revision  uint64
}

// Stats returns the counters. Range over [Reasons] to read them.
func (f *Filter) Stats() Stats { return Stats{} }

// Reasons are all reasons, in order.
func Reasons() []Reason { return nil }
