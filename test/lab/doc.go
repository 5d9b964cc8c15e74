// Package lab makes small networks of real kernels for tests: each host is a network namespace of its own on one
// switch, and everything a host does goes through its own interfaces, routes and packet filter.
//
//	host alice ─ eth0 ═ veth ═╗
//	host web   ─ eth0 ═ veth ═╬═ bridge (a namespace of its own)      10.77.0.0/24
//	host relay ─ eth0 ═ veth ═╝
//
// It needs root and iproute2; [New] skips the test, saying so, where they are not to be had. Nothing leaves the
// namespaces, and they are removed when the test ends.
package lab
