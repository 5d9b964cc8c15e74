package bind

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun/v3"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/path"
)

func TestChooseHome(t *testing.T) {
	const ms = time.Millisecond
	lat := func(v ...time.Duration) map[uint16]time.Duration {
		m := map[uint16]time.Duration{}
		for i, d := range v {
			if d > 0 {
				m[uint16(i+1)] = d
			}
		}
		return m
	}
	for _, tt := range []struct {
		name    string
		home    uint16
		order   []uint16
		latency map[uint16]time.Duration
		down    []uint16
		early   bool // not settled
		want    uint16
	}{
		{name: "no relay", want: 0},
		{name: "the only one, at once", order: []uint16{7}, early: true, want: 7},
		{name: "the nearest", order: []uint16{1, 2, 3}, latency: lat(50*ms, 20*ms, 30*ms), want: 2},
		{name: "nothing known yet", order: []uint16{1, 2}, early: true, want: 0},
		{name: "the second answers before the first: wait", order: []uint16{1, 2}, latency: lat(0, 30*ms), early: true, want: 0},
		{name: "the first does not answer", order: []uint16{1, 2}, latency: lat(0, 30*ms), want: 2},
		{name: "as near as another: the first, as all do", order: []uint16{1, 2, 3}, latency: lat(33*ms, 30*ms, 31*ms), want: 1},
		{name: "of those about as near the first", order: []uint16{1, 2, 3}, latency: lat(90*ms, 33*ms, 30*ms), want: 2},
		{name: "UDP blocked: the first", order: []uint16{1, 2}, want: 1},
		{name: "UDP blocked, and the first is down", order: []uint16{1, 2}, home: 1, down: []uint16{1}, want: 2},
		{name: "UDP blocked, and the second is up: stay", order: []uint16{1, 2}, home: 2, want: 2},
		{name: "a little nearer: stay", order: []uint16{1, 2}, home: 1, latency: lat(50*ms, 42*ms), want: 1},
		{name: "much nearer, but little to gain: stay", order: []uint16{1, 2}, home: 1, latency: lat(9*ms, 2*ms), want: 1},
		{name: "much nearer", order: []uint16{1, 2}, home: 1, latency: lat(50*ms, 30*ms), want: 2},
		{name: "home was never measured", order: []uint16{1, 2}, home: 1, latency: lat(0, 30*ms), want: 2},
		{name: "home was removed", order: []uint16{2, 3}, home: 1, latency: lat(0, 30*ms, 20*ms), want: 3},
		{name: "home is down", order: []uint16{1, 2, 3}, home: 1, latency: lat(10*ms, 130*ms, 80*ms), down: []uint16{1}, want: 3},
		{name: "all are down: stay", order: []uint16{1, 2}, home: 2, down: []uint16{1, 2}, want: 2},
	} {
		down := map[uint16]bool{}
		for _, d := range tt.down {
			down[d] = true
		}
		if got := chooseHome(tt.home, tt.order, tt.latency, down, !tt.early); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestEndpoint(t *testing.T) {
	s := newSide(t, Config{})
	d := newSide(t, Config{})
	text := (&Endpoint{key: d.cfg.Node}).DstToString()
	early, err := s.ParseEndpoint(text) // before the peer is known
	if err != nil || early.DstToString() != text || len(text) != 64 {
		t.Fatalf("%q became %v, %v", text, early, err)
	}
	if err := s.Send([][]byte{wg(transport, 1, 0, 1)}, early); err == nil {
		t.Error("sent to nobody")
	}
	s.SetPeers([]Peer{d.peer(0)})
	if early.(*Endpoint).find() == nil {
		t.Error("an endpoint from before does not find the peer")
	}
	one, _ := s.ParseEndpoint(text)
	s.SetPeers([]Peer{{Key: d.cfg.Node, Disco: key.ExchangePublic(key.NewDisco())}})
	if two, _ := s.ParseEndpoint(text); one != two {
		t.Error("the endpoint changed with the disco key")
	}
	if !one.DstIP().Is6() || len(one.DstToBytes()) != 32 || one.SrcIP().IsValid() {
		t.Errorf("endpoint %v %v", one.DstIP(), one.SrcIP())
	}
	for _, bad := range []string{"", "192.0.2.1:1", text[:62], text[:62] + "zz", text + "00"} {
		if _, err := s.ParseEndpoint(bad); err == nil {
			t.Errorf("took %q", bad)
		}
	}
}

// Who is taken for whom, when packets come by UDP.
func TestAttribute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.shake()
		p.talk(time.Second) // now b's address is proven, and a's session has index 1
		home, away := netip.AddrPortFrom(hostB, p.b.Port()), netip.MustParseAddrPort("203.0.113.66:6")
		peer := p.a.table.Load().byNode[p.b.cfg.Node]
		for _, tt := range []struct {
			name     string
			pkt      []byte
			from     netip.AddrPort
			peer     bool
			stranger bool
		}{
			{"a handshake from a proven address", wg(initiation, 9, 0, 0), home, true, false},
			{"a handshake from anywhere", wg(initiation, 9, 0, 0), away, false, true},
			{"data of a session, from home", wg(transport, 1, 0, 0), home, true, false},
			{"data of a session, from elsewhere", wg(transport, 1, 0, 0), away, true, false},
			{"a response to our handshake, from elsewhere", wg(response, 9, 1, 0), away, true, false},
			{"a cookie for it", wg(cookie, 1, 0, 0), away, true, false},
			{"data of no session", wg(transport, 77, 0, 0), away, false, false},
			{"data of no session, from home", wg(transport, 77, 0, 0), home, false, false},
			{"nothing of WireGuard's", []byte("GET / HTTP/1.1\r\n\r\nxxxxxxxxxxxxxxxxx"), home, false, false},
			{"too short", []byte{4, 0, 0, 0, 1, 0, 0, 0}, home, false, false},
		} {
			<-time.After(deviceTakes) // after the last handshake message
			ep := p.a.sort(tt.pkt, tt.from, p.a.now(), &lookup{})
			_, isPeer := ep.(*Endpoint)
			s, isStranger := ep.(*stranger)
			if isPeer != tt.peer || isStranger != tt.stranger || isPeer && ep != conn.Endpoint(peer.ep) {
				t.Errorf("%s: %T", tt.name, ep)
			}
			if isStranger && s.DstIP() != tt.from.Addr() {
				t.Errorf("%s: cookies are bound to %v", tt.name, s.DstIP())
			}
		}
		if i := p.path(p.a, p.b); i.Addr != home {
			t.Errorf("a packet moved the path to %v", i.Addr)
		}
	})
}

// Data of a session we never gave means that the peer has not noticed our restart. It is told of once in a while,
// whichever way the data comes, and never on the word of a stranger.
func TestStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.shake()
		p.talk(time.Second)
		var told []key.NodePublic
		p.a.Bind.cfg.Stale = func(k key.NodePublic) { told = append(told, k) }
		b := p.b.cfg.Node
		home, away := netip.AddrPortFrom(hostB, p.b.Port()), netip.MustParseAddrPort("203.0.113.66:6")
		for _, tt := range []struct {
			name string
			f    func()
			told int
		}{
			{"data of its session", func() { p.a.fromRelay(1, b, [][]byte{wg(transport, 1, 0, 0)}) }, 0},
			{"an answer to nothing", func() { p.a.fromRelay(1, b, [][]byte{wg(response, 9, 77, 0)}) }, 0},
			{"data of no session, from anywhere", func() { p.a.sort(wg(transport, 77, 0, 0), away, p.a.now(), &lookup{}) }, 0},
			{"data of no session, by relay", func() { p.a.fromRelay(1, b, [][]byte{wg(transport, 77, 0, 0)}) }, 1},
			{"and again", func() { p.a.fromRelay(1, b, [][]byte{wg(transport, 77, 0, 0)}) }, 1},
			{"and by UDP, later", func() {
				time.Sleep(staleEvery)
				p.a.sort(wg(transport, 78, 0, 0), home, p.a.now(), &lookup{})
			}, 2},
		} {
			if tt.f(); len(told) != tt.told || len(told) > 0 && told[0] != b {
				t.Errorf("%s: told %d times, want %d", tt.name, len(told), tt.told)
			}
		}
	})
}

// What goes to a stranger: answers to a handshake, and never data.
func TestStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		type sent struct {
			to   netip.AddrPort
			kind byte
		}
		var log []sent
		p.net.mu.Lock()
		p.net.tapped = func(_, to netip.AddrPort, pkt []byte) { log = append(log, sent{to, pkt[0]}) }
		p.net.mu.Unlock()
		s := &stranger{netip.MustParseAddrPort("203.0.113.66:6")}
		for _, pkt := range [][]byte{wg(response, 5, 9, 0), wg(cookie, 9, 0, 0)} {
			if err := p.a.Send([][]byte{pkt}, s); err != nil {
				t.Error(err)
			}
		}
		for _, pkt := range [][]byte{wg(transport, 9, 0, 0), wg(initiation, 9, 0, 0)} {
			if err := p.a.Send([][]byte{pkt}, s); err == nil {
				t.Errorf("type %d went to a stranger", pkt[0])
			}
		}
		if want := []sent{{s.addr, response}, {s.addr, cookie}}; !slices.Equal(log, want) {
			t.Errorf("sent %v, want %v", log, want)
		}
		// Data of the session that began so is let in, with the true source.
		if _, ok := p.a.sort(wg(transport, 5, 0, 0), s.addr, p.a.now(), &lookup{}).(*stranger); !ok {
			t.Error("the stranger's session is not known")
		}
	})
}

// Strangers get no answer, whatever they send; nor do forgers.
func TestNoAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		unknown, _ := path.NewBox(key.NewDisco(), key.ExchangePublic(p.a.cfg.Disco))
		known, _ := path.NewBox(p.b.cfg.Disco, key.ExchangePublic(key.NewDisco()))
		reflected, _ := path.NewBox(p.a.cfg.Disco, key.ExchangePublic(p.b.cfg.Disco))
		ours := reflected.Seal(nil, path.Ping{}, 1)
		copy(ours[6:], known.Seal(nil, path.Ping{}, 1)[6:38]) // our own ping, as if the peer sent it
		here, there := netip.AddrPortFrom(hostA, p.a.Port()), netip.MustParseAddrPort("203.0.113.66:6")
		pc, err := p.net.host(there.Addr())(t.Context(), "udp4", there.String())
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		p.net.mu.Lock()
		p.net.tapped = func(from, to netip.AddrPort, pkt []byte) {
			if from == here {
				t.Errorf("%d bytes to %v: %x", len(pkt), to, pkt)
			}
		}
		p.net.mu.Unlock()
		answer := stun.MustBuild(stun.TransactionID, stun.BindingSuccess, &stun.XORMappedAddress{IP: net.IPv4(1, 2, 3, 4), Port: 5})
		for _, pkt := range [][]byte{unknown.Seal(nil, path.Ping{}, 1), known.Seal(nil, path.Ping{}, 1), ours,
			stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw, answer.Raw,
			wg(transport, 9, 9, 9), wg(response, 9, 9, 9), {}, {1}} {
			pc.WriteTo(pkt, net.UDPAddrFromAddrPort(here))
		}
		<-time.After(time.Minute)
		if e := p.a.Endpoints(); slices.Contains(e, netip.MustParseAddrPort("1.2.3.4:5")) {
			t.Errorf("took an answer nobody was asked for: %v", e)
		}
	})
}

func FuzzSort(f *testing.F) {
	for _, t := range []uint32{initiation, response, cookie, transport} {
		f.Add(wg(t, 1, 2, 3))
	}
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingSuccess).Raw)
	box, _ := path.NewBox(key.NewDisco(), key.ExchangePublic(key.NewDisco()))
	f.Add(box.Seal(nil, path.Ping{}, 1))
	s := newSide(f, Config{})
	from := netip.MustParseAddrPort("203.0.113.66:6")
	f.Fuzz(func(t *testing.T, pkt []byte) {
		if ep := s.sort(pkt, from, s.now(), &lookup{}); ep != nil && (len(pkt) < shortest || pkt[0] != initiation) {
			t.Fatalf("%x was let in as %v", pkt, ep)
		}
	})
}

func TestRing(t *testing.T) {
	r := &ring{ready: make(chan struct{}, 1)}
	done := make(chan struct{})
	big := make([]byte, slotSize+1)
	for i := range ringSize + 10 {
		r.push([]byte{byte(i >> 8), byte(i)}, nil)
	}
	r.push(big, nil)
	if r.dropped != 11 {
		t.Errorf("%d dropped, want 11", r.dropped)
	}
	bufs, sizes, eps := make([][]byte, 100), make([]int, 100), make([]conn.Endpoint, 100)
	for i := range bufs {
		bufs[i] = make([]byte, 65535)
	}
	next, last := 11, 0
	for got := 0; got < ringSize; {
		n, err := r.pop(done, bufs, sizes, eps)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if last = sizes[i]; last == 2 {
				if v := int(bufs[i][0])<<8 | int(bufs[i][1]); v != next {
					t.Fatalf("packet %d, want %d", v, next)
				}
				next++
			}
		}
		got += n
	}
	if last != len(big) {
		t.Errorf("the last has %d bytes", last)
	}
	close(done)
	if _, err := r.pop(done, bufs, sizes, eps); err != net.ErrClosed {
		t.Errorf("after done: %v", err)
	}
}

// stunHost answers as a NAT would have it.
func stunHost(t *testing.T, f *fabric, at netip.AddrPort, mapped func() netip.AddrPort) (stop func()) {
	pc, err := f.host(at.Addr())(context.Background(), "udp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			m := stun.New()
			if stun.Decode(buf[:n], m) != nil {
				continue
			}
			a := mapped()
			out := stun.MustBuild(m, stun.BindingSuccess, &stun.XORMappedAddress{IP: a.Addr().AsSlice(), Port: int(a.Port())})
			pc.WriteTo(out.Raw, from)
		}
	})
	return func() { pc.Close(); wg.Wait() }
}

// Our addresses, as relays see them and as the machine has them; and what happens when they change.
func TestEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rel := newFabric(10*time.Millisecond), newDoubles(10*time.Millisecond)
		var mu sync.Mutex
		mapped := netip.MustParseAddrPort("198.51.100.7:7000")
		local := []netip.Addr{hostA, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("100.64.0.9")}
		server := netip.MustParseAddrPort("192.0.2.100:3478")
		stop := stunHost(t, f, server, func() netip.AddrPort { mu.Lock(); defer mu.Unlock(); return mapped })
		homes := make(chan uint16, 8)
		s := newSide(t, Config{Listen: f.host(hostA), DialRelay: rel.dial, Home: func(id uint16) { homes <- id },
			Exclude:    []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")},
			Interfaces: func() ([]netip.Addr, error) { mu.Lock(); defer mu.Unlock(); return slices.Clone(local), nil }})
		defer func() { s.stop(); stop() }()
		s.attach()
		port := s.Port()
		expect := func(want ...netip.AddrPort) {
			t.Helper()
			if got := <-s.addrs; !slices.Equal(got, want) || !slices.Equal(s.Endpoints(), want) {
				t.Errorf("endpoints %v, want %v", got, want)
			}
		}
		expect(netip.AddrPortFrom(hostA, port))
		s.SetRelays([]Relay{{ID: 1, STUN: []string{"192.0.2.101:1"}}, {ID: 2, STUN: []string{server.String()}}})
		expect(mapped, netip.AddrPortFrom(hostA, port))
		if id := <-homes; id != 2 || s.Home() != 2 {
			t.Errorf("home %d, want 2, which answered", id)
		}
		// The NAT maps us anew: known after a round.
		start := time.Now()
		mu.Lock()
		old := mapped
		mapped = netip.MustParseAddrPort("198.51.100.7:7001")
		mu.Unlock()
		expect(mapped, netip.AddrPortFrom(hostA, port))
		if d := time.Since(start); d > 27*time.Second || slices.Contains(s.Endpoints(), old) {
			t.Errorf("known after %v", d)
		}
		// The machine gets another address: known after a poll.
		start = time.Now()
		hostC := netip.MustParseAddr("192.0.2.3")
		mu.Lock()
		local[0] = hostC
		mu.Unlock()
		expect(mapped, netip.AddrPortFrom(hostC, port))
		if d := time.Since(start); d > pollEvery {
			t.Errorf("known after %v", d)
		}
		// Another network turns out to be the mesh's own: its addresses are offered no longer, the others are.
		s.SetExclude([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
		expect(mapped, netip.AddrPortFrom(local[3], port))
		// The home relay goes down and stays so.
		rel.setDown(2, true)
		if id := <-homes; id != 1 {
			t.Errorf("home %d, want 1", id)
		}
	})
}

// A peer at another relay is reached there; the connection is made at the first packet and not kept for ever.
func TestPeersRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.net.setDrop(func(_, _ netip.AddrPort) bool { return true })
		list := []Relay{{ID: 1}, {ID: 2}}
		p.a.SetRelays(list)
		p.b.SetRelays([]Relay{{ID: 2}})
		p.a.SetPeers([]Peer{p.b.peer(2)})
		p.b.SetPeers([]Peer{p.a.peer(1)}) // b does not know that relay: it answers by the one a calls from
		<-time.After(time.Second)
		p.shake()
		sent, got := p.talk(time.Second)
		if n, _ := lost(sent, got); n > 0 {
			t.Errorf("%d packets lost", n)
		}
		if n := len(*p.a.relays.conns.Load()); n != 2 {
			t.Errorf("%d connections, want home and the peer's", n)
		}
		<-time.After(relayIdle + time.Minute)
		if c := *p.a.relays.conns.Load(); len(c) != 1 || c[1] == nil {
			t.Errorf("connections after a rest: %v, want home only", c)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("made without keys")
	}
	s := newSide(t, Config{})
	if _, err := New(Config{Node: s.cfg.Node, Disco: s.cfg.Disco, Port: s.Port()}); err == nil {
		t.Error("two on one port")
	} else {
		t.Log(err)
	}
	s.attach()
	if _, _, err := s.Open(0); err != conn.ErrBindAlreadyOpen {
		t.Errorf("opened twice: %v", err)
	}
	s.stop()
	if _, _, err := s.Open(0); err == nil {
		t.Error("opened after Stop")
	}
	s.Stop() // again
}

func benchPeer(b *testing.B) (*side, *peer, netip.AddrPort) {
	s, d := newSide(b, Config{Loopback: true}), newSide(b, Config{})
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), d.Port())
	s.SetPeers([]Peer{d.peer(0, to)})
	p := s.table.Load().byNode[d.cfg.Node]
	for len(p.routes.Load().first) == 0 { // the loop has seen the peer
		runtime.Gosched()
	}
	p.routes.Store(&routes{primary: to, trust: path.Trust})
	p.up.Store(true) // the loop need not hear of it
	s.book.learn(1, p)
	s.book.setAddrs(p, []netip.AddrPort{to})
	return s, p, to
}

func BenchmarkSend(b *testing.B) {
	s, p, _ := benchPeer(b)
	bufs := make([][]byte, conn.IdealBatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, 1312)
		copy(bufs[i], wg(transport, 1, 0, 0))
	}
	p.heard.Store(s.now())
	b.ReportAllocs()
	b.SetBytes(int64(len(bufs) * len(bufs[0])))
	for b.Loop() {
		p.heard.Store(s.now())
		if err := s.Send(bufs, p.ep); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSort(b *testing.B) {
	s, _, from := benchPeer(b)
	pkt := wg(transport, 1, 0, 0)
	var last lookup
	b.ReportAllocs()
	for b.Loop() {
		if s.sort(pkt, from, s.now(), &last) == nil {
			b.Fatal("dropped")
		}
	}
}

func BenchmarkRing(b *testing.B) {
	r := &ring{ready: make(chan struct{}, 1)}
	pkt := make([]byte, 1312)
	bufs, sizes, eps := make([][]byte, 128), make([]int, 128), make([]conn.Endpoint, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 65535)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(pkt) * 128))
	for b.Loop() {
		for range 128 {
			r.push(pkt, nil)
		}
		if n, err := r.pop(nil, bufs, sizes, eps); n != 128 || err != nil {
			b.Fatal(n, err)
		}
	}
}
