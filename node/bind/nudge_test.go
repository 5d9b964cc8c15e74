package bind

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// again makes the relay connection of a side a new one, after the old was dead for a while.
func (s *side) again(r *doubles) {
	r.mu.Lock()
	c := r.at[1][s.cfg.Node]
	r.mu.Unlock()
	c.cfg.Status(true, nil)
}

// What was sent into a dead connection to the relay, and would be repeated by TCP after seconds only, goes again as soon
// as there is a new one, whosever it was.
func TestNudge(t *testing.T) {
	for _, whose := range []string{"the sender's", "the receiver's"} {
		t.Run(whose, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t)
				p.net.setDrop(func(_, _ netip.AddrPort) bool { return true })
				p.shake()
				p.talk(time.Second)
				p.rel.setLose(func([]byte) bool { return true })
				for i, at := range []time.Duration{0, 200, 400, 800, 1600} { // TCP's timeouts
					<-time.After(at * time.Millisecond)
					p.a.to(p.b, wg(transport, 2, 0, 1000+uint64(i)))
				}
				<-time.After(500 * time.Millisecond)
				p.rel.setLose(nil)
				start := time.Now()
				map[string]*side{"the sender's": p.a, "the receiver's": p.b}[whose].again(p.rel)
				var got []uint64

				for range 4 {
					m := <-p.b.got
					got = append(got, number(m.b))
				}
				if fmt.Sprint(got) != "[1001 1002 1003 1004]" {
					t.Errorf("%v came again", got)
				}
				if d := time.Since(start); d > 200*time.Millisecond {
					t.Errorf("it took %v", d)
				}
				t.Logf("after %v", time.Since(start))
				if n := p.a.holding.Load(); n != 0 {
					t.Errorf("%d packets held when all is well", n)
				}
			})
		})
	}
}

// A peer that answers is sent nothing twice, and what one that does not is sent is bounded.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.net.setDrop(func(_, _ netip.AddrPort) bool { return true })
		p.shake()
		before := p.rel.sends.Load()
		p.talk(time.Second)
		if n := p.rel.sends.Load() - before; n > 2*110 { // 100 each way, and what the paths say
			t.Errorf("%d packets by relay", n)
		}
		if n := p.a.holding.Load(); n != 0 {
			t.Errorf("%d held", n)
		}
		p.rel.setLose(func([]byte) bool { return true })
		for i := range 1000 {
			p.a.to(p.b, wg(transport, 2, 0, uint64(i)))
			p.a.to(p.b, make([]byte, shortest))
			<-time.After(time.Millisecond)
		}
		if n := p.a.holding.Load(); n != heldMost {
			t.Errorf("%d held", n)
		}
		q := p.a.table.Load().byNode[p.b.cfg.Node]
		for i, pkt := range p.a.release(q) {
			if n := number(pkt); n != uint64(1000-heldMost+i) {
				t.Errorf("number %d is %d", i, n)
			}
		}
		p.a.to(p.b, wg(transport, 2, 0, 1000))
		p.a.SetPeers(nil)
		if n := p.a.holding.Load(); n != 0 {
			t.Errorf("%d held of a peer that is gone", n)
		}
	})
}
