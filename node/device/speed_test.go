package device

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/conn"
)

// rig is a pair with a session, of which one end only counts.
type rig struct {
	*pair
	left atomic.Int64 // of the packets that are expected
	done chan struct{}
}

func newRig(t testing.TB, ours [2]bool) *rig {
	r := &rig{pair: newPair(t, ours), done: make(chan struct{}, 1)}
	r.send(0, 0)
	for deadline := time.Now().Add(10 * time.Second); len(r.ports[1].seqs()) == 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("no session")
		}
	}
	return r
}

func (r *rig) count(n int) {
	if r.left.Add(-int64(n)) == 0 {
		r.done <- struct{}{}
	}
}

// sending has what the first sends counted and dropped.
func (r *rig) sending() {
	r.ends[0].mu.Lock()
	defer r.ends[0].mu.Unlock()
	r.ends[0].sink = r.count
}

// receiving has what the second receives counted and dropped.
func (r *rig) receiving() {
	r.ports[1].mu.Lock()
	defer r.ports[1].mu.Unlock()
	r.ports[1].sink = r.count
}

// batch is as many packets as are moved at once.
func batch(size int) [][]byte {
	b := make([][]byte, conn.IdealBatchSize)
	for i := range b {
		b[i] = packet(0, 1, i, size)
	}
	return b
}

// sealer makes batches of messages by the session of the first.
type sealer struct {
	rig   *rig
	plain [][]byte
	runs  [][][]byte
	nonce [chacha20poly1305.NonceSize]byte
}

func newSealer(r *rig, size, runs int) *sealer {
	s := &sealer{rig: r, plain: batch(size)}
	for range runs {
		run := make([][]byte, len(s.plain))
		for i := range run {
			run[i] = make([]byte, 0, MessageTransportHeaderSize+size+PaddingMultiple+chacha20poly1305.Overhead)
		}
		s.runs = append(s.runs, run)
	}
	return s
}

// seal makes all runs anew.
func (s *sealer) seal() {
	keypair := s.rig.peer(0).keypairs.Current()
	for _, run := range s.runs {
		for i, pkt := range s.plain {
			elem := append(run[i][:MessageTransportHeaderSize], pkt...)
			run[i] = keypair.encrypt(elem, keypair.sendNonce.Add(1)-1, 0, &s.nonce)
		}
	}
}

// In steady state no packet costs an allocation, in either direction.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has pools forget")
	}
	const runs = 50
	t.Run("send", func(t *testing.T) {
		r := newRig(t, [2]bool{true, true})
		r.sending()
		b := batch(1440)
		if n := testing.AllocsPerRun(runs, func() {
			r.left.Store(int64(len(b)))
			r.ports[0].out <- b
			<-r.done
		}); n > 0 {
			t.Errorf("%v allocations for a batch of %d packets", n, len(b))
		}
	})
	t.Run("receive", func(t *testing.T) {
		r := newRig(t, [2]bool{true, true})
		r.receiving()
		s := newSealer(r, 1440, runs+1) // of which the first is for warming up
		s.seal()
		i := 0
		if n := testing.AllocsPerRun(runs, func() {
			r.left.Store(int64(len(s.plain)))
			r.ends[1].runs <- s.runs[i]
			<-r.done
			i++
		}); n > 0 {
			t.Errorf("%v allocations for a batch of %d packets", n, len(s.plain))
		}
	})
}

// BenchmarkSend is a packet's way from the TUN device to the Bind, beside WireGuard's own device.
func BenchmarkSend(b *testing.B) {
	bench(b, func(b *testing.B, ours bool, size int) {
		r := newRig(b, [2]bool{ours, true})
		r.sending()
		pkts := batch(size)
		round := func(n int) {
			r.left.Store(int64(n * len(pkts)))
			for range n {
				r.ports[0].out <- pkts
			}
			<-r.done
		}
		round(100)
		start := processor()
		b.ResetTimer()
		round((b.N + len(pkts) - 1) / len(pkts))
		b.ReportMetric(float64(processor()-start)/float64(b.N), "cpu-ns/op")
	})
}

// BenchmarkReceive is a packet's way from the Bind to the TUN device, beside WireGuard's own device.
func BenchmarkReceive(b *testing.B) {
	bench(b, func(b *testing.B, ours bool, size int) {
		r := newRig(b, [2]bool{true, ours})
		r.receiving()
		s := newSealer(r, size, 16)
		var used time.Duration
		for n := 0; n < b.N; n += len(s.runs) * len(s.plain) {
			b.StopTimer()
			s.seal()
			r.left.Store(int64(len(s.runs) * len(s.plain)))
			start := processor()
			b.StartTimer()
			for _, run := range s.runs {
				r.ends[1].runs <- run
			}
			<-r.done
			used += processor() - start
		}
		b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op")
	})
}

func bench(b *testing.B, f func(b *testing.B, ours bool, size int)) {
	for _, size := range []int{64, 1440, 9000} {
		for _, ours := range []bool{true, false} {
			b.Run(fmt.Sprintf("%d/ours=%v", size, ours), func(b *testing.B) {
				b.SetBytes(int64(size))
				f(b, ours, size)
			})
		}
	}
}
