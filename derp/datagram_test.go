package derp

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/hedge-mesh/hedge/node/udp"
)

// fixedOffer is the session 0x0102030405060708 with the key a0…bf.
func fixedOffer() (o [offerLen]byte) {
	for i := range o {
		o[i] = byte(i + 1)
		if i >= 8 {
			o[i] = byte(0xa0 + i - 8)
		}
	}
	return o
}

func TestDatagramGolden(t *testing.T) {
	up, _ := newSeals(fixedOffer(), 0)
	down, _ := newSeals(fixedOffer(), dgDown)
	row := appendPacket(nil, [32]byte{0: 0x11, 31: 0x22}, data("hi"))
	message := func(s *seal) []byte { return s.end(append(s.start(nil, dgMessage), row...), 0) }
	echo := [8]byte{1, 2, 3, 4, 5, 6, 7, 8}
	for _, c := range []struct {
		name, want string
		got        []byte
	}{
		{"message to the relay", `
			ed520101 0000000000000001 0102030405060708
			1100000000000000000000000000000000000000000000000000000000000022 0006 040000006869
			4ace5eeb78de1c6f9a923f8ff3f4dfe5`, message(up)},
		{"ping", `ed520102 0000000000000002 0102030405060708 0102030405060708 05ac 0000 f3c4d863537ac19f806e2f94b18de52b`,
			up.probe(nil, dgPing, echo, 1452, netip.AddrPort{}, leastProbe+2)},
		{"message from the relay", `
			ed520181 0000000000000001 0102030405060708
			1100000000000000000000000000000000000000000000000000000000000022 0006 040000006869
			4f7164ac6f6af688b162ae82fe72e5fe`, message(down)},
		{"pong", `ed520182 0000000000000002 0102030405060708 0102030405060708 05ac 0000 a52c83bdda1aeff6cb8c4f3159a71cc8`,
			down.probe(nil, dgPing, echo, 1452, netip.AddrPort{}, leastProbe+2)},
		{"pong that says where the ping came from", `
			ed520182 0000000000000003 0102030405060708 0102030405060708 05ac 00000000000000000000ffffc0000209 a279 0000
			e21f434f0314e5273a08d4299f6adb3d`,
			down.probe(nil, dgPing, echo, 1452, netip.MustParseAddrPort("192.0.2.9:41593"), leastProbe+seenLen+2)},
	} {
		if want := unhex(t, c.want); !bytes.Equal(c.got, want) {
			t.Errorf("%s:\n got %x\nwant %x", c.name, c.got, want)
		}
	}
}

// TestDatagramRefused: nothing but a datagram of the other end, as it was sent, once, is opened.
func TestDatagramRefused(t *testing.T) {
	_, relay := newSeals(fixedOffer(), dgDown)
	node, nodeIn := newSeals(fixedOffer(), 0)
	row := appendPacket(nil, [32]byte{1}, data("hello"))
	make := func() []byte { return node.end(append(node.start(nil, dgMessage), row...), 0) }
	good := make()
	for i := range good {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(good)
			b[i] ^= bit
			if _, _, _, ok := relay.open(b); ok {
				t.Errorf("byte %d changed, and taken", i)
			}
		}
	}
	for n := range good {
		if _, _, _, ok := relay.open(good[:n]); ok {
			t.Errorf("cut to %d bytes, and taken", n)
		}
	}
	if _, _, _, ok := nodeIn.open(good); ok {
		t.Error("a node took its own datagram, sent back to it")
	}
	other := fixedOffer()
	other[40-1]++
	_, stranger := newSeals(other, dgDown)
	if _, _, _, ok := stranger.open(good); ok {
		t.Error("another key opened it")
	}
	later := make()
	kind, body, newest, ok := relay.open(later)
	if !ok || kind != dgMessage || !newest || !bytes.Equal(body, row) {
		t.Fatalf("a good datagram gave kind %d, body %x, newest %v, %v", kind, body, newest, ok)
	}
	if _, _, newest, ok := relay.open(good); !ok || newest {
		t.Errorf("an overtaken datagram: newest %v, %v", newest, ok)
	}
	for _, b := range [][]byte{good, later} {
		if _, _, _, ok := relay.open(b); ok {
			t.Error("a replay was taken")
		}
	}
}

// TestRow: what may go by UDP goes, in order, and the rest stays; or all does.
func TestRow(t *testing.T) {
	rx, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer rx.Close()
	tx, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Close()
	out, _ := newSeals(fixedOffer(), 0)
	_, in := newSeals(fixedOffer(), dgDown)
	var row []byte
	want, stay := []string{}, []string{}
	for i, n := range []int{100, 100, 50, 100, 3000, 1300, 1300, 1300, 700, 700, 701, 0, 20, 5000} {
		k := [32]byte{byte(i + 1)}
		switch {
		case n == 0:
			k, n = [32]byte{}, 9
			fallthrough
		case n > 1400:
			stay = append(stay, string(appendPacket(nil, k, make([]byte, n))))
		default:
			want = append(want, string(appendPacket(nil, k, make([]byte, n))))
		}
		row = appendPacket(row, k, make([]byte, n))
	}
	to := rx.LocalAddr().(*net.UDPAddr).AddrPort()
	kept := bytes.Clone(row)
	if rest, left, err := sendRow(udp.New(tx), out, to, maxDatagram, kept, true); err != nil || left != len(want)+len(stay) || !bytes.Equal(rest, row) {
		t.Fatalf("%d packets are kept, %v; want all %d as they were", left, err, len(want)+len(stay))
	}
	rest, left, err := sendRow(udp.New(tx), out, to, maxDatagram, row, false)
	if err != nil || left != len(stay) {
		t.Fatalf("%d packets are left, %v; want %d", left, err, len(stay))
	}
	for i, w := range stay {
		p, more, err := cutPacket(rest)
		if err != nil || string(p) != w {
			t.Fatalf("packet %d that is left: %d bytes, %v", i, len(p), err)
		}
		rest = more
	}
	s := udp.New(rx).Reader()
	want = append(want, want...)
	for i := 0; i < len(want); {
		run, size, from, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		if from != netip.MustParseAddrPort(tx.LocalAddr().String()) {
			t.Errorf("from %v", from)
		}
		for ; len(run) > 0; i++ {
			n := min(size, len(run))
			if _, body, newest, ok := in.open(run[:n]); !ok || !newest || string(body) != want[i] {
				t.Fatalf("datagram %d: %d bytes, newest %v, %v", i, n, newest, ok)
			}
			run = run[n:]
		}
	}
}

func FuzzDatagram(f *testing.F) {
	up, _ := newSeals(fixedOffer(), 0)
	f.Add(up.probe(nil, dgPing, [8]byte{1}, 1452, netip.AddrPort{}, 100))
	f.Add(up.end(append(up.start(nil, dgMessage), appendPacket(nil, [32]byte{1}, data("x"))...), 0))
	f.Add([]byte(datagramMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, in := newSeals(fixedOffer(), dgDown)
		session, ok := datagramSession(b)
		kind, body, _, opened := in.open(b)
		if opened && (!ok || session != in.session || kind&dgDown != 0 || len(body) != len(b)-datagramOverhead) {
			t.Errorf("%x: opened as kind %d, %d bytes", b, kind, len(body))
		}
		if _, is := readBinding(b); is && ok {
			t.Errorf("%x is STUN and ours", b)
		}
		if opened {
			cutProbe(body)
			cutSeen(body)
			if _, _, _, again := in.open(b); again {
				t.Errorf("%x: taken twice", b)
			}
		}
	})
}

// The cost of one end of one datagram of 1312 bytes of WireGuard.
func BenchmarkDatagram(b *testing.B) {
	row := appendPacket(nil, [32]byte{1}, append(data(""), make([]byte, 1308)...))
	b.Run("seal", func(b *testing.B) {
		out, _ := newSeals(fixedOffer(), 0)
		buf := make([]byte, 0, 2048)
		b.SetBytes(int64(len(row)))
		b.ReportAllocs()
		for b.Loop() {
			out.end(append(out.start(buf, dgMessage), row...), 0)
		}
	})
	b.Run("open", func(b *testing.B) {
		out, _ := newSeals(fixedOffer(), 0)
		_, in := newSeals(fixedOffer(), dgDown)
		buf := make([]byte, 0, 2048)
		b.SetBytes(int64(len(row)))
		b.ReportAllocs()
		for b.Loop() {
			if _, _, _, ok := in.open(out.end(append(out.start(buf, dgMessage), row...), 0)); !ok {
				b.Fatal("refused")
			}
		}
	})
}
