package ostun

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// batch puts packets into buffers as WireGuard does.
func batch(pkts ...[]byte) [][]byte {
	bufs := make([][]byte, len(pkts))
	for i, p := range pkts {
		bufs[i] = append(make([]byte, 16, 16+len(p)), p...)
	}
	return bufs
}

func TestJoinGolden(t *testing.T) {
	s := sample{proto: unix.IPPROTO_TCP, flags: ack, seq: 0xffffffff, id: 7, payload: []byte("ab")}
	next := s
	next.seq, next.id, next.flags, next.payload = 1, 9, ack|psh, []byte("c")
	gram := sample{six: true, proto: unix.IPPROTO_UDP, payload: []byte("ab")}
	last := gram
	last.payload = []byte("c")
	for _, c := range []struct {
		pkts [][]byte
		want string // little-endian, as on all machines this is tested on
	}{
		{[][]byte{s.packet(), next.packet()}, `01 01 2800 0200 1400 1000
			4500 002b 0007 4000 4006 7243 64400001 64400002  03e8 0050 ffffffff 00000000 5018 004d c8a0 0000  6162 63`},
		{[][]byte{s.packet()}, `01 00 2800 0000 1400 1000
			4500 002a 0007 4000 4006 7244 64400001 64400002  03e8 0050 ffffffff 00000000 5010 004d c89f 0000  6162`},
		{[][]byte{gram.packet(), last.packet()}, `01 05 3000 0200 2800 0600
			60000000 000b 1140 fd7a0000000000000000000000000001 fd7a0000000000000000000000000002  03e8 0050 000b fb14  6162 63`},
	} {
		j := joiner{mtu: MinMTU, uso: true}
		n, iov := j.next(batch(c.pkts...), 16)
		want := strings.NewReplacer(" ", "", "\n", "", "\t", "").Replace(c.want)
		if got := hex.EncodeToString(bytes.Join(iov, nil)); n != len(c.pkts) || got != want {
			t.Errorf("%d of %d packets\n got %s\nwant %s", n, len(c.pkts), got, want)
		}
	}
}

// Which neighbours are one.
func TestJoin(t *testing.T) {
	for _, six := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6 %v", six), func(t *testing.T) {
			ip := ip4Len
			if six {
				ip = ip6Len
			}
			seg := func(seq uint32, flags byte, p string) []byte {
				return sample{six: six, proto: unix.IPPROTO_TCP, options: 12, seq: seq, flags: flags, payload: []byte(p)}.packet()
			}
			udp := func(p string) []byte {
				return sample{six: six, proto: unix.IPPROTO_UDP, payload: []byte(p)}.packet()
			}
			edit := func(p []byte, at int, v byte) []byte { p[at] = v; sums(p); return p }
			raw := func(p []byte, at int, v ...byte) []byte { copy(p[at:], v); return p }
			spoil := func(p []byte) []byte { p[len(p)-1] ^= 1; return p }
			big, many := strings.Repeat("x", 30000), slices.Repeat([][]byte{udp("a")}, maxDatagrams+1)
			for _, c := range []struct {
				name string
				pkts [][]byte
				want int
			}{
				{"one", [][]byte{seg(1, ack, "ab")}, 1},
				{"three", [][]byte{seg(1, ack, "ab"), seg(3, ack, "c"), seg(4, ack|psh, "def")}, 3},
				{"past PSH", [][]byte{seg(1, ack|psh, "ab"), seg(3, ack, "c")}, 2},
				{"sequence numbers wrap", [][]byte{seg(0xfffffffe, ack, "abc"), seg(1, ack, "c")}, 2},
				{"a hole", [][]byte{seg(1, ack, "ab"), seg(4, ack, "c")}, 1},
				{"twice the same", [][]byte{seg(1, ack, "ab"), seg(1, ack, "ab")}, 1},
				{"no payload next", [][]byte{seg(1, ack, "ab"), seg(3, ack, "")}, 1},
				{"FIN next", [][]byte{seg(1, ack, "ab"), seg(3, ack|fin, "c")}, 1},
				{"CWR next", [][]byte{seg(1, ack, "ab"), seg(3, ack|cwr, "c")}, 1},
				{"URG next", [][]byte{seg(1, ack, "ab"), seg(3, ack|0x20, "c")}, 1},
				{"wrong checksum next", [][]byte{seg(1, ack, "ab"), spoil(seg(3, ack, "c"))}, 1},
				{"other address", [][]byte{seg(1, ack, "ab"), edit(seg(3, ack, "c"), ip-1, 9)}, 1},
				{"other port", [][]byte{seg(1, ack, "ab"), edit(seg(3, ack, "c"), ip+1, 9)}, 1},
				{"other acknowledgement", [][]byte{seg(1, ack, "ab"), edit(seg(3, ack, "c"), ip+11, 9)}, 1},
				{"other window", [][]byte{seg(1, ack, "ab"), edit(seg(3, ack, "c"), ip+15, 9)}, 1},
				{"other options", [][]byte{seg(1, ack, "ab"), edit(seg(3, ack, "c"), ip+27, 9)}, 1},
				{"other traffic class", [][]byte{seg(1, ack, "ab"), edit(seg(3, ack, "c"), 1, 0x30)}, 1},
				{"UDP between", [][]byte{seg(1, ack, "ab"), udp("ab"), seg(3, ack, "c")}, 1},
				{"too long together", [][]byte{seg(1, ack, big), seg(30001, ack, big), seg(60001, ack, big)}, 2},
				{"empty next", [][]byte{seg(1, ack, "ab"), {}}, 1},
				{"datagrams", [][]byte{udp("ab"), udp("cd"), udp("e")}, 3},
				{"shorter, then as before", [][]byte{udp("ab"), udp("c"), udp("de")}, 2},
				{"shorter twice", [][]byte{udp("ab"), udp("c"), udp("d")}, 2},
				{"longer", [][]byte{udp("ab"), udp("cde")}, 1},
				{"as many as the kernel takes", many, maxDatagrams},
				{"datagram to another port", [][]byte{udp("ab"), edit(udp("ab"), ip+3, 9)}, 1},
				{"datagram with a wrong checksum", [][]byte{udp("ab"), spoil(udp("ab"))}, 1},
				{"datagram without a checksum", [][]byte{udp("ab"), raw(udp("ab"), ip+6, 0, 0)}, 1},
			} {
				j := joiner{mtu: MinMTU, uso: true}
				if n, iov := j.next(batch(c.pkts...), 16); n != c.want || len(iov) != n {
					t.Errorf("%s: %d in %d parts, want %d", c.name, n, len(iov), c.want)
				}
			}
			for _, c := range []struct {
				name string
				p    []byte
			}{
				{"no payload", seg(1, ack, "")},
				{"FIN", seg(1, ack|fin, "ab")},
				{"wrong checksum", spoil(seg(1, ack, "ab"))},
				{"cut short", seg(1, ack, "ab")[:ip+5]},
				{"TCP header past the end", edit(seg(1, ack, "ab"), ip+12, 0xf0)},
				{"TCP header too short", edit(seg(1, ack, "ab"), ip+12, 0x40)},
				{"datagram without a checksum", raw(udp("ab"), ip+6, 0, 0)},
				{"datagram of another length", raw(udp("ab"), ip+5, 9)},
				{"another protocol", edit(udp("as long as TCP"), map[bool]int{false: 9, true: 6}[six], 1)},
				{"not IP", make([]byte, 100)},
			} {
				want := append(make([]byte, vnetLen), c.p...)
				j := joiner{mtu: MinMTU, uso: true}
				if n, iov := j.next(batch(c.p, c.p), 16); n != 1 || !bytes.Equal(bytes.Join(iov, nil), want) {
					t.Errorf("%s: %d packets, changed", c.name, n)
				}
			}
		})
	}
	frag := sample{proto: unix.IPPROTO_TCP, flags: ack, payload: []byte("ab")}.packet()
	for _, v := range []byte{0x20, 0x01} { // more fragments; not the first
		frag[6] = v
		sums(frag)
		j := joiner{mtu: MinMTU}
		if r := j.find(batch(frag), 16); r.n != 0 {
			t.Errorf("a fragment, %#x, is for joining", v)
		}
	}
	j := joiner{mtu: MinMTU}
	gram := sample{proto: unix.IPPROTO_UDP, payload: []byte("ab")}.packet()
	if r := j.find(batch(gram, gram), 16); r.n != 0 {
		t.Error("datagrams are joined for a kernel that does not take them so")
	}
}

// A segment longer than the interface's MTU is said to be several.
func TestJoinLong(t *testing.T) {
	long := sample{proto: unix.IPPROTO_TCP, options: 12, flags: ack, payload: make([]byte, 8876)}
	j := joiner{mtu: MinMTU}
	_, iov := j.next(batch(long.packet()), 16)
	var v vnet
	if err := v.decode(iov[0]); err != nil || v.gso != gsoTCP4 || v.segment != 1228 {
		t.Errorf("%+v, %v", v, err)
	}
}

// FuzzJoin takes any bytes for two packets of peers.
func FuzzJoin(f *testing.F) {
	s := sample{proto: unix.IPPROTO_TCP, flags: ack, payload: []byte("abcde")}
	next := s
	next.seq = 5
	f.Add(s.packet(), next.packet())
	gram := sample{six: true, proto: unix.IPPROTO_UDP, payload: []byte("abcde")}
	f.Add(gram.packet(), gram.packet())
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a) == 0 || len(b) == 0 {
			return
		}
		j := joiner{mtu: MinMTU, uso: true}
		bufs := batch(a, b)
		n, iov := j.next(bufs, 16)
		want := vnetLen + len(a)
		if n == 2 {
			_, _, hdr := j.payload(batch(b)[0][16:])
			want += len(b) - hdr
		}
		if got := len(bytes.Join(iov, nil)); n < 1 || n > 2 || got != want {
			t.Errorf("%d packets in %d bytes, want %d", n, got, want)
		}
	})
}
