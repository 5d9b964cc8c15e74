package derp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

var (
	src4 = netip.MustParseAddrPort("192.0.2.1:32853") // RFC 5769 section 2.2
	src6 = netip.MustParseAddrPort("[2001:db8:1234:5678:11:2233:4455:6677]:32853")
)

const bareRequest = `0001 0000 2112a442 b7e7a701bc34d686fa87dfae`

func TestSTUNGolden(t *testing.T) {
	s := newSTUN()
	for _, c := range []struct {
		src  netip.AddrPort
		want string
	}{
		{src4, `0101 000c 2112a442 b7e7a701bc34d686fa87dfae  0020 0008 0001 a147 e112a643`},
		{netip.AddrPortFrom(netip.AddrFrom16(src4.Addr().As16()), src4.Port()), `0101 000c 2112a442 b7e7a701bc34d686fa87dfae  0020 0008 0001 a147 e112a643`},
		{src6, `0101 0018 2112a442 b7e7a701bc34d686fa87dfae  0020 0014 0002 a147 0113a9faa5d3f179bc25f4b5bed2b9d9`},
	} {
		req := unhex(t, bareRequest)
		got, _ := s.answer(req, c.src, 0)
		if want := unhex(t, c.want); !bytes.Equal(got, want) {
			t.Errorf("to %s: %x, want %x", c.src, got, want)
		}
		if len(got) > len(req)+STUNGrowth {
			t.Errorf("answer of %d bytes to %d", len(got), len(req))
		}
	}
}

// Who asks to change nothing is told of another port, over IPv4, if there is one.
func TestSTUNThirdPort(t *testing.T) {
	s := newSTUN()
	req := unhex(t, `0001 0008 2112a442 b7e7a701bc34d686fa87dfae 00030004 00000000`)
	if got, _ := s.answer(req, src4, 0); len(got) != 32 {
		t.Errorf("without another port: %x", got)
	}
	s.third = [8]byte{0, 1, 0x12, 0x34}
	want := unhex(t, `0101 0018 2112a442 b7e7a701bc34d686fa87dfae  0020 0008 0001 a147 e112a643  802c 0008 0001 1234 00000000`)
	if got, _ := s.answer(req, src4, 0); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	if got, _ := s.answer(req, src6, 0); len(got) != 44 {
		t.Errorf("over IPv6: %x", got)
	}
	if got, _ := s.answer(unhex(t, bareRequest), src4, 0); len(got) != 32 {
		t.Errorf("unasked: %x", got)
	}
	if n := testing.AllocsPerRun(100, func() { s.answer(req, src4, 0) }); n > 2 {
		t.Errorf("%v allocations", n)
	}
}

// What RFC 5780 adds: an answer to another port of the one who asks, or from another port of ours.
func TestSTUNPorts(t *testing.T) {
	local := func() *net.UDPConn {
		pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pc.Close() })
		pc.SetReadDeadline(time.Now().Add(10 * time.Second))
		return pc
	}
	server, client, second := local(), local(), local()
	done := make(chan error)
	go func() { done <- ServeSTUN(server) }()
	at := server.LocalAddr().(*net.UDPAddr).AddrPort()
	ask := func(attr string) {
		if _, err := client.WriteToUDPAddrPort(unhex(t, `0001 0008 2112a442 b7e7a701bc34d686fa87dfae`+attr), at); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 100)
	length := 32
	hear := func(pc *net.UDPConn) netip.AddrPort {
		n, from, err := pc.ReadFromUDPAddrPort(b)
		if err != nil || n != length {
			t.Fatalf("%d bytes, %v", n, err)
		}
		return from
	}
	ask(`0027 0002` + fmt.Sprintf("%04x", second.LocalAddr().(*net.UDPAddr).Port) + `0000`)
	if from := hear(second); from != at {
		t.Errorf("another port of ours heard %s, not the server", from)
	}
	ask(`0003 0004 00000002`)
	if from := hear(client); from.Addr() != at.Addr() || from.Port() == at.Port() {
		t.Errorf("asked for another port than %s, answered from %s", at, from)
	}
	ask(`0003 0004 00000000`)
	length = 44
	if from := hear(client); from != at {
		t.Errorf("answered from %s", from)
	}
	at = netip.AddrPortFrom(at.Addr(), binary.BigEndian.Uint16(b[38:])) // the third
	ask(`8022 0004 00000000`)
	length = 32
	if from := hear(client); from != at {
		t.Errorf("the port %s that it named: answered from %s", at, from)
	}
	server.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSTUNIgnores(t *testing.T) {
	s := newSTUN()
	for name, req := range map[string]string{
		"nothing":                      ``,
		"half a header":                `0001 0000 2112a442 b7e7`,
		"WireGuard":                    `01000000 00000000 00000000 00000000 00000000`,
		"an answer":                    `0101 0000 2112a442 b7e7a701bc34d686fa87dfae`,
		"an indication":                `0011 0000 2112a442 b7e7a701bc34d686fa87dfae`,
		"an allocation (TURN)":         `0003 0000 2112a442 b7e7a701bc34d686fa87dfae`,
		"no cookie (RFC 3489)":         `0001 0000 00000000 b7e7a701bc34d686fa87dfae`,
		"a length too long":            `0001 0004 2112a442 b7e7a701bc34d686fa87dfae`,
		"a length too short":           `0001 0000 2112a442 b7e7a701bc34d686fa87dfae 80220000`,
		"an attribute cut off":         `0001 0004 2112a442 b7e7a701bc34d686fa87dfae 80220004`,
		"half an attribute":            `0001 0002 2112a442 b7e7a701bc34d686fa87dfae 8022`,
		"an attribute without padding": `0001 0005 2112a442 b7e7a701bc34d686fa87dfae 80220001 00`,
		"another address (RFC 5780)":   `0001 0008 2112a442 b7e7a701bc34d686fa87dfae 00030004 00000006`,
		"CHANGE-REQUEST, too short":    `0001 0008 2112a442 b7e7a701bc34d686fa87dfae 00030002 00020000`,
		"RESPONSE-PORT, too long":      `0001 000c 2112a442 b7e7a701bc34d686fa87dfae 00270008 0050000000000000`,
		"a relayed address (TURN)":     `0001 0008 2112a442 b7e7a701bc34d686fa87dfae 00190004 11000000`,
	} {
		b := unhex(t, req)
		if got, _ := s.answer(b, src4, 0); got != nil {
			t.Errorf("%s: answered %x", name, got)
		}
		if n := testing.AllocsPerRun(100, func() { s.answer(b, src4, 0) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	if got, _ := s.answer(unhex(t, `0001 0008 2112a442 b7e7a701bc34d686fa87dfae 80220001 61000000`), src4, 0); got == nil {
		t.Error("a request with SOFTWARE was ignored")
	}
}

func TestSTUNRate(t *testing.T) {
	s := newSTUN()
	req := unhex(t, bareRequest)
	count := func(src netip.AddrPort, now time.Duration) (n int) {
		for range 1000 {
			if a, _ := s.answer(req, src, now); a != nil {
				n++
			}
		}
		return n
	}
	if n := count(src4, 0); n != stunRate {
		t.Errorf("%d answers in a second, want %d", n, stunRate)
	}
	if n := count(netip.AddrPortFrom(src4.Addr(), 1), 0); n != 0 {
		t.Errorf("%d answers to another port of the same source", n)
	}
	if n := count(src6, 0); n != stunRate {
		t.Errorf("%d answers to another source", n)
	}
	if n := count(netip.MustParseAddrPort("[2001:db8:1234:5678::1]:1"), 0); n != 0 {
		t.Errorf("%d answers to the same /64", n)
	}
	if n := count(src4, time.Second); n != stunRate {
		t.Errorf("%d answers in the next second", n)
	}
}

func TestServeSTUN(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- ServeSTUN(pc) }()
	c, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("garbage"))
	req := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.Fingerprint)
	c.Write(req.Raw)
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	var m stun.Message
	var a stun.XORMappedAddress
	if err := stun.Decode(buf[:n], &m); err != nil || m.Type != stun.BindingSuccess || m.TransactionID != req.TransactionID || a.GetFrom(&m) != nil || a.String() != c.LocalAddr().String() {
		t.Errorf("answer %v, address %v, %v; want %v", &m, a, err, c.LocalAddr())
	}
	pc.Close()
	if err := receive(t, "the end", done); err != nil {
		t.Error(err)
	}
}

func FuzzSTUN(f *testing.F) {
	f.Add(unhex(f, bareRequest))
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.NewSoftware("x"), stun.Fingerprint).Raw)
	s := newSTUN()
	var now time.Duration
	f.Fuzz(func(t *testing.T, req []byte) {
		now += time.Second
		for _, src := range []netip.AddrPort{src4, src6} {
			got, _ := s.answer(req, src, now)
			if got == nil {
				continue
			}
			var q, m stun.Message
			var a stun.XORMappedAddress
			if err := stun.Decode(req, &q); err != nil {
				t.Fatalf("answered %x, which is no message: %v", req, err)
			}
			if err := stun.Decode(got, &m); err != nil || a.GetFrom(&m) != nil || a.String() != src.String() || m.TransactionID != q.TransactionID {
				t.Fatalf("answered %x with %x: %v", req, got, err)
			}
			if len(got) > len(req)+STUNGrowth {
				t.Fatalf("%d bytes for %d", len(got), len(req))
			}
		}
	})
}

func BenchmarkSTUNGarbage(b *testing.B) {
	s := newSTUN()
	req := bytes.Repeat([]byte{0xff}, 100)
	b.ReportAllocs()
	for b.Loop() {
		s.answer(req, src4, 0)
	}
}
