// Package udp moves many datagrams in one system call, and allocates nothing for one.
//
//	Socket  Write     bufs  ┬ ▒▒▒▒ ▒▒▒▒ ▒▒▒▒ ▒▒  one message: a run, which the kernel or the network card splits (UDP_SEGMENT)
//	                        └ ▒▒▒▒▒▒ ▒▒▒▒▒▒      the next           all of them by one sendmmsg(2)
//	        WriteRun        the same of a run that is in one piece
//	        Beside          another on the same port, for what is not to wait behind the rest
//	Reader  Next      ▒▒▒▒▒▒▒▒▒▒▒▒▒▒ from whom   a run as the kernel has joined it (UDP_GRO), several by one recvmmsg(2)
//	        Lend      bufs   ▒▒▒▒ ▒▒▒▒ ▒▒▒▒ ▒▒    the same, datagram by datagram, where it lies
//
// A run is datagrams of one size, of which only the last may be shorter, between the same two addresses.
//
// On systems other than Linux, and with a net.PacketConn that is none of the system's, datagrams go one by one.
package udp
