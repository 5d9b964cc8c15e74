package netstack

import (
	"fmt"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A batch ends before a segment of which it has no room for all packets, unless no batch has.
func TestBatchEndsWithSegment(t *testing.T) {
	for _, c := range []struct {
		mss, segments, limit int
		buffers              bool // are the caller's
		want                 []int
	}{
		{mss: 1388, segments: 4, limit: 128, want: []int{126, 42}},
		{mss: 1368, segments: 3, limit: 128, want: []int{126}},
		{mss: 1228, segments: 3, limit: 128, want: []int{94, 47}},
		{mss: 1388, segments: 2, limit: 32, want: []int{32, 32, 20}}, // no batch has room for one
		{mss: 8876, segments: 5, limit: 128, want: []int{28, 7}},     // as much as is lent at a time
		{mss: 8876, segments: 5, limit: 128, want: []int{35}, buffers: true},
		{mss: segmentMost, segments: 5, limit: 128, want: []int{4, 1}},
	} {
		t.Run(fmt.Sprint(c.mss, c.limit, c.buffers), func(t *testing.T) {
			l := newLink(65535, nil)
			defer l.shut()
			for range c.segments {
				p := longSegment(c.mss)
				if err := l.WritePacket(p); err != nil {
					t.Fatal(err)
				}
				p.DecRef()
			}
			sizes := make([]int, c.limit)
			var got []int
			for {
				bufs := make([][]byte, c.limit)
				if c.buffers {
					for i := range bufs {
						bufs[i] = make([]byte, 1<<16)
					}
				}
				n, err := l.read(bufs, sizes, 16, false)
				if err != nil {
					t.Fatal(err)
				}
				if n == 0 {
					break
				}
				got = append(got, n)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("batches of %d packets, want %d", got, c.want)
			}
		})
	}
}

// longSegment is one as long as TCP makes them, without options, to be cut to so many bytes each.
func longSegment(mss int) *stack.PacketBuffer {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.IPv4MinimumSize + header.TCPMinimumSize,
		Payload:            buffer.MakeWithData(make([]byte, segmentMost)),
	})
	src, dst := tcpip.AddrFromSlice(a4.AsSlice()), tcpip.AddrFromSlice(b4.AsSlice())
	header.TCP(p.TransportHeader().Push(header.TCPMinimumSize)).Encode(&header.TCPFields{DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck})
	header.IPv4(p.NetworkHeader().Push(header.IPv4MinimumSize)).Encode(&header.IPv4Fields{TotalLength: uint16(p.Size()), Protocol: 6, TTL: 64, SrcAddr: src, DstAddr: dst})
	p.NetworkProtocolNumber = header.IPv4ProtocolNumber
	p.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: uint16(mss), L3HdrLen: header.IPv4MinimumSize}
	return p
}

// What TCP hands down at once is one UDP message of WireGuard's, on usual paths.
func TestSegmentIsOneMessage(t *testing.T) {
	const (
		wireguard = 32 // bytes that it adds to a packet, which it pads to 16
		longest   = 65535 - 20 - 8
		options   = 12 // of TCP: timestamps
	)
	for _, mtu := range []int{1280, 1408, 1440, 8928} {
		for _, ip := range []int{header.IPv4MinimumSize, header.IPv6MinimumSize} {
			mss := mtu - ip - header.TCPMinimumSize - options
			packets := (segmentMost + mss - 1) / mss
			if n := packets * ((mtu+15)&^15 + wireguard); n > longest {
				t.Errorf("at %d bytes, IP header %d: %d packets, %d bytes of at most %d", mtu, ip, packets, n, longest)
			}
		}
	}
}
