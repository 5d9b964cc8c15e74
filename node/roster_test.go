package node

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/hedge-mesh/hedge/node/device"
	"github.com/hedge-mesh/hedge/node/key"
)

// newWG is a WireGuard device that nothing reaches, to make messages and to be configured.
func newWG(t testing.TB, private key.NodePrivate) *device.Device {
	t.Helper()
	d := device.NewDevice(tuntest.NewChannelTUN().TUN(), anyEndpoint{conn.NewDefaultBind()}, wgLogger(zerolog.Nop()))
	t.Cleanup(d.Close)
	if err := d.IpcSet("private_key=" + key.WireGuardHex(private) + "\n"); err != nil {
		t.Fatal(err)
	}
	return d
}

// anyEndpoint is a Bind to which anything is an endpoint.
type anyEndpoint struct{ conn.Bind }

func (anyEndpoint) ParseEndpoint(string) (conn.Endpoint, error) { return nil, nil }

// initiations makes initiations of a device to a node.
func initiations(t testing.TB, d *device.Device, to key.NodePublic) func() []byte {
	t.Helper()
	p, err := d.NewPeer(device.NoisePublicKey(to.Raw()))
	if err != nil {
		t.Fatal(err)
	}
	var macs device.CookieGenerator
	macs.Init(to.Raw())
	return func() []byte {
		m, err := d.CreateMessageInitiation(p)
		if err != nil {
			t.Fatal(err)
		}
		b, err := binary.Append(nil, binary.LittleEndian, m)
		if err != nil {
			t.Fatal(err)
		}
		macs.AddMacs(b)
		return b
	}
}

func mustOpener(t testing.TB, private key.NodePrivate) *opener {
	t.Helper()
	o, err := newOpener(private)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func anybody(key.NodePublic) bool { return true }

// An opener knows who made an initiation, and believes nobody but its maker.
func TestOpener(t *testing.T) {
	us, them := key.NewNode(), key.NewNode()
	o := mustOpener(t, us)
	pkt := initiations(t, newWG(t, them), key.ExchangePublic(us))()
	from, at, ok := o.open(pkt, anybody)
	if !isInitiation(pkt) || !o.meant(pkt) || !ok || from != key.ExchangePublic(them) || at == (stamp{}) {
		t.Fatalf("opened %v %x %v", from, at, ok)
	}
	if mustOpener(t, them).meant(pkt) {
		t.Error("meant for another")
	}
	if _, _, ok := o.open(pkt, func(key.NodePublic) bool { return false }); ok {
		t.Error("nobody known")
	}
	for i := range pkt {
		bad := append([]byte(nil), pkt...)
		bad[i] ^= 0x80
		if i < 132 && isInitiation(bad) && o.meant(bad) {
			t.Errorf("byte %d changed, and mac1 holds", i)
		}
		if _, _, ok := o.open(bad, anybody); ok && 8 <= i && i < 116 {
			t.Errorf("byte %d changed, and it opens", i)
		}
	}
}

// One that wireguard-go made, of the private key 1111…, to that of 2222….
const goldenInitiation = "" +
	"01000000" + // type
	"5427f976" + // sender
	"60c0d73d076e8b4132f478d6213d115b721ed450b60ebe206941d13886726f38" + // ephemeral
	"f3c7b09a15ea52ca64836225bae24867229bc2d1804956527b700f0e67ab123d" + // static
	"f52d493dbe1f0c1c944da92691f42b1b" + // static
	"b340550b443979849748d2265dd081ac8ae6a0ddf393c848de2da08b" + // timestamp
	"9d2f975729cbff8b80cbce878bc61692" + // mac1
	"00000000000000000000000000000000" // mac2

func goldenKey(t testing.TB, digit string) key.NodePrivate {
	t.Helper()
	k, err := key.ParseNodePrivate("node-private:" + strings.Repeat(digit, 64))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestOpenerGolden(t *testing.T) {
	pkt, err := hex.DecodeString(goldenInitiation)
	if err != nil {
		t.Fatal(err)
	}
	o := mustOpener(t, goldenKey(t, "2"))
	from, at, ok := o.open(pkt, anybody)
	if !o.meant(pkt) || !ok || from != key.ExchangePublic(goldenKey(t, "1")) || hex.EncodeToString(at[:]) != "400000006b037c0534000000" {
		t.Errorf("%v %x %v", from, at, ok)
	}
}

func FuzzOpener(f *testing.F) {
	pkt, _ := hex.DecodeString(goldenInitiation)
	f.Add(pkt)
	f.Add(pkt[:147])
	o, maker := mustOpener(f, goldenKey(f, "2")), key.ExchangePublic(goldenKey(f, "1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if !isInitiation(b) {
			return
		}
		o.meant(b)
		if from, _, ok := o.open(b, func(k key.NodePublic) bool { return k == maker }); ok && (from != maker || string(b[8:116]) != string(pkt[8:116])) {
			t.Errorf("opened as of %v", from)
		}
	})
}

func emptyRoster(t testing.TB, us key.NodePrivate) *roster {
	t.Helper()
	r, err := newRoster(func([]byte, conn.Endpoint) {}, func(key.NodePublic) {}, us, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	r.wg = newWG(t, us)
	return r
}

// testRoster has one peer at 100.64.0.2 and runs what serves it.
func testRoster(t testing.TB, us key.NodePrivate, peer key.NodePublic) *roster {
	t.Helper()
	r := emptyRoster(t, us)
	if err := r.set(map[key.NodePublic][]netip.Prefix{peer: {netip.MustParsePrefix("100.64.0.2/32")}}, nil, nil); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *roster) has(k key.NodePublic) bool {
	return r.wg.LookupPeer(device.NoisePublicKey(k.Raw())) != nil
}

// expel lets time pass until a peer is out.
func (r *roster) expel(t testing.TB, k key.NodePublic) {
	t.Helper()
	now := time.Now()
	for range 100 {
		if r.sweep(now); !r.has(k) {
			return
		}
		now = now.Add(idleAfter + time.Second)
	}
	t.Fatal("an idle peer stays")
}

// A peer comes in by its initiation. Once it is out again, old ones do not bring it back, nor do those of others.
func TestRosterAdmits(t *testing.T) {
	us, them := key.NewNode(), key.NewNode()
	k := key.ExchangePublic(them)
	r := testRoster(t, us, k)
	make1 := initiations(t, newWG(t, them), key.ExchangePublic(us))
	if r.admit(initiations(t, newWG(t, key.NewNode()), key.ExchangePublic(us))()) || r.has(k) {
		t.Error("a stranger is admitted")
	}
	first := make1()
	_, old, _ := r.opener.open(first, anybody)
	next := make1()
	for { // WireGuard's stamps are coarse
		if _, at, _ := r.opener.open(next, anybody); old.before(at) {
			break
		}
		next = make1()
	}
	if !r.admit(first) || !r.has(k) || !r.admit(first) || !r.admit(next) || r.admit(first) {
		t.Error("want the first, its copy and the next admitted, and then not the first")
	}
	r.sweep(time.Now())
	if !r.has(k) {
		t.Error("it is out at once")
	}
	r.expel(t, k)
	if r.admit(first) || r.has(k) {
		t.Error("an old initiation is admitted")
	}
	if !r.admit(next) || !r.has(k) {
		t.Error("the last is not")
	}
	if err := r.set(nil, nil, nil); err != nil || r.has(k) || r.admit(make1()) {
		t.Error("it stays although it is no peer any more", err)
	}
}

// A peer whose clock was set back makes initiations that WireGuard takes for replays. It gets one of ours.
func TestRosterClockSetBack(t *testing.T) {
	us, them := key.NewNode(), key.NewNode()
	k := key.ExchangePublic(them)
	r := testRoster(t, us, k)
	pkt := initiations(t, newWG(t, them), key.ExchangePublic(us))()
	if !r.admit(pkt) {
		t.Fatal("not admitted")
	}
	made := r.seats[k].last
	for _, c := range []struct {
		ahead uint64        // of the clock by which the one before was made, in seconds
		later time.Duration // since we helped last
		calls int
	}{{1, time.Hour, 0}, {clockBehind - 1, time.Hour, 0}, {3600, time.Hour, 1}, {3600, helpEvery / 2, 0}, {3600, helpEvery, 1}, {30 * 365 * 86400, helpEvery, 1}} {
		r.seats[k].last = made
		binary.BigEndian.PutUint64(r.seats[k].last[:], made.seconds()+c.ahead)
		r.seats[k].helped = r.now(time.Now()) - int64(c.later)
		if r.admit(pkt) {
			t.Errorf("%d s behind, and admitted", c.ahead)
		}
		if n := len(r.calls); n != c.calls {
			t.Errorf("%d s behind, %v after the last: %d greetings, want %d", c.ahead, c.later, n, c.calls)
		}
		for len(r.calls) > 0 {
			if c := <-r.calls; c.key != k {
				t.Error("somebody else is greeted")
			}
		}
	}
}

// Read waits until a packet's peer is there, and not for ever.
func TestRosterNeed(t *testing.T) {
	us, k := key.NewNode(), key.ExchangePublic(key.NewNode())
	r := testRoster(t, us, k)
	u := &usher{roster: r}
	pkt, other := tcp4("100.64.0.1:1", "100.64.0.2:2", 1, 0, tcpSYN), tcp4("100.64.0.1:1", "100.64.0.3:2", 1, 0, tcpSYN)
	now := time.Now()
	u.need(other, now)
	u.need(other[:10], now)
	u.need(nil, now)
	done, served := make(chan struct{}), make(chan struct{})
	go func() { defer close(served); r.serve(done) }()
	if u.need(pkt, now); !r.has(k) {
		t.Fatal("its peer is not there")
	}
	if n := testing.AllocsPerRun(100, func() { now = now.Add(1); u.need(pkt, now); u.need(other, now) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	r.expel(t, k)
	if u.need(pkt, time.Now()); !r.has(k) {
		t.Fatal("its peer is not there again")
	}
	r.clear()
	u.need(pkt, time.Now())
	close(done)
	<-served
	if err := r.set(map[key.NodePublic][]netip.Prefix{k: {netip.MustParsePrefix("100.64.0.2/32")}}, nil, nil); err != nil {
		t.Fatal(err)
	}
	waits := make(chan struct{})
	go func() { defer close(waits); u.need(pkt, time.Now()) }()
	r.close()
	<-waits
}

// Who carries routes is always in. Addresses of the mesh that a route spans are nobody's until their peer is in.
func TestRosterRoutes(t *testing.T) {
	r := emptyRoster(t, key.NewNode())
	exit, plain := key.ExchangePublic(key.NewNode()), key.ExchangePublic(key.NewNode())
	mesh := prefixes("100.64.0.0/10")
	for _, c := range []struct {
		exit string
		wide bool
	}{
		{"100.64.0.9/32 10.0.0.0/8", false},
		{"100.64.0.9/32 64.0.0.0/2", true},
		{"100.64.0.9/32 10.0.0.0/8", false},
	} {
		peers := map[key.NodePublic][]netip.Prefix{exit: prefixes(c.exit), plain: prefixes("100.64.0.2/32")}
		for range 3 {
			if err := r.set(peers, map[key.NodePublic]bool{exit: true}, mesh); err != nil {
				t.Fatal(err)
			}
			r.sweep(time.Now().Add(time.Hour))
			r.sweep(time.Now().Add(2 * time.Hour))
			r.swept = time.Time{}
			conf, err := r.wg.IpcGet()
			if err != nil {
				t.Fatal(err)
			}
			if !r.has(exit) || r.has(plain) || r.has(r.nobody) != c.wide || strings.Contains(conf, "allowed_ip=100.64.0.0/10") != c.wide {
				t.Errorf("%s: exit %v, plain %v, nobody %v", c.exit, r.has(exit), r.has(plain), r.has(r.nobody))
			}
		}
	}
}

// A flood of initiations that nobody answers waits in bounds, and leaves room for peers that the bind knows.
func TestRosterScreen(t *testing.T) {
	us := key.NewNode()
	r := emptyRoster(t, us)
	pkt := initiations(t, newWG(t, key.NewNode()), key.ExchangePublic(us))()
	if _, ok := r.screen(make([]byte, 148), nil); !ok {
		t.Error("what is no initiation is kept")
	}
	forged := append([]byte(nil), pkt...)
	forged[120]++
	if _, ok := r.screen(forged, nil); ok || len(r.knocks) > 0 {
		t.Error("a wrong mac1 gets through")
	}
	through := 0
	for range 10 * maxKnocks {
		if _, ok := r.screen(pkt, nil); ok {
			through++
		}
	}
	if n := len(r.knocks); n != maxKnocks/2 || through != 10*maxKnocks-n {
		t.Errorf("%d wait, %d go on", n, through)
	}
	begin, opened := time.Now(), -len(r.knocks)
	for range 20 * opensASecond { // however soon they are opened
		for len(r.knocks) > 0 {
			<-r.knocks
			opened++
		}
		r.screen(pkt, nil)
	}
	if most := opensASecond * (1 + time.Since(begin).Seconds()); float64(opened) > most {
		t.Errorf("%d were opened; want %.0f at most", opened, most)
	}
	if ep, ok := r.screen(pkt, admitted{nil}); ep != nil || !ok {
		t.Error("one that was looked at is looked at again")
	}
}

// bounce sends datagrams back.
func bounce(t *testing.T, n *Node, at string) {
	t.Helper()
	c, err := n.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 100)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	})
	t.Cleanup(func() { c.Close(); wg.Wait() })
}

// Peers that are not talked to leave the device, at both ends, and nobody notices.
func TestMeshIdlePeers(t *testing.T) {
	m := newMesh(t)
	db, web := m.join("db", "tag:db"), m.join("web", "tag:web")
	bounce(t, db, ":5432")
	bounce(t, web, ":8080")
	until(t, web, "seeing db", sees("db"))
	until(t, db, "seeing web", sees("web"))
	if web.roster.has(db.self) || db.roster.has(web.self) {
		t.Error("a peer is in the device that nobody has talked to")
	}
	var rx, tx uint64
	for i := range 3 {
		from, to := web, "db:5432"
		if i == 1 {
			from, to = db, "web:8080"
		}
		<-time.After(20 * time.Millisecond) // as no device makes an initiation within 10 ms of a response, the bind takes one for overtaken
		began := time.Now()
		c, err := from.DialContext(t.Context(), "udp", to) // no packet of it comes late, as a TCP connection's may
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if err := exchange(c); err != nil {
			t.Fatal(err)
		}
		c.Close()
		t.Logf("%d: %s answered after %v", i, to, time.Since(began))
		if !web.roster.has(db.self) || !db.roster.has(web.self) {
			t.Error("a peer that is talked to is not in the device")
		}
		web.roster.expel(t, db.self)
		db.roster.expel(t, web.self)
		p := web.Status().Peers[0]
		if p.RxBytes <= rx || p.TxBytes <= tx || p.Handshake.IsZero() {
			t.Errorf("after %d and %d bytes the status says %d and %d, handshake %v", rx, tx, p.RxBytes, p.TxBytes, p.Handshake)
		}
		rx, tx = p.RxBytes, p.TxBytes
	}
}

func BenchmarkOpen(b *testing.B) {
	us, them := key.NewNode(), key.NewNode()
	o, pkt := mustOpener(b, us), initiations(b, newWG(b, them), key.ExchangePublic(us))()
	for _, c := range []struct {
		name  string
		known bool
	}{{"known", true}, {"unknown", false}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				o.open(pkt, func(key.NodePublic) bool { return c.known })
			}
		})
	}
	pkt[116]++
	b.Run("forged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			o.meant(pkt)
		}
	})
}

func BenchmarkNeed(b *testing.B) {
	const peers = 10_000
	r := emptyRoster(b, key.NewNode())
	known := make(map[key.NodePublic][]netip.Prefix)
	for i := range peers {
		a := netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)})
		known[key.NodePublicFromRaw([key.Size]byte{byte(i), byte(i >> 8), 1})] = []netip.Prefix{netip.PrefixFrom(a, 32)}
	}
	if err := r.set(known, nil, nil); err != nil {
		b.Fatal(err)
	}
	for _, s := range r.seats {
		s.in.Store(true)
	}
	u, now := &usher{roster: r}, time.Now()
	for _, n := range []int{1, 100} {
		pkts := make([][]byte, n)
		for i := range pkts {
			pkts[i] = tcp4("100.64.0.1:1", fmt.Sprintf("100.64.1.%d:2", i), 1, 0, tcpACK)
		}
		b.Run(fmt.Sprintf("of=%d", n), func(b *testing.B) {
			i := 0
			for b.Loop() {
				u.need(pkts[i%n], now)
				i++
			}
		})
	}
}

// How long the first packet to a peer waits for it to be configured.
func BenchmarkTake(b *testing.B) {
	us, k := key.NewNode(), key.ExchangePublic(key.NewNode())
	r := testRoster(b, us, k)
	for b.Loop() {
		r.mu.Lock()
		r.take(r.seats[k])
		b.StopTimer()
		r.wg.RemovePeer(device.NoisePublicKey(k.Raw()))
		r.seats[k].in.Store(false)
		r.mu.Unlock()
		b.StartTimer()
	}
}
