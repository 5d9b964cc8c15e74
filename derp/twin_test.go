package derp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/udp"
)

// withUDP opens the UDP side of a relay on the number of its TCP port.
func (r *relay) withUDP(t testing.TB) *relay {
	t.Helper()
	pc, err := net.ListenPacket("udp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- r.ServeUDP(pc) }()
	t.Cleanup(func() {
		pc.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

// wire is a socket of a test client: it can be cut, either way, and moved to another address.
type wire struct {
	mu        sync.Mutex
	cur       net.PacketConn
	old       []net.PacketConn
	up, down  atomic.Bool // cut
	long      atomic.Int64
	sent, got atomic.Int64
}

func (w *wire) listen() (net.PacketConn, error) {
	w.move()
	return w, nil
}

func (w *wire) conn() net.PacketConn {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cur
}

// move changes the address that datagrams come from, and at which they arrive.
func (w *wire) move() {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cur != nil {
		w.old = append(w.old, w.cur)
		w.cur.SetReadDeadline(time.Unix(1, 0))
	}
	w.cur = pc
}

func (w *wire) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		pc := w.conn()
		n, a, err := pc.ReadFrom(b)
		switch {
		case err != nil && pc != w.conn():
			continue // moved
		case err == nil && w.down.Load():
			continue
		}
		w.got.Add(1)
		return n, a, err
	}
}

func (w *wire) WriteTo(b []byte, a net.Addr) (int, error) {
	if w.sent.Add(1); w.up.Load() || w.long.Load() > 0 && int64(len(b)) > w.long.Load() {
		return len(b), nil
	}
	return w.conn().WriteTo(b, a)
}

func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, pc := range w.old {
		pc.Close()
	}
	return w.cur.Close()
}

func (w *wire) LocalAddr() net.Addr              { return w.conn().LocalAddr() }
func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

func onWire(w *wire) func(*ClientConfig, *times) {
	return func(c *ClientConfig, _ *times) { c.ListenUDP = w.listen }
}

// usable waits until a client's packets go by UDP, and come by it.
func (c *testClient) usable(t testing.TB, r *relay) {
	t.Helper()
	eventually(t, "packets go by UDP", func() bool {
		c.Send(c.pub, [][]byte{data("to myself")})
		for len(c.got) > 0 {
			<-c.got
		}
		b := c.bond.Load()
		if b == nil || b.size.Load() == 0 {
			return false
		}
		s := r.twins.get(b.in.session)
		if s == nil {
			return false
		}
		_, _, use, _ := s.twin.route(time.Now(), twinFresh)
		return use > 0
	})
	tick := time.NewTicker(5 * time.Millisecond) // what is under way by WebSocket
	defer tick.Stop()
	for quiet := 0; quiet < 5; quiet++ {
		<-tick.C
		for len(c.got) > 0 {
			<-c.got
			quiet = 0
		}
	}
}

// udpPair is two clients whose packets go by UDP.
func udpPair(t testing.TB) (r *relay, a, b *testClient, wa, wb *wire) {
	t.Helper()
	r = newRelay(t, func(c *ServerConfig) { c.UDP = true }).withUDP(t)
	wa, wb = new(wire), new(wire)
	a = newClientOf(t, newNode(r.control), r, onWire(wa)).waitUp(t)
	b = newClientOf(t, newNode(r.control), r, onWire(wb)).waitUp(t)
	a.usable(t, r)
	b.usable(t, r)
	return r, a, b, wa, wb
}

// TestUDPCarries: packets go and come by UDP, the long ones by WebSocket, and nobody notices.
func TestUDPCarries(t *testing.T) {
	r, a, b, _, _ := udpPair(t)
	before := r.Stats()
	const n = 200
	for i := range n {
		a.Send(b.pub, [][]byte{data(fmt.Sprint("packet ", i))})
		if got := receive(t, "a packet", b.got); got.from != a.pub || got.data != string(data(fmt.Sprint("packet ", i))) {
			t.Fatalf("got %q", got.data)
		}
	}
	eventually(t, "all are counted as gone by UDP", func() bool { return r.Stats().UDPOut-before.UDPOut >= n })
	after := r.Stats()
	if in := after.UDPIn - before.UDPIn; in < n {
		t.Errorf("of %d packets %d came by UDP", n, in)
	}
	long := string(data(string(make([]byte, 5000))))
	a.Send(b.pub, [][]byte{[]byte(long)})
	if got := receive(t, "a long packet", b.got); got.data != long {
		t.Errorf("got %d bytes", len(got.data))
	}
	if d := r.Stats().UDPIn - after.UDPIn; d != 0 {
		t.Errorf("a packet of 5000 bytes went in %d datagrams", d)
	}
}

// TestUDPCostsNothingWhenIdle: without packets of nodes there is no socket, no ping.
func TestUDPCostsNothingWhenIdle(t *testing.T) {
	r := newRelay(t, func(c *ServerConfig) { c.UDP = true }).withUDP(t)
	w := new(wire)
	a := newClientOf(t, newNode(r.control), r, onWire(w), func(_ *ClientConfig, tm *times) { tm.idle, tm.answer = 10*time.Millisecond, 20*time.Millisecond }).waitUp(t)
	eventually(t, "it has the offer", func() bool { return a.bond.Load() != nil })
	before := r.Stats().PacketsOut
	eventually(t, "ten pings were answered by WebSocket", func() bool { return r.Stats().PacketsOut >= before+10 })
	if a.sock.Load() != nil || w.sent.Load() != 0 {
		t.Error("an idle client uses UDP")
	}
}

// TestUDPFollowsTheSource: a node whose address has changed is sent to the new one with the first datagram that comes from
// there, and asks for that itself when it is told of the change.
func TestUDPFollowsTheSource(t *testing.T) {
	_, a, b, wa, _ := udpPair(t)
	var late [2]int // a busy machine is now and then
	for i := range 20 {
		wa.move()
		if i%2 == 0 {
			a.Send(b.pub, [][]byte{data("from a new address")})
			receive(t, "a packet from a new address", b.got)
		} else {
			a.Redial()
		}
		start := time.Now()
		for n := 0; ; n++ { // until one arrives, b sends on
			b.Send(a.pub, [][]byte{data("to a new address")})
			select {
			case <-a.got:
			case <-time.After(2 * time.Millisecond):
				continue
			}
			break
		}
		if d := time.Since(start); d > 100*time.Millisecond {
			t.Logf("move %d: nothing arrived for %v, want 100ms at most", i, d)
			late[i%2]++
		}
	}
	if max(late[0], late[1]) > 4 {
		t.Errorf("after %d of 10 moves that a packet told, and %d of 10 that it was asked about, packets came late", late[0], late[1])
	}
}

// TestUDPSaysOutside: a node whose datagrams come to the relay from another address than before is told so, once.
func TestUDPSaysOutside(t *testing.T) {
	r := newRelay(t, func(c *ServerConfig) { c.UDP = true }).withUDP(t)
	w, told := new(wire), make(chan struct{}, 100)
	a := newClientOf(t, newNode(r.control), r, onWire(w), func(c *ClientConfig, _ *times) {
		c.Outside = func() { told <- struct{}{} }
	}).waitUp(t)
	a.usable(t, r)
	if len(told) > 0 {
		t.Error("told without a move")
	}
	for range 3 {
		w.move()
		eventually(t, "it is told", func() bool {
			a.Send(a.pub, [][]byte{data(fmt.Sprintf("%100d", 1))}) // pings are as long as what is sent
			for len(a.got) > 0 {
				<-a.got
			}
			return len(told) > 0
		})
		<-told
	}
	if len(told) > 0 {
		t.Error("told more than once")
	}
}

// TestUDPFallsBack: when UDP no longer passes, one way or the other, packets go by WebSocket within a second, and by UDP
// again when it does.
func TestUDPFallsBack(t *testing.T) {
	for _, way := range []string{"up", "down", "both"} {
		t.Run(way, func(t *testing.T) {
			r, a, b, wa, _ := udpPair(t)
			soon(t, 2*time.Second, "for packets to come again", func() time.Duration {
				wa.up.Store(way != "down")
				wa.down.Store(way != "up")
				start := time.Now()
				tick := time.NewTicker(5 * time.Millisecond)
				defer tick.Stop()
				deaf := map[*testClient]time.Duration{a: 0, b: 0}
				for len(deaf) > 0 && time.Since(start) < patience {
					<-tick.C
					a.Send(b.pub, [][]byte{data("x")})
					b.Send(a.pub, [][]byte{data("x")})
					for c := range deaf {
						via := a.bond.Load()
						if len(c.got) > 0 && time.Since(start) > 100*time.Millisecond && via != nil && via.size.Load() == 0 {
							delete(deaf, c)
						}
						for len(c.got) > 0 {
							<-c.got
						}
					}
				}
				took := time.Since(start)
				wa.up.Store(false)
				wa.down.Store(false)
				a.usable(t, r)
				return took
			})
		})
	}
}

// TestUDPForgotten: a node's NAT has forgotten the way from the relay. A probe for it, which says nothing by itself, still
// comes at once, by WebSocket; what it answers is what opens the NAT again.
func TestUDPForgotten(t *testing.T) {
	r, a, b, _, wb := udpPair(t)
	wb.down.Store(true)
	s := r.twins.get(b.bond.Load().in.session)
	s.twin.mu.Lock()
	s.twin.heard = s.twin.heard.Add(-300 * time.Millisecond)
	s.twin.mu.Unlock()
	for len(b.got) > 0 {
		<-b.got
	}
	a.SendPriority(b.pub, [][]byte{[]byte("where are you?")})
	if got := receive(t, "a probe", b.got); got.data != "where are you?" {
		t.Errorf("got %q", got.data)
	}
}

// TestUDPSize: the lane asks in lesser sizes where long datagrams vanish, keeps to what came through, and leaves UDP when long
// ones no longer do though short ones still would.
func TestUDPSize(t *testing.T) {
	r := newRelay(t, func(c *ServerConfig) { c.UDP = true }).withUDP(t)
	w := new(wire)
	w.long.Store(1400)
	a := newClientOf(t, newNode(r.control), r, onWire(w)).waitUp(t)
	a.usable(t, r)
	if n := a.bond.Load().size.Load(); n != 1392 {
		t.Errorf("datagrams of %d bytes are sent where none over 1400 comes through", n)
	}
	w.long.Store(500)
	start := time.Now()
	for n := 0; n < 3 && time.Since(start) < patience; {
		a.Send(a.pub, [][]byte{data(string(make([]byte, 1200)))})
		select {
		case <-a.got:
			n++
		case <-time.After(10 * time.Millisecond):
		}
	}
	if d := time.Since(start); d >= patience { // it takes a second or two, and for ever where the lane stays
		t.Errorf("long packets vanished for %v", d)
	}
}

// TestUDPRedialLosesNothing: new links take the UDP side with them.
func TestUDPRedialLosesNothing(t *testing.T) {
	r, a, b, _, _ := udpPair(t)
	const rounds = 10
	last := map[*testClient]string{}
	for i := range rounds {
		a.Redial()
		for n, up := 0, false; !up || n < 50; n++ { // lockstep
			select {
			case s := <-a.status:
				up = s.up
			default:
			}
			a.Send(b.pub, [][]byte{data(fmt.Sprint(i, n))})
			b.Send(a.pub, [][]byte{data(fmt.Sprint(i, n))})
			for _, c := range []*testClient{a, b} {
				what := fmt.Sprintf("packet %d in round %d", n, i)
				got := receive(t, what, c.got)
				for got.data == last[c] { // a copy: it went both ways, as after a silence
					got = receive(t, what, c.got)
				}
				if last[c] = string(data(fmt.Sprint(i, n))); got.data != last[c] {
					t.Fatalf("round %d: got %q, want %d", i, got.data, n)
				}
			}
		}
	}
	a.usable(t, r)
}

// TestUDPStrangers: what is not genuine gets no answer, moves nobody and is not forwarded. A ping's answer is no longer
// than the ping.
func TestUDPStrangers(t *testing.T) {
	r, a, b, _, _ := udpPair(t)
	evil, err := net.Dial("udp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer evil.Close()
	bond := a.bond.Load()
	session := r.twins.get(bond.in.session)
	_, where, _, _ := session.twin.route(time.Now(), twinFresh)
	forged := r.Stats().Forged

	var offer [offerLen]byte
	binary.BigEndian.PutUint64(offer[:], bond.in.session) // the right session, the wrong key
	wrong, _ := newSeals(offer, 0)
	back, _ := newSeals(offer, dgDown)
	to := b.pub.Raw()
	row := appendPacket(nil, to, data("evil"))
	sent := 0
	for i := range 50 {
		for _, d := range [][]byte{
			wrong.end(append(wrong.start(nil, dgMessage), row...), 0),
			wrong.probe(nil, dgPing, [8]byte{byte(i)}, maxDatagram, netip.AddrPort{}, maxDatagram),
			back.probe(nil, dgPing, [8]byte{byte(i)}, maxDatagram, netip.AddrPort{}, maxDatagram),
			[]byte(datagramMagic),
			append([]byte(datagramMagic+"\x01"), make([]byte, i)...),
		} {
			evil.Write(d)
			sent += len(d)
		}
	}
	// A datagram seen on its way, and sent again from elsewhere.
	replayed := bond.out.probe(nil, dgPing, [8]byte{}, maxDatagram, netip.AddrPort{}, 200)
	at := a.udpAddr()
	a.sock.Load().WriteTo(replayed, net.UDPAddrFromAddrPort(at))
	eventually(t, "the ping has come", func() bool {
		session.twin.in.mu.Lock()
		defer session.twin.in.mu.Unlock()
		return session.twin.in.top >= binary.BigEndian.Uint64(replayed[4:])
	})
	evil.Write(replayed)
	eventually(t, "all has been refused", func() bool { return r.Stats().Forged >= forged+3*50+1 })
	if _, now, _, _ := session.twin.route(time.Now(), twinFresh); now != where {
		t.Errorf("the node at %v is now sent to at %v", where, now)
	}
	evil.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := evil.Read(make([]byte, 2000)); err == nil {
		t.Errorf("a stranger that sent %d bytes got an answer of %d", sent, n)
	}
	a.Send(b.pub, [][]byte{data("good")})
	if got := receive(t, "a packet", b.got); got.data != string(data("good")) {
		t.Errorf("got %q", got.data)
	}
}

func (c *testClient) udpAddr() netip.AddrPort { return *c.bond.Load().addr.Load() }

// TestUDPKick: a node that is removed is not served by UDP either.
func TestUDPKick(t *testing.T) {
	r, a, b, _, _ := udpPair(t)
	bond := a.bond.Load()
	sock, to := a.sock.Load(), a.udpAddr()
	r.Kick(a.pub)
	row := appendPacket(nil, b.pub.Raw(), data("from beyond"))
	if _, _, err := sendRow(sock, bond.out, to, maxDatagram, row, false); err != nil {
		t.Log(err)
	}
	eventually(t, "the session is gone", func() bool { return r.twins.get(bond.in.session) == nil })
	select {
	case got := <-b.got:
		t.Errorf("b got %q from a node that was removed", got.data)
	default:
	}
}

// TestUDPMessageThatIsNone: a node that breaks the protocol by UDP loses its session, as it would by WebSocket.
func TestUDPMessageThatIsNone(t *testing.T) {
	r, a, _, _, _ := udpPair(t)
	bond := a.bond.Load()
	bad := bond.out.end(append(bond.out.start(nil, dgMessage), 1, 2, 3), 0)
	a.sock.Load().WriteTo(bad, net.UDPAddrFromAddrPort(a.udpAddr()))
	for {
		if s := receive(t, "the end of the session", a.status); !s.up {
			break
		}
	}
	eventually(t, "the session is counted as abused", func() bool { return r.Stats().Abused == 1 })
}

// TestUDPPortAnswersSTUN: one port, both protocols.
func TestUDPPortAnswersSTUN(t *testing.T) {
	r := newRelay(t, func(c *ServerConfig) { c.UDP = true }).withUDP(t)
	c, err := net.Dial("udp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	req := unhex(t, "0001 0000 2112a442 000102030405060708090a0b")
	c.Write(req)
	c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil || n != len(req)+12 || b[0] != 1 || b[1] != 1 {
		t.Errorf("answered %x, %v", b[:n], err)
	}
}

// The relay's and the client's side of a row of datagrams allocate nothing.
func TestUDPAllocatesNothing(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	s := udp.New(pc)
	r := s.Reader()
	out, _ := newSeals(fixedOffer(), 0)
	to := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	var row []byte
	for range 16 {
		row = appendPacket(row, [key.Size]byte{1}, append(data(""), make([]byte, 1308)...))
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, left, err := sendRow(s, out, to, maxDatagram, row, false); left != 0 || err != nil {
			t.Fatal(left, err)
		}
		for n := 0; n < 16; {
			run, size, _, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			n += (len(run) + size - 1) / size
		}
	}); n > 2 { // the race detector has pools forget some of what they are given
		t.Errorf("%v allocations for 16 datagrams there and back", n)
	}
}
