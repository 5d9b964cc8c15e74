package ostun

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"pgregory.net/rapid"
)

// sample is a packet of these tests.
type sample struct {
	six     bool
	proto   byte
	tos     byte
	options int // bytes of TCP's, a multiple of 4
	flags   byte
	seq     uint32
	id      uint16
	port    uint16
	payload []byte
}

// header is its IP header's length, and that of both.
func (s sample) header() (ip, n int) {
	ip = ip4Len
	if s.six {
		ip = ip6Len
	}
	if s.proto == unix.IPPROTO_UDP {
		return ip, ip + udpLen
	}
	return ip, ip + tcpLen + s.options
}

// packet has right lengths and checksums.
func (s sample) packet() []byte {
	ip, n := s.header()
	p := make([]byte, n, n+len(s.payload))
	p = append(p, s.payload...)
	if s.six {
		binary.BigEndian.PutUint32(p, 6<<28|uint32(s.tos)<<20)
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ip))
		p[6], p[7] = s.proto, 64
		copy(p[8:], netip.MustParseAddr("fd7a::1").AsSlice())
		copy(p[24:], netip.MustParseAddr("fd7a::2").AsSlice())
	} else {
		p[0], p[1], p[6], p[8], p[9] = 0x45, s.tos, 0x40, 64, s.proto
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[4:], s.id)
		copy(p[12:], []byte{100, 64, 0, 1, 100, 64, 0, 2})
	}
	h := p[ip:]
	binary.BigEndian.PutUint16(h, 1000+s.port)
	binary.BigEndian.PutUint16(h[2:], 80)
	if s.proto == unix.IPPROTO_UDP {
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)))
	} else {
		binary.BigEndian.PutUint32(h[4:], s.seq)
		h[12], h[13], h[15] = byte(tcpLen+s.options)<<2, s.flags, 77
		for i := range s.options {
			h[tcpLen+i] = 1 // no operation
		}
	}
	sums(p)
	return p
}

// sums puts the checksums right.
func sums(p []byte) {
	ip, proto := ip6Len, p[6]
	if p[0]>>4 == 4 {
		ip, proto = ip4Len, p[9]
		sumIP4(p[:ip])
	}
	at := ip + tcpSum
	if proto == unix.IPPROTO_UDP {
		at = ip + udpSum
	}
	p[at], p[at+1] = 0, 0
	binary.BigEndian.PutUint16(p[at:], ^checksum.Checksum(p[ip:], pseudo(p, proto, len(p)-ip)))
}

// super is what the kernel hands down: the packet before its checksum is finished, to be cut to segments of size.
func (s sample) super(size int) []byte {
	ip, n := s.header()
	p := s.packet()
	v := vnet{needsSum, gsoTCP4, uint16(n), uint16(size), uint16(ip), tcpSum}
	switch {
	case s.proto == unix.IPPROTO_UDP:
		v.gso, v.sumAtField = gsoUDP, udpSum
	case s.six:
		v.gso = gsoTCP6
	}
	if s.flags&cwr != 0 && s.proto == unix.IPPROTO_TCP {
		v.gso |= gsoECN
	}
	binary.BigEndian.PutUint16(p[ip+int(v.sumAtField):], pseudo(p, s.proto, len(p)-ip))
	b := make([]byte, vnetLen, vnetLen+len(p))
	v.encode(b)
	return append(b, p...)
}

// cut is all that a splitter makes of what was read.
func cut(b []byte, fits func(netip.Addr) (int, bool)) (out [][]byte) {
	var s splitter
	if !s.start(slices.Clone(b), fits) {
		return nil
	}
	for s.more() {
		dst := make([]byte, maxPacket)
		out = append(out, dst[:s.next(dst)])
	}
	return out
}

func path(mtu int, end bool) func(netip.Addr) (int, bool) {
	return func(netip.Addr) (int, bool) { return mtu, end }
}

// The bytes of one cut: 5 bytes in segments of 2.
func TestSplitGolden(t *testing.T) {
	got := cut(sample{proto: unix.IPPROTO_TCP, flags: ack | psh | fin | cwr, seq: 0xffffffff, id: 7, payload: []byte("abcde")}.super(2), nil)
	want := []string{
		"4500 002a 0007 4000 4006 7244 64400001 64400002  03e8 0050 ffffffff 00000000 5090 004d 80e8 0000 6162",
		"4500 002a 0008 4000 4006 7243 64400001 64400002  03e8 0050 00000001 00000000 5010 004d 7f65 0000 6364",
		"4500 0029 0009 4000 4006 7243 64400001 64400002  03e8 0050 00000003 00000000 5019 004d 7dbf 0000 65",
	}
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i, w := range want {
		if g := hex.EncodeToString(got[i]); g != strings.ReplaceAll(w, " ", "") {
			t.Errorf("packet %d\n got %s\nwant %s", i, g, w)
		}
	}
}

// How long segments are, by the path and what the kernel has agreed with the far end (1228 bytes of payload here).
func TestSplitToPath(t *testing.T) {
	big := sample{proto: unix.IPPROTO_TCP, options: 12, flags: ack, payload: make([]byte, 20000)}
	one := big
	one.payload = make([]byte, 1228)
	grams := sample{proto: unix.IPPROTO_UDP, payload: make([]byte, 5000)}
	for _, c := range []struct {
		name string
		s    sample
		fits func(netip.Addr) (int, bool)
		want int // bytes of the first packet
	}{
		{"nothing said", big, nil, 1280},
		{"not known", big, path(0, false), 1280},
		{"longer, to the end", big, path(8928, true), 8928},
		{"longer than any packet", big, path(1<<20, true), 20052},
		{"longer, to a host behind it", big, path(8928, false), 1280},
		{"shrunk", big, path(1000, true), 1000},
		{"shrunk, to a host behind it", big, path(1000, false), 1000},
		{"no room for headers", big, path(52, true), 1280},
		{"one segment", one, path(8928, true), 1280},
		{"one segment, shrunk", one, path(1000, true), 1000},
		{"datagrams stay", grams, path(8928, true), 1256},
	} {
		b := c.s.super(1228)
		if len(c.s.payload) == 1228 {
			b[1] = gsoNone // as the kernel hands down what is no longer
		}
		if got := cut(b, c.fits); len(got) == 0 || len(got[0]) != c.want {
			t.Errorf("%s: %d packets, the first of %d bytes, want %d", c.name, len(got), len(got[0]), c.want)
		}
	}
}

// What the kernel cannot mean is lost, and nothing else is.
func TestSplitRefuses(t *testing.T) {
	ok := sample{proto: unix.IPPROTO_TCP, flags: ack, payload: []byte("abcde")}.super(2)
	edit := func(at int, v ...byte) []byte { b := slices.Clone(ok); copy(b[at:], v); return b }
	for _, c := range []struct {
		name string
		b    []byte
	}{
		{"nothing", nil},
		{"half a header", ok[:9]},
		{"no packet", ok[:10]},
		{"half an IP header", ok[:20]},
		{"half a TCP header", ok[:35]},
		{"no payload", ok[:50]},
		{"segments of no bytes", edit(4, 0, 0)},
		{"another kind", edit(1, 3)},
		{"IPv6 said, IPv4 there", edit(1, gsoTCP6)},
		{"no IP", edit(10, 0x15)},
		{"checksum from within the IP header", edit(6, 10, 0)},
		{"TCP header of 16 bytes", edit(42, 0x40)},
		{"TCP header past the end", edit(42, 0xf0)},
		{"checksum past the end", edit(0, needsSum, gsoNone, 0, 0, 0, 0, 200, 0, 200, 0)},
	} {
		if got := cut(c.b, nil); got != nil {
			t.Errorf("%s: %d packets", c.name, len(got))
		}
	}
	if got := cut(ok, nil); len(got) != 3 {
		t.Errorf("right: %d packets, want 3", len(got))
	}
	var s splitter
	s.start(ok, nil)
	if n := s.next(make([]byte, 41)); n != 0 || s.more() {
		t.Errorf("a buffer too small took %d bytes", n)
	}
}

// A packet for itself has its checksum finished, if that was left to us.
func TestSplitSingle(t *testing.T) {
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		s := sample{proto: proto, flags: ack, payload: []byte("abc")}
		want, b := s.packet(), s.super(0)
		b[1] = gsoNone
		if got := cut(b, nil); len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Errorf("protocol %d: % x, want % x", proto, got, want)
		}
		b = append(make([]byte, vnetLen), want...)
		if got := cut(b, nil); len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Errorf("protocol %d, complete: % x, want % x", proto, got, want)
		}
	}
}

// drawn is any packet that the kernel could hand down.
func drawn(t *rapid.T) sample {
	s := sample{
		six: rapid.Bool().Draw(t, "IPv6"), proto: unix.IPPROTO_TCP, tos: rapid.Byte().Draw(t, "tos"),
		options: 4 * rapid.IntRange(0, 10).Draw(t, "options"), flags: rapid.Byte().Draw(t, "flags"),
		seq: rapid.Uint32().Draw(t, "seq"), id: rapid.Uint16().Draw(t, "id"),
	}
	if rapid.IntRange(0, 3).Draw(t, "UDP") == 0 {
		s.proto = unix.IPPROTO_UDP
	}
	s.payload = make([]byte, rapid.IntRange(1, 65000).Draw(t, "length"))
	x := rapid.Uint32().Draw(t, "payload")
	for i := range s.payload {
		x = x*1664525 + 1013904223
		s.payload[i] = byte(x >> 24)
	}
	return s
}

// What is split is right packet by packet, and is the same stream of bytes again once joined, as the kernel sees it.
func TestSplitThenJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawn(t)
		_, n := s.header()
		size := rapid.IntRange(1, 9000).Draw(t, "size")
		var fits func(netip.Addr) (int, bool)
		if rapid.Bool().Draw(t, "path known") {
			fits = path(rapid.IntRange(0, maxPacket).Draw(t, "mtu"), rapid.Bool().Draw(t, "end"))
		}
		b := s.super(size)
		if s.proto == unix.IPPROTO_TCP && s.flags&cwr == 0 && rapid.Bool().Draw(t, "single") {
			b[1] = gsoNone
		}
		parts := cut(b, fits)
		var stream []byte
		for i, p := range parts {
			checkPart(t, s, p, i, i == len(parts)-1, len(stream))
			stream = append(stream, p[n:]...)
		}
		if !bytes.Equal(stream, s.payload) {
			t.Fatalf("%d bytes in %d packets, want %d", len(stream), len(parts), len(s.payload))
		}

		bufs := make([][]byte, len(parts))
		for i, p := range parts {
			bufs[i] = append(make([]byte, 16), p...)
		}
		j := joiner{mtu: MinMTU, uso: true}
		stream = stream[:0]
		for len(bufs) > 0 {
			k, iov := j.next(bufs, 16)
			checkJoined(t, bytes.Join(iov, nil), s, k)
			stream = append(stream, bytes.Join(iov, nil)[vnetLen+n:]...)
			bufs = bufs[k:]
		}
		if !bytes.Equal(stream, s.payload) {
			t.Fatalf("joined: %d bytes, want %d", len(stream), len(s.payload))
		}
	})
}

// checkPart checks one packet of a split: all its fields, by making it anew.
func checkPart(t *rapid.T, s sample, p []byte, i int, last bool, at int) {
	_, n := s.header()
	if len(p) <= n {
		t.Fatalf("packet %d has %d bytes", i, len(p))
	}
	w := s
	w.payload = p[n:]
	w.seq += uint32(at)
	w.id += uint16(i)
	if !last {
		w.flags &^= fin | psh
	}
	if i > 0 {
		w.flags &^= cwr
	}
	want := w.packet()
	if s.proto == unix.IPPROTO_UDP && want[n-2] == 0 && want[n-1] == 0 {
		want[n-2], want[n-1] = 0xff, 0xff
	}
	if !bytes.Equal(p, want) {
		t.Fatalf("packet %d: headers % x, want % x", i, p[:n], want[:n])
	}
}

// checkJoined checks what is written for k packets: what the kernel makes of it is what was split.
func checkJoined(t *rapid.T, b []byte, s sample, k int) {
	ip, n := s.header()
	p := slices.Clone(b[vnetLen:])
	var v vnet
	if err := v.decode(b); err != nil {
		t.Fatal(err)
	}
	if got := int(binary.BigEndian.Uint16(p[2:])); !s.six && got != len(p) {
		t.Fatalf("IPv4 length %d of %d", got, len(p))
	}
	if !s.six && checksum.Checksum(p[:ip], 0) != 0xffff {
		t.Fatal("wrong IPv4 checksum")
	}
	if got := int(binary.BigEndian.Uint16(p[4:])) + ip6Len; s.six && got != len(p) {
		t.Fatalf("IPv6 length %d of %d", got, len(p))
	}
	if v.flags&needsSum != 0 && !finish(p, int(v.sumFrom), int(v.sumAtField)) {
		t.Fatal("the checksum's field is outside")
	}
	if checksum.Checksum(p[ip:], pseudo(p, s.proto, len(p)-ip)) != 0xffff {
		t.Fatalf("wrong checksum of %d packets", k)
	}
	whole := v.gso == gsoNone
	switch {
	case k > 1 && whole:
		t.Fatalf("%d packets joined and not said so", k)
	case s.proto == unix.IPPROTO_TCP && !whole && int(v.segment)+n > MinMTU:
		t.Fatalf("segments of %d bytes on an interface of %d", int(v.segment)+n, MinMTU)
	case !whole && (int(v.header) != n || v.segment == 0 || int(v.segment) >= len(p)-n):
		t.Fatalf("header %d and segment %d of %d bytes", v.header, v.segment, len(p))
	}
}

// FuzzSplit takes any bytes for what the kernel gave.
func FuzzSplit(f *testing.F) {
	f.Add(sample{proto: unix.IPPROTO_TCP, flags: ack, payload: []byte("abcde")}.super(2), 1280)
	f.Add(sample{six: true, proto: unix.IPPROTO_TCP, options: 12, flags: ack, payload: []byte("abcde")}.super(3), 73)
	f.Add(sample{proto: unix.IPPROTO_UDP, payload: []byte("abcde")}.super(2), 0)
	f.Fuzz(func(t *testing.T, b []byte, mtu int) {
		total := 0
		dst := make([]byte, maxPacket)
		var s splitter
		for s.start(slices.Clone(b), path(mtu, true)); s.more(); {
			total += s.next(dst) - s.n
		}
		if total > len(b) {
			t.Errorf("%d bytes of payload from %d", total, len(b))
		}
	})
}
