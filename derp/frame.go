package derp

import (
	"encoding/binary"
	"errors"

	"github.com/hedge-mesh/hedge/node/key"
)

const headerLen = key.Size + 2

// The kinds of payload to and from the relay itself.
const (
	kindPing    = 1
	kindPong    = 2
	kindGone    = 3
	kindDrain   = 4
	kindWelcome = 5
	kindUDP     = 6
)

// welcome is the first message of a relay.
var welcome = appendPacket(nil, [key.Size]byte{}, []byte{kindWelcome})

var errFrame = errors.New("derp: a message that is not a row of packets")

// appendPacket appends a packet as it stands in a message. The caller has checked len(p): 1…MaxPacket.
func appendPacket(b []byte, k [key.Size]byte, p []byte) []byte {
	b = append(b, k[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
	return append(b, p...)
}

// cutPacket returns the first packet of a message with its header, and what follows it. It fails if b does not
// begin with a whole packet; it never copies.
func cutPacket(b []byte) (packet, rest []byte, err error) {
	if len(b) < headerLen {
		return nil, nil, errFrame
	}
	n := headerLen + int(binary.BigEndian.Uint16(b[key.Size:]))
	if n == headerLen || n > len(b) {
		return nil, nil, errFrame
	}
	return b[:n:n], b[n:], nil
}

// urgent tells packets whose loss costs a WireGuard or disco timeout, from data. WireGuard's data packets begin
// with 4, 0, 0, 0; whatever is neither that nor small is data too.
func urgent(payload []byte) bool {
	return len(payload) <= maxUrgent && (len(payload) < 4 || binary.LittleEndian.Uint32(payload) != 4)
}

// maxUrgent is the largest packet that can be urgent: a disco probe may be padded to the size of a path.
const maxUrgent = 2048
