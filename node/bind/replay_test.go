package bind

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
)

// tap keeps what a node gives to a relay, and can give it again, or hold it back.
type tap struct {
	RelayClient

	mu   sync.Mutex
	hold bool
	kept []tapped
}

type tapped struct {
	dst key.NodePublic
	pkt []byte
}

func (e *tap) Send(dst key.NodePublic, pkts [][]byte) bool {
	e.mu.Lock()
	hold := e.hold
	for _, p := range pkts {
		e.kept = append(e.kept, tapped{dst, bytes.Clone(p)})
	}
	e.mu.Unlock()
	return hold || e.RelayClient.Send(dst, pkts)
}

func (e *tap) SendPriority(dst key.NodePublic, pkts [][]byte) bool { return e.Send(dst, pkts) }

// data are the transport messages among what was kept, and set says whether the next are held back.
func (e *tap) data(hold bool) (out []tapped) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hold = hold
	for _, k := range e.kept {
		if binary.LittleEndian.Uint32(k.pkt) == transport && len(k.pkt) > 100 { // no keepalive
			out = append(out, k)
		}
	}
	e.kept = nil
	return out
}

const farOff = 1 << 40 // numbers of packets that are not sent in turn

// R-relay-replay: frames that were captured at a relay and are given again, all of them, ten times, in order and backwards, bring
// nothing a second time. That the window moves on relayed frames is shown by what the relay holds back: it may be 500
// packets late, and not 10,000 (WireGuard's window is some 8,000 wide), though it has never arrived before.
func TestRelayReplay(t *testing.T) {
	relay, ticket := relayServer(t)
	var taps sync.Map
	dial := func(c derp.ClientConfig) RelayClient {
		e := &tap{RelayClient: derp.NewClient(c)}
		taps.Store(c.Node, e)
		return e
	}
	a := newWG(t, "100.64.0.1", relay, ticket, &gate{dial: dial})
	b := newWG(t, "100.64.0.2", relay, ticket, &gate{})
	a.gate.shut.Store(true) // relayed, all of it
	b.gate.shut.Store(true)
	a.meet(t, b)
	b.meet(t, a)
	greet(t, a, b)
	got, _ := taps.Load(key.ExchangePublic(a.node))
	e := got.(*tap)

	next, seen := uint64(0), map[uint64]int{}
	timeout := time.After(60 * time.Second)
	// through sends one more packet, until one sent after all others has come: packets of a relay's client keep their order.
	through := func() {
		t.Helper()
		next++
		last := next
		a.send(b, last)
		again := time.NewTicker(200 * time.Millisecond)
		defer again.Stop()
		for {
			select {
			case p := <-b.tun.in:
				i := binary.BigEndian.Uint64(p[20:])
				if seen[i]++; i != 0 && seen[i] > 1 {
					t.Fatalf("packet %d came %d times", i, seen[i])
				}
				if i >= last && i < farOff {
					return
				}
			case <-again.C: // a relay may lose packets
				next++
				a.send(b, next)
			case <-timeout:
				t.Fatal("nothing arrives any more")
			}
		}
	}
	for range 200 {
		through()
	}
	captured := e.data(false)
	if len(captured) < 200 {
		t.Fatalf("captured %d frames", len(captured))
	}
	for round := range 10 {
		for _, k := range captured {
			e.RelayClient.Send(k.dst, [][]byte{k.pkt})
		}
		slices.Reverse(captured)
		through()
		t.Logf("round %d: %d different packets have come", round, len(seen))
	}

	// held sends five packets that the relay keeps for itself, has others go ahead of them, and gives them then.
	held := func(first uint64, ahead int) (came int) {
		t.Helper()
		e.data(true)
		for i := range uint64(5) {
			a.send(b, first+i)
		}
		var late []tapped
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for len(late) < 5 {
			select {
			case <-timeout:
				t.Fatalf("%d frames were held back", len(late))
			case <-tick.C:
				late = append(late, e.data(true)...)
			}
		}
		e.data(false)
		for range ahead / 50 {
			for range 50 {
				next++
				a.send(b, next)
			}
			through()
		}
		for _, k := range late {
			e.RelayClient.Send(k.dst, [][]byte{k.pkt})
		}
		through()
		for i := range uint64(5) {
			came += seen[first+i]
		}
		return came
	}
	if n := held(farOff, 500); n != 5 {
		t.Errorf("of 5 packets that were 500 late %d came", n)
	}
	if n := held(2*farOff, 10_000); n != 0 {
		t.Errorf("of 5 packets that the window had gone past %d came", n)
	}
}
