// Package ostun is a network interface of the operating system, as a tun.Device.
//
//	        sockets of any program ── routes ──▶ hedge0
//	───────────────────────────────────┬──────────────────────────────────
//	kernel                   TCP and UDP in segments of up to 64 KiB
//	───────────────────────────────────┬──────────────────────────────────
//	driver                    splitter, Read ↓   Write ↑, joiner
//	Inject ── packets of our own ──────┘
//
// The driver is our own on Linux, and cuts TCP to what the path to each destination carries ([Options.PathMTU]), which may
// be more than what the kernel has agreed on. Elsewhere it is wireguard-go's, which cuts to that.
//
// On Linux the interface is as wide as packets can be, and its routes are not: 1280 bytes, but for the addresses of which
// [Device.SetPaths] says something else. What is longer all the same is fragmented or refused, as by a router.
//
// [Device.Set] says what the interface is to be: its addresses, what is routed to it, its MTU. What is to be done for
// that is found by comparing, without I/O, and then done one step at a time (by netlink on Linux):
//
//	Set(Config) ── want ─┐
//	     the system has ─┴─ plan ──▶ rules off, routes off, addresses off, MTU, up, addresses, routes, rules on
//
// The mesh's own prefixes are in the main table. Whatever else is routed here, subnets behind peers or an exit, is in a
// table of its own behind two rules, so that networks this host is on stay as near as they were, and packets with
// [Mark], WireGuard's own, never come back into the tunnel:
//
//	5200: from all lookup main suppress_prefixlength 0       what main knows better than by its default route
//	5201: not from all fwmark 0x680000 lookup 26624+n        the rest, but for our own packets
//
// The rules are there only as long as such routes are. The kernel removes an interface with its addresses and routes as
// soon as its process is gone, however that ended; rules it leaves, and the next Open removes those.
package ostun
