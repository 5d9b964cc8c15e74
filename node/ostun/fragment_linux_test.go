package ostun

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// Fragments carry all of the packet, in order, none longer than said; also of what is a fragment already.
func TestFragment(t *testing.T) {
	for _, was := range []uint16{0, 0x2000 | 100, 100} {
		p := datagram(false, 8028, true)
		binary.BigEndian.PutUint16(p[6:], was)
		sumIP4(p[:ip4Len])
		s := splitter{pkt: p}
		if !s.fragment(1440) {
			t.Fatal("it may not be fragmented")
		}
		var payload []byte
		for s.more() {
			dst := make([]byte, maxPacket)
			f := dst[:s.next(dst)]
			off := binary.BigEndian.Uint16(f[6:])
			more := s.more() || was&0x2000 != 0
			if len(f) > 1440 || int(binary.BigEndian.Uint16(f[2:])) != len(f) || checksum.Checksum(f[:ip4Len], 0) != 0xffff ||
				int(off&0x1fff) != int(was&0x1fff)+len(payload)/8 || off&0x2000 != 0 != more || !bytes.Equal(f[4:6], p[4:6]) || !bytes.Equal(f[8:10], p[8:10]) {
				t.Fatalf("fragment after %d bytes: %x", len(payload), f[:ip4Len])
			}
			payload = append(payload, f[ip4Len:]...)
		}
		if !bytes.Equal(payload, p[ip4Len:]) {
			t.Error("what came is not what was sent")
		}
	}
	for name, p := range map[string][]byte{
		"don't fragment": datagram(false, 8028, false), "IPv6": datagram(true, 8028, true),
		"options": append([]byte{0x46}, datagram(false, 8028, true)[1:]...),
	} {
		if s := (splitter{pkt: p}); s.fragment(1440) {
			t.Errorf("%s: fragmented", name)
		}
	}
}

// fragment6 is one of IPv6 as the kernel makes it, of so many bytes in all, that begins at an offset of 8 bytes each.
func fragment6(size, offset int, more bool) []byte {
	p := make([]byte, size)
	p[0], p[6], p[7], p[ip6Len] = 0x60, unix.IPPROTO_FRAGMENT, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[4:], uint16(size-ip6Len))
	copy(p[8:], netip.MustParseAddr("fd7a::1").AsSlice())
	copy(p[24:], netip.MustParseAddr("fd7a::2").AsSlice())
	off := uint16(offset) << 3
	if more {
		off |= 1
	}
	binary.BigEndian.PutUint16(p[ip6Len+2:], off)
	copy(p[ip6Len+4:], "id=7")
	for i := range p[ip6Len+fragLen:] {
		p[ip6Len+fragLen+i] = byte(i >> 3)
	}
	return p
}

// unframed is a packet as the kernel hands it down that has its checksums.
func unframed(p []byte) []byte {
	b := make([]byte, vnetLen, vnetLen+len(p))
	vnet{}.encode(b)
	return append(b, p...)
}

// A fragment of IPv6 that is longer than its path comes as several, which are the same bytes at the same offsets; all
// others come as they are.
func TestFragment6(t *testing.T) {
	to := netip.MustParseAddr("fd7a::2")
	whole := fragment6(1280, 0, true)
	whole[6] = unix.IPPROTO_UDP
	cutShort := fragment6(1280, 0, true)
	cutShort[5]++
	for _, c := range []struct {
		name string
		p    []byte
		mtu  int
		want []int // lengths
	}{
		{"the first of several", fragment6(1280, 0, true), 1216, []int{1216, 112}},
		{"one in the middle", fragment6(1280, 154, true), 1216, []int{1216, 112}},
		{"the last", fragment6(1277, 154, false), 1216, []int{1216, 109}},
		{"a path for nothing", fragment6(1280, 154, true), 560, []int{560, 560, 256}},
		{"one that fits", fragment6(1216, 0, true), 1216, []int{1216}},
		{"a path that is not known", fragment6(1280, 0, true), 0, []int{1280}},
		{"no fragment", whole, 1216, []int{1280}},
		{"a length that is not its own", cutShort, 1216, []int{1280}},
	} {
		var s splitter
		if !s.start(unframed(c.p), func(a netip.Addr) (int, bool) { return c.mtu, a == to }) {
			t.Fatalf("%s: lost", c.name)
		}
		if s.longest() != c.want[0] {
			t.Errorf("%s: up to %d bytes, want %d", c.name, s.longest(), c.want[0])
		}
		var lengths []int
		data := bytes.Clone(c.p[:ip6Len+fragLen])
		for s.more() {
			dst := make([]byte, maxPacket)
			f := dst[:s.next(dst)]
			lengths = append(lengths, len(f))
			if len(c.want) > 1 {
				was, off := binary.BigEndian.Uint16(c.p[ip6Len+2:]), binary.BigEndian.Uint16(f[ip6Len+2:])
				more := uint16(1)
				if !s.more() {
					more = was & 1
				}
				if off&1 != more || int(off&^7) != int(was&^7)+len(data)-ip6Len-fragLen || int(binary.BigEndian.Uint16(f[4:])) != len(f)-ip6Len ||
					!bytes.Equal(f[6:ip6Len+2], c.p[6:ip6Len+2]) || !bytes.Equal(f[ip6Len+4:ip6Len+8], c.p[ip6Len+4:ip6Len+8]) {
					t.Errorf("%s: fragment after %d bytes: %x", c.name, len(data), f[:ip6Len+fragLen])
				}
			}
			data = append(data, f[ip6Len+fragLen:]...)
		}
		if !slices.Equal(lengths, c.want) || !bytes.Equal(data, c.p) {
			t.Errorf("%s: comes as %v, want %v, all of it", c.name, lengths, c.want)
		}
	}
}

// A fragment of IPv4 that is longer than its path comes as several; what is whole, or forbids it, comes as it is.
func TestFragment4(t *testing.T) {
	const more, forbids = 0x2000, 0x4000
	for _, c := range []struct {
		name  string
		flags uint16 // and the offset
		mtu   int
		want  []int // lengths
	}{
		{"the first of several", more, 512, []int{508, 88}},
		{"one in the middle", more | 69, 512, []int{508, 88}},
		{"the last", 69, 512, []int{508, 88}},
		{"a path for nothing", more, ip4Len, []int{576}},
		{"one that fits", more, 576, []int{576}},
		{"no fragment", 0, 512, []int{576}},
		{"forbidden", more | forbids, 512, []int{576}},
	} {
		p := datagram(false, 576, true)
		binary.BigEndian.PutUint16(p[6:], c.flags)
		sumIP4(p[:ip4Len])
		var s splitter
		if !s.start(unframed(p), func(netip.Addr) (int, bool) { return c.mtu, true }) {
			t.Fatalf("%s: lost", c.name)
		}
		var lengths []int
		data := bytes.Clone(p[:ip4Len])
		for s.more() {
			dst := make([]byte, maxPacket)
			f := dst[:s.next(dst)]
			lengths = append(lengths, len(f))
			if off := int(binary.BigEndian.Uint16(f[6:])&0x1fff) * 8; off != int(c.flags&0x1fff)*8+len(data)-ip4Len {
				t.Errorf("%s: fragment after %d bytes: %x", c.name, len(data), f[:ip4Len])
			}
			data = append(data, f[ip4Len:]...)
		}
		if !slices.Equal(lengths, c.want) || !bytes.Equal(data, p) {
			t.Errorf("%s: comes as %v, want %v, all of it", c.name, lengths, c.want)
		}
	}
}
