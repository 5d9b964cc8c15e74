package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestPing(t *testing.T) {
	families(t, func(t *testing.T, _, to netip.Addr) {
		a, _ := pair(t, Options{}, Options{}, checked(t, 1280))
		for range 3 {
			if rtt, err := a.Ping(timeout(t), to); err != nil || rtt <= 0 {
				t.Errorf("Ping = %v, %v", rtt, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		var ne net.Error
		if _, err := a.Ping(ctx, to.Next().Next()); !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("Ping of nobody: %v", err)
		}
	})
}

// TestProhibited answers every packet with "administratively prohibited", as the filter does, and looks how soon
// each kind of caller hears of it.
func TestProhibited(t *testing.T) {
	families(t, func(t *testing.T, _, to netip.Addr) {
		s := newStack(t, Options{}, a4, a6)
		go func() {
			buf, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
			for {
				if _, err := s.Read(buf, sizes, 0); err != nil {
					return
				}
				s.Write([][]byte{prohibited(buf[0][:sizes[0]])}, 0)
			}
		}()
		if _, err := s.DialContext(timeout(t), "tcp", port(to, 80)); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("tcp: %v", err)
		}
		if _, err := s.Ping(timeout(t), to); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("ping: %v", err)
		}
		c, err := s.DialContext(timeout(t), "udp", port(to, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("udp: %v", err)
		}
	})
}

// prohibited is the ICMP message that answers p.
func prohibited(p []byte) []byte {
	if p[0]>>4 == 4 {
		src, dst := header.IPv4(p).SourceAddress(), header.IPv4(p).DestinationAddress()
		b := make([]byte, 20, 28+len(p))
		header.IPv4(b).Encode(&header.IPv4Fields{TotalLength: uint16(28 + len(p)), TTL: 64, Protocol: 1, SrcAddr: dst, DstAddr: src})
		header.IPv4(b).SetChecksum(^header.IPv4(b).CalculateChecksum())
		b = append(append(b, 3, 13, 0, 0, 0, 0, 0, 0), p...)
		binary.BigEndian.PutUint16(b[22:], ^checksum.Checksum(b[20:], 0))
		return b
	}
	src, dst := header.IPv6(p).SourceAddress(), header.IPv6(p).DestinationAddress()
	b := make([]byte, 40, 48+len(p))
	header.IPv6(b).Encode(&header.IPv6Fields{PayloadLength: uint16(8 + len(p)), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: 64, SrcAddr: dst, DstAddr: src})
	b = append(append(b, 1, 1, 0, 0, 0, 0, 0, 0), p...)
	pseudo := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, dst, src, uint16(8+len(p)))
	binary.BigEndian.PutUint16(b[42:], ^checksum.Checksum(b[40:], pseudo))
	return b
}

// TestGarbage throws what is not IP, or wrong IP, at Write.
func TestGarbage(t *testing.T) {
	s := newStack(t, Options{Accept: func(context.Context, string, netip.AddrPort, netip.AddrPort) (net.Conn, error) {
		return nil, errors.New("no")
	}}, a4, a6)
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		p := make([]byte, r.IntN(200))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		if len(p) > 40 {
			copy(p, [][]byte{{0x45}, {0x60}, {0x4f}, {0x40}}[r.IntN(4)])
			p[6], p[9] = []byte{58, 6, 17, 44}[r.IntN(4)], []byte{1, 6, 17}[r.IntN(3)]
			copy(p[16:], a4.AsSlice())
			if p[0] == 0x60 {
				copy(p[24:], a6.AsSlice())
			}
		}
		if _, err := s.Write([][]byte{p}, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzNormaliseICMP(f *testing.F) {
	s := &Stack{}
	tcp4 := append(make([]byte, 20), make([]byte, 20)...)
	copy(tcp4, []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6})
	tcp6 := make([]byte, 60)
	copy(tcp6, []byte{0x60, 0, 0, 0, 0, 20, 6, 64})
	f.Add(prohibited(tcp4))
	f.Add(prohibited(tcp6))
	f.Fuzz(func(t *testing.T, p []byte) {
		before := valid(p, 1<<20)
		s.normaliseICMP(p)
		if after := valid(p, 1<<20); before == nil && after != nil {
			t.Errorf("was valid, is now: %v", after)
		}
	})
}
