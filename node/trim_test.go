package node

import (
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/hedge-mesh/hedge/node/device"
)

// A new buffer keeps a page, one of long packets all of it until there are none any more, and what has been used once
// with short ones is let alone.
func TestTrim(t *testing.T) {
	buf := func(header byte) []byte {
		b := make([]byte, device.MaxMessageSize)
		for i := range b[device.MessageTransportHeaderSize:] {
			b[device.MessageTransportHeaderSize+i] = 7
		}
		b[0] = header
		return b
	}
	kept := func(b []byte) bool { return b[len(b)/2] == 7 }
	const released = runtime.GOOS != "linux"
	synctest.Test(t, func(t *testing.T) {
		var s spare
		fresh, used := buf(0), buf(device.MessageTransportType)
		s.trim([][]byte{fresh, used, fresh[:100]})
		if kept(fresh) != released || !kept(used) {
			t.Errorf("of a new buffer %v is kept, of a used one %v", kept(fresh), kept(used))
		}
		if fresh[100] != 7 {
			t.Error("a packet's place is lost")
		}
		s.leave([][]byte{used}, time.Now())
		s.trim([][]byte{used})
		if !kept(used) {
			t.Error("a buffer of a short packet was trimmed")
		}
		s.pass(longPacket+1, time.Now())
		s.leave([][]byte{used}, time.Now())
		s.trim([][]byte{used})
		if !kept(used) {
			t.Error("a buffer was trimmed while there are long packets")
		}
		<-time.After(longRest)
		s.trim([][]byte{used})
		if kept(used) != released {
			t.Error("a buffer of a long packet was not trimmed after the last of them")
		}
	})
}

// What is released takes no memory, until it is written to again.
func TestRelease(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there it does nothing")
	}
	b := make([]byte, 4<<20)
	for i := range b {
		b[i] = 1
	}
	if n := residentOf(t, b); n < len(b)/2 {
		t.Fatalf("%d bytes of %d are resident, so this test tests nothing", n, len(b))
	}
	release(b[100 : len(b)-100])
	page := os.Getpagesize()
	if n := residentOf(t, b); n > 4*page {
		t.Errorf("%d bytes are resident", n)
	}
	if b[99] != 1 || b[len(b)-100] != 1 {
		t.Error("more was released than was given")
	}
	release(b[:0])
	release(nil)
}

// residentOf is how much of b is in memory, in bytes (proc(5): pagemap, bit 63).
func residentOf(t *testing.T, b []byte) (n int) {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	page := os.Getpagesize()
	at := int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) / page
	entries := make([]byte, 8*(len(b)/page))
	if _, err := f.ReadAt(entries, int64(at)*8); err != nil {
		t.Skip(err)
	}
	for i := 7; i < len(entries); i += 8 {
		if entries[i]&0x80 != 0 {
			n += page
		}
	}
	return n
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
