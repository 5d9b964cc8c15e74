package node

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// feed is a conn.Bind that receives what it is given, all at once.
type feed struct {
	conn.Bind
	pkts [][]byte
}

func (f *feed) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		for i, p := range f.pkts {
			sizes[i] = copy(bufs[i], p)
		}
		return len(f.pkts), nil
	}}, port, nil
}

func TestHandshakeMessagesOnce(t *testing.T) {
	message := func(kind uint32, size int, ephemeral byte) []byte {
		p := make([]byte, size)
		binary.LittleEndian.PutUint32(p, kind)
		p[20] = ephemeral // in the key of both kinds
		return p
	}
	initiation := func(e byte) []byte { return message(device.MessageInitiationType, device.MessageInitiationSize, e) }
	response := func(e byte) []byte { return message(device.MessageResponseType, device.MessageResponseSize, e) }
	data := message(device.MessageTransportType, device.MessageInitiationSize, 1)
	otherMAC := initiation(1)
	otherMAC[device.MessageInitiationSize-1] = 1 // mac2, which is checked only under load
	f := &feed{pkts: [][]byte{initiation(1), response(2), data, initiation(1), data, otherMAC, response(2), response(3), {1, 0}}}
	o := newOnceBind(f)
	now := time.Unix(1, 0)
	o.now = func() time.Time { return now }
	fns, _, err := o.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	bufs, sizes := readBufs(16, 2048)
	receive := func() (passed []bool) {
		n, err := fns[0](bufs, sizes, make([]conn.Endpoint, 16))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sizes[:n] {
			passed = append(passed, s > 0)
		}
		return passed
	}
	same := func(what string, got, want []bool) {
		t.Helper()
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%s: packet %d passed %v, want %v", what, i, got[i], want[i])
			}
		}
	}
	same("first", receive(), []bool{true, true, true, false, true, false, false, true, true})
	same("again", receive(), []bool{false, false, true, false, true, false, false, false, true})
	now = now.Add(onceWindow)
	same("later", receive(), []bool{true, true, true, false, true, false, false, true, true})

	var r onceRing
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
