// Package relays measures Hedge's relay beside derper, each in a process of its own, with the same load from this one:
//
//	         ┌── hedge-tls   hedge relay, packets by WebSocket and TLS
//	rounds:  │── hedge-udp   hedge relay, packets by UDP
//	A B C    └── derper      tailscale.com/cmd/derper, by TLS
//
//	client ═ window of 256 packets ═▶ relay ═▶ client        one pair, ten pairs, beside a client that has stalled
//
// derper is no part of this module: it is built in a module of its own, from the module proxy, in the user's cache.
package relays
