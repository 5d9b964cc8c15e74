// Package wire is what a coordinator and its nodes say to each other, and the channel they say it on.
//
//	node                                                        coordinator
//	 ├── WebSocket GET /control ──────────────────────────────────▶│   any HTTP(S) front, proxies included
//	 │╌╌╌ TLS 1.3 inside it, both keys pinned ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌▶│   machine key ⇄ control key
//	 ├── Hello{keys, have: revision + section hashes, enrol key} ─▶│
//	 │◀── Delta{exactly the sections that differ} ─────────────────┤   or Refused{code, what to do}
//	 ├── Ack{revision enforced} ──────────────────────────────────▶│
//	 ├── Here{endpoints, relay}  ─────────────────────────────────▶│   soft plane: coalesced, not acked
//	 ├── Advertise{routes} ───────────────────────────────────────▶│   whenever they change; approved ones come back
//	 │◀── Presence{peers' endpoints, relay, online}, Ticket ───────┤
//	 │◀── Delta ───────────────────────────────────────────────────┤   and so on, for as long as it lasts
//
// A [Map] is all a node knows; it is changed only by [Map.Apply] of a [Delta], which is a pure function.
// Every message is one deterministic CBOR value in one frame, with hard limits on size, nesting and elements.
package wire
