package bind

import (
	"testing"
	"testing/synctest"
	"time"
)

// A peer that is not talked to costs nothing, and one that is costs 60 bytes a second at most, probes and answers of both
// sides together, IP headers included, once its path is found.
func TestCostOfPaths(t *testing.T) {
	for _, kind := range []string{"easy", "dual"} {
		synctest.Test(t, func(t *testing.T) {
			m := meet(t, 3, kind, kind)
			defer m.end()
			m.shake()
			m.talk(5*time.Second, nil)
			spent := func(d time.Duration, talk bool) float64 {
				before := m.spent.Load()
				if start := time.Now(); talk {
					for time.Since(start) < d {
						m.talk(time.Millisecond, nil) // one packet each way, and some time for it
						<-time.After(700 * time.Millisecond)
					}
				} else {
					<-time.After(d)
				}
				return float64(m.spent.Load()-before) / d.Seconds()
			}
			if busy := spent(10*time.Minute, true); busy > 60 {
				t.Errorf("%s: %.0f bytes a second while talking, want at most 60", kind, busy)
			} else {
				t.Logf("%s: %.0f bytes a second while talking", kind, busy)
			}
			<-time.After(time.Minute)
			if idle := spent(10*time.Minute, false); idle > 0 {
				t.Errorf("%s: %.1f bytes a second while idle", kind, idle)
			}
		})
	}
}
