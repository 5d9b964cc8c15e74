package node

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/device"
	"github.com/hedge-mesh/hedge/node/key"
)

// T4: an initiation that was on the wire, with any bit of it changed, gets no answer, and neither does it itself again; nor
// does one that never arrived, changed anywhere its maker has vouched for.
func TestRInitiationChanged(t *testing.T) {
	d := newDesk(t)
	peer := key.NewNode()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}) // where the peer is, as far as the node is told
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d.hello = func(d *desk, m key.MachinePublic, h *wire.Hello) []any {
		m2 := d.deskMap(1, 1, map[acl.NodeID]key.NodePublic{1: h.Node, 2: key.ExchangePublic(peer)})
		at := &wire.Where{Peers: []wire.Presence{{ID: 2, Online: true, Disco: key.ExchangePublic(key.NewDisco()), Endpoints: []netip.AddrPort{c.LocalAddr().(*net.UDPAddr).AddrPort()}}}}
		return []any{wire.Diff(nil, m2), at}
	}
	n := startNode(t, d.config("web", "key"))
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), n.bind.Port()))
	next := initiations(t, newWG(t, peer), n.self)
	seen := map[string]bool{} // the bind sends an answer again until it is known to have come
	answer := func(wait time.Duration) bool {
		c.SetReadDeadline(time.Now().Add(wait))
		for b := make([]byte, 2048); ; {
			k, err := c.Read(b)
			if err != nil {
				return false
			}
			if k >= 4 && binary.LittleEndian.Uint32(b) == device.MessageResponseType && !seen[string(b[:k])] {
				seen[string(b[:k])] = true
				return true
			}
		}
	}
	answered := func() (pkt []byte) {
		t.Helper()
		for range 50 { // WireGuard takes one in 20 ms of a peer
			pkt = next()
			c.WriteTo(pkt, to)
			if answer(200 * time.Millisecond) {
				return pkt
			}
		}
		t.Fatal("a good initiation gets no answer, so this test tests nothing")
		return nil
	}
	captured := answered()
	fresh := next()
	for i := range len(captured) * 8 {
		bad := bytes.Clone(captured)
		bad[i/8] ^= 1 << (i % 8)
		c.WriteTo(bad, to)
		if i/8 < 132 { // mac2 counts only under load, and is not its maker's word
			bad = bytes.Clone(fresh)
			bad[i/8] ^= 1 << (i % 8)
			c.WriteTo(bad, to)
		}
	}
	for range 10 {
		c.WriteTo(captured, to)
	}
	if answer(500 * time.Millisecond) {
		t.Error("one that was changed, or had been answered, was answered")
	}
	answered()
}

// T4: initiations with a good mac1 from a thousand addresses, as fast as they can be made, do not stop a tunnel, make
// nothing grow, get no answer but perhaps a cookie, and no more bytes back than they cost.
func TestRInitiationFlood(t *testing.T) {
	if testing.Short() {
		t.Skip("floods for two seconds")
	}
	if runtime.GOOS != "linux" {
		t.Skip("needs all of 127.0.0.0/8")
	}
	m := newMesh(t)
	db, web := m.join("db", "tag:db"), m.join("web", "tag:web")
	echo(t, db, 5432)
	until(t, web, "seeing db", sees("db"))
	if err := say(t, web, "db:5432"); err != nil {
		t.Fatal(err)
	}
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), db.bind.Port()))
	var socks []*net.UDPConn
	var out, back, cookies, others atomic.Int64
	var readers, senders sync.WaitGroup
	for i := range 1000 {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 77, byte(i>>8), byte(i))}, to)
		if err != nil {
			t.Fatal(err)
		}
		socks = append(socks, c)
		readers.Go(func() {
			for b := make([]byte, 2048); ; {
				n, err := c.Read(b)
				if err != nil {
					return
				}
				back.Add(int64(n))
				if b[0] == device.MessageCookieReplyType {
					cookies.Add(1)
				} else {
					others.Add(1)
				}
			}
		})
	}
	var macs device.CookieGenerator
	macs.Init(db.self.Raw())
	var made [256][device.MessageInitiationSize]byte
	for i := range made {
		for j := range made[i] {
			made[i][j] = byte(rand.Uint32())
		}
		binary.LittleEndian.PutUint32(made[i][:], device.MessageInitiationType)
		macs.AddMacs(made[i][:])
	}
	memory := func() uint64 {
		runtime.GC()
		runtime.GC() // pools keep what they had for one
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	usual := time.Duration(0)
	for range 100 { // pools have what connections take
		at := time.Now()
		if err := say(t, web, "db:5432"); err != nil {
			t.Fatal(err)
		}
		usual = max(usual, time.Since(at))
		<-tick.C
	}
	before := memory()
	stop := make(chan struct{})
	senders.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			n, _ := socks[i%len(socks)].Write(made[i%len(made)][:])
			out.Add(int64(n))
		}
	})
	slowest, said := time.Duration(0), 0
	for start := time.Now(); time.Since(start) < 2*time.Second; said++ {
		at := time.Now()
		if err := say(t, web, "db:5432"); err != nil {
			t.Fatalf("after %d times: %v", said, err)
		}
		slowest = max(slowest, time.Since(at))
		<-tick.C
	}
	after := memory()
	close(stop)
	senders.Wait()
	for _, c := range socks {
		c.Close()
	}
	readers.Wait()
	t.Logf("%d initiations; %d connections meanwhile, the slowest took %v; %d cookies, %d other answers; %d kB more",
		out.Load()/device.MessageInitiationSize, said, slowest, cookies.Load(), others.Load(), (int64(after)-int64(before))>>10)
	if slowest > 3*time.Second+10*usual {
		t.Errorf("a connection took %v, and before at most %v", slowest, usual)
	}
	if others.Load() > 0 {
		t.Errorf("%d cookies, %d other answers", cookies.Load(), others.Load())
	}
	if back.Load() > out.Load() {
		t.Errorf("%d bytes back for %d", back.Load(), out.Load())
	}
	if after > before+16<<20 {
		t.Errorf("it takes %d MiB", (after-before)>>20)
	}
}
