package bind

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/node/device"
	"github.com/hedge-mesh/hedge/node/key"
)

// A device keeps a buffer of 64 KiB for each packet of a batch and each of its readers. Few packets are enough here.
type (
	fewTUN  struct{ *memTUN }
	fewBind struct{ *Bind }
)

func (fewTUN) BatchSize() int  { return 4 }
func (fewBind) BatchSize() int { return 4 }

// crossers are two real WireGuard devices over two Binds in memory, in fake time; the relay takes half as long again.
type crossers struct {
	a, b *wgNode
	net  *fabric
	rel  *doubles
}

func newCrossers(t *testing.T, delay time.Duration, lose func([]byte) bool) *crossers {
	c := &crossers{net: newFabric(delay), rel: newDoubles(delay + delay/2)}
	mk := func(ip netip.Addr, inside string) *wgNode {
		n := &wgNode{tun: newTUN(), ip: netip.MustParseAddr(inside), node: key.NewNode(), disco: key.NewDisco()}
		peer := func(k key.NodePublic) *device.Peer { return n.dev.LookupPeer(device.NoisePublicKey(k.Raw())) }
		var err error
		n.Bind, err = New(Config{Node: key.ExchangePublic(n.node), Disco: n.disco, Machine: key.NewMachine(),
			Listen: c.net.host(ip), DialRelay: c.rel.dial, Interfaces: func() ([]netip.Addr, error) { return []netip.Addr{ip}, nil },
			Crossed: func(k key.NodePublic) {
				peer(k).ExpireCurrentKeypairs()
				_ = peer(k).SendHandshakeInitiation(false)
			},
			Unheard: func(k key.NodePublic) { peer(k).SendKeepalive() },
		})
		if err != nil {
			t.Fatal(err)
		}
		n.SetRelays([]Relay{{ID: 1, URLs: []string{"http://relay"}}})
		n.dev = device.NewDevice(fewTUN{n.tun}, fewBind{n.Bind}, device.NewLogger(device.LogLevelSilent, ""))
		n.dev.DisableSomeRoamingForBrokenMobileSemantics()
		return n
	}
	c.a, c.b = mk(hostA, "100.64.0.1"), mk(hostB, "100.64.0.2")
	c.a.meet(t, c.b)
	c.b.meet(t, c.a)
	synctest.Wait()
	c.net.lose, c.rel.lose = lose, lose
	return c
}

func (c *crossers) close() {
	for _, n := range []*wgNode{c.a, c.b} {
		n.dev.Close()
		n.Stop()
	}
	synctest.Wait()
}

const tooLong = 100 * time.Second

// meet has both send one packet, the second late by so much, and returns how long it took until both had the other's.
func (c *crossers) meet(late time.Duration) time.Duration {
	start := time.Now()
	time.AfterFunc(late, func() { c.b.send(c.a, 2) })
	c.a.send(c.b, 1)
	end := time.After(tooLong)
	for _, n := range []*wgNode{c.a, c.b} {
		select {
		case <-n.tun.in:
		case <-end:
			return tooLong
		}
	}
	return time.Since(start) - late
}

// loseOne loses the nth handshake message, with all copies that are sent at once.
func loseOne(nth int) func([]byte) bool {
	var mu sync.Mutex
	seen := map[[8]byte]bool{}
	var victim [8]byte
	var until time.Time
	return func(pkt []byte) bool {
		mu.Lock()
		defer mu.Unlock()
		if t := messageType(pkt); t != initiation && t != response {
			return false
		}
		id := [8]byte(pkt)
		if !seen[id] {
			seen[id] = true
			if len(seen) == nth {
				victim, until = id, time.Now().Add(20*time.Millisecond)
			}
		}
		return id == victim && time.Now().Before(until)
	}
}

// Both ends begin a handshake at once, or nearly, and one message may be lost. Nobody waits for WireGuard's own retry, 5 s
// later, or for ever. HEDGE_PAIRS says how many meet in each row.
func TestCrossing(t *testing.T) {
	pairs := 8
	if n, err := strconv.Atoi(os.Getenv("HEDGE_PAIRS")); err == nil {
		pairs = n
	}
	// With no latency at all, which only fake time has, messages pass each other at one instant.
	for _, delay := range []time.Duration{50 * time.Microsecond, time.Millisecond, 20 * time.Millisecond, 150 * time.Millisecond} {
		for _, tt := range []struct {
			late time.Duration // at most
			lost bool
		}{{0, false}, {3 * delay, false}, {0, true}, {3 * delay, true}} {
			var took []time.Duration
			// A crossing costs a second way to the peer and back, mostly by relay; a loss is made good after 100 ms,
			// or 250 if the first repeat is taken for a copy.
			limit := 50*time.Millisecond + 8*delay
			if tt.lost {
				limit += 250 * time.Millisecond
			}
			for i := range pairs {
				synctest.Test(t, func(t *testing.T) {
					var lose func([]byte) bool
					if tt.lost {
						lose = loseOne(1 + i%6)
					}
					c := newCrossers(t, delay, lose)
					took = append(took, c.meet(time.Duration(rand.Int64N(int64(tt.late)+1))))
					c.close()
				})
			}
			slices.Sort(took)
			row := fmt.Sprintf("%v one way, late by up to %v, one lost: %v: p50 %v, p99 %v, most %v",
				delay, tt.late, tt.lost, took[pairs/2], took[pairs*99/100], took[pairs-1])
			if t.Log(row); took[pairs-1] > limit {
				t.Errorf("%s, over %v", row, limit)
			}
		}
	}
}

// What a response means, by what went before it.
func TestReply(t *testing.T) {
	const ms = int64(time.Millisecond)
	for _, tt := range []struct {
		name string
		do   func(c *crossing)
		at   int64
		data int64 // of the peer's, last heard
		want reply
	}{
		{"an answer", func(c *crossing) { c.sent(initiation, 7, ms, 0) }, 50 * ms, 0, replyFirst},
		{"an answer to one before", func(c *crossing) { c.sent(initiation, 6, ms, 0) }, 50 * ms, 0, replyVoid},
		{"a copy", func(c *crossing) { c.sent(initiation, 7, ms, 0); c.reply(7, 40*ms, 0) }, 50 * ms, 40 * ms, replyVoid},
		{"a repeat", func(c *crossing) { c.sent(initiation, 7, ms, 0); c.reply(7, 40*ms, 0) }, 140 * ms, 40 * ms, replyAgain},
		{"a late copy", func(c *crossing) { c.sent(initiation, 7, ms, 0); c.reply(7, 40*ms, 0) }, 140 * ms, 60 * ms, replyVoid},
		{"crossed", func(c *crossing) { c.sent(initiation, 7, ms, 0); c.sent(response, 8, 20*ms, 0) }, 50 * ms, 0, replyCrossed},
		{"crossed, sent in the wrong order", func(c *crossing) { c.sent(response, 8, ms, 0); c.sent(initiation, 7, ms, 0) }, 50 * ms, 0, replyCrossed},
		{"ours after a session of the peer's", func(c *crossing) { c.sent(response, 8, ms, 0); c.sent(initiation, 7, 200*ms, 0) }, 250 * ms, 0, replyFirst},
		{"crossed, a copy", func(c *crossing) {
			c.sent(initiation, 7, ms, 0)
			c.sent(response, 8, 20*ms, 0)
			c.reply(7, 40*ms, 0)
		}, 50 * ms, 0, replyVoid},
	} {
		var c crossing
		if tt.do(&c); c.reply(7, tt.at, tt.data) != tt.want {
			t.Errorf("%s: not %d", tt.name, tt.want)
		}
	}

	// The answer came, but the device was at the peer's initiation already.
	var c crossing
	c.sent(initiation, 7, ms, 0)
	c.reply(7, 40*ms, 0)
	if _, _, crossed := c.sent(response, 8, 41*ms, 0); !crossed {
		t.Error("a response instead of data is not noticed")
	}
	c = crossing{}
	c.sent(initiation, 7, ms, 0)
	c.reply(7, 40*ms, 0)
	if _, _, crossed := c.sent(response, 8, 45*ms, 41*ms); crossed {
		t.Error("a response after data is taken for a crossing")
	}
	// Two messages do not follow each other closely.
	c = crossing{}
	c.sent(initiation, 7, 100*ms, 0)
	if _, wait, _ := c.sent(response, 8, 103*ms, 0); wait != int64(deviceTakes)-3*ms {
		t.Errorf("waits %v", time.Duration(wait))
	}
	if _, wait, _ := c.sent(initiation, 9, 500*ms, 0); wait != 0 {
		t.Errorf("waits %v", time.Duration(wait))
	}
}
