package filter

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// The mesh of most tests: V is this node, A may reach it, X is a peer with no rule at all.
//
//	A 100.64.0.1 fd68::1 ──── tcp/22, udp/53 ────▶ V 100.64.0.9 fd68::9, carries 10.9.0.0/16
//	X 100.64.0.2 fd68::2          (nothing)
//	R 100.64.0.3 fd68::3, carries 10.3.0.0/16 and is an exit
const (
	idA, idX, idR, idV = 1, 2, 3, 9

	a4, x4, r4, v4 = "100.64.0.1", "100.64.0.2", "100.64.0.3", "100.64.0.9"
	a6, x6, r6, v6 = "fd68::1", "fd68::2", "fd68::3", "fd68::9"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func after(d time.Duration) time.Time { return t0.Add(d) }

func node(id acl.NodeID, name string, addrs []string, routes ...string) acl.Node {
	n := acl.Node{ID: id, Name: name, User: name + "@example.com"}
	for _, a := range addrs {
		n.Addrs = append(n.Addrs, netip.MustParseAddr(a))
	}
	for _, r := range routes {
		n.Routes = append(n.Routes, netip.MustParsePrefix(r))
	}
	return n
}

func ports(list ...uint16) (pr []acl.PortRange) {
	for _, p := range list {
		pr = append(pr, acl.PortRange{First: p, Last: p})
	}
	return
}

var anyPort = []acl.PortRange{acl.AllPorts}

// rule is one line of policy, at acl.hujson:line.
func rule(line int, action acl.Action, src, dst string, pr []acl.PortRange, protos ...uint8) acl.Rule {
	return acl.Rule{Pos: acl.Pos{File: "acl.hujson", Line: line, Col: 5}, Path: "acls[" + string(rune('0'+line)) + "]",
		Action: action, Src: []string{src}, Dst: []acl.Target{{Set: dst, Ports: pr}}, Protos: protos}
}

func prefixSet(list ...string) (s acl.Set) {
	for _, p := range list {
		s.Prefixes = append(s.Prefixes, netip.MustParsePrefix(p))
	}
	return
}

// mesh is the configuration above with other rules, if any are given.
func mesh(revision uint64, rules ...acl.Rule) *Config {
	if rules == nil {
		rules = []acl.Rule{rule(1, acl.Accept, "a", "v", ports(22), protoTCP), rule(2, acl.Accept, "a", "v", ports(53), protoUDP)}
	}
	return &Config{
		Self: node(idV, "victim", []string{v4, v6}, "10.9.0.0/16"),
		Peers: []acl.Node{
			node(idA, "alice", []string{a4, a6}),
			node(idX, "mallory", []string{x4, x6}),
			node(idR, "router", []string{r4, r6}, "10.3.0.0/16", "0.0.0.0/0", "::/0"),
		},
		Mesh: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd68::/48")},
		View: acl.View{Rules: rules, Sets: map[string]acl.Set{
			"a": {Nodes: []acl.NodeID{idA}}, "x": {Nodes: []acl.NodeID{idX}}, "r": {Nodes: []acl.NodeID{idR}},
			"v": {Nodes: []acl.NodeID{idV}}, "*": {Any: true},
			"lan3": prefixSet("10.3.0.0/16"), "lan9": prefixSet("10.9.0.0/16"), "ten": prefixSet("10.0.0.0/8"),
			"earth": prefixSet("0.0.0.0/0", "::/0"), "autogroup:internet": prefixSet("8.0.0.0/7", "2000::/3"),
			"a4only": prefixSet(a4 + "/32"),
		}},
		Revision: revision,
	}
}

func newMesh(t testing.TB, rules ...acl.Rule) *Filter {
	t.Helper()
	f := New(Options{})
	if cuts := f.Set(mesh(1, rules...), t0); cuts != nil {
		t.Fatalf("a new filter cut %v", cuts)
	}
	return f
}

// Packets are written as text is: ip(src, dst, tcp(...)).

type l4 struct {
	proto uint8
	body  []byte
}

func tcpSeg(sport, dport uint16, flags uint8, seq, ack uint32, data string, options ...byte) l4 {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	b := make([]byte, 20, 20+len(options)+len(data))
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], ack)
	b[12], b[13] = byte(5+len(options)/4)<<4, flags
	binary.BigEndian.PutUint16(b[14:], 65000)
	return l4{protoTCP, append(append(b, options...), data...)}
}

func tcp(sport, dport uint16, flags uint8) l4 {
	return tcpSeg(sport, dport, flags, 1000, 0, "")
}

func udp(sport, dport uint16, n int) l4 {
	b := make([]byte, 8+n)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	return l4{protoUDP, b}
}

// icmp is a message; its protocol follows the family in ip.
func icmp(typ, code uint8, id uint16, body ...byte) l4 {
	b := make([]byte, 8, 8+len(body))
	b[0], b[1] = typ, code
	binary.BigEndian.PutUint16(b[4:], id)
	return l4{protoICMP, append(b, body...)}
}

func ping(src, dst string, id uint16) []byte {
	if netip.MustParseAddr(src).Is4() {
		return ip(src, dst, icmp(8, 0, id))
	}
	return ip(src, dst, icmp(128, 0, id))
}

func pong(src, dst string, id uint16) []byte {
	if netip.MustParseAddr(src).Is4() {
		return ip(src, dst, icmp(0, 0, id))
	}
	return ip(src, dst, icmp(129, 0, id))
}

func ip(src, dst string, t l4) []byte { return fragOf(src, dst, t.proto, 0, 0, false, t.body) }

// fragOf is a fragment at off, or a whole packet if off is 0 and more is false.
func fragOf(src, dst string, proto uint8, id uint16, off int, more bool, body []byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	if s.Is4() {
		b := make([]byte, 20, 20+len(body))
		s4, d4 := s.As4(), d.As4()
		copy(b[12:], s4[:])
		copy(b[16:], d4[:])
		b[0], b[8], b[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(body)))
		binary.BigEndian.PutUint16(b[4:], id)
		ff := uint16(off / 8)
		if more {
			ff |= 0x2000
		}
		binary.BigEndian.PutUint16(b[6:], ff)
		binary.BigEndian.PutUint16(b[10:], checksum(b, 0))
		return append(b, body...)
	}
	if proto == protoICMP {
		proto = protoICMPv6
	}
	if off == 0 && !more {
		return ip6(src, dst, proto, body)
	}
	h := []byte{proto, 0, 0, 0, 0, 0, byte(id >> 8), byte(id)}
	ff := uint16(off)
	if more {
		ff |= 1
	}
	binary.BigEndian.PutUint16(h[2:], ff)
	return ip6(src, dst, protoFragment, append(h, body...))
}

func ip6(src, dst string, next uint8, body []byte) []byte {
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	b := make([]byte, 40, 40+len(body))
	b[0], b[6], b[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return append(b, body...)
}

// in and out fail the test unless the packet meets its reason.
func in(t testing.TB, f *Filter, pkt []byte, want Reason) Verdict {
	t.Helper()
	return expect(t, f.In(pkt, t0), want)
}

func out(t testing.TB, f *Filter, pkt []byte, want Reason) Verdict {
	t.Helper()
	return expect(t, f.Out(pkt, t0), want)
}

func expect(t testing.TB, v Verdict, want Reason) Verdict {
	t.Helper()
	if v.Reason != want || v.Allow != want.Allows() {
		t.Errorf("got %v (allow %v), want %v", v.Reason, v.Allow, want)
	}
	return v
}
