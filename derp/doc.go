// Package derp is the relay of last resort: it carries packets between nodes that have no direct path, over a
// WebSocket, without being able to read them. It also answers STUN, so that nodes learn their public addresses.
//
//	node A ── Client ══ WebSocket (TLS) ══╗          ╔══ WebSocket (TLS) ══ Client ── node B
//	                                      ▼          ▼
//	                               ┌─ reader A   writer B (only while there is something to write)
//	                               │                 ▲
//	                               └──▶ queue of B ──┘     A's reader never touches B's socket: a slow
//	                                    urgent  ▮▮         reader costs its own packets, oldest first,
//	                                    data    ▮▮▮▮▮▮     and nobody else's
//
// The relay is blind and asks nobody. A [Ticket] signed by a coordinator says which node key a machine may be,
// until when; the upgrade request carries it with the machine's signature, so that authentication costs no round
// trip. Nodes whose tickets come from different coordinators never reach each other. Payloads are WireGuard and
// disco packets, sealed end to end: a relay sees keys, sizes and times, and can drop, delay, repeat or corrupt
// packets, which WireGuard and disco survive.
//
// # Messages
//
// One binary WebSocket message holds many packets, at most [MaxMessage] bytes in all:
//
//	 0                                32      34            34+length
//	┌────────────────────────────────┬───────┬─────────────┐
//	│ node key: to, or on arrival    │length │ payload     │  and so on to the end of the message
//	│ from; zeros: the relay itself  │ be16  │ 1…length    │
//	└────────────────────────────────┴───────┴─────────────┘
//
// A payload to or from the relay itself is one of
//
//	┌───┬─────────┐
//	│ 1 │ 8 B     │  ping, either way
//	├───┼─────────┤
//	│ 2 │ 8 B     │  pong: the ping's 8 bytes
//	├───┼─────────┴──────────┐
//	│ 3 │ 32 B node key      │  gone: nobody of that key is here (relay to node)
//	├───┼────────────────────┘
//	│ 4 │  drain: go elsewhere (relay to node)
//	├───┤
//	│ 5 │  welcome: from now on others reach the node here (relay to node, the first message, alone in it)
//	├───┼─────────────┬──────────┐
//	│ 6 │ 8 B session │ 32 B key │  relay to node: the session has a UDP side, too
//	├───┼─────────────┴──────────┘
//	│ 6 │  node to relay: send nothing by UDP, until a ping by UDP says so
//	└───┘
//
// Over UDP, on the same port, go the same packets in datagrams: see datagram.go. STUN is answered there as well. What of
// this a node can do for two others, without any WebSocket, is a [Forwarder].
//
// Anything else ends the connection. A WebSocket close (RFC 6455 section 7.4) says why in its code and in words.
package derp

// The limits of the protocol.
const (
	// MaxMessage is the most bytes in a WebSocket message, either way.
	MaxMessage = 64 << 10
	// MaxPacket is the most bytes in a packet.
	MaxPacket = MaxMessage - headerLen
	// Subprotocol is the WebSocket subprotocol, and the version, that both ends must name (RFC 6455 section 1.9).
	Subprotocol = "hedge-relay-1"
	// Path is where a relay is mounted unless its URL names another path.
	Path = "/relay"
)
