package ostun

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// datagram is one of so many bytes in all, which may be fragmented or not.
func datagram(six bool, size int, may bool) []byte {
	s := sample{six: six, proto: unix.IPPROTO_UDP, id: 7}
	_, n := s.header()
	s.payload = make([]byte, size-n)
	for i := range s.payload {
		s.payload[i] = byte(i >> 3)
	}
	p := s.packet()
	if !six && may {
		p[6] = 0
		sumIP4(p[:ip4Len])
	}
	return p
}

// The bytes of the two answers, to a packet that is 1,281 bytes long where 1,280 fit.
func TestRefusalGolden(t *testing.T) {
	for _, c := range []struct {
		six  bool
		want string
		size int
	}{
		{false, "4500 0240 0000 4000 4001 703a 64400002 64400001  0304", 576},
		{true, "60000000 04d8 3a40 fd7a0000000000000000000000000002 fd7a0000000000000000000000000001  0200", MinMTU},
	} {
		var r refusal
		p := datagram(c.six, 1281, false)
		b := r.make(p, 1280, time.Now())
		if len(b) != vnetLen+c.size {
			t.Fatalf("%d bytes, want %d", len(b), vnetLen+c.size)
		}
		b = b[vnetLen:]
		want := strings.ReplaceAll(c.want, " ", "")
		if got := hex.EncodeToString(b); !strings.HasPrefix(got, want) {
			t.Errorf("got\n%s, want\n%s", got[:len(want)], want)
		}
		ip := ip4Len
		sum := uint16(0)
		if !c.six && checksum.Checksum(b[:ip4Len], 0) != 0xffff {
			t.Error("a wrong checksum of its header")
		}
		if c.six {
			ip, sum = ip6Len, pseudo(b, unix.IPPROTO_ICMPV6, len(b)-ip6Len)
		}
		if mtu := hex.EncodeToString(b[ip+4 : ip+8]); mtu != "00000500" {
			t.Errorf("the size it tells is %s", mtu)
		}
		if checksum.Checksum(b[ip:], sum) != 0xffff {
			t.Error("a wrong checksum")
		}
		if !bytes.Equal(b[ip+8:], p[:len(b)-ip-8]) {
			t.Error("it does not quote the packet")
		}
	}
}

// Who is answered at all, and how often.
func TestRefusalAnswers(t *testing.T) {
	edit := func(six bool, at int, v ...byte) []byte { p := datagram(six, 1400, false); copy(p[at:], v); return p }
	for _, c := range []struct {
		name string
		p    []byte
		want bool
	}{
		{"datagram", edit(false, 0), true},
		{"datagram, IPv6", edit(true, 0), true},
		{"ping", edit(false, 9, unix.IPPROTO_ICMP, 0, 0, 100, 64, 0, 1, 100, 64, 0, 2, 8), true},
		{"ICMP error", edit(false, 9, unix.IPPROTO_ICMP, 0, 0, 100, 64, 0, 1, 100, 64, 0, 2, 3), false},
		{"ICMPv6 error", append(edit(true, 6, unix.IPPROTO_ICMPV6)[:ip6Len], make([]byte, 1300)...), false},
		{"not the first fragment", edit(false, 6, 0, 1), false},
		{"to many", edit(false, 16, 224, 0, 0, 1), false},
		{"to many, IPv6", edit(true, 24, 0xff, 2), false},
		{"from nobody", edit(false, 12, 0, 0, 0, 0), false},
	} {
		var r refusal
		if got := r.make(c.p, 1280, time.Now()) != nil; got != c.want {
			t.Errorf("%s: answered %v, want %v", c.name, got, c.want)
		}
	}
	var r refusal
	n, now := 0, time.Now()
	for i := range 1000 {
		if r.make(edit(false, 0), 1280, now.Add(time.Duration(i)*time.Millisecond)) != nil {
			n++
		}
	}
	if most := int(time.Second/refusalEvery) + refusalBurst + 1; n < refusalBurst || n > most {
		t.Errorf("%d answers in a second, want %d at the most", n, most)
	}
}

// What the kernel was told of an address is what may be sent there; what it was told before still passes for a moment.
func TestLimits(t *testing.T) {
	var d driver
	a, b := addr("100.64.0.8"), addr("fd7a::8")
	for _, c := range []struct {
		name     string
		tell     map[netip.Addr]int
		to       netip.Addr
		n, want  int
		leastMTU int
	}{
		{"nothing told", nil, a, 1400, 1280, 1280},
		{"told", map[netip.Addr]int{a: 8912, b: 1440}, a, 8000, 8912, 1280},
		{"another", map[netip.Addr]int{a: 8912, b: 1440}, b, 8000, 1440, 1280},
		{"less, a moment ago more", map[netip.Addr]int{a: 1440, b: 1440}, a, 8000, 8912, 1280},
		{"and longer than that", map[netip.Addr]int{a: 1440, b: 1440}, a, 9000, 1440, 1280},
		{"nothing, a moment ago more", nil, a, 8000, 8912, 1280},
		{"less than the usual", map[netip.Addr]int{a: 1216, b: 1216}, a, 9000, 1216, 1216},
		{"not with IPv6", map[netip.Addr]int{a: 1216, b: 1216}, b, 2000, 1280, 1216},
	} {
		d.tell(c.tell)
		l := d.told.Load()
		if got := l.carries(c.to, c.n); got != c.want || l.least != c.leastMTU {
			t.Errorf("%s: %v carries %d of %d bytes, at least %d; want %d and %d", c.name, c.to, got, c.n, l.least, c.want, c.leastMTU)
		}
	}
	old := d.told.Load()
	for to, l := range old.paths {
		l.until = time.Now().Add(-time.Second)
		old.paths[to] = l
	}
	if got := old.carries(a, 8000); got != 1216 {
		t.Errorf("more than a moment later it carries %d", got)
	}
	if d.tell(nil); slices.ContainsFunc([]netip.Addr{a, b}, func(to netip.Addr) bool { return d.told.Load().paths[to].was > 1440 }) {
		t.Error("what is over is kept")
	}
}

// FuzzTooLong takes any bytes for a packet that is too long.
func FuzzTooLong(f *testing.F) {
	f.Add(datagram(false, 1400, true), 1280)
	f.Add(datagram(false, 1400, false), 576)
	f.Add(datagram(true, 1400, false), 1280)
	f.Fuzz(func(t *testing.T, p []byte, mtu int) {
		s := splitter{pkt: slices.Clone(p)}
		if mtu = min(max(mtu, 576), 65535); len(p) < ip4Len || p[0]>>4 == 6 && len(p) < ip6Len || len(p) > maxPacket {
			return
		}
		var r refusal
		if b := r.make(p, mtu, time.Now()); len(b) > vnetLen+MinMTU {
			t.Errorf("an answer of %d bytes", len(b))
		}
		total, dst := 0, make([]byte, maxPacket)
		if s.fragment(mtu) {
			for s.more() {
				n := s.next(dst)
				if total += n - ip4Len; n > mtu {
					t.Errorf("a fragment of %d bytes, longer than %d", n, mtu)
				}
			}
			if total != len(p)-ip4Len {
				t.Errorf("%d bytes of %d", total, len(p)-ip4Len)
			}
		}
	})
}
