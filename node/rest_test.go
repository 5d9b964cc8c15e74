package node

import (
	"runtime"
	"testing"
	"time"
)

func TestRest(t *testing.T) {
	var r rest
	start := time.Unix(1000, 0)
	for _, tt := range []struct {
		at      time.Duration
		packets uint64
		want    bool
	}{
		{0, 0, false},
		{time.Minute, 0, false}, // never did anything
		{61 * time.Second, restWorth - 1, false},
		{2 * time.Minute, restWorth - 1, false}, // not worth it
		{121 * time.Second, 3 * restWorth, false},
		{121*time.Second + restAfter - 1, 3*restWorth + restFew, false}, // not yet
		{121*time.Second + restAfter, 3*restWorth + 2*restFew, true},    // a few are silence
		{time.Hour, 3*restWorth + 2*restFew, false},                     // once
		{61 * time.Minute, 5 * restWorth, false},
		{62 * time.Minute, 5*restWorth + restFew + 1, false}, // silence begins anew
		{62*time.Minute + restAfter, 5*restWorth + restFew + 1, true},
	} {
		if got := r.tick(tt.packets, start.Add(tt.at)); got != tt.want {
			t.Errorf("after %v and %d packets: %v", tt.at, tt.packets, got)
		}
	}
}

func TestRestMade(t *testing.T) {
	var r rest
	start := time.Unix(1000, 0)
	for _, tt := range []struct {
		at    time.Duration
		peers int
		want  bool
	}{
		{0, restPeers - 1, false}, // not worth it
		{0, restPeers, true},
		{restMaps - 1, 10 * restPeers, false}, // not again so soon
		{restMaps, 10 * restPeers, true},
	} {
		if got := r.made(tt.peers, start.Add(tt.at)); got != tt.want {
			t.Errorf("after %v, %d peers: %v", tt.at, tt.peers, got)
		}
	}
}

// Garbage is collected when there is much of it, beside what is in use, and not all the time.
func TestLitter(t *testing.T) {
	const mb = 1 << 20
	var l litter
	start := time.Unix(1000, 0)
	for _, tt := range []struct {
		at         time.Duration
		inUse, now uint64
		want       bool
	}{
		{0, 100 * mb, 100*mb + litterLeast - 1, false},
		{0, 100 * mb, 100*mb + litterLeast, true},
		{litterRest - 1, 100 * mb, 900 * mb, false},
		{litterRest, 100 * mb, 900 * mb, true},
		{time.Hour, 1600 * mb, 1699 * mb, false},
		{time.Hour, 1600 * mb, 1700 * mb, true},
		{2 * time.Hour, 100 * mb, 50 * mb, false}, // taken at two moments
	} {
		if got := l.due(tt.inUse, tt.now, start.Add(tt.at)); got != tt.want {
			t.Errorf("after %v, %d MB and %d MB: %v", tt.at, tt.inUse/mb, tt.now/mb, got)
		}
	}
	runtime.GC() // the runtime knows what was in use after the last
	if inUse, now := heap(); inUse == 0 || now == 0 {
		t.Errorf("the runtime says %d and %d", inUse, now)
	}
}
