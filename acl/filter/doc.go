// Package filter decides the fate of every packet: identity, rules, flows.
//
//	            ┌────────────────────── Filter ──────────────────────┐
//	In(packet)  │ parse ─ flow? ─ yes ─ state, window ───────────────┼─ Verdict
//	Out(packet) │           └ no ─ who? ─ class × class ─ port ─ rule┼─ Verdict
//	            └───────────▲────────────────────────────────────────┘
//	Set(config) ── compile ─┘ one atomic pointer; live flows are judged again ─── []Cut
//
// A [Filter] is pure: time and packets come in, decisions go out. It starts no goroutines, reads no clock, logs
// nothing and sends nothing. It denies everything until its first [Filter.Set].
//
// # Identity
//
// WireGuard has already tied a packet's source address to the key of a peer. So the filter asks whose the address
// is (the peer's own, or a prefix approved for it) and then judges the peer, not the address. The same packet is
// judged twice, by the sender on its way out and by the receiver on its way in, and either is enough to stop it. The
// mesh's own addresses are each a node's or nobody's: no route or exit covers them.
//
// # Rules
//
// Set gives every address a class: the list of the rules' sets that contain it. Two addresses of the same class are
// the same to every rule. What a pair of classes may do is compiled once, to intervals of ports, so a verdict costs
// the same with ten rules and with ten thousand. A deny rule in force wins over every accept. What windows open and
// shut is compiled again when they do. A new Config is compiled for the pairs that the old one was asked about before
// it comes into force, as far as that takes no longer than a moment: so packets seldom wait for it.
//
// # Flows
//
// A packet that no rule admits passes only as part of a flow that a rule admitted: TCP from a SYN on and within its
// windows, UDP, ICMP echo replies, SCTP, and the ICMP errors that quote one of these. Fragments follow the verdict
// of their first. A flow belongs to one peer, and a peer can fill only its own share of the table. When the rules
// change, each live flow is judged again before its next packet passes; those that no rule covers are cut, and both
// ends are told.
//
// # Time
//
// Rules that end or have a window are judged by a clock that somebody may set. While it is in doubt, accepts with a
// window are shut and denies with one are in force. See [Filter.Confirm] and [Doubt].
//
// # Lost connections
//
// After a restart a filter knows no flows, and a peer's segment of an old connection is denied: it proves nothing, and
// to take it up midway would let in what no SYN has asked for. But silence would leave the peer's application waiting
// for many minutes. So [Verdict.Answer] asks for an RST, if the rules would admit a new connection from this peer to
// this port: then it learns no more than its SYN would tell it, and any other peer learns nothing.
package filter
