package bind

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/node/device"
)

func TestOnce(t *testing.T) {
	message := func(kind uint32, size int, ephemeral byte) []byte {
		p := make([]byte, size)
		binary.LittleEndian.PutUint32(p, kind)
		p[20] = ephemeral // in the key of both kinds
		return p
	}
	initial := func(e byte) []byte { return message(initiation, device.MessageInitiationSize, e) }
	answer := func(e byte) []byte { return message(response, device.MessageResponseSize, e) }
	data := message(transport, device.MessageInitiationSize, 1)
	otherMAC := initial(1)
	otherMAC[device.MessageInitiationSize-1] = 1 // mac2, which is checked only under load
	pkts := [][]byte{initial(1), answer(2), data, initial(1), data, otherMAC, answer(2), answer(3), {1, 0}}
	var o once
	now := int64(time.Hour)
	same := func(what string, want ...bool) {
		t.Helper()
		for i, p := range pkts {
			if got := !o.copied(p, uint32(p[0]), now); got != want[i] {
				t.Errorf("%s: packet %d passed %v, want %v", what, i, got, want[i])
			}
		}
	}
	same("first", true, true, true, false, true, false, false, true, true)
	same("again", false, false, true, false, true, false, false, false, true)
	now += int64(onceWindow)
	same("later", true, true, true, false, true, false, false, true, true)

	var r once
	for i := range 3 * onceSize {
		var k [32]byte
		binary.LittleEndian.PutUint32(k[:], uint32(i))
		if r.add(k, now) {
			t.Fatalf("key %d is said to be known", i)
		}
	}
	if len(r.at) > onceSize {
		t.Errorf("remembers %d keys, want at most %d", len(r.at), onceSize)
	}
}
