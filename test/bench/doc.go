// Command bench measures Hedge against its parts, on loopback, within about a minute:
//
//	go run ./test/bench [-rules 1000] [-time 60s] [-json FILE]
//
//	parent ──┬── child "hedge"      node ─ filter ─ wireguard ─ bind ═ UDP ═ bind ─ wireguard ─ filter ─ node
//	 rounds: │── child "wireguard"  wireguard-go with its own netstack and bind, the same way
//	 A B C   │── child "stack"      netstack ─ netstack, joined by a copy: the most that any tunnel can reach
//	 A B C   └── (in the parent)    ChaCha20-Poly1305 of one core: the most that any cipher can
//
// Both ends of a world are in one process, a child of its own, so that memory and CPU are its own as well. The
// children take turns within each round, in an order that rotates; what is compared is the ratio within a round,
// and its median over the rounds, because a machine's speed drifts more than the worlds differ.
//
// To look into one world, run its child by hand: requests come in on stdin as JSON, one a line.
//
//	echo '{"test":"tcp","streams":1,"ms":5000}' | bench -world hedge -profile cpu.pprof
package main
