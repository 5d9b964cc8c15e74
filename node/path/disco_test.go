package path

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/hedge-mesh/hedge/node/key"
)

var (
	tx1  = TxID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	v4   = netip.MustParseAddrPort("192.0.2.7:41641")
	v6   = netip.MustParseAddrPort("[2001:db8::7]:443")
	cmpA = cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b key.NodePublic) bool { return a == b })}
)

func boxes(t testing.TB) (a, b *Box) {
	t.Helper()
	ka, kb := key.NewDisco(), key.NewDisco()
	a, err := NewBox(ka, key.ExchangePublic(kb))
	if err != nil {
		t.Fatal(err)
	}
	if b, err = NewBox(kb, key.ExchangePublic(ka)); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// The bytes under the seal are the protocol: they change only with the magic's version.
func TestEncoding(t *testing.T) {
	zeros := func(n int) string { return strings.Repeat("00", n) }
	for _, tt := range []struct {
		m    Message
		want string
	}{
		{Ping{Tx: tx1}, "01 0102030405060708 0102030405060708090a0b0c" + zeros(19)},
		{Pong{tx1, v4}, "02 0102030405060708 0102030405060708090a0b0c 00000000000000000000ffffc0000207 a2a9 00"},
		{Pong{tx1, v6}, "02 0102030405060708 0102030405060708090a0b0c 20010db8000000000000000000000007 01bb 00"},
		{Pong{Tx: tx1}, "02 0102030405060708 0102030405060708090a0b0c" + zeros(19)},
		{Loss{258, 772 * time.Millisecond}, "04 0102030405060708 0102 0304" + zeros(27)},
		{Guess{}, "07 0102030405060708 " + zeros(31)},
		{Ask{tx1, peerKey("b")}, "05 0102030405060708 0102030405060708090a0b0c 62" + zeros(31) + zeros(41)},
		{Offer{tx1, peerKey("b"), 2, [LegSize]byte{0: 7, 39: 9}}, "06 0102030405060708 0102030405060708090a0b0c 62" + zeros(31) + "02 07" + zeros(38) + "09"},
		{Here{Relay: 258}, "03 0102030405060708 0102 00 0000 0000 00000000 00" + zeros(19)},
		{Here{1, NAT{Block, 258, 772}, 0x05060708, []netip.AddrPort{v4}, false}, "03 0102030405060708 0001 03 0102 0304 05060708 01 00000000000000000000ffffc0000207 a2a9" + zeros(1)},
		{Here{Relay: 1, NAT: NAT{Kind: Easy}, Endpoints: []netip.AddrPort{v4}, Fresh: true}, "03 0102030405060708 0001 81 0000 0000 00000000 01 00000000000000000000ffffc0000207 a2a9" + zeros(1)},
		{Here{Relay: 1, Endpoints: []netip.AddrPort{v4, v6}}, "03 0102030405060708 0001 00 0000 0000 00000000 02 00000000000000000000ffffc0000207 a2a9 20010db8000000000000000000000007 01bb"},
	} {
		want := strings.ReplaceAll(tt.want, " ", "")
		if got := hex.EncodeToString(encode(nil, tt.m, 0x0102030405060708)); got != want {
			t.Errorf("%+v:\n got %s\nwant %s", tt.m, got, want)
		}
		b, _ := hex.DecodeString(want)
		got, at, err := decode(b)
		if err != nil || at != 0x0102030405060708 || !cmp.Equal(got, tt.m, cmpA) {
			t.Errorf("decode %s: %+v, %v, want %+v", want, got, err, tt.m)
		}
	}
}

func TestSealedGolden(t *testing.T) {
	b := &Box{}
	for i := range b.from {
		b.from[i], b.ours[i] = byte(i), byte(0xff-i)
	}
	nonce := [nonceSize]byte(bytes.Repeat([]byte{0x5a}, nonceSize))
	got := hex.EncodeToString(b.seal(nil, Ping{Tx: tx1}, 0x0102030405060708, &nonce))
	const want = "484544474502" + "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f" +
		"5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a" +
		"67caf73edac87d94ece8c1907b00be7e5708fec275e421ea99b695aa04158d13" +
		"3e5976995a20c1611fd94b955eebb296afa32e8fb7631cad"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestSealOpen(t *testing.T) {
	a, b := boxes(t)
	many := Here{Relay: 3}
	for range MaxHere + 3 {
		many.Endpoints = append(many.Endpoints, v4)
	}
	for _, m := range []Message{Ping{Tx: tx1}, Pong{tx1, v6}, Guess{}, Ask{tx1, peerKey("b")}, Offer{tx1, peerKey("b"), 0, [LegSize]byte{9: 1}}, Here{Relay: 7, Endpoints: []netip.AddrPort{v4}}, many} {
		pkt := a.Seal(nil, m, 7)
		if h, ok := m.(Here); ok && len(h.Endpoints) > MaxHere {
			m = Here{Relay: h.Relay, Endpoints: h.Endpoints[:MaxHere]}
		}
		got, at, err := b.Open(pkt)
		if err != nil || at != 7 || !cmp.Equal(got, m, cmpA) {
			t.Errorf("got %+v, %v, want %+v", got, err, m)
		}
		if from, ok := Sender(pkt); !ok || from.Raw() != a.from {
			t.Error("Sender does not know its own")
		}
		for i := range pkt {
			bad := bytes.Clone(pkt)
			bad[i] ^= 0x40
			if i >= len(magic) && i < len(magic)+key.Size {
				continue // the sender's key only chooses the box
			}
			if _, _, err := b.Open(bad); err == nil {
				t.Fatalf("byte %d changed, still opened", i)
			}
		}
	}
	if got := len(a.Seal(nil, Ping{Tx: tx1}, 7)); got != Shortest || len(b.Seal(nil, Pong{tx1, v6}, 7)) > got {
		t.Error("a pong is longer than its ping")
	}
}

// A thief who hands us our own packet, dressed as the peer's, must not be taken for the peer.
func TestReflection(t *testing.T) {
	a, b := boxes(t)
	for _, x := range []*Box{a, b} {
		y := map[*Box]*Box{a: b, b: a}[x]
		pkt := x.Seal(nil, Pong{tx1, v4}, 7)
		copy(pkt[len(magic):], y.from[:])
		if m, _, err := x.Open(pkt); err == nil {
			t.Errorf("opened our own %+v", m)
		}
	}
}

// The keys of both directions, from the X25519 secret of RFC 7748 section 6.1.
func TestDirectionGolden(t *testing.T) {
	unhex := func(s string) (k [key.Size]byte) {
		if _, err := hex.Decode(k[:], []byte(s)); err != nil {
			t.Fatal(err)
		}
		return k
	}
	alice := unhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
	bob := unhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
	secret := unhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
	for _, tt := range []struct {
		from, to [key.Size]byte
		want     string
	}{
		{alice, bob, "b006e3150bd588a5c2e16062ff0bfac43e279a600b0267b7dfa22a17e1e282ba"},
		{bob, alice, "8d2152fa89ec89e0003195a0e6848e0da9cde419253c050cb7d06be0b8c87403"},
	} {
		if got := direction(secret, tt.from, tt.to); hex.EncodeToString(got[:]) != tt.want {
			t.Errorf("got %x, want %s", got, tt.want)
		}
	}
}

func TestNewBoxRefuses(t *testing.T) {
	k := key.NewDisco()
	if _, err := NewBox(k, key.DiscoPublic{}); err == nil {
		t.Error("took the zero key, a point of low order")
	}
	if _, err := NewBox(k, key.ExchangePublic(k)); err == nil {
		t.Error("took our own key for a peer's")
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range []Message{Ping{Tx: tx1}, Ping{tx1, 1000}, Pong{tx1, v4}, Guess{}, Ask{tx1, peerKey("b")}, Offer{tx1, peerKey("b"), 2, [LegSize]byte{1}}, Here{Relay: 1, Endpoints: []netip.AddrPort{v4, v6}}} {
		f.Add(encode(nil, m, 7))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, at, err := decode(b)
		if err != nil {
			return
		}
		again := encode(nil, m, at)
		if h, ok := m.(Here); ok { // an address with port 0 or an unmapped form may differ in bytes, not in meaning
			if got, _, err := decode(again); err != nil || !cmp.Equal(got, Message(h), cmpA) {
				t.Fatalf("%+v became %+v, %v", h, got, err)
			}
			return
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%x decoded to %+v, which encodes to %x", b, m, again)
		}
	})
}

func FuzzOpen(f *testing.F) {
	a, b := boxes(f)
	f.Add(a.Seal(nil, Ping{Tx: tx1}, 7))
	f.Fuzz(func(t *testing.T, pkt []byte) {
		Sender(pkt)
		b.Open(pkt)
	})
}

func BenchmarkOpenPing(bm *testing.B) {
	a, b := boxes(bm)
	pkt := a.Seal(nil, Ping{Tx: tx1}, 7)
	bm.ReportAllocs()
	for bm.Loop() {
		if _, _, err := b.Open(pkt); err != nil {
			bm.Fatal(err)
		}
	}
}

// R-nonce-unique: a million messages of a box have a million nonces, and the two ends of a pair never seal under one key.
func TestRNonceUnique(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 50_000
	}
	a, b := boxes(t)
	if a.ours == b.ours {
		t.Error("both ends seal under one key")
	}
	seen := make(map[[nonceSize]byte]struct{}, n)
	var pkt []byte
	for range n {
		pkt = a.Seal(pkt[:0], Ping{Tx: tx1}, 7)
		seen[[nonceSize]byte(pkt[len(magic)+key.Size:])] = struct{}{}
	}
	if len(seen) != n {
		t.Errorf("%d messages, %d nonces", n, len(seen))
	}
}
