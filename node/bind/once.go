package bind

import (
	"sync"
	"time"

	"github.com/hedge-mesh/hedge/node/device"
)

const (
	onceSize   = 1024
	onceWindow = 200 * time.Millisecond // far longer than a message is being worked on, shorter than until it is sent anew
)

// once lets one copy of each handshake message through to the device.
//
//	paths ══▶ receivers ══▶ once ──▶ device: a handshake worker for each CPU
//	   (copies by several paths)
//
// A handshake message is sent by several paths at once, and anybody may repeat one. wireguard-go checks and changes
// the state of a handshake in two steps, so two copies on two workers can both pass the check: of an initiation, the
// session that was answered first is lost; of a response, two sessions have one key, and count their nonces each from
// zero. A copy that comes later than the first has been worked off is refused by the protocol itself.
type once struct {
	mu   sync.Mutex
	at   map[[32]byte]int64 // by ephemeral key
	ring [onceSize][32]byte
	next int
}

// copied reports whether a packet is a copy of a handshake message, which its ephemeral key tells: what else could be
// changed in a copy is authenticated with it, but for the last field, mac2.
//
//	initiation  type 4 │ sender 4 │ ephemeral 32 │ static 48 │ timestamp 28 │ mac1 16 │ mac2 16
//	response    type 4 │ sender 4 │ receiver 4 │ ephemeral 32 │ empty 16 │ mac1 16 │ mac2 16
func (o *once) copied(pkt []byte, t uint32, now int64) bool {
	switch {
	case t == initiation && len(pkt) == device.MessageInitiationSize:
		return o.add([32]byte(pkt[8:]), now)
	case t == response && len(pkt) == device.MessageResponseSize:
		return o.add([32]byte(pkt[12:]), now)
	}
	return false
}

// add reports whether the key has been added within the window.
func (o *once) add(k [32]byte, now int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.at == nil {
		o.at = make(map[[32]byte]int64)
	}
	t, known := o.at[k]
	if known && now-t < int64(onceWindow) {
		return true
	}
	o.at[k] = now
	if !known {
		if len(o.at) > onceSize {
			delete(o.at, o.ring[o.next])
		}
		o.ring[o.next] = k
		o.next = (o.next + 1) % onceSize
	}
	return false
}
