package node

import (
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
