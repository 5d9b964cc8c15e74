package bind

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// A NAT gets other addresses again and again, faster than servers are asked out of turn: the last one is asked for as soon as
// that may be, and does not wait for the next round.
func TestMovesInARow(t *testing.T) {
	for _, p := range [][2]string{{"easy", "easy"}, {"hardaddr", "addrrestr"}} {
		synctest.Test(t, func(t *testing.T) {
			m := meet(t, 5, p[0], p[1])
			defer m.end()
			m.shake()
			m.talk(4*time.Second, nil)
			for range 3 {
				m.ra.Rebind()
				m.talk(1400*time.Millisecond, nil)
			}
			m.ra.Rebind()
			start, back := time.Now(), time.Duration(0)
			m.talk(20*time.Second, func() bool {
				if !m.a.alone() || !m.b.alone() {
					back = time.Since(start)
				}
				return false
			})
			if t.Logf("%s/%s: direct again after %v", p[0], p[1], back); back > 12*time.Second { // after so many stops an address has to answer ten times in a row
				t.Errorf("%s/%s: direct again after %v", p[0], p[1], back)
			}
		})
	}
}

// Two talk by relay, for neither NAT lets them meet; then one of them is replaced by another that would, without a word. It
// shows when a server is asked how we look, which is done every other second, one in turn.
func TestNATBecomesEasier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := meet(t, 5, "hard", "hard")
		defer m.end()
		m.shake()
		m.talk(8*time.Second, nil)
		if m.both() > 0 {
			t.Fatal("hard NATs have met")
		}
		m.ra.Replace(lab.Home("fullcone"))
		start := time.Now()
		m.talk(20*time.Second, func() bool { return m.both() > 0 })
		if took := time.Since(start); took > 3*watchEvery+time.Second {
			t.Errorf("direct after %v", took)
		} else {
			t.Logf("direct after %v", took)
		}
	})
}

// No UDP passes for some seconds in which a direct path is sought, and so short that no round of questions is all in vain: one
// question that had no answer says that pings had none either, and the search begins anew.
func TestShortGap(t *testing.T) {
	for _, p := range [][2]string{{"hardaddr", "addrrestr"}, {"fullcone", "hard"}, {"easy", "easy"}} {
		synctest.Test(t, func(t *testing.T) {
			m := meet(t, 5, p[0], p[1])
			defer m.end()
			<-time.After(4 * time.Second) // since the first round
			m.ra.BlockUDP(true)
			m.shake()
			m.talk(4500*time.Millisecond, nil)
			m.ra.BlockUDP(false)
			start := time.Now()
			m.talk(20*time.Second, func() bool { return m.both() > 0 })
			if took := time.Since(start); took > 2*watchEvery+time.Second {
				t.Errorf("%s/%s: direct after %v", p[0], p[1], took)
			} else {
				t.Logf("%s/%s: direct after %v", p[0], p[1], took)
			}
		})
	}
}
