package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// socket opens a socket of one family, for the length of the test.
func socket(t *testing.T, m *Machine, network string) *Socket {
	t.Helper()
	pc, err := m.Listen(context.Background(), network, ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc.(*Socket)
}

// next is the packet that comes within a second, and its source.
func (s *Socket) next(t *testing.T) (string, netip.AddrPort) {
	t.Helper()
	s.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 2048)
	n, from, err := s.ReadFrom(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "", netip.AddrPort{}
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n]), from.(*net.UDPAddr).AddrPort()
}

func (s *Socket) send(t *testing.T, to netip.AddrPort, text string) {
	t.Helper()
	if _, err := s.WriteTo([]byte(text), net.UDPAddrFromAddrPort(to)); err != nil {
		t.Fatal(err)
	}
}

// addr is a socket's address as its neighbours see it.
func (s *Socket) addr() netip.AddrPort {
	return netip.AddrPortFrom(s.m.Addr(s.at.Addr().Is6()), s.at.Port())
}

// probe finds out what a place does to UDP, as RFC 5780 does: two addresses with two ports each answer with the source
// they see, or let another of the four say it.
type probe struct {
	Mapping, Filtering string
	Ports              string
	Hairpin            bool
}

func classify(t *testing.T, n *Internet, m *Machine) (p probe) {
	x, y := n.Machine(), n.Machine()
	servers := []*Socket{socket(t, x, "udp4"), socket(t, x, "udp4"), socket(t, y, "udp4"), socket(t, y, "udp4")}
	s := socket(t, m, "udp4")
	var mapped []netip.AddrPort
	for _, v := range servers {
		s.send(t, v.addr(), "?")
		text, from := v.next(t)
		if text == "" {
			return probe{Mapping: "blocked"}
		}
		mapped = append(mapped, from)
	}
	switch {
	case mapped[0] == mapped[1] && mapped[1] == mapped[2] && mapped[2] == mapped[3]:
		p.Mapping = EndpointIndependent.String()
	case mapped[0] == mapped[1] && mapped[2] == mapped[3]:
		p.Mapping = AddressDependent.String()
	default:
		p.Mapping = AddressAndPortDependent.String()
	}
	ports := []uint16{mapped[0].Port(), mapped[1].Port(), mapped[2].Port(), mapped[3].Port()}
	switch {
	case ports[0] == s.at.Port():
		p.Ports = Preserving.String()
	case ports[3]-ports[0] == 3:
		p.Ports = Sequential.String()
	case slices.Max(ports)-slices.Min(ports) < blockSize:
		p.Ports = Block.String()
	default:
		p.Ports = Random.String()
	}
	// Filtering: only the first server has been sent to by this one.
	f := socket(t, m, "udp4")
	f.send(t, servers[0].addr(), "?")
	_, at := servers[0].next(t)
	p.Filtering = AddressAndPortDependent.String()
	if servers[1].send(t, at, "!"); got(f.next(t)) {
		p.Filtering = AddressDependent.String()
	}
	if servers[2].send(t, at, "!"); got(f.next(t)) {
		p.Filtering = EndpointIndependent.String()
	}
	// Hairpinning, by a socket that the other has sent to as well, so that filtering does not stand in the way.
	h := socket(t, m, "udp4")
	h.send(t, servers[0].addr(), "?")
	_, other := servers[0].next(t)
	f.send(t, other, "open")
	h.next(t)
	h.send(t, at, "hairpin")
	p.Hairpin = got(f.next(t))
	return p
}

func got(text string, _ netip.AddrPort) bool { return text != "" }

// Every kind of place behaves as it is called.
func TestKinds(t *testing.T) {
	const ei, ad, apd = "endpoint-independent", "address-dependent", "address- and port-dependent"
	for _, c := range []struct {
		kind string
		want probe
	}{
		{"none", probe{ei, ei, "preserving", true}}, // its own address is its own
		{"easy", probe{ei, apd, "preserving", false}},
		{"easyopen", probe{ei, apd, "preserving", false}},
		{"fullcone", probe{ei, ei, "preserving", false}},
		{"addrrestr", probe{ei, ad, "preserving", false}},
		{"hard", probe{apd, apd, "random", false}},
		{"hardseq", probe{apd, apd, "sequential", false}},
		{"hardblk", probe{apd, apd, "block", false}},
		{"cgn", probe{ei, apd, "preserving", false}},
		{"cgn+hp", probe{ei, apd, "preserving", true}}, // the home router filters, whatever the provider's does
		{"blocked", probe{Mapping: "blocked"}},
		{"dual", probe{ei, apd, "preserving", false}},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := NewInternet(7)
			m, _, _, _ := n.Pair(c.kind, "none")
			if got := classify(t, n, m); got != c.want {
				t.Errorf("%s is %+v, want %+v", c.kind, got, c.want)
			}
		})
	}
	for _, mapping := range []Dependence{EndpointIndependent, AddressDependent, AddressAndPortDependent} {
		for _, filtering := range []Dependence{EndpointIndependent, AddressDependent, AddressAndPortDependent} {
			for _, ports := range []Ports{Sequential, Random, Block} {
				for _, hairpin := range []bool{false, true} {
					cfg := NAT{Mapping: mapping, Filtering: filtering, Ports: ports, Hairpin: hairpin}
					synctest.Test(t, func(t *testing.T) { testNAT(t, cfg) })
				}
			}
		}
	}
}

func testNAT(t *testing.T, cfg NAT) {
	n := NewInternet(3)
	got := classify(t, n, n.Router(RouterConfig{NAT: cfg}).Machine())
	want := probe{cfg.Mapping.String(), cfg.Filtering.String(), cfg.Ports.String(), cfg.Hairpin}
	if cfg.Mapping != AddressAndPortDependent { // too few mappings to tell
		want.Ports = got.Ports
	}
	if cfg.Filtering != EndpointIndependent && cfg.Mapping != EndpointIndependent {
		want.Hairpin = got.Hairpin // the far end seen inside is not the one sent to
	}
	if got != want {
		t.Errorf("%+v looks like %+v", cfg, got)
	}
}

// A router without a firewall of its own takes what nobody asked for, and then gives the one who asks another port.
func TestTrap(t *testing.T) {
	for _, trap := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := NewInternet(1)
			cfg := Home("easy")
			cfg.NAT.Trap = trap
			r := n.Router(cfg)
			in, server, peer := socket(t, r.Machine(), "udp4"), socket(t, n.Machine(), "udp4"), socket(t, n.Machine(), "udp4")
			in.send(t, server.addr(), "who am i")
			_, at := server.next(t)
			peer.send(t, at, "too early")
			if got(in.next(t)) {
				t.Error("it got in")
			}
			in.send(t, peer.addr(), "hello")
			if _, from := peer.next(t); (from != at) != trap {
				t.Errorf("trap %v: seen at %v, then at %v", trap, at, from)
			}
			in.send(t, server.addr(), "who am i")
			if _, from := server.next(t); from != at {
				t.Errorf("the old flow moved from %v to %v", at, from)
			}
		})
	}
}

// A low time to live opens the own router, and goes no further.
func TestTimeToLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewInternet(1)
		ma, mb, _, _ := n.Pair("easy", "easyopen")
		a, b, server := socket(t, ma, "udp4"), socket(t, mb, "udp4"), socket(t, n.Machine(), "udp4")
		at := func(s *Socket) netip.AddrPort {
			s.send(t, server.addr(), "?")
			_, from := server.next(t)
			return from
		}
		atA, atB := at(a), at(b)
		if _, err := a.WriteTTL([]byte("open"), atB, 2); err != nil {
			t.Fatal(err)
		}
		b.send(t, atA, "hello")
		if text, from := a.next(t); text != "hello" || from != atB {
			t.Errorf("got %q from %v, want hello from %v", text, from, atB)
		}
		if got(b.next(t)) {
			t.Error("the opener arrived")
		}
	})
}

// Links take their time, lose, shuffle and swallow what is too long; and twice the same from one seed.
func TestLinks(t *testing.T) {
	run := func(t *testing.T, up Link) (order []uint32, first, last time.Duration) {
		n := NewInternet(5)
		ma, mb, ra, _ := n.Pair("easy", "none")
		ra.Links(up, Link{})
		a, b := socket(t, ma, "udp4"), socket(t, mb, "udp4")
		start := time.Now()
		for i := range uint32(1000) {
			a.WriteTo(append(binary.BigEndian.AppendUint32(nil, i), make([]byte, 96)...), net.UDPAddrFromAddrPort(b.addr()))
			<-time.After(time.Millisecond)
		}
		for {
			text, _ := b.next(t)
			if text == "" {
				return order, first, last
			}
			i := binary.BigEndian.Uint32([]byte(text))
			if len(order) == 0 {
				first = time.Since(start)
			}
			last = time.Since(start)
			order = append(order, i)
		}
	}
	for _, c := range []struct {
		name        string
		link        Link
		least, most int
		ordered     bool
	}{
		{"clean", Link{Latency: 10 * time.Millisecond}, 1000, 1000, true},
		{"lossy", Link{Latency: 10 * time.Millisecond, Loss: 0.2}, 760, 840, true},
		{"jittery", Link{Latency: 10 * time.Millisecond, Jitter: 20 * time.Millisecond}, 1000, 1000, true},
		{"shuffled", Link{Latency: 10 * time.Millisecond, Reorder: 0.1}, 1000, 1000, false},
		{"narrow", Link{MTU: 100}, 0, 0, true},
		{"wide enough", Link{MTU: 128}, 1000, 1000, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			once, _, _ := run(t, c.link)
			if len(once) < c.least || len(once) > c.most || slices.IsSorted(once) != c.ordered {
				t.Errorf("%s: %d of 1000 arrived, in order: %v", c.name, len(once), slices.IsSorted(once))
			}
			if twice, _, _ := run(t, c.link); !slices.Equal(once, twice) {
				t.Errorf("%s: two runs from one seed differ", c.name)
			}
		})
	}
}

// Any two places are 20 ms apart, and a firewall for IPv6 lets in what was asked for.
func TestSix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewInternet(1)
		ma, mb, _, _ := n.Pair("v6", "dual")
		if _, err := socket(t, ma, "udp4").WriteTo([]byte("?"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("203.0.113.1:1"))); err == nil {
			t.Error("a machine without IPv4 sends by it")
		}
		a, b := socket(t, ma, "udp6"), socket(t, mb, "udp6")
		a.send(t, b.addr(), "opens only its own")
		if got(b.next(t)) {
			t.Error("it passed the firewall")
		}
		start := time.Now()
		b.send(t, a.addr(), "hello")
		if text, from := a.next(t); text != "hello" || from != b.addr() || time.Since(start) != 2*Edge {
			t.Errorf("%q from %v after %v", text, from, time.Since(start))
		}
	})
}

// Machines move, routers forget and get other addresses; deadlines and Close wake readers.
func TestChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewInternet(1)
		ma, mb, ra, _ := n.Pair("easy", "none")
		a, b := socket(t, ma, "udp4"), socket(t, mb, "udp4")
		at := func() netip.AddrPort {
			a.send(t, b.addr(), "?")
			_, from := b.next(t)
			return from
		}
		first := at()
		ra.Forget()
		if b.send(t, first, "stale"); got(a.next(t)) {
			t.Error("the router remembers")
		}
		if again := at(); again != first {
			t.Errorf("%v became %v, but the router keeps ports", first, again)
		}
		if ra.Rebind(); at().Addr() == first.Addr() {
			t.Error("the address did not change")
		}
		before, _ := ma.Interfaces()
		ma.Move(n.Router(Home("hard")))
		if after, _ := ma.Interfaces(); fmt.Sprint(before) == fmt.Sprint(after) || at().Addr() == first.Addr() {
			t.Error("the machine did not move")
		}
		done := make(chan error)
		go func() {
			_, _, err := a.ReadFrom(make([]byte, 10))
			done <- err
		}()
		a.SetReadDeadline(time.Time{})
		synctest.Wait()
		a.SetReadDeadline(time.Unix(1, 0))
		if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		a.Close()
		if _, _, err := a.ReadFrom(nil); err == nil {
			t.Error("read from a closed socket")
		}
	})
}

// IPv6 comes and goes while sockets are open.
func TestIPv6ComesAndGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewInternet(1)
		ma, mb, _, _ := n.Pair("dual", "dual")
		a, b := socket(t, ma, "udp6"), socket(t, mb, "udp6")
		heard := func() bool {
			if !ma.Addr(true).IsValid() {
				return false
			}
			a.send(t, b.addr(), "opens only its own")
			b.send(t, a.addr(), "hello")
			return got(a.next(t))
		}
		was := ma.Addr(true)
		for _, on := range []bool{true, false, true} {
			if ma.IPv6(on); heard() != on {
				t.Errorf("IPv6 %v, and heard %v", on, !on)
			}
		}
		if ma.Addr(true) == was {
			t.Error("it has its old address again")
		}
	})
}

// A NAT that has so many mappings makes no more until one is forgotten, and one whose block is for a time changes it.
func TestQuotaAndShift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewInternet(1)
		cfg := RouterConfig{NAT: NAT{Mapping: AddressAndPortDependent, Ports: Block, Size: 16, Shift: time.Minute, Quota: 2, Timeout: 30 * time.Second}}
		s := socket(t, n.Router(cfg).Machine(), "udp4")
		ask := func() uint16 {
			server := socket(t, n.Machine(), "udp4")
			s.send(t, server.addr(), "?")
			_, from := server.next(t)
			return from.Port()
		}
		first, second, third := ask(), ask(), ask()
		if first/16 != second/16 || third != 0 {
			t.Errorf("seen at %d, %d and %d", first, second, third)
		}
		<-time.After(time.Minute)
		if later := ask(); later == 0 || later/16 == first/16 {
			t.Errorf("seen at %d, and a minute later at %d", first, later)
		}
	})
}
