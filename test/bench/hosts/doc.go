// Package hosts measures tunnels, each between two hosts of its own: network namespaces of this machine, joined by a wire.
//
//	          ┌── hedge-tun      hedge up --tun=on at both ends, filter on
//	          ├── hedge-1280     the same on a wire that carries no more than 1280 inside
//	 rounds:  ├── hedge-user     hedge up without rights at both ends: iperf3 through its SOCKS5 proxy
//	 A B C D  ├── against-tun    another build of hedge, and against-user
//	 A B C D  ├── wireguard-go   its own program, with an interface of the host (bare), MTU 1280
//	          ├── wireguard-wide the same with the longest packets that the wire takes
//	          ├── veth           nothing: what the machine carries
//	          └── …              what a file says: other meshes that are on this machine
//
//	namespace a ─ veth ─ namespace b     for each; iperf3 and a kid that sends small requests run in both
//
// Worlds called relay-… have a third host between the two, which forwards nothing: the way is by its relay only.
//
//	namespace a ─ veth ─ namespace hub (coordinator, relay) ─ veth ─ namespace b
//
// All are up at once and take turns in each round. It needs Linux, root, iproute2 and iperf3, for hedge-user proxychains4,
// and for relay-tls nft. Whatever ends it, a kid of its own, the janitor, removes the namespaces and all that runs in them.
package hosts
