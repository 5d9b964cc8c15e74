package bind

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// A first handshake is under way when the coordinator tells where the peer is, and its disco key: it goes there at
// once, and so does its answer, and the data after it, although nobody is at the relay yet.
func TestColdStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.rel.setDown(1, true)
		bare := func(s *side) Peer { return Peer{Key: s.cfg.Node, Relay: 1} }
		p.a.SetPeers([]Peer{bare(p.b)})
		p.b.SetPeers([]Peer{bare(p.a)})
		synctest.Wait()
		p.a.to(p.b, wg(initiation, 1, 0, 0))
		<-time.After(20 * time.Millisecond)
		start := time.Now()
		p.a.SetPeers([]Peer{p.b.peer(1, p.b.Endpoints()...)})
		if m := <-p.b.got; messageType(m.b) != initiation || time.Since(start) > 50*time.Millisecond {
			t.Fatalf("message %d after %v", messageType(m.b), time.Since(start))
		}
		p.b.to(p.a, wg(response, 2, 1, 0)) // knowing of no address; a stranger's would do, but the device keeps its endpoint
		<-time.After(20 * time.Millisecond)
		start = time.Now()
		p.b.SetPeers([]Peer{p.a.peer(1, p.a.Endpoints()...)})
		for m := range p.a.got {
			if messageType(m.b) == response {
				break
			}
		}
		if d := time.Since(start); d > 50*time.Millisecond {
			t.Fatalf("answered after %v", d)
		}
	})
}

// A session was made by an address that no probe has proven yet, and the peer is not at the relay: the first packets
// follow the handshake, and no more than that.
func TestFirstPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		b := p.b.peer(1, p.b.Endpoints()...)
		b.Disco = key.DiscoPublic{} // no probe can be sent
		p.a.SetPeers([]Peer{b})
		p.rel.setDown(1, true)
		synctest.Wait()
		p.a.to(p.b, wg(initiation, 1, 0, 0))
		p.b.to(p.a, wg(response, 2, 1, 0))
		for n := range uint64(200) {
			p.a.to(p.b, wg(transport, 2, 0, n+1))
		}
		<-time.After(50 * time.Millisecond)
		data := 0
		for len(p.b.got) > 0 {
			if m := <-p.b.got; messageType(m.b) == transport {
				data++
			}
		}
		if data != maxBlind {
			t.Errorf("%d packets arrived, want %d", data, maxBlind)
		}
	})
}

// The first packet comes before the loop has heard of its peer.
func TestWakeBeforeNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 50 {
			p := newPair(t)
			b := p.b.peer(1, p.b.Endpoints()...)
			p.a.SetPeers(nil)
			synctest.Wait()
			p.a.SetPeers([]Peer{b})
			p.a.to(p.b, wg(initiation, 1, 0, 0)) // the loop may see this first
			<-time.After(time.Second)
			if i := p.path(p.a, p.b); !i.Direct {
				t.Fatalf("after a second: %+v", i)
			}
			p.a.stop()
			p.b.stop()
		}
	})
}
