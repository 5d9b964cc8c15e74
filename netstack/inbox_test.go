package netstack

import (
	"bytes"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"
)

// feed gives a stack datagrams, and reports whether none of them was left to gVisor.
func feed(t testing.TB, s *Stack, from, to netip.AddrPort, texts ...string) (taken bool) {
	t.Helper()
	taken = true
	for _, text := range texts {
		v := encodeDatagram([]byte(text), from, to, 1)
		ok, _ := s.deliver(v.AsSlice())
		taken = ok && taken
		v.Release()
	}
	return taken
}

// What a socket gets is what gVisor would give it: a connected one its peer's, then who listens on the address, then on all.
func TestInboxWhose(t *testing.T) {
	families(t, func(t *testing.T, peer, own netip.Addr) {
		s := newStack(t, Options{}, own)
		far := port(peer, 9)
		listen := func(a netip.AddrPort) *udpConn {
			c, err := s.ListenUDP(a)
			if err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			return c.(*udpConn)
		}
		any, at := listen(netip.AddrPortFrom(netip.Addr{}, 80)), listen(port(own, 81))
		conn, err := s.DialFrom(timeout(t), "udp", port(own, 82), far)
		if err != nil {
			t.Fatal(err)
		}
		expect := func(c net.PacketConn, want string) {
			t.Helper()
			b := make([]byte, 100)
			if n, from, err := c.ReadFrom(b); err != nil || string(b[:n]) != want || from.String() != far.String() {
				t.Errorf("%q from %v, %v; want %q from %v", b[:n], from, err, want, far)
			}
		}
		for _, c := range []struct {
			name string
			to   netip.AddrPort
			c    *udpConn
		}{{"a listener on all addresses", port(own, 80), any}, {"one on this", port(own, 81), at}, {"a connected socket", port(own, 82), conn.(*udpConn)}} {
			if !feed(t, s, far, c.to, "a", "", "bc") {
				t.Errorf("%s: gVisor is to say whose it is", c.name)
			}
			for _, want := range []string{"a", "", "bc"} {
				expect(c.c, want)
			}
		}
		for _, c := range []struct {
			name     string
			from, to netip.AddrPort
		}{
			{"nobody's port", far, port(own, 83)}, {"of another peer, to a connected socket", port(peer, 10), port(own, 82)},
			{"an address that is not ours", far, port(peer, 80)}, {"from no port", port(peer, 0), port(own, 80)},
		} {
			if feed(t, s, c.from, c.to, "x") {
				t.Errorf("%s: somebody gets it", c.name)
			}
		}
		any.Close()
		if feed(t, s, far, port(own, 80), "x") {
			t.Error("a closed socket gets it")
		}
		if err := s.SetAddrs(nil); err != nil {
			t.Fatal(err)
		}
		if feed(t, s, far, port(own, 81), "x") || feed(t, s, far, port(own, 82), "x") {
			t.Error("a socket whose address has gone gets it")
		}
	})
}

// A flow stays in order, though gVisor puts fragments together and has what comes behind them.
func TestInboxOrder(t *testing.T) {
	families(t, func(t *testing.T, _, at netip.Addr) {
		a, b := pair(t, Options{}, Options{}, nil)
		l, err := b.ListenUDP(port(at, 80))
		if err != nil {
			t.Fatal(err)
		}
		c, err := a.DialContext(timeout(t), "udp", port(at, 80))
		if err != nil {
			t.Fatal(err)
		}
		l.SetReadDeadline(time.Now().Add(20 * time.Second))
		sizes := []int{1, 2, 5000, 3, 5001, 4}
		for range 3 {
			for _, n := range sizes {
				if _, err := c.Write(make([]byte, n)); err != nil {
					t.Fatal(err)
				}
			}
			buf := make([]byte, 1<<16)
			for i, want := range sizes {
				if n, _, err := l.ReadFrom(buf); err != nil || n != want {
					t.Fatalf("datagram %d has %d bytes, want %d; %v", i, n, want, err)
				}
			}
		}
	})
}

// What nobody reads is bounded, empty datagrams too, and what fits is kept in order.
func TestInboxRoom(t *testing.T) {
	const room = 32 << 10
	for _, size := range []int{0, 1, 1000, 60_000} {
		var in inbox
		from := port(b4, 9)
		kept := 0
		for round := range 3 {
			for i := range 2000 {
				b := bytes.Repeat([]byte{byte(i)}, size)
				if in.bytes < room {
					kept++
				}
				if left := in.put(b, from, room); left > 0 != (in.bytes < room) {
					t.Fatalf("%d bytes wait, and room for %d is left of %d", in.bytes, left, room)
				}
			}
			if n := len(in.q) - in.at; n != kept || in.bytes >= room+max(size, letterCost) || cap(in.q) > 2*room/letterCost {
				t.Fatalf("round %d: %d datagrams of %d bytes wait, %d bytes, in a queue for %d; want %d", round, n, size, in.bytes, cap(in.q), kept)
			}
			b := make([]byte, size)
			for range min(kept, 10) {
				if n, at, ok := in.take(b); !ok || n != size || at != from {
					t.Fatal(n, at, ok)
				}
				kept--
			}
		}
		for range kept {
			in.take(nil)
		}
		if _, _, ok := in.take(nil); ok || in.bytes != 0 {
			t.Errorf("%d bytes are left", in.bytes)
		}
	}
}

// A socket has room for what a batch brings and more, where there are not too many of them.
func TestInboxRooms(t *testing.T) {
	for _, c := range []struct{ sockets, room int }{{1, inboxRoom}, {64, inboxRoom}, {128, inboxRoom / 2}, {512, inboxLeast}, {5000, inboxLeast}} {
		var in inboxes
		for i := range c.sockets {
			in.add(ends{local: port(b4, uint16(i+1))}, new(udpConn))
		}
		if _, room := in.find(ends{local: port(b4, 1)}, nil); room != c.room {
			t.Errorf("%d sockets have room for %d bytes each, want %d", c.sockets, room, c.room)
		}
	}
}

// Nothing of a flood is lost in a socket whose reader does nothing but read, though one processor does it all.
func TestInboxFlood(t *testing.T) {
	families(t, func(t *testing.T, peer, own netip.Addr) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		s := newStack(t, Options{}, own)
		l, err := s.ListenUDP(port(own, 80))
		if err != nil {
			t.Fatal(err)
		}
		l.SetReadDeadline(time.Now().Add(20 * time.Second))
		const batches = 100
		batch := make([][]byte, 64)
		for i := range batch {
			batch[i] = encodeDatagram(make([]byte, 1000), port(peer, 9), port(own, 80), 1).ToSlice()
		}
		var reading sync.WaitGroup
		reading.Go(func() {
			b := make([]byte, 2000)
			for i := range batches * len(batch) {
				if _, _, err := l.ReadFrom(b); err != nil {
					t.Errorf("%d came: %v", i, err)
					return
				}
			}
		})
		for range batches {
			if _, err := s.Write(batch, 0); err != nil {
				t.Fatal(err)
			}
		}
		reading.Wait()
	})
}

// FuzzDecodeDatagram takes any bytes for a packet. What is taken for a datagram is what encodeDatagram makes, but for
// what no socket is told of.
func FuzzDecodeDatagram(f *testing.F) {
	for _, at := range []string{"100.64.0.1:7", "[fd7a::1]:7"} {
		to := netip.MustParseAddrPort(at)
		v := encodeDatagram([]byte("hello"), netip.AddrPortFrom(to.Addr().Next(), 9), to, 3)
		f.Add(v.ToSlice())
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		e, payload, ok := decodeDatagram(p)
		if !ok {
			return
		}
		v := encodeDatagram(payload, e.remote, e.local, 0)
		defer v.Release()
		q := v.AsSlice()
		at := len(p) - len(payload) - 8
		if len(q) != len(p) || !bytes.Equal(q[at:at+6], p[at:at+6]) || !bytes.Equal(q[at+8:], p[at+8:]) {
			t.Errorf("%x\n%x", p, q)
		}
		if again, same, ok := decodeDatagram(q); !ok || again != e || !bytes.Equal(same, payload) {
			t.Errorf("%v %q %v, want %v %q", again, same, ok, e, payload)
		}
	})
}
