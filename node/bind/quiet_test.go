package bind

import (
	"testing"
	"testing/synctest"
	"time"
)

// Two who have little to say to each other lose none of it, whatever their NATs forget in between; and where those forget
// nothing, what is said goes by the relay too only until that is known.
func TestQuiet(t *testing.T) {
	for _, c := range []struct {
		a, b   string
		every  time.Duration
		oneWay bool
		alone  bool // by the direct path only, in the end
	}{
		{"short", "short", 6 * time.Second, false, false},
		{"short", "short", 6 * time.Second, true, false},
		{"short", "easy", 6 * time.Second, true, false},
		{"easy", "short", 9 * time.Second, true, false},
		{"short", "short", 20 * time.Second, false, false},
		{"hardshort", "addrrestr", 6 * time.Second, false, false},
		{"easy", "easy", 6 * time.Second, true, true},
		{"easy", "easy", 2 * time.Second, true, true},
		{"short", "short", 4 * time.Second, true, true},
		{"hard", "fullcone", 5 * time.Second, true, true},
	} {
		t.Run(c.a+" to "+c.b+" every "+c.every.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := meet(t, 5, c.a, c.b)
				defer m.end()
				m.shake()
				m.talk(5*time.Second, nil)
				m.every, m.oneWay = c.every, c.oneWay
				if f := m.talk(10*c.every+time.Second, nil); f.lost > 0 {
					t.Errorf("%d lost of %d", f.lost, f.sent)
				}
				m.talk(2*c.every, nil) // from one talk to the next it is a little longer
				before := m.rel.sends.Load()
				m.talk(5*c.every+time.Second, nil)
				if more := m.rel.sends.Load() - before; c.alone && more > 0 {
					t.Errorf("%d packets went by relay too", more)
				}
			})
		})
	}
}
