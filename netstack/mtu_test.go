package netstack

import (
	"bytes"
	"crypto/rand"
	"io"
	"net/netip"
	"sync/atomic"
	"testing"
)

// One connection follows its path: its packets grow and shrink with what the path carries, and arrive whole.
func TestPathMTU(t *testing.T) {
	for _, at := range []netip.Addr{b4, b6} {
		var mtu, longest atomic.Int64
		var end atomic.Bool
		fits := func(to netip.Addr) (int, bool) { return int(mtu.Load()), to == at && end.Load() }
		see := func(p []byte) bool {
			longest.Store(max(longest.Load(), int64(len(p)))) // of one direction mostly: the other acknowledges
			return true
		}
		a, b := pair(t, Options{PathMTU: fits}, Options{}, see)
		l, err := b.ListenTCP(port(at, 80))
		if err != nil {
			t.Fatal(err)
		}
		c, err := a.DialContext(timeout(t), "tcp", port(at, 80))
		if err != nil {
			t.Fatal(err)
		}
		d, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			mtu, want int64 // the longest packet, about
			end       bool
		}{
			{0, 1280, true}, {8928, 8928, true}, {65472, 20000, true}, {1440, 1440, true}, {1216, 1216, true}, {700, 700, true},
			{8928, 8928, true}, {8928, 1280, false}, {1216, 1216, false},
		} {
			mtu.Store(step.mtu)
			end.Store(step.end)
			longest.Store(0)
			sent := make([]byte, 1<<20)
			rand.Read(sent)
			written := make(chan error, 1)
			go func() { _, err := c.Write(sent); written <- err }()
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(d, got); err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("%+v: %v, or other bytes", step, err)
			}
			if err := <-written; err != nil {
				t.Fatal(err)
			}
			if n := longest.Load(); n > max(step.want, min(step.mtu, 65535)) && step.end || n < step.want-30 {
				t.Errorf("to %v, %+v: packets of up to %d bytes", at, step, n)
			}
			if n := longest.Load(); !step.end && n > step.want {
				t.Errorf("to %v, %+v: packets of up to %d bytes", at, step, n)
			}
		}
	}
}
