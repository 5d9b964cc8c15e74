package netstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// tcpPacket is a segment from a to b with right checksums.
func tcpPacket(from, to netip.Addr, seq uint32, flags byte, payload string) []byte {
	ip := header.IPv4MinimumSize
	if from.Is6() {
		ip = header.IPv6MinimumSize
	}
	const opts = 12 // as long as timestamps with their padding
	p := make([]byte, ip+header.TCPMinimumSize+opts, ip+header.TCPMinimumSize+opts+len(payload))
	p = append(p, payload...)
	src, dst := tcpip.AddrFromSlice(from.AsSlice()), tcpip.AddrFromSlice(to.AsSlice())
	if from.Is4() {
		header.IPv4(p).Encode(&header.IPv4Fields{TotalLength: uint16(len(p)), TTL: 64, Protocol: 6, SrcAddr: src, DstAddr: dst, Flags: header.IPv4FlagDontFragment})
	} else {
		header.IPv6(p).Encode(&header.IPv6Fields{PayloadLength: uint16(len(p) - ip), HopLimit: 64, TransportProtocol: 6, SrcAddr: src, DstAddr: dst})
	}
	t := header.TCP(p[ip:])
	t.Encode(&header.TCPFields{SrcPort: 1000, DstPort: 80, SeqNum: seq, AckNum: 7, DataOffset: header.TCPMinimumSize + opts, Flags: header.TCPFlags(flags), WindowSize: 500})
	copy(t[header.TCPMinimumSize:], "\x01\x01\x08\x0a\x00\x00\x00\x01\x00\x00\x00\x02")
	sum(p)
	return p
}

// sum puts right the checksums of a packet without IP options.
func sum(p []byte) {
	ip := header.IPv4MinimumSize
	var src, dst tcpip.Address
	if p[0]>>4 == 4 {
		h := header.IPv4(p)
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
		src, dst = h.SourceAddress(), h.DestinationAddress()
	} else {
		ip = header.IPv6MinimumSize
		src, dst = header.IPv6(p).SourceAddress(), header.IPv6(p).DestinationAddress()
	}
	t := header.TCP(p[ip:])
	t.SetChecksum(0)
	t.SetChecksum(^checksum.Checksum(t, header.PseudoHeaderChecksum(6, src, dst, uint16(len(t)))))
}

func TestFindRun(t *testing.T) {
	const ack, psh, fin = 0x10, 0x18, 0x11
	families(t, func(t *testing.T, a, b netip.Addr) {
		ip := header.IPv4MinimumSize
		if a.Is6() {
			ip = header.IPv6MinimumSize
		}
		seg := func(seq uint32, flags byte, s string) []byte { return tcpPacket(a, b, seq, flags, s) }
		edit := func(p []byte, at int, v byte) []byte { p[at] = v; sum(p); return p }
		spoil := func(p []byte) []byte { p[len(p)-1] ^= 1; return p }
		big := string(make([]byte, 30000))
		for _, c := range []struct {
			name string
			pkts [][]byte
			want int
		}{
			{"one", [][]byte{seg(1, ack, "ab")}, 1},
			{"three", [][]byte{seg(1, ack, "ab"), seg(3, ack, "c"), seg(4, psh, "def")}, 3},
			{"past PSH", [][]byte{seg(1, psh, "ab"), seg(3, ack, "c")}, 2},
			{"sequence numbers wrap", [][]byte{seg(0xfffffffe, ack, "abc"), seg(1, ack, "c")}, 2},
			{"a hole", [][]byte{seg(1, ack, "ab"), seg(4, ack, "c")}, 1},
			{"twice the same", [][]byte{seg(1, ack, "ab"), seg(1, ack, "ab")}, 1},
			{"no payload first", [][]byte{seg(1, ack, ""), seg(1, ack, "ab")}, 0},
			{"no payload next", [][]byte{seg(1, ack, "ab"), seg(3, ack, "")}, 1},
			{"FIN first", [][]byte{seg(1, fin, "ab"), seg(3, ack, "c")}, 0},
			{"FIN next", [][]byte{seg(1, ack, "ab"), seg(3, fin, "c")}, 1},
			{"wrong checksum first", [][]byte{spoil(seg(1, ack, "ab")), seg(3, ack, "c")}, 0},
			{"wrong checksum next", [][]byte{seg(1, ack, "ab"), spoil(seg(3, ack, "c"))}, 1},
			{"other address", [][]byte{seg(1, ack, "ab"), edit(seg(3, ack, "c"), ip-1, 9)}, 1},
			{"other port", [][]byte{seg(1, ack, "ab"), edit(seg(3, ack, "c"), ip+1, 9)}, 1},
			{"other acknowledgement", [][]byte{seg(1, ack, "ab"), edit(seg(3, ack, "c"), ip+11, 9)}, 1},
			{"other window", [][]byte{seg(1, ack, "ab"), edit(seg(3, ack, "c"), ip+15, 9)}, 1},
			{"other options", [][]byte{seg(1, ack, "ab"), edit(seg(3, ack, "c"), ip+27, 9)}, 1},
			{"other traffic class", [][]byte{seg(1, ack, "ab"), edit(seg(3, ack, "c"), 1, 3)}, 1},
			{"too long together", [][]byte{seg(1, ack, big), seg(30001, ack, big), seg(60001, ack, big)}, 2},
			{"empty next", [][]byte{seg(1, ack, "ab"), {}}, 1},
			{"cut short", [][]byte{seg(1, ack, "ab")[:ip+5]}, 0},
			{"not IP", [][]byte{make([]byte, 100)}, 0},
		} {
			for _, offset := range []int{0, 16} {
				bufs := make([][]byte, len(c.pkts))
				for i, p := range c.pkts {
					bufs[i] = append(make([]byte, offset), p...)
				}
				if r := findRun(bufs, offset); r.n != c.want {
					t.Errorf("%s, offset %d: a run of %d, want %d", c.name, offset, r.n, c.want)
				}
			}
		}
	})
}

// A fragment is not for joining, whatever it looks like.
func TestFindRunFragment(t *testing.T) {
	for _, flags := range []uint16{0x2000, 1} { // more fragments; not the first
		p := tcpPacket(a4, b4, 1, 0x10, "ab")
		binary.BigEndian.PutUint16(p[6:], flags)
		sum(p)
		if r := findRun([][]byte{p}, 0); r.n != 0 {
			t.Errorf("flags and offset %#x: %+v", flags, r)
		}
	}
}

// FuzzJoin cuts bytes into packets, and checks that a run found there becomes a packet of its payloads.
func FuzzJoin(f *testing.F) {
	for _, a := range [][2]netip.Addr{{a4, b4}, {a6, b6}} {
		var in []byte
		for i, s := range []string{"abc", "def", "g"} {
			p := tcpPacket(a[0], a[1], uint32(1+3*i), 0x10, s)
			in = append(append(in, byte(len(p))), p...)
		}
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var bufs [][]byte
		for len(in) > 0 {
			n := min(int(in[0]), len(in)-1)
			bufs = append(bufs, in[1:1+n])
			in = in[1+n:]
		}
		if len(bufs) == 0 || len(bufs[0]) == 0 {
			return
		}
		r := findRun(bufs, 0)
		if r.n == 0 {
			return
		}
		want := append([]byte(nil), bufs[0][r.hdr:]...)
		for _, b := range bufs[1:r.n] {
			want = append(want, b[r.hdr:]...)
		}
		p := r.join(bufs, 0)
		defer p.DecRef()
		b := p.ToBuffer()
		defer b.Release()
		got := b.Flatten()
		if len(got) != r.size || !bytes.Equal(got[r.hdr:], want) {
			t.Fatalf("%d bytes joined, want %d of payload behind %d", len(got), len(want), r.hdr)
		}
		if v := got[0] >> 4; v == 4 && (int(header.IPv4(got).TotalLength()) != len(got) || !header.IPv4(got).IsChecksumValid()) ||
			v == 6 && int(header.IPv6(got).PayloadLength()) != len(got)-header.IPv6MinimumSize {
			t.Fatalf("bad header % x", got[:r.hdr])
		}
	})
}

// TestSegments checks every packet of a transfer written in odd pieces, as what comes out of Read is all a peer sees;
// and that no more than the MTU is said to carry comes in one packet, and that most are full (but for options that TCP leaves room for).
func TestSegments(t *testing.T) {
	const size = 3 << 20
	families(t, func(t *testing.T, a, b netip.Addr) {
		for _, mtu := range []int{1280, 1420, 9000, 65535} {
			t.Run(fmt.Sprint(mtu), func(t *testing.T) {
				var full, all atomic.Int64
				x, y := pair(t, Options{MTU: mtu}, Options{MTU: mtu}, func(p []byte) bool {
					if err := valid(p, mtu); err != nil {
						t.Error(err)
					}
					all.Add(1)
					if len(p) >= min(mtu, 32<<10)-64 {
						full.Add(1)
					}
					return true
				})
				l, err := y.ListenTCP(port(b, 80))
				if err != nil {
					t.Fatal(err)
				}
				got := make(chan []byte)
				go func() {
					c, err := l.Accept()
					if err != nil {
						t.Error(err)
						got <- nil
						return
					}
					defer c.Close()
					p, _ := io.ReadAll(c)
					got <- p
				}()
				c, err := x.DialContext(timeout(t), "tcp", port(b, 80))
				if err != nil {
					t.Fatal(err)
				}
				data := make([]byte, size)
				for i := range data {
					data[i] = byte(i >> 8 * i)
				}
				for rest, n := data, 1; len(rest) > 0; n = n*3%70001 + 1 {
					k := min(n, len(rest))
					if _, err := c.Write(rest[:k]); err != nil {
						t.Fatal(err)
					}
					rest = rest[k:]
				}
				c.Close()
				if !bytes.Equal(<-got, data) {
					t.Error("what arrived is not what was sent")
				}
				if n := int64(size / mtu / 2); full.Load() < n {
					t.Errorf("%d of %d packets are full, want %d", full.Load(), all.Load(), n)
				}
			})
		}
	})
}
