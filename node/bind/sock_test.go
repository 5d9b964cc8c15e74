package bind

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"
)

// Datagrams arrive whole, in order, and from whom, however they were joined on the way.
func TestBatches(t *testing.T) {
	for _, network := range []string{"udp4", "udp6"} {
		for _, kind := range []string{"batched", "single"} {
			t.Run(network+" "+kind, func(t *testing.T) {
				open := func() (net.PacketConn, batcher, netip.AddrPort) {
					ip := map[string]string{"udp4": "127.0.0.1", "udp6": "::1"}[network]
					pc, err := net.ListenPacket(network, net.JoinHostPort(ip, "0"))
					if err != nil {
						t.Skipf("this machine has no %s: %v", network, err)
					}
					t.Cleanup(func() { pc.Close() })
					if kind == "single" {
						return pc, single{pc}, pc.LocalAddr().(*net.UDPAddr).AddrPort()
					}
					return pc, newBatcher(network, pc), pc.LocalAddr().(*net.UDPAddr).AddrPort()
				}
				_, from, src := open()
				pc, to, dst := open()
				rnd := rand.New(rand.NewPCG(1, 2))
				bufs, sizes, froms := make([][]byte, 128), make([]int, 128), make([]netip.AddrPort, 128)
				for i := range bufs {
					bufs[i] = make([]byte, 65535)
				}
				for round := range 50 {
					var sent [][]byte
					for range 1 + rnd.IntN(batchSize) {
						size := []int{1312, 1312, 1312, 1312, 96, 32, 1 + rnd.IntN(1400), 2000}[rnd.IntN(8)]
						if len(sent) > 30 {
							size = min(size, 96) // not to overflow a socket of default size
						}
						sent = append(sent, bytes.Repeat([]byte{byte(len(sent))}, size))
					}
					if err := from.write(sent, dst); err != nil {
						t.Fatal(err)
					}
					pc.SetReadDeadline(time.Now().Add(5 * time.Second))
					for got := 0; got < len(sent); {
						n, err := to.read(bufs, sizes, froms)
						if err != nil {
							t.Fatalf("round %d: %d of %d arrived: %v", round, got, len(sent), err)
						}
						for i := range n {
							if !bytes.Equal(bufs[i][:sizes[i]], sent[got]) || froms[i] != src {
								t.Fatalf("round %d, packet %d: %d bytes of %d from %v, want %d", round, got, sizes[i], bufs[i][0], froms[i], len(sent[got]))
							}
							got++
						}
					}
				}
			})
		}
	}
}

func BenchmarkRead(b *testing.B) {
	for _, size := range []int{96, 1312} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer pc.Close()
			s := newBatcher("udp4", pc)
			to := pc.LocalAddr().(*net.UDPAddr).AddrPort()
			out := make([][]byte, 64)
			for i := range out {
				out[i] = make([]byte, size)
			}
			bufs, sizes, froms := make([][]byte, 128), make([]int, 128), make([]netip.AddrPort, 128)
			for i := range bufs {
				bufs[i] = make([]byte, 65535)
			}
			b.ReportAllocs()
			b.SetBytes(int64(64 * size))
			for b.Loop() {
				if err := s.write(out, to); err != nil {
					b.Fatal(err)
				}
				for got := 0; got < 64; {
					n, err := s.read(bufs, sizes, froms)
					if err != nil {
						b.Fatal(err)
					}
					got += n
				}
			}
		})
	}
}
