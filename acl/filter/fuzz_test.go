package filter

import (
	"bufio"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// golden reads testdata/packets.hex: a line is "name: verdict of a filter with a rule for everything: hex".
func golden(t testing.TB, each func(name, want string, pkt []byte)) {
	file, err := os.Open("testdata/packets.hex")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if line := lines.Text(); line != "" && line[0] != '#' {
			part := strings.SplitN(line, ": ", 3)
			pkt, err := hex.DecodeString(strings.ReplaceAll(part[2], " ", ""))
			if err != nil {
				t.Fatalf("%s: %v", part[0], err)
			}
			each(part[0], part[1], pkt)
		}
	}
}

var everything = []acl.Rule{rule(1, acl.Accept, "*", "*", anyPort), rule(2, acl.Accept, "*", "*", anyPort, 4, 41, 47, 50, 51, 132)}

func TestGoldenPackets(t *testing.T) {
	golden(t, func(name, want string, pkt []byte) {
		f := newMesh(t, everything...)
		if got := f.In(pkt, t0).Reason.String(); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	})
}

// invariants must hold of whatever parses: what is read lies in the packet, and what cannot be is refused.
func invariants(t *testing.T, b []byte) {
	var p packet
	reason, ok := p.parse(b)
	if !ok {
		if reason.Allows() || reason == Unknown {
			t.Fatalf("refused for %v", reason)
		}
		return
	}
	switch {
	case p.size > len(b) || p.size < 20 || len(p.l4) > p.size-20:
		t.Fatalf("size %d of %d, transport %d", p.size, len(b), len(p.l4))
	case p.v6 != (b[0]>>4 == 6), p.v6 && (p.src.is4() || p.dst.is4()), !p.v6 && !(p.src.is4() && p.dst.is4()):
		t.Fatal("families are mixed")
	case p.frag && p.off > 0 && (p.off < 24 || int(p.off)+int(p.fragLen) > 65535 || p.sport|p.dport != 0):
		t.Fatalf("fragment %+v", p)
	case p.frag && p.more && p.fragLen%8 != 0, p.frag && p.off == 0 && !p.more:
		t.Fatalf("fragment %+v", p)
	}
	if p.off == 0 {
		need := map[uint8]int{protoTCP: 20, protoUDP: 8, protoICMP: 8, protoICMPv6: 8, protoSCTP: 16}[p.proto]
		if len(p.l4) < need || p.proto == protoTCP && int(p.data) > len(p.l4)-20 {
			t.Fatalf("transport of %d bytes, data %d", len(p.l4), p.data)
		}
	}
	if p.src.netip().Is4() == p.v6 || addrOf(p.dst.netip()) != p.dst {
		t.Fatal("addresses do not survive")
	}
}

func seeds(f *testing.F, want func([]byte) bool) {
	golden(f, func(_, _ string, pkt []byte) {
		if want(pkt) {
			f.Add(pkt)
		}
	})
}

func FuzzParse4(f *testing.F) {
	seeds(f, func(b []byte) bool { return len(b) > 0 && b[0]>>4 == 4 })
	f.Fuzz(invariants)
}

func FuzzParse6(f *testing.F) {
	seeds(f, func(b []byte) bool { return len(b) > 0 && b[0]>>4 == 6 })
	f.Fuzz(invariants)
}

// FuzzExtensions fuzzes what comes after a sound IPv6 header.
func FuzzExtensions(f *testing.F) {
	seeds(f, func(b []byte) bool { return len(b) > 40 && b[0]>>4 == 6 })
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 40 || len(b) > 65535 {
			return
		}
		n := len(b) - 40
		b[0], b[4], b[5] = 0x60, byte(n>>8), byte(n)
		invariants(t, b)
	})
}

// FuzzFragments lets two bytes say each fragment's offset and length: whatever passes never overlaps.
func FuzzFragments(f *testing.F) {
	f.Add([]byte{0, 10, 10, 10, 20, 10 | 0x80})
	f.Add([]byte{0, 10, 9, 10, 20, 10 | 0x80})
	f.Fuzz(func(t *testing.T, script []byte) {
		fl := newMesh(t, everything...)
		var have [65536]bool
		for ; len(script) >= 2; script = script[2:] {
			off, n, more := int(script[0])*8, 8*(1+int(script[1]&0x7f)), script[1]&0x80 == 0
			body := make([]byte, n)
			if off == 0 {
				copy(body, udp(1, 2, 4000).body[:8])
			}
			if off == 0 && !more || !fl.In(fragOf(a4, v4, protoUDP, 1, off, more, body), t0).Allow {
				continue
			}
			if off == 0 && have[0] { // complete, and begun again
				have = [65536]bool{}
			}
			for i := off; i < off+n; i++ {
				if have[i] {
					t.Fatalf("byte %d passed twice", i)
				}
				have[i] = true
			}
		}
	})
}

// FuzzFilter sends anything both ways, between two Sets: no panic, no state out of bounds, no verdict without reason.
func FuzzFilter(f *testing.F) {
	seeds(f, func([]byte) bool { return true })
	f.Fuzz(func(t *testing.T, b []byte) {
		fl := newMesh(t, everything...)
		var buf [1280]byte
		for i := range 3 {
			now := after(time.Duration(i) * time.Minute)
			v := fl.In(b, now)
			w := fl.Out(b, now)
			if v.Reason == Unknown || w.Reason == Unknown || v.Allow != v.Reason.Allows() || v.Allow && w.Allow {
				t.Fatal(v, w)
			}
			if answer := Reject(b, buf[:]); answer != nil {
				checkSums(t, answer)
			}
		}
		for _, c := range fl.Set(mesh(2), t0) {
			for _, told := range slices.Concat(c.ToPeer, c.ToSelf) {
				checkSums(t, told)
			}
		}
		if n := fl.Stats().Flows; n > 1 {
			t.Fatalf("%d flows", n)
		}
	})
}
