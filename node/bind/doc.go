// Package bind carries WireGuard's packets: a conn.Bind over UDP sockets and relays, choosing the path of each peer.
//
//	wireguard device                                               ┌─ udp4, udp6 sockets ── peers, STUN servers
//	  │ Send(bufs, *Endpoint) ─ one atomic load: the peer's routes ┤
//	  │                                                            └─ relay clients ─────── peers
//	  └ receive v4, v6, relay ◀─ by first bytes ─┬─ WireGuard
//	                                             └─ disco, STUN ─▶ one goroutine that owns path.Paths
//
// An [Endpoint] is a peer, not an address: it is the same for every path of that peer and all its life, so that
// WireGuard's roaming never contends with the choice of paths. The sockets belong to the Bind and outlive the device's
// Open and Close; [Bind.Stop] ends them.
package bind
