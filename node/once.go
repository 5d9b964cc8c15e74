package node

import (
	"encoding/binary"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// onceBind gives the device one copy of each handshake message.
//
//	paths ══▶ bind ══▶ once ──▶ device: a handshake worker for each CPU
//	   (copies by several paths)
//
// A handshake message is sent by several paths at once, and anybody may repeat one. wireguard-go checks and changes
// the state of a handshake in two steps, so two copies on two workers can both pass the check: of an initiation, the
// session that was answered first is lost; of a response, two sessions have one key, and count their nonces each from
// zero. A copy that comes later than the first has been worked off is refused by the protocol itself.
type onceBind struct {
	conn.Bind
	seen onceRing
	now  func() time.Time
}

func newOnceBind(b conn.Bind) *onceBind { return &onceBind{Bind: b, now: time.Now} }

// Open wraps the receive functions.
func (o *onceBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := o.Bind.Open(port)
	out := make([]conn.ReceiveFunc, len(fns))
	for i, fn := range fns {
		out[i] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := fn(bufs, sizes, eps)
			for i := range n {
				if sizes[i] == device.MessageInitiationSize || sizes[i] == device.MessageResponseSize {
					if o.copied(bufs[i][:sizes[i]]) {
						sizes[i] = 0 // no packet
					}
				}
			}
			return n, err
		}
	}
	return out, port, err
}

// copied reports whether a packet is a copy of a handshake message, which its ephemeral key tells: what else
// could be changed in a copy is authenticated with it, but for the last field, mac2.
//
//	initiation  type 4 │ sender 4 │ ephemeral 32 │ static 48 │ timestamp 28 │ mac1 16 │ mac2 16
//	response    type 4 │ sender 4 │ receiver 4 │ ephemeral 32 │ empty 16 │ mac1 16 │ mac2 16
func (o *onceBind) copied(pkt []byte) bool {
	switch t := binary.LittleEndian.Uint32(pkt); {
	case t == device.MessageInitiationType && len(pkt) == device.MessageInitiationSize:
		return o.seen.add([32]byte(pkt[8:]), o.now())
	case t == device.MessageResponseType && len(pkt) == device.MessageResponseSize:
		return o.seen.add([32]byte(pkt[12:]), o.now())
	}
	return false
}

const (
	onceSize   = 1024
	onceWindow = 200 * time.Millisecond // far longer than a message is being worked on, shorter than until it is sent anew
)

// onceRing remembers the last ephemeral keys.
type onceRing struct {
	mu   sync.Mutex
	at   map[[32]byte]time.Time
	ring [onceSize][32]byte
	next int
}

// add reports whether the key has been added within the window.
func (r *onceRing) add(k [32]byte, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at == nil {
		r.at = make(map[[32]byte]time.Time)
	}
	t, known := r.at[k]
	if known && now.Sub(t) < onceWindow {
		return true
	}
	r.at[k] = now
	if !known {
		if len(r.at) > onceSize {
			delete(r.at, r.ring[r.next])
		}
		r.ring[r.next] = k
		r.next = (r.next + 1) % onceSize
	}
	return false
}
