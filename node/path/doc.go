// Package path decides how packets reach a peer. It is pure: time and events go in, decisions come out; sockets, keys
// and clocks are its caller's (node/bind).
//
//	        Peers, Self, Got, Tick …               Send, Use, Sleep, Probed
//	(now) ───────────────────────────▶ Paths.Step ───────────────────────────▶
//
//	            first packet                    a pong came                   pings unanswered
//	  idle ─────────────────────▶ relay ──────────────────────▶ direct ──────────────────────┐
//	   ▲      Here + pings to        ▲  both for 300 ms            │ both while in doubt     │
//	   │      every candidate        └─────────────────────────────┴─────────────────────────┘
//	   └── quiet for some seconds: no packet of ours is sent at all
//
// Packets start on the relay at once. Candidate addresses of the peer come from its coordinator, from the peer itself
// (a Here by relay) and from the source of any valid ping. All are pinged; whoever is pinged pings back. An address is
// used for data once a pong proved it in both directions, and left as soon as it stops answering; around every switch,
// and as long as there is doubt, packets go both ways (WireGuard's replay window drops the copies). Nobody can make a
// node probe much: candidates per peer are few, and a token bucket holds each peer's probes.
//
// Public addresses are at first only opened, by packets that die before the peer's NAT, for some NATs are spoilt by early
// ones. Where a NAT has a port for each far end, ports are guessed within a budget ([Budget]). Paths are judged by latency,
// jitter and loss, the relay too: a direct path that is worse is left for the relay until it is good again, not often.
//
// A [Paths] has a peer for each that there is something to do for; what it knows is in parts that can be read alone: the search
// for a direct path (search.go), guessed ports (guess.go, try.go, plan.go), fresh sockets (fresh.go), the comparison of paths
// (compare.go), silence (silence.go), loss (loss.go), paths left for their quality (shun.go), pings (ping.go) and what both ends
// tell each other by relay (here.go). peer.go is where they meet.
//
// The messages are sealed from disco key to disco key; [Box] draws their bytes.
package path
