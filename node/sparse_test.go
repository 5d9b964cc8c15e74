package node

import (
	"testing"
	"time"
)

func TestSparse(t *testing.T) {
	packet := func(port byte, size int) []byte {
		p := make([]byte, size)
		p[0], p[9], p[23] = 0x45, 17, port
		return p
	}
	s := new(sparse)
	now := time.Now()
	is := func(port byte, size int) bool { return s.is(packet(port, size), now.UnixNano()) }
	// many sends n packets, one in each interval, and counts those that are sparse.
	many := func(port byte, size, n int, every time.Duration) (yes int) {
		for range n {
			if is(port, size) {
				yes++
			}
			now = now.Add(every)
		}
		return yes
	}
	for _, c := range []struct {
		name    string
		size, n int
		every   time.Duration
		want    int
	}{
		{"a request now and then", 100, 1000, time.Millisecond, 1000},
		{"a call", 1200, 1000, 3 * time.Millisecond, 1000},
		{"requests, as soon as the answer is there", 116, 10_000, 40 * time.Microsecond, 10_000},
		{"longer ones", 1052, 10_000, 100 * time.Microsecond, 10_000},
		{"as much as may be at once", 1024, 9, 0, 8},
		{"short packets at once", 60, 17, 0, 16},
		{"a transfer", 1400, 1000, 10 * time.Microsecond, 5},
		{"a transfer at its pace", 1400, 1000, time.Millisecond, 10},
		{"short packets at a transfer's pace", 1000, 1000, 50 * time.Microsecond, 45},
		{"a transfer by segments", 20_000, 1000, 100 * time.Millisecond, 0},
		{"a flood", 60, 1000, 10 * time.Microsecond, 23},
	} {
		now = now.Add(time.Minute)
		if n := many(1, c.size, c.n, c.every); n != c.want {
			t.Errorf("%s: %d packets are sparse of %d, want %d", c.name, n, c.n, c.want)
		}
	}
	now = now.Add(time.Minute)
	many(2, 1400, 100, 0)
	if now = now.Add(sparseRest - 1); is(2, 100) {
		t.Error("sparse again while what was sent as bulk may be on its way")
	}
	if now = now.Add(sparseRest); !is(2, 100) {
		t.Error("not sparse after a rest")
	}
	if many(3, 1400, 100, 0); !is(4, 100) {
		t.Error("a flow pays for another")
	}
	now = now.Add(-time.Hour) // a wall clock that is set
	is(4, 100)
	now = now.Add(2 * time.Hour)
	if !is(4, 100) {
		t.Error("not sparse after the clock was set")
	}
}
