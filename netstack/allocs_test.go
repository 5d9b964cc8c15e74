//go:build !race

package netstack

import (
	"io"
	"net"
	"net/netip"
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

// TestDatagramAllocatesNothing on its way from a socket to the tunnel, and from there to a socket.
func TestDatagramAllocatesNothing(t *testing.T) {
	a, b := newStack(t, Options{}, a4, a6), newStack(t, Options{}, b4, b6)
	for _, at := range []netip.Addr{b4, b6} {
		l, err := b.ListenUDP(port(at, 80))
		if err != nil {
			t.Fatal(err)
		}
		c, err := a.DialContext(timeout(t), "udp", port(at, 80))
		if err != nil {
			t.Fatal(err)
		}
		msg, bufs, sizes := make([]byte, 1200), [][]byte{make([]byte, 2000)}, make([]int, 1)
		send := func() {
			if _, err := c.Write(msg); err != nil {
				t.Fatal(err)
			}
			if n, err := a.Poll(bufs, sizes, 0); n != 1 {
				t.Fatal(n, err)
			}
		}
		if n := testing.AllocsPerRun(1000, send); n != 0 {
			t.Errorf("to send to %v allocates %v times", at, n)
		}
		in := make([][]byte, 1)
		if n := testing.AllocsPerRun(1000, func() {
			send()
			in[0] = bufs[0][:sizes[0]]
			if _, err := b.Write(in, 0); err != nil {
				t.Fatal(err)
			}
			if _, from, err := l.ReadFrom(msg); err != nil || from.(*net.UDPAddr).Port == 0 {
				t.Fatal(from, err)
			}
		}); n != 0 {
			t.Errorf("to receive from %v allocates %v times", at, n)
		}
	}
}
