package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// What the host is told of one peer as what its path carries changes.
func TestSizes(t *testing.T) {
	k := key.ExchangePublic(key.NewNode())
	a := netip.MustParseAddr("100.64.0.9")
	addrs := map[key.NodePublic][]netip.Prefix{k: {netip.PrefixFrom(a, 32), netip.MustParsePrefix("10.0.0.0/8")}}
	owner := map[netip.Addr]key.NodePublic{a: k}
	start := time.Now()
	for _, c := range []struct {
		name  string
		steps []struct{ at, path, want int } // s, bytes; 0 for nothing told
	}{
		{"the usual is not told", []struct{ at, path, want int }{{0, 1280, 0}}},
		{"more is told at once", []struct{ at, path, want int }{{0, 1440, 1440}, {1, 8912, 8912}}},
		{"less is told at once", []struct{ at, path, want int }{{0, 8912, 8912}, {1, 1440, 1440}, {2, 1280, 0}, {3, 1216, 1216}}},
		{"more after less waits", []struct{ at, path, want int }{{0, 8912, 8912}, {1, 1280, 0}, {2, 8912, 0}, {10, 8912, 0}, {11, 8912, 8912}}},
		{"and again", []struct{ at, path, want int }{{0, 8912, 8912}, {1, 1280, 0}, {11, 8912, 8912}, {12, 1440, 1440}, {13, 8912, 1440}, {22, 8912, 8912}}},
		{"but not up to the usual", []struct{ at, path, want int }{{0, 512, 512}, {1, 1216, 1216}, {2, 1280, 0}, {3, 1440, 0}, {10, 1440, 1440}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSizes()
			s.mark(k)
			before := 0
			for _, step := range c.steps {
				now := start.Add(time.Duration(step.at) * time.Second)
				changed, next := s.take(now, func(key.NodePublic) int { return step.path })
				got := s.paths(addrs, owner)
				if len(got) > 1 || got[a] != step.want || changed != (step.want != before) {
					t.Fatalf("after %d s: told %v, changed %v; want %d, before %d", step.at, got, changed, step.want, before)
				}
				if wait := step.path > max(step.want, usualSize); wait && !next.After(now) {
					t.Fatalf("after %d s: there is more to tell, and nobody comes back", step.at)
				}
				before = step.want
				s.mark(k)
			}
		})
	}
}

// Tables are bounded; who is in one gets less also then, and those that went make room.
func TestSizesBounded(t *testing.T) {
	s, now := newSizes(), time.Now()
	keys := make([]key.NodePublic, 2*maxSizes)
	for i := range keys {
		keys[i] = key.ExchangePublic(key.NewNode())
		s.mark(keys[i])
	}
	s.take(now, func(key.NodePublic) int { return 8912 })
	if len(s.told) != maxSizes {
		t.Fatalf("%d are told, want %d", len(s.told), maxSizes)
	}
	for _, k := range keys {
		s.mark(k)
	}
	s.take(now, func(key.NodePublic) int { return 1440 })
	for _, z := range s.told {
		if z.mtu != 1440 {
			t.Fatalf("one is still told %d", z.mtu)
		}
	}
	s.markAll()
	s.take(now.Add(time.Second), func(key.NodePublic) int { return usualSize })
	s.take(now.Add(time.Minute), func(key.NodePublic) int { return usualSize })
	if len(s.told) != 0 {
		t.Errorf("%d stay without need", len(s.told))
	}
}
