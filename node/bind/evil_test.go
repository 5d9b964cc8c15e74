package bind

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
)

// evilRelay does to packets all that a relay can do: it drops, repeats, delays, reorders and corrupts them, makes some up, and
// gives them to others than they are for.
type evilRelay struct {
	RelayClient
	evil   *atomic.Bool
	others []key.NodePublic

	mu   sync.Mutex
	rng  *rand.Rand
	kept [][]byte
}

func (e *evilRelay) Send(dst key.NodePublic, pkts [][]byte) bool {
	if !e.evil.Load() {
		return e.RelayClient.Send(dst, pkts)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range pkts {
		p = bytes.Clone(p)
		switch e.rng.IntN(8) {
		case 0: // lost
			continue
		case 1, 2: // a bit of it is another
			p[e.rng.IntN(len(p))] ^= 1 << e.rng.IntN(8)
		case 3: // cut
			p = p[:1+e.rng.IntN(len(p))]
		case 4: // not for him
			dst = e.others[e.rng.IntN(len(e.others))]
		case 5: // made up
			e.RelayClient.Send(dst, [][]byte{binary.LittleEndian.AppendUint64([]byte{byte(e.rng.IntN(5)), 0, 0, 0}, e.rng.Uint64())})
		}
		e.kept = append(e.kept, p)
		if len(e.kept) > 64 {
			e.kept = e.kept[1:]
		}
		for range 1 + e.rng.IntN(3) { // late, out of order, again
			e.RelayClient.Send(dst, [][]byte{e.kept[e.rng.IntN(len(e.kept))]})
		}
	}
	return true
}

func (e *evilRelay) SendPriority(dst key.NodePublic, pkts [][]byte) bool { return e.Send(dst, pkts) }

// TestMaliciousRelay: whatever a relay does to the packets it carries, nothing arrives twice or changed, and packets flow
// again within five seconds of its end.
func TestMaliciousRelay(t *testing.T) {
	relay, ticket := relayServer(t)
	var evil atomic.Bool
	var mu sync.Mutex
	var all []*evilRelay
	dial := func(c derp.ClientConfig) RelayClient {
		mu.Lock()
		defer mu.Unlock()
		e := &evilRelay{RelayClient: derp.NewClient(c), evil: &evil, rng: rand.New(rand.NewPCG(1, uint64(len(all)))), others: []key.NodePublic{c.Node}}
		all = append(all, e)
		return e
	}
	a := newWG(t, "100.64.0.1", relay, ticket, &gate{dial: dial})
	b := newWG(t, "100.64.0.2", relay, ticket, &gate{dial: dial})
	a.gate.shut.Store(true)
	b.gate.shut.Store(true)
	a.meet(t, b)
	b.meet(t, a)
	greet(t, a, b)
	evil.Store(true)
	seen := map[uint64]bool{}
	take := func() (n int) {
		for {
			select {
			case p := <-b.tun.in:
				i := binary.BigEndian.Uint64(p[20:])
				if i != 0 && seen[i] {
					t.Errorf("packet %d came twice", i)
				}
				if want := ipPacket(a.ip, b.ip, i, 100); !bytes.Equal(p, want) {
					t.Errorf("came as %x, sent as %x", p, want)
				}
				seen[i] = true
				n++
			default:
				return n
			}
		}
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	i := uint64(0)
	for range 1000 {
		<-tick.C
		i++
		a.send(b, i)
		b.send(a, i)
		take()
	}
	evil.Store(false)
	start := time.Now()
	for flowing := 0; flowing < 50; {
		<-tick.C
		i++
		a.send(b, i)
		if take() > 0 {
			flowing++
		}
		if time.Since(start) > 5*time.Second {
			t.Fatal("packets do not flow again")
		}
	}
	t.Logf("of %d packets %d arrived; they flow again after %v", i, len(seen), time.Since(start).Round(time.Millisecond))
}
