package netstack

import (
	"math"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/hedge-mesh/hedge/node/fair"
)

// queueLen is how many packets wait at most for Read. A packet of TCP shares its payload with the retransmission
// queue, so that a full queue costs little beside it: they are counted, and not their bytes.
const queueLen = 4096

// queue is what waits for Read. TCP's own windows bound how long a flow's packets wait.
type queue = fair.Queue[*stack.PacketBuffer]

func newQueue(lose func(*stack.PacketBuffer)) *queue { return fair.New(queueLen, math.MaxInt32, lose) }

// flowOf tells flows apart. TCP gives each connection a number; all else between two hosts shares one, because only
// the first fragment of a datagram carries ports and a flow's datagrams must not overtake each other.
func flowOf(p *stack.PacketBuffer) uint32 {
	if p.Hash != 0 {
		return p.Hash
	}
	switch ip := p.NetworkHeader().Slice(); {
	case len(ip) >= header.IPv6MinimumSize:
		return fair.Mix(0, ip[8:header.IPv6MinimumSize])
	case len(ip) >= header.IPv4MinimumSize:
		return fair.Mix(0, ip[12:header.IPv4MinimumSize])
	}
	return 0
}
