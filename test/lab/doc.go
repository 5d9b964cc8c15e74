// Package lab makes small networks for tests, of three sorts.
//
// [New] makes one of real kernels: each host is a network namespace of its own on one switch, and everything a host does
// goes through its own interfaces, routes and packet filter.
//
//	host alice ─ eth0 ═ veth ═╗
//	host web   ─ eth0 ═ veth ═╬═ bridge (a namespace of its own)      10.77.0.0/24
//	host relay ─ eth0 ═ veth ═╝
//
// It needs root and iproute2; it skips the test, saying so, where they are not to be had. Nothing leaves the namespaces,
// and they are removed when the test ends.
//
// [NewWorld] makes an internet of real kernels: servers and homes, 20 ms apart, behind NATs of every kind that Linux can
// be made to be, with what happens to them while people talk. It needs nftables and /dev/net/tun too.
//
//	client ─ veth ─ router (NAT) ─ wire ─ internet, a router ─ wire ─ provider (NAT) ─ veth ─ router (NAT) ─ veth ─ client
//
// [NewInternet] makes one in memory: machines behind routers of every kind of NAT (RFC 4787), in the fake time of
// testing/synctest.
//
//	machine ─ router (NAT, firewall) ─ link ─ core ─ link ─ router (CGN) ─ router (NAT) ─ machine
package lab
