package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
)

// Whatever packets come for others, the host is asked about addresses that are carried only, and every buffer is written
// within its bounds; a batch of two is joined or not.
func FuzzCarry(f *testing.F) {
	own := netip.MustParseAddr("100.64.0.2")
	s, err := New(Options{Addrs: []netip.Addr{own},
		Accept: func(_ context.Context, _ string, local, _ netip.AddrPort) (net.Conn, error) {
			if local.Addr() != own && !slices.ContainsFunc(lan, func(p netip.Prefix) bool { return p.Contains(local.Addr()) }) {
				panic("asked about " + local.String())
			}
			return nil, errors.New("no")
		},
		Echo: func(_ context.Context, dst netip.Addr, _ []byte) error {
			if !slices.ContainsFunc(lan, func(p netip.Prefix) bool { return p.Contains(dst) }) {
				panic("a ping of " + dst.String())
			}
			return nil
		}})
	if err != nil {
		f.Fatal(err)
	}
	defer s.Close()
	if err := s.Carry(lan); err != nil {
		f.Fatal(err)
	}
	syn := []byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 100, 64, 0, 1, 10, 33, 0, 5, 0, 1, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 255, 255, 0, 0, 0, 0}
	ping4 := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 100, 64, 0, 1, 10, 33, 0, 5, 8, 0, 0, 0, 0, 1, 0, 1}
	ping6 := append([]byte{0x60, 0, 0, 0, 0, 8, 58, 64}, append(append(append([]byte{}, netip.MustParseAddr("fd7a::1").AsSlice()...), lan6.AsSlice()...), 128, 0, 0, 0, 0, 1, 0, 1)...)
	for _, p := range [][]byte{syn, ping4, ping6} {
		f.Add(p, p)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		const offset, room = 16, 64 // before each, and behind it
		bufs := make([][]byte, 0, 2)
		for _, p := range [][]byte{a, b} {
			if len(p) > 65535 {
				return
			}
			buf := make([]byte, offset+len(p)+room)
			copy(buf[offset:], p)
			bufs = append(bufs, buf[:offset+len(p)])
		}
		if _, err := s.Write(bufs, offset); err != nil {
			t.Fatal(err)
		}
		for _, buf := range bufs {
			if behind := buf[len(buf):cap(buf)]; slices.ContainsFunc(behind[:room], func(c byte) bool { return c != 0 }) {
				t.Fatalf("written behind a packet: %x", behind)
			}
		}
		out, sizes := [][]byte{make([]byte, 2048)}, []int{0}
		for {
			n, err := s.Poll(out, sizes, 0)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
		}
	})
}
