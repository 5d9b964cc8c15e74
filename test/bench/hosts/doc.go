// Command hosts measures Hedge beside other tunnels, each between two hosts of its own on this machine:
//
//	go run ./test/bench/hosts [-rounds 5] [-time 3s] [-json FILE] [-baselines FILE] [-only NAME,…]
//
//	          ┌── veth           nothing: what the machine carries
//	 rounds:  ├── wireguard-go   its own program, with an interface of the host (bare)
//	 A B C D  ├── hedge-tun      hedge --tun=on at both ends, filter on
//	 A B C D  ├── hedge          hedge without rights at both ends: iperf3 through its SOCKS5 proxy
//	          └── …              what FILE says: other meshes that are on this machine
//
//	namespace a ─ veth ─ namespace b     for each; iperf3 and a program that sends small requests run in both
//
// All are up at once and take turns in each round, in an order that rotates. What is compared is the ratio within a
// round, and its median over the rounds. It needs root, iproute2, iperf3, and for "hedge" proxychains4.
//
// A file of baselines is JSON, a list of these; up and down are run by bash with NS_A and NS_B, the names of the
// namespaces, ADDR_A and ADDR_B, their addresses, and DIR, a folder, in the environment. address is what a reaches b by,
// or if it begins with "$", the shell command that prints it.
//
//	[{"name": "nebula", "up": "ip netns exec $NS_A nebula … &", "down": "pkill nebula", "address": "10.9.0.2"}]
package main
