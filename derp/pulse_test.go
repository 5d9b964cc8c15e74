package derp

import (
	"testing"
	"time"
)

// TestPulse follows a link by the clock. Times are in milliseconds; a step sets what was heard and sent before it.
func TestPulse(t *testing.T) {
	const x = -1 // unchanged
	type step struct {
		now, heard, sent int
		want             beat
		next             int
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"idle: a ping every 15 s", []step{
			{1000, 1000, 0, beatNone, 16000}, {16000, x, 0, beatPing, 16500}, {16500, 16040, 0, beatNone, 31040},
		}},
		{"sent and heard nothing: a ping after 1 s, another link half a second later", []step{
			{1000, 1000, 0, beatNone, 16000}, {3000, x, 3000, beatNone, 4000}, {4000, x, x, beatPing, 4500}, {4500, x, x, beatSuspect, 5000},
			{5000, x, x, beatSuspect, 5500}, {5500, x, x, beatSuspect, 6000}, {6000, x, x, beatSuspect, 6500}, {6500, x, x, beatSuspect, 7000}, {7000, x, x, beatDead, 7500},
		}},
		{"an answer in time clears it", []step{
			{1000, 1000, 1000, beatNone, 2000}, {2000, x, x, beatPing, 2500}, {2500, 2300, 0, beatNone, 17300},
		}},
		{"an answer that is late, too", []step{
			{1000, 1000, 1000, beatNone, 2000}, {2000, x, x, beatPing, 2500}, {2500, x, x, beatSuspect, 3000}, {3000, 2900, 0, beatNone, 17900},
		}},
		{"a slow path gets two round trips", []step{
			{1000, 1000, 1000, beatNone, 2000}, {2000, x, x, beatPing, 2500}, {2400, 2300, 2310, beatNone, 3310}, {3310, x, x, beatPing, 3910},
		}},
		{"a very slow one a quarter more than one", []step{
			{1000, 1000, 1000, beatNone, 2000}, {2000, x, x, beatPing, 2500}, {2500, x, x, beatSuspect, 3000}, {3000, x, x, beatSuspect, 3500},
			{3400, 3300, 3310, beatNone, 4310},
		}},
		{"what came has stopped coming: a ping after 1 s, once", []step{
			{1000, 1000, -1000, beatNone, 2000}, {2000, x, x, beatPing, 2500}, {2500, 2040, x, beatNone, 17040},
		}},
		{"busy both ways: nothing to do", []step{
			{1000, 1000, 1000, beatNone, 2000}, {2000, 1990, 1995, beatNone, 2995}, {2995, 2990, 0, beatNone, 17990},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p pulse
			tm := defaultTimes
			tm.quiet, tm.answer = time.Second, 500*time.Millisecond
			ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
			for i, s := range c.steps {
				if s.heard != x {
					p.heard = ms(s.heard)
				}
				if s.sent < x { // no packet sent, one heard
					p.data, s.sent = ms(-s.sent), x
				}
				if s.sent != x {
					p.sent = ms(s.sent)
				}
				if got, next := p.next(ms(s.now), tm); got != s.want || next != ms(s.next) {
					t.Fatalf("step %d, at %d: %d until %v, want %d until %v", i, s.now, got, next, s.want, ms(s.next))
				}
			}
		})
	}
}
