package bind

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/hedge-mesh/hedge/node/path"
	"github.com/hedge-mesh/hedge/test/lab"
)

// Each place is known for what it is, within seconds.
func TestNAT(t *testing.T) {
	for kind, want := range map[string]path.Kind{
		"none": path.Easy, "easy": path.Easy, "easyopen": path.Easy, "fullcone": path.Easy, "addrrestr": path.Easy,
		"cgn": path.Easy, "cgn+hp": path.Easy, "dual": path.Easy, "v6": path.Easy,
		"hard": path.Random, "hardseq": path.Sequential, "hardblk": path.Block, "blocked": path.Blocked,
		"pool": path.Easy, "opencgn": path.Easy,
	} {
		synctest.Test(t, func(t *testing.T) {
			n := lab.NewInternet(1)
			names := stunServersIn(t, n)
			host, _, _, _ := n.Pair(kind, "none")
			s := newSide(t, Config{Listen: host.Listen, Interfaces: host.Interfaces, DialRelay: newDoubles(0).dial})
			s.small = true
			s.attach()
			if got := s.NAT(); got.Kind != path.Unknown {
				t.Errorf("%s: %s before anybody was asked", kind, got)
			}
			s.SetRelays([]Relay{{ID: 1, URLs: []string{"http://relay"}, STUN: names}})
			<-time.After(4 * time.Second)
			got := s.NAT()
			if got.Kind != want || got.None != (kind == "none" || kind == "v6") || got.IPv6 != (kind == "v6" || kind == "dual") {
				t.Errorf("%s: %+v, want %v", kind, got, want)
			}
			hairpin := map[string]Finding{"none": Yes, "cgn+hp": Yes, "v6": Unknown, "blocked": Unknown}
			if want, ok := hairpin[kind]; !ok && got.Hairpin != No || ok && got.Hairpin != want {
				t.Errorf("%s: hairpin %s", kind, got.Hairpin)
			}
			spoilt := map[string]Finding{"easyopen": Yes, "opencgn": Yes, "v6": Unknown, "blocked": Unknown, "hard": Unknown, "hardseq": Unknown, "hardblk": Unknown}
			if want, ok := spoilt[kind]; !ok && got.Spoilt != No || ok && got.Spoilt != want {
				t.Errorf("%s: spoilt by what nobody asked for: %s", kind, got.Spoilt)
			}
			t.Logf("%-10s %s", kind, got)
		})
	}
}

// One server is enough to know a NAT by, as it has another port.
func TestNATByOneServer(t *testing.T) {
	for kind, want := range map[string]path.Kind{
		"none": path.Easy, "easy": path.Easy, "easyrand": path.Easy, "cgn": path.Easy, "hard": path.Random, "hardseq": path.Sequential,
		"hardblk": path.Block, "hardcgn": path.Random,
	} {
		synctest.Test(t, func(t *testing.T) {
			n := lab.NewInternet(1)
			names := stunServersIn(t, n)
			host, _, _, _ := n.Pair(kind, "none")
			s := newSide(t, Config{Listen: host.Listen, Interfaces: host.Interfaces, DialRelay: newDoubles(0).dial})
			s.small = true
			s.attach()
			s.SetRelays([]Relay{{ID: 1, URLs: []string{"http://relay"}, STUN: names[:2]}})
			for range 3 { // and stays so
				if <-time.After(30 * time.Second); s.NAT().Kind != want {
					t.Errorf("%s: %+v, want %v", kind, s.NAT(), want)
				}
			}
		})
	}
}

// A port that the gateway says it forwards is tried from outside, and given up if nothing comes through.
func TestForwarded(t *testing.T) {
	for kind, want := range map[string]Finding{"none": Yes, "easy": No, "cgn": Unknown} {
		synctest.Test(t, func(t *testing.T) {
			n := lab.NewInternet(1)
			names := stunServersIn(t, n)
			host, _, _, _ := n.Pair(kind, "none")
			deaf := make(chan netip.AddrPort, 10)
			s := newSide(t, Config{Listen: host.Listen, Interfaces: host.Interfaces, DialRelay: newDoubles(0).dial, Deaf: func(a netip.AddrPort) { deaf <- a }})
			s.small = true
			s.attach()
			s.SetRelays([]Relay{{ID: 1, URLs: []string{"http://relay"}, STUN: names}})
			<-time.After(time.Second)
			at := netip.AddrPortFrom(s.NAT().Mapped[0].Addr(), 50000)
			switch kind {
			case "none": // our own port, that is
				at = s.NAT().Mapped[0]
			case "cgn": // what the inner of two NATs would say
				at = netip.MustParseAddrPort("100.100.0.7:50000")
			}
			s.SetMapped(at)
			<-time.After(2 * time.Second)
			if !slices.Contains(s.Endpoints(), at) {
				t.Errorf("%s: peers are not told of %s", kind, at)
			}
			if got := s.NAT(); got.Forwards != want || got.Forwarded != at {
				t.Errorf("%s: %s forwards %s, want %s", kind, got.Forwarded, got.Forwards, want)
			}
			if (len(deaf) > 0) != (want == No) {
				t.Errorf("%s: told %d times that nothing comes through", kind, len(deaf))
			}
			s.SetMapped(netip.AddrPort{})
			<-time.After(time.Second)
			if slices.Contains(s.Endpoints(), at) && kind != "none" {
				t.Errorf("%s: peers are still told of %s", kind, at)
			}
		})
	}
}

func TestClassifyPorts(t *testing.T) {
	for _, c := range []struct {
		ports []uint16
		want  path.Kind
		low   uint16
	}{
		{nil, path.Random, 0},
		{[]uint16{1, 2, 3}, path.Random, 0}, // too few
		{[]uint16{65532, 65533, 65534, 65535, 0, 1, 2, 3}, path.Sequential, 3},
		{[]uint16{10, 12, 14, 18, 20, 22, 24, 26}, path.Sequential, 26},          // somebody else's among them
		{[]uint16{100, 103, 110, 111, 130, 137, 150, 151}, path.Sequential, 151}, // many of them
		{[]uint16{90, 89, 87, 86, 84, 83, 82, 81}, path.Sequential, 81},          // downwards
		{[]uint16{320, 352, 384, 416, 480, 512, 544, 576}, path.Sequential, 576},
		{[]uint16{40000, 33000, 60999, 51234, 47000, 35555, 58000, 44444}, path.Block, 30616},
		{[]uint16{20100, 20900, 20500, 20001, 20777, 20333, 20200, 20998}, path.Block, 19988},
		{[]uint16{100, 900, 500, 1, 777, 333, 200, 998}, path.Block, 1},
		{[]uint16{100, 60000, 500, 1, 777, 333, 200, 998}, path.Random, 0},
		{[]uint16{9, 9, 9, 9, 9, 9, 9, 9}, path.Block, 5},
	} {
		if kind, r := classifyPorts(c.ports); kind != c.want || r[0] != c.low {
			t.Errorf("%v: %v %v, want %v from %d", c.ports, kind, r, c.want, c.low)
		}
	}
}

// Whatever the size of a block, its bounds are known well enough: little of it is left out, and little else is in it.
func TestBlockBounds(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	const rounds, first = 500, 20000
	for _, size := range []int{16, 64, 200, 512, 1024} {
		in, width := 0, 0
		for range rounds {
			ports := make([]uint16, manySamples)
			for i := range ports {
				ports[i] = uint16(first + rng.IntN(size))
			}
			kind, r := classifyPorts(ports)
			if kind != path.Block {
				t.Fatalf("%v is said to be %v", ports, kind)
			}
			in += min(int(r[1]), first+size-1) - max(int(r[0]), first) + 1
			width += int(r[1]) - int(r[0]) + 1
		}
		if in, width := float64(in)/rounds/float64(size), float64(width)/rounds; in < 0.96 || width > 1.25*float64(size)+2*blockLeast {
			t.Errorf("of %d ports %.1f %% are within %.0f", size, 100*in, width)
		}
	}
}

// A packet's own time to live is on the wire, and the next has the usual one.
func TestTimeToLive(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("packets have a time to live of their own on Linux only")
	}
	in, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	p := ipv4.NewPacketConn(in)
	if err := p.SetControlMessage(ipv4.FlagTTL, true); err != nil {
		t.Skip(err)
	}
	s := newSide(t, Config{})
	to := netip.MustParseAddrPort(in.LocalAddr().String())
	if !s.canTTL() {
		t.Fatal("the socket cannot")
	}
	for _, want := range []int{3, 64} {
		if want == 3 {
			err = s.sendTTL([]byte("short"), to, 3)
		} else {
			err = s.sendUDP([][]byte{[]byte("usual")}, to)
		}
		if err != nil {
			t.Fatal(err)
		}
		in.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, cm, _, err := p.ReadFrom(make([]byte, 100))
		if err != nil || cm.TTL != want {
			t.Errorf("time to live %+v, %v, want %d", cm, err, want)
		}
	}
}

// After an attempt no socket is left but the one in use, and that goes with its path.
func TestExtraSockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := meet(t, 4, "hardblk", "easy")
		defer m.end()
		m.shake()
		m.talk(3*time.Second, nil)
		if m.both() == 0 || len(*m.a.pins.Load()) > 1 { // none if the usual socket was hit
			t.Fatalf("direct after %v, %d sockets pinned", m.both(), len(*m.a.pins.Load()))
		}
		<-time.After(pinKeeps)
		m.rb.BlockUDP(true)
		f := m.talk(5*time.Second, nil)
		if f.gap > time.Second || len(*m.a.pins.Load()) != 0 {
			t.Errorf("%+v, and %d sockets pinned", f, len(*m.a.pins.Load()))
		}
	})
}

// A direct path that loses is left for the relay in seconds, and taken back when it is clean; it is not changed often. Which
// packets are lost is luck: of a hundred tries two or three miss a limit, so that of seven two may.
func TestLossyPath(t *testing.T) {
	seeds, _ := strconv.Atoi(os.Getenv("HEDGE_MATRIX_SEEDS"))
	seeds = max(seeds, 7)
	missed := map[float64]int{}
	for i := range 3 * seeds {
		loss := []float64{0.05, 0.1, 0.2}[i%3]
		synctest.Test(t, func(t *testing.T) {
			m := meet(t, uint64(9+i/3), "easy", "easy")
			defer m.end()
			m.shake()
			m.talk(2*time.Second, nil)
			if m.both() == 0 {
				t.Fatal("not direct")
			}
			bad, clean := lab.Link{Latency: lab.Edge, Loss: loss}, lab.Link{Latency: lab.Edge}
			m.ra.Links(bad, bad)
			start := time.Now()
			relayed := func() bool { return !m.path(m.a, m.b).Direct && !m.path(m.b, m.a).Direct }
			m.talk(20*time.Second, relayed)
			left := time.Since(start)
			before := m.change[m.a]
			f := m.talk(30*time.Second, nil)
			changes := m.change[m.a] - before
			m.ra.Links(clean, clean)
			start = time.Now()
			m.talk(30*time.Second, func() bool { return m.path(m.a, m.b).Direct && m.path(m.b, m.a).Direct })
			back := time.Since(start)
			t.Logf("%2.0f %% lost: left after %v, then %d of %d lost and %d changes in 30 s, back after %v", loss*100, left, f.lost, f.sent, changes, back)
			if left > 5*time.Second || changes > 1 || f.lost*100 > f.sent || back > 10*time.Second {
				missed[loss]++
			}
		})
	}
	for loss, n := range missed {
		if n*7 > seeds*2 {
			t.Errorf("with %2.0f %% lost %d of %d were too late, too often or too lossy", loss*100, n, seeds)
		}
	}
}

func (m *meeting) path(s, to *side) PathInfo {
	i, _ := s.Path(to.cfg.Node)
	return i
}

// While no UDP gets out a server is asked once a second, if somebody waits for a direct path; nobody is, if nobody does.
func TestKnock(t *testing.T) {
	for _, busy := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t)
			server := netip.MustParseAddrPort("192.0.2.100:3478")
			var asked atomic.Int32
			p.net.tapped = func(from, to netip.AddrPort, _ []byte) {
				if to == server && from.Addr() == hostA {
					asked.Add(1)
				}
			}
			p.net.setDrop(func(_, _ netip.AddrPort) bool { return true })
			p.a.SetRelays([]Relay{{ID: 1, STUN: []string{server.String()}}})
			p.a.SetPeers([]Peer{p.b.peer(1)})
			p.b.SetPeers([]Peer{p.a.peer(1)})
			<-time.After(time.Second)
			if busy {
				p.shake()
			}
			<-time.After(3 * time.Second)
			before := asked.Load()
			const span = time.Minute
			for range span / time.Second {
				if busy {
					p.talk(500 * time.Millisecond)
				} else {
					<-time.After(500 * time.Millisecond)
				}
				<-time.After(500 * time.Millisecond)
			}
			least, most := int32(50), int32(60+4*(60/20+4)) // a round every 20 s, of four, and some out of turn
			if !busy {
				least, most = 4, 4*(60/20+1)
			}
			if n := asked.Load() - before; n < least || n > most {
				t.Errorf("busy %t: asked %d times in %v, want %d to %d", busy, n, span, least, most)
			}
		})
	}
}

// Two who talk and find no direct path call each other less and less.
func TestVainCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.net.setDrop(func(_, _ netip.AddrPort) bool { return true })
		var calls atomic.Int32
		p.rel.lose = func(pkt []byte) bool {
			if _, ok := path.Sender(pkt); ok {
				calls.Add(1)
			}
			return false
		}
		p.shake()
		p.talk(10 * time.Second)
		before := calls.Load()
		p.talk(2 * time.Minute)
		if n := calls.Load() - before; n < 4 || n > 16 { // each twice a minute at least, for one call may be lost
			t.Errorf("%d messages by relay in two minutes", n)
		}
	})
}
