//go:build !race

package netstack

import (
	"io"
	"runtime"
	"runtime/debug"
	"testing"
)

// TestReadAllocatesNothing, of what has come, and when it has to wait for its deadline first.
func TestReadAllocatesNothing(t *testing.T) {
	c, d := connect(t)
	const runs = 1000
	if _, err := c.Write(make([]byte, 8*runs)); err != nil {
		t.Fatal(err)
	}
	wait(t, "all of it", func() bool {
		d.in.mu.Lock()
		defer d.in.mu.Unlock()
		return d.ep.Readiness(d.in.entry.Mask()) != 0
	})
	b := make([]byte, 4)
	if n := testing.AllocsPerRun(runs, func() {
		if _, err := io.ReadFull(d, b); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a read allocates %v times", n)
	}
	if n := testing.AllocsPerRun(runs, func() {
		d.in.begin()
		d.in.ready <- struct{}{}
		if err := d.in.wait(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("to wait allocates %v times", n)
	}
}

// TestStreamAllocatesNothing for each packet, of all that a stream needs: both stacks, and what reads and writes.
func TestStreamAllocatesNothing(t *testing.T) {
	c, d := connect(t)
	go io.Copy(io.Discard, d) // until the connection is closed
	const piece = 64 << 10
	send := func(pieces int) {
		b := make([]byte, piece)
		for range pieces {
			if _, err := c.Write(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	send(200)
	debug.SetGCPercent(-1) // which empties pools
	defer debug.SetGCPercent(100)
	const pieces = 1000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	send(pieces)
	runtime.ReadMemStats(&after)
	if n := float64(after.Mallocs-before.Mallocs) / pieces; n > 1 {
		t.Errorf("64 KiB, 53 packets, take %.1f allocations", n)
	}
}
