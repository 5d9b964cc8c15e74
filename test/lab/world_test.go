//go:build linux

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func listenOn(t *testing.T, s Space, at string) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	if err := s.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// reflect makes two servers that tell whoever sends to them where they are. A single byte asks for the answer to come
// from another address, by its place in the list:
//
//	server 0  v4 :3478, v6 :3478, v4 :3479, v6 :3479
//	server 1  the same
func reflect(t *testing.T, w *World) (to []netip.AddrPort) {
	t.Helper()
	var conns []*net.UDPConn
	for i := range 2 {
		s, err := w.Server(i)
		if err != nil {
			t.Fatal(err)
		}
		for _, port := range []int{3478, 3479} {
			for _, a := range []netip.Addr{s.Addr, s.Addr6} {
				c := listenOn(t, s.Space, netip.AddrPortFrom(a, uint16(port)).String())
				conns = append(conns, c)
				to = append(to, c.LocalAddr().(*net.UDPAddr).AddrPort())
			}
		}
	}
	for _, c := range conns {
		go func() {
			var b [64]byte
			for {
				n, from, err := c.ReadFromUDPAddrPort(b[:])
				if err != nil {
					return
				}
				by := c
				if n == 1 {
					by = conns[b[0]]
				}
				text, _ := from.MarshalText()
				by.WriteToUDPAddrPort(text, from)
			}
		}()
	}
	return to
}

// ask sends and returns what came back within 200 ms, empty if nothing did.
func ask(c *net.UDPConn, to netip.AddrPort, b string) string {
	c.WriteToUDPAddrPort([]byte(b), to)
	c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	var buf [64]byte
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf[:])
		if err != nil {
			return ""
		}
		if len(b) == 1 || from.Port() == to.Port() && from.Addr().Unmap() == to.Addr().Unmap() { // and not the late answer to an earlier question
			return string(buf[:n])
		}
	}
}

// where is ask for our address, repeated: a machine that has other things to do may take its time.
func where(c *net.UDPConn, to netip.AddrPort) (at string) {
	for range 5 {
		if at = ask(c, to, "where?"); at != "" {
			break
		}
	}
	return at
}

// behaviour is what a probe of RFC 5780's sort finds.
type behaviour struct {
	Ports     string // "one", "many" outside ports for many far ends; "none" if nothing comes back
	Filtering string // who gets in: "any", "address", "port"
}

func behave(t *testing.T, s *Site, to []netip.AddrPort) (b behaviour, seen []string) {
	first, step := 0, 2
	local := "0.0.0.0:0"
	if s.six() {
		first, local = 1, "[::]:0"
	}
	c := listenOn(t, s.Space, local)
	if where(c, to[first]) == "" {
		return behaviour{"none", ""}, nil
	}
	switch {
	case ask(c, to[first], string(rune(first+2*step))) != "": // by the other server
		b.Filtering = "any"
	case ask(c, to[first], string(rune(first+step))) != "": // by another port of the same
		b.Filtering = "address"
	default:
		b.Filtering = "port"
	}
	c = listenOn(t, s.Space, local)
	for i := first; i < len(to); i += step {
		seen = append(seen, where(c, to[i]))
	}
	seen = slices.DeleteFunc(seen, func(at string) bool { return at == "" }) // lost, or not let out
	slices.Sort(seen)
	b.Ports = "one"
	if len(slices.Compact(slices.Clone(seen))) > 1 {
		b.Ports = "many"
	}
	return b, seen
}

// Every kind maps and filters as its name says.
func TestWorldKinds(t *testing.T) {
	if err := CanWorld(); err != nil {
		t.Skip(err)
	}
	want := map[string]behaviour{
		"none": {"one", "any"}, "easy": {"one", "port"}, "easyopen": {"one", "port"}, "fullcone": {"one", "any"},
		"addrrestr": {"one", "address"}, "hard": {"many", "port"}, "hardseq": {"many", "port"}, "hardblk": {"many", "port"},
		"cgn": {"one", "port"}, "cgn+hp": {"one", "port"}, "blocked": {"none", ""}, "v6": {"one", "port"}, "dual": {"one", "port"},
		"easyrand": {"one", "port"}, "short": {"one", "port"}, "hardaddr": {"many", "address"}, "hardfree": {"many", "any"}, "hardshort": {"many", "port"},
		"opencgn": {"one", "port"}, "hardcgn": {"many", "port"}, "hardhard": {"many", "port"},
		"hardseq2": {"many", "port"}, "hardblk64": {"many", "port"}, "pool": {"many", "port"}, "hardpool": {"many", "port"}, "firewall": {"one", "port"},
		"nat66": {"one", "port"}, "dualhard": {"many", "port"}, "ports": {"one", "port"}, "quota": {"many", "port"}, "wary": {"one", "port"},
		"strict": {"one", "port"}, "addrport": {"many", "port"}, "addrfree": {"many", "any"}, "portaddr": {"many", "address"}, "ecmp": {"many", "port"},
		"brief": {"one", "port"}, "newflows": {"one", "port"}, "small": {"one", "port"}, "sixudp": {"none", ""}, "blocked6": {"none", ""},
		"docker": {"one", "port"}, "cgn3": {"one", "port"},
	}
	w, err := NewWorld()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	to := reflect(t, w)
	for _, kind := range slices.Concat(Kinds, MoreKinds, WorldKinds) {
		s, err := w.Site(kind, true)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			got, seen := behave(t, s, to)
			for range 2 { // what a busy machine answers late counts as lost
				if got != want[kind] {
					got, seen = behave(t, s, to)
				}
			}
			if got != want[kind] {
				t.Errorf("it is %v, expected %v; seen from outside: %q", got, want[kind], seen)
			}
			if kind != "hardseq" && kind != "hardblk" {
				return
			}
			for i, a := range seen {
				port := netip.MustParseAddrPort(a).Port()
				before := netip.MustParseAddrPort(seen[max(i-1, 0)]).Port()
				if kind == "hardseq" && i > 0 && port != before+1 || kind == "hardblk" && (port < 20000 || port > 21023) {
					t.Errorf("the ports are %q", seen)
				}
			}
		})
	}
}

// Wires take their time, and events do to mappings what they say.
func TestWorldEvents(t *testing.T) {
	if err := CanWorld(); err != nil {
		t.Skip(err)
	}
	w, err := NewWorld()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	to := reflect(t, w)
	s, err := w.Site("easy", false)
	if err != nil {
		t.Fatal(err)
	}
	c := listenOn(t, s.Space, "0.0.0.0:5000")
	start := time.Now()
	if at := ask(c, to[0], "where?"); at != "203.0.114.2:5000" {
		t.Fatalf("the client is seen at %q", at)
	}
	if took := time.Since(start); took < 4*Half || took > 4*Half+30*time.Millisecond {
		t.Errorf("there and back took %v, expected %v", took, 4*Half)
	}
	s.Wire.Set(func(l *Line) { l.MTU = 100 })
	if ask(c, to[0], fmt.Sprintf("%50d", 0)) == "" || ask(c, to[0], fmt.Sprintf("%60d", 0)[:60]+fmt.Sprintf("%40d", 0)) != "" {
		t.Error("of a black hole at 100 bytes the small packet must come through, the large one not")
	}
	s.Wire.Set(func(l *Line) { l.MTU = 0 })
	do := func(name string, err error) {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	do("MoveWAN", s.MoveWAN())
	if at := ask(c, to[0], "where?"); at != "203.0.114.71:5000" {
		t.Errorf("after a new address outside the client is seen at %q", at)
	}
	do("MoveLAN", s.MoveLAN())
	if at := ask(c, to[0], "where?"); at == "" || at == "203.0.114.71:5000" {
		t.Errorf("after a new address inside, while the old has the port, the client is seen at %q", at)
	}
	do("Forget", s.Forget())
	if at := ask(c, to[0], "where?"); at != "203.0.114.71:5000" {
		t.Errorf("after the router has forgotten all, the client is seen at %q", at)
	}
	do("BlockUDP", s.BlockUDP(true))
	if at := ask(c, to[0], "where?"); at != "" {
		t.Errorf("with UDP blocked, %q", at)
	}
	do("BlockUDP", s.BlockUDP(false))
	do("Forward", s.Forward(6000, 5001))
	in := listenOn(t, s.Space, "0.0.0.0:5001")
	far := listenOn(t, w.net, "0.0.0.0:0")
	far.WriteToUDPAddrPort([]byte("to a forwarded port"), netip.MustParseAddrPort("203.0.114.71:6000"))
	in.SetReadDeadline(time.Now().Add(time.Second))
	if n, _, err := in.ReadFrom(make([]byte, 64)); n == 0 {
		t.Errorf("a forwarded port: %v", err)
	}
	do("NewUplink", s.NewUplink("hard", true))
	if at := ask(c, to[0], "where?"); len(at) < 11 || at[:11] != "203.0.163.2" {
		t.Errorf("by the second uplink the client is seen at %q", at)
	}
	do("DropUplink", s.DropUplink())
	if at := ask(c, to[0], "where?"); len(at) < 11 || at[:11] != "203.0.163.2" {
		t.Errorf("by the second uplink alone the client is seen at %q", at)
	}
}
