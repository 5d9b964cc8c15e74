// Package netstack is a TCP/IP stack in user space (gVisor's) that looks like a TUN device.
//
//	  DialContext · ListenTCP · ListenUDP · Ping          Options.Accept ⇄ splice
//	──────────────────────────┬──────────────────────────────────┬──────────────
//	                gVisor: TCP, UDP, ICMP, IPv4, IPv6
//	──────────────────────────┬──────────────────────────────────┬──────────────
//	            queue (bounded), 56 KiB segments          runs joined again
//	            cut to the MTU, Read(batch) ↓               Write(batch) ↑
//
// A process without privileges so gets its own addresses on the mesh: the WireGuard device reads and writes
// packets below, programs dial and listen above. What nobody listens for is offered to Options.Accept, and
// spliced with the connection that returns.
package netstack
