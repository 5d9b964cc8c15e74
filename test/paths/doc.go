// Command paths measures how Hedge gets from one network into another: the real binary on real kernels, a coordinator
// with a relay and a second relay on the internet of [lab.World], and two nodes, each behind a NAT of some kind.
//
//	server 0: hedge coordinator (relay 1, STUN)        server 1: hedge relay (STUN)
//	           │                                            │
//	───────────┴──── 20 ms from edge to edge ───────────────┴──────
//	           │                                            │
//	site a: NAT ─ hedge up ◀─ SOCKS5 ─ UDP flow,    site b: NAT ─ hedge up ─▶ 127.0.0.1:7, an echo
//	                                   TCP stream
//
// Every case begins cold: the nodes have never talked. A datagram leaves every 10 ms and is echoed; what comes back, and
// what the nodes log of their paths, is the measure. Then something happens to a network, and the same is asked again.
//
//	go run ./test/paths -o docs/paths.md        every kind, and every event: half an hour
//	go run ./test/paths -section kinds -o …     a section of it: -help names them
//	go run ./test/paths -run 'easy/hard'        some cases, by a regular expression of their names
//	go test ./test/paths                        the cases that must hold, with their limits
package main
