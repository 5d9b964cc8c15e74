package netstack

import (
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
)

// TestIdleMemory holds what a Stack costs that does nothing to 2 MB.
func TestIdleMemory(t *testing.T) {
	const stacks = 10
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	all := make([]*Stack, stacks)
	for i := range all {
		all[i] = newStack(t, Options{Accept: backend(t, func(c *net.TCPConn) { c.Close() })}, a4, a6)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (int64(after.HeapAlloc+after.StackInuse) - int64(before.HeapAlloc+before.StackInuse)) / stacks
	t.Logf("%d KB each", per>>10)
	if per > 2<<20 {
		t.Errorf("an idle Stack takes %d bytes", per)
	}
	runtime.KeepAlive(all)
}

// TestLoss moves data over a wire that loses and so reorders packets: SACK and retransmission must repair it.
func TestLoss(t *testing.T) {
	const size = 4 << 20
	var n atomic.Uint64
	x, y := pair(t, Options{}, Options{}, func([]byte) bool { return n.Add(1)%97 != 0 })
	l, err := y.ListenTCP(port(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	sum := make(chan [32]byte)
	go func() {
		h := sha256.New()
		if c, err := l.Accept(); err == nil {
			io.Copy(h, c)
			c.Close()
		}
		sum <- [32]byte(h.Sum(nil))
	}()
	c, err := x.DialContext(timeout(t), "tcp", port(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(c, h), io.LimitReader(rand.NewChaCha8([32]byte{}), size)); err != nil {
		t.Error(err)
	}
	c.(interface{ CloseWrite() error }).CloseWrite()
	if <-sum != [32]byte(h.Sum(nil)) {
		t.Error("what arrived is not what was sent")
	}
	c.Close()
}
