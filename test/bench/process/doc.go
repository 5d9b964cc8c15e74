// Package process measures two nodes in one process, as programs embed them, beside the parts they are made of:
//
//	        ┌── hedge         node ─ filter ─ wireguard ─ bind ═ UDP ═ bind ─ wireguard ─ filter ─ node
//	rounds: │── wireguard-go  with its own netstack and bind, the same way
//	A B C   │── stacks        netstack ─ netstack, joined by a copy: the most that any tunnel can reach
//	A B C   │── against       hedge, in another build of the bench
//	        └── cipher        ChaCha20-Poly1305 on one core: the most that any tunnel of that cipher can reach
//
// Both ends of a world are in one kid, so that processor time, allocations and memory are its own; Hedge's coordinator is
// in another one. All on loopback, without privileges.
package process
