package bind

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/node/path"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/udp"
)

// lone is a Bind with one peer, whose end is a socket of the test's. Its session's index with us is 7.
type lone struct {
	*Bind
	peer   *peer
	far    *udp.Socket
	farAt  netip.AddrPort
	nearAt netip.AddrPort
	relay  *sink
}

// sink is a relay that is connected and takes all.
type sink struct{ packets int }

func (s *sink) Send(_ key.NodePublic, pkts [][]byte) bool { s.packets += len(pkts); return true }
func (s *sink) SendPriority(k key.NodePublic, pkts [][]byte) bool {
	return s.Send(k, pkts)
}
func (s *sink) Up() bool     { return true }
func (s *sink) Redial()      {}
func (s *sink) Close() error { return nil }

func newLone(t testing.TB) *lone {
	t.Helper()
	l := &lone{relay: new(sink)}
	var err error
	l.Bind, err = New(Config{Node: key.ExchangePublic(key.NewNode()), Disco: key.NewDisco(), Machine: key.NewMachine(), Loopback: true,
		DialRelay: func(derp.ClientConfig) RelayClient { return l.relay }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Stop)
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.far, l.farAt = udp.New(pc), pc.LocalAddr().(*net.UDPAddr).AddrPort()
	t.Cleanup(func() { l.far.Close() })
	l.nearAt = netip.AddrPortFrom(l.farAt.Addr(), l.Port())
	k := key.ExchangePublic(key.NewNode())
	l.SetRelays([]Relay{{ID: 1, Key: key.PublicOf(key.NewRelay()), URLs: []string{"https://relay.test"}}})
	// The loop is not told of the peer, and leaves it alone.
	l.peer = &peer{key: k, ep: &Endpoint{b: l.Bind, key: k}, cross: new(crossing)}
	l.peer.relay.Store(1)
	l.peer.up.Store(true)
	l.table.Store(&table{byNode: map[key.NodePublic]*peer{k: l.peer}})
	l.book.learn(7, l.peer)
	l.book.setAddrs(l.peer, []netip.AddrPort{l.farAt})
	l.peer.routes.Store(&routes{primary: l.farAt, trust: path.Trust, mtu: 1500})
	return l
}

// batchOf are data packets of the session, of the counters from first on.
func batchOf(n, size int, first uint64) (bufs [][]byte) {
	for i := range n {
		b := make([]byte, size)
		b[0] = transport
		binary.LittleEndian.PutUint32(b[4:], 7)
		binary.LittleEndian.PutUint64(b[8:], first+uint64(i))
		bufs = append(bufs, b)
	}
	return bufs
}

// Sending a batch allocates nothing, whichever way it goes.
func TestSendAllocatesNothing(t *testing.T) {
	l := newLone(t)
	r := l.far.Reader()
	l.far.SetReadDeadline(time.Now().Add(20 * time.Second))
	all := batchOf(40, 1400, 0)
	for _, c := range []struct {
		name             string
		routes           routes
		byUDP, byRelay   int
		heard, longOther bool
	}{
		{"direct", routes{primary: l.farAt, mtu: 1500}, 40, 0, true, false},
		{"direct, some too long", routes{primary: l.farAt, mtu: 1000}, 10, 30, true, true},
		{"direct, size not known", routes{primary: l.farAt}, 40, 30, true, true},
		{"direct, unheard of", routes{primary: l.farAt, mtu: 1500}, 40, 40, false, false},
		{"direct, and another", routes{primary: l.farAt, mtu: 1500, both: true, other: l.farAt}, 80, 0, true, false},
		{"relay", routes{}, 0, 40, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			bufs := all
			if c.longOther {
				bufs = nil
				for i, b := range all {
					if i%4 == 0 {
						b = b[:500]
					}
					bufs = append(bufs, b)
				}
			}
			rs := c.routes
			rs.trust = path.Trust
			l.peer.routes.Store(&rs)
			l.peer.relayed.Store(l.now())
			in, sizes, from := make([][]byte, udp.Batch), make([]int, udp.Batch), make([]netip.AddrPort, udp.Batch)
			var ep conn.Endpoint = l.peer.ep
			if n := testing.AllocsPerRun(100, func() {
				l.relay.packets = 0
				if l.peer.heard.Store(0); c.heard {
					l.peer.heard.Store(l.now())
				}
				if err := l.Send(bufs, ep); err != nil {
					t.Fatal(err)
				}
				for got := 0; got < c.byUDP; {
					k, err := r.Lend(in, sizes, from)
					if err != nil {
						t.Fatal(err)
					}
					got += k
				}
				if l.relay.packets != c.byRelay {
					t.Fatalf("%d packets by relay, want %d", l.relay.packets, c.byRelay)
				}
			}); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

// Receiving a batch allocates nothing, by a socket and by a relay.
func TestReceiveAllocatesNothing(t *testing.T) {
	l := newLone(t)
	fns, _, err := l.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	bufs, sizes, eps := make([][]byte, udp.Batch), make([]int, udp.Batch), make([]conn.Endpoint, udp.Batch)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	counter := uint64(0)
	out := batchOf(40, 1400, 0)
	next := func() {
		for _, b := range out {
			counter++
			binary.LittleEndian.PutUint64(b[8:], counter)
		}
	}
	take := func(fn conn.ReceiveFunc, want int) {
		for got := 0; got < want; {
			n, err := fn(bufs, sizes, eps)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if eps[i] != l.peer.ep || !bytes.Equal(bufs[i][:sizes[i]], out[got]) {
					t.Fatalf("packet %d: %d bytes from %v", got, sizes[i], eps[i])
				}
				got++
			}
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		next()
		if err := l.far.Write(out, l.nearAt); err != nil {
			t.Fatal(err)
		}
		take(fns[0], len(out))
	}); n != 0 {
		t.Errorf("by a socket: %v allocations", n)
	}
	one := out[:1]
	if n := testing.AllocsPerRun(100, func() {
		next()
		l.fromRelay(1, l.peer.key, one)
		take(fns[len(fns)-1], 1)
	}); n != 0 {
		t.Errorf("by a relay: %v allocations", n)
	}
	if got, top := l.peer.rx.got.Load(), l.peer.rx.top.Load(); top != counter-uint64(len(out))+1 || got == 0 {
		t.Errorf("%d packets are counted, and %d is the last of %d", got, top, counter)
	}
}
