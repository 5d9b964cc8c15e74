package filter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// Each test is an attack by X, an authenticated peer with no rule, or by a peer with one that wants more. See mesh
// for who is who. Zero packets may pass unless a test says so.

func TestPacketsFromPeerWithoutRule(t *testing.T) {
	quote := ip(v4, x4, udp(53, 5353, 0))
	for _, tt := range []struct {
		name string
		pkt  []byte
		want Reason
	}{
		{"SYN", ip(x4, v4, tcp(5000, 9999, syn)), NoRule},
		{"SYN to the open port", ip(x4, v4, tcp(5000, 22, syn)), NoRule},
		{"ACK", ip(x4, v4, tcp(5000, 9999, ackFlag)), TCPNoFlow},
		{"RST", ip(x4, v4, tcp(5000, 9999, rst)), TCPNoFlow},
		{"FIN", ip(x4, v4, tcp(5000, 9999, fin)), TCPFlags},
		{"NULL", ip(x4, v4, tcp(5000, 9999, 0)), TCPFlags},
		{"SYN+ACK", ip(x4, v4, tcp(5000, 9999, syn|ackFlag)), TCPNoFlow},
		{"SYN+FIN", ip(x4, v4, tcp(5000, 9999, syn|fin)), TCPFlags},
		{"later fragment, TCP", fragOf(x4, v4, protoTCP, 7, 80, false, make([]byte, 80)), FragNoFirst},
		{"later fragment, GRE", fragOf(x4, v4, 47, 7, 80, false, make([]byte, 80)), FragNoFirst},
		{"fragment inside the header", fragOf(x4, v4, protoTCP, 7, 8, false, make([]byte, 80)), FragTiny},
		{"echo reply with a payload", ip(x4, v4, icmp(0, 0, 1, make([]byte, 1200)...)), ICMPNoRequest},
		{"unreachable with a payload", ip(x4, v4, icmp(3, 1, 0, make([]byte, 1200)...)), ICMPSize},
		{"unreachable quoting no flow", ip(x4, v4, icmp(3, 1, 0, quote...)), ICMPNoFlow},
		{"echo request", ping(x4, v4, 1), NoRule},
		{"redirect", ip(x4, v4, icmp(5, 1, 0, quote...)), ICMPType},
		{"timestamp", ip(x4, v4, icmp(13, 0, 0, make([]byte, 12)...)), ICMPType},
		{"UDP 53", ip(x4, v4, udp(5000, 53, 20)), NoRule},
		{"UDP from 53", ip(x4, v4, udp(53, 5000, 20)), NoRule},
		{"protocol 99", ip(x4, v4, l4{99, make([]byte, 20)}), NoRule},
		{"v6 ACK", ip(x6, v6, tcp(5000, 9999, ackFlag)), TCPNoFlow},
		{"v6 later fragment", fragOf(x6, v6, protoTCP, 7, 80, false, make([]byte, 80)), FragNoFirst},
		{"v6 first fragment of protocol 99", fragOf(x6, v6, 99, 7, 0, true, make([]byte, 80)), NoRule},
		{"v6 destination options and SYN", ip6(x6, v6, protoDestOpts, append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, tcp(5, 22, syn).body...)), NoRule},
		{"v6 hop-by-hop and SYN", ip6(x6, v6, protoHopByHop, append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, tcp(5, 22, syn).body...)), NoRule},
		{"v6 echo reply", pong(x6, v6, 1), ICMPNoRequest},
		{"v6 neighbour solicitation", ip(x6, v6, icmp(135, 0, 0, make([]byte, 16)...)), ICMPType},
		{"v6 neighbour advertisement", ip(x6, v6, icmp(136, 0, 0, make([]byte, 16)...)), ICMPType},
		{"v6 router advertisement", ip(x6, v6, icmp(134, 0, 0, make([]byte, 8)...)), ICMPType},
		{"v6 redirect", ip(x6, v6, icmp(137, 0, 0, make([]byte, 32)...)), ICMPType},
	} {
		t.Run(tt.name, func(t *testing.T) { in(t, newMesh(t), tt.pkt, tt.want) })
	}
}

// IHL=0 makes careless readers take ports out of the IP header.
func TestIHLBelowFive(t *testing.T) {
	f := newMesh(t)
	for ihl := range byte(5) {
		pkt := ip(a4, v4, tcp(5000, 22, syn))
		pkt[0] = 0x40 | ihl
		in(t, f, pkt, Malformed)
	}
}

// T2.1: sources that are not the sender's. Another member's address is not among them: WireGuard's cryptokey
// routing has dropped those before a filter sees them, and to us the address is the identity.
func TestSourceNotOwned(t *testing.T) {
	all := mesh(1, rule(1, acl.Accept, "*", "*", anyPort), rule(2, acl.Accept, "earth", "earth", anyPort))
	f := New(Options{})
	f.Set(all, t0)
	sent := uint64(0)
	for _, src := range []string{v4, "127.0.0.1", "127.255.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.2.3",
		"255.255.255.255", "240.0.0.1", "169.254.169.254", "10.9.1.1", // behind V itself
		v6, "::", "::1", "fe80::1", "ff02::1", "::ffff:100.64.0.1", "::100.64.0.1"} {
		for _, body := range []l4{tcp(5000, 22, syn), tcp(5000, 22, ackFlag), udp(5000, 53, 8), icmp(8, 0, 1)} {
			var pkt []byte
			if a := netip.MustParseAddr(src); a.Is4() {
				pkt = ip(src, v4, body)
			} else if body.proto == protoICMP {
				pkt = ip6(src, v6, protoICMPv6, icmp(128, 0, 1).body)
			} else {
				pkt = ip6(src, v6, body.proto, body.body)
			}
			in(t, f, pkt, SrcNotOwned)
			sent++
		}
	}
	if got := f.Stats().In[SrcNotOwned]; got != sent {
		t.Errorf("counter says %d of %d", got, sent)
	}
	if got := SrcNotOwned.String(); got != "src_not_owned" {
		t.Error(got)
	}
	f.Set(mesh(2), t0)
	out(t, f, ip("100.64.0.77", a4, udp(1, 2, 0)), SrcNotOwned)
	out(t, f, ip("192.168.1.5", a4, udp(1, 2, 0)), SrcNotOwned)
}

// A subnet that a peer does not carry is no source of its, a subnet it carries is, and an exit is no source of "*".
func TestSourceBehindPeer(t *testing.T) {
	c := mesh(1, rule(1, acl.Accept, "*", "v", anyPort))
	c.Peers = c.Peers[2:] // only R, with 10.3.0.0/16
	c.Peers[0].Routes = c.Peers[0].Routes[:1]
	f := New(Options{})
	f.Set(c, t0)
	in(t, f, ip("10.3.7.7", v4, udp(1, 2, 0)), ByRule)
	in(t, f, ip("10.4.7.7", v4, udp(1, 2, 0)), SrcNotOwned)
	f.Set(mesh(2, rule(1, acl.Accept, "*", "v", anyPort)), t0) // now R is an exit too
	in(t, f, ip("8.8.8.8", v4, udp(1, 2, 0)), NoRule)
	in(t, f, ip("10.4.7.7", v4, udp(1, 2, 0)), SrcNotOwned)
	f.Set(mesh(3, rule(1, acl.Accept, "earth", "v", anyPort)), t0)
	in(t, f, ip("8.8.8.8", v4, udp(1, 2, 0)), ByRule)
	in(t, f, ip("10.4.7.7", v4, udp(1, 2, 0)), SrcNotOwned)
}

// An address of the mesh is a node's or nobody's: no exit, and no route around it or inside it, stands in for a node
// that this one may not know, in either direction.
//
//	V ── to 100.64.0.77, hidden from it ──▶ R, an exit      must not pass as "*"
//	R ── from 100.64.0.77 ──▶ V                             must not pass as R's
func TestMeshAddressesNeverMatchThroughRoutes(t *testing.T) {
	const hidden4, hidden6 = "100.64.0.77", "fd68::77"
	c := mesh(1, rule(1, acl.Accept, "*", "*", anyPort), rule(2, acl.Accept, "earth", "earth", anyPort))
	for _, p := range []string{"100.64.0.0/24", "100.0.0.0/8", "fd68::/64", "fd68::/16", "100.64.0.77/32"} {
		c.Peers[2].Routes = append(c.Peers[2].Routes, netip.MustParsePrefix(p))
		c.Self.Routes = append(c.Self.Routes, netip.MustParsePrefix(p))
	}
	c.Self.Routes = append(c.Self.Routes, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
	f := New(Options{})
	f.Set(c, t0)
	for _, ends := range [][3]string{{v4, hidden4, a4}, {v6, hidden6, a6}} {
		us, hidden, alice := ends[0], ends[1], ends[2]
		out(t, f, ip(us, hidden, tcp(5000, 443, syn)), DstNotOwned)
		in(t, f, ip(hidden, us, tcp(5000, 443, syn)), SrcNotOwned)
		in(t, f, ip(alice, hidden, tcp(5000, 443, syn)), DstNotOwned) // V is an exit too, and no way into the mesh
		out(t, f, ip(hidden, alice, tcp(5000, 443, syn)), SrcNotOwned)
		if id, ok := f.Peer(netip.MustParseAddr(hidden)); ok {
			t.Errorf("%s is of peer %d", hidden, id)
		}
		out(t, f, ip(us, alice, tcp(5000, 443, syn)), ByRule)
		in(t, f, ip(alice, us, tcp(6000, 443, syn)), ByRule)
	}
	out(t, f, ip(v4, "8.8.8.8", tcp(5000, 443, syn)), ByRule) // the exit is still one
	out(t, f, ip(v4, "100.1.2.3", tcp(5000, 443, syn)), ByRule)
	c.Mesh = nil // none known: then routes are all there is to go by
	f.Set(c, t0)
	out(t, f, ip(v4, hidden4, tcp(5000, 443, syn)), ByRule)
}

// T2.3: every combination of flags, in every state of a connection between A and V on the very same ports.
func TestTCPFlagsFromUnauthorisedPeer(t *testing.T) {
	states := map[string][]struct {
		in    bool
		flags uint8
		seq   uint32
		ack   uint32
	}{
		"no flow":     {},
		"syn-sent":    {{true, syn, 999, 0}},
		"established": {{true, syn, 999, 0}, {false, syn | ackFlag, 4999, 1000}, {true, ackFlag, 1000, 5000}},
		"time-wait": {{true, syn, 999, 0}, {false, syn | ackFlag, 4999, 1000}, {true, ackFlag, 1000, 5000},
			{true, fin | ackFlag, 1000, 5000}, {false, fin | ackFlag, 5000, 1001}, {true, ackFlag, 1001, 5001}},
	}
	for name, steps := range states {
		t.Run(name, func(t *testing.T) {
			f := newMesh(t)
			for i, s := range steps {
				want := ByFlow
				if i == 0 {
					want = ByRule
				}
				if s.in {
					in(t, f, ip(a4, v4, tcpSeg(5000, 22, s.flags, s.seq, s.ack, "")), want)
				} else {
					out(t, f, ip(v4, a4, tcpSeg(22, 5000, s.flags, s.seq, s.ack, "")), want)
				}
			}
			for fl := range f.Flows {
				if fl.State != name {
					t.Fatalf("the connection is %s", fl.State)
				}
			}
			accepted := 0
			for flags := range 64 {
				for _, seq := range []uint32{0, 1000, 1001, 5000, 5001} {
					for _, port := range []uint16{22, 9999} {
						if f.In(ip(x4, v4, tcpSeg(5000, port, uint8(flags), seq, seq, "")), t0).Allow ||
							f.In(ip(x6, v6, tcpSeg(5000, port, uint8(flags), seq, seq, "x")), t0).Allow ||
							f.In(ip(x4, v4, tcpSeg(port, 5000, uint8(flags), seq, seq, "")), t0).Allow {
							accepted++
						}
					}
				}
			}
			if accepted != 0 {
				t.Errorf("%d accepted", accepted)
			}
		})
	}
}

// T2.4: chains of extension headers never hide the transport header, nor take long (BenchmarkExtensionChain). What
// passes must pass without the chain too.
func TestExtensionChains(t *testing.T) {
	exts := map[uint8][]byte{
		protoHopByHop: {0, 0, 1, 4, 0, 0, 0, 0}, protoDestOpts: {0, 0, 1, 4, 0, 0, 0, 0}, protoRouting: {0, 0, 0, 1, 0, 0, 0, 0},
		protoFragment: {0, 0, 0, 0, 0, 0, 0, 9}, 51: {0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 135: {0, 0, 0, 0, 0, 0, 0, 0},
		139: {0, 0, 0, 0, 0, 0, 0, 0}, 140: {0, 0, 0, 0, 0, 0, 0, 0}, 253: {0, 0, 0, 0, 0, 0, 0, 0}, 254: {0, 0, 0, 0, 0, 0, 0, 0},
	}
	uppers := []l4{tcp(5000, 22, syn), tcp(5000, 9999, syn), udp(5000, 53, 4), {protoICMPv6, icmp(128, 0, 1).body}, {protoNoNext, nil}}
	f, tried, passed := newMesh(t), 0, 0
	var walk func(depth int, first uint8, body []byte, dull bool, upper l4)
	walk = func(depth int, first uint8, body []byte, dull bool, upper l4) {
		for _, src := range []string{x6, a6} {
			tried++
			v := f.In(ip6(src, v6, first, body), t0)
			if !v.Allow {
				continue
			}
			passed++
			if src == x6 || !dull || upper.proto == protoTCP && upper.body[2] == 0x27 {
				t.Errorf("%s: % x: %v", src, body, v)
			}
		}
		if depth == 4 {
			return
		}
		for proto, h := range exts {
			h := bytes.Clone(h)
			h[0] = first
			walk(depth+1, proto, append(h, body...), dull && (proto <= 60 && proto != protoRouting && proto != 51), upper)
		}
	}
	for _, u := range uppers {
		walk(0, u.proto, u.body, true, u)
	}
	if passed == 0 {
		t.Errorf("of %d not even A's got through", tried)
	}
	deep := tcp(5000, 22, syn).body
	next := uint8(protoTCP)
	for range 256 {
		deep, next = append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, deep...), protoDestOpts
	}
	in(t, f, ip6(a6, v6, next, deep), ExtHeader)
	in(t, f, ip6(a6, v6, protoDestOpts, []byte{6, 255, 1, 4, 0, 0, 0, 0}), Malformed)
	in(t, f, ip6(a6, v6, protoDestOpts, []byte{6, 0, 1}), Malformed)
	in(t, f, ip6(a6, v6, protoHopByHop, append([]byte{6, 0, 0xc2, 4, 0, 1, 0, 0}, tcp(5000, 22, syn).body...)), ExtHeader)
	in(t, f, ip6(a6, v6, protoHopByHop, append([]byte{6, 0, 1, 9, 0, 0, 0, 0}, tcp(5000, 22, syn).body...)), ExtHeader)
}

// T2.5: errors pass only about our own flows, from their peer, to their sender.
//
//	V ── udp 5353 ▶ 53 ──▶ A        A ── unreachable, quoting it ──▶ V
func TestICMPErrors(t *testing.T) {
	f := newMesh(t, rule(1, acl.Accept, "v", "a", ports(53), protoUDP))
	sent := ip(v4, a4, udp(5353, 53, 64))
	out(t, f, sent, ByRule)
	quote := sent[:28]
	in(t, f, ip(a4, v4, icmp(3, 3, 0, quote...)), Related)
	in(t, f, ip(a4, v4, icmp(11, 0, 0, quote...)), Related)
	in(t, f, ip(r4, v4, icmp(3, 3, 0, quote...)), ICMPNoFlow)                              // another peer
	in(t, f, ip(x4, v4, icmp(3, 3, 0, quote...)), ICMPNoFlow)                              //
	in(t, f, ip(a4, "10.9.0.1", icmp(3, 3, 0, quote...)), ICMPNoFlow)                      // not to its sender
	in(t, f, ip(a4, v4, icmp(3, 3, 0, ip(v4, a4, udp(5354, 53, 64))[:28]...)), ICMPNoFlow) // another port
	in(t, f, ip(a4, v4, icmp(3, 3, 0, ip(a4, v4, udp(53, 5353, 64))[:28]...)), ICMPNoFlow) // the other way
	in(t, f, ip(a4, v4, icmp(3, 3, 0, quote[:27]...)), ICMPNoFlow)                         // ports cut off
	in(t, f, ip(a4, v4, icmp(3, 3, 0, append(bytes.Clone(quote), make([]byte, 1200)...)...)), ICMPSize)
	in(t, f, ip(a4, v4, icmp(4, 0, 0, quote...)), ICMPType) // source quench
	in(t, f, ip(a4, v4, icmp(5, 1, 0, quote...)), ICMPType) // redirect

	f = newMesh(t) // and what V answers to A, of which there is nothing behind X
	asked := ip(a4, v4, udp(5353, 53, 64))
	in(t, f, asked, ByRule)
	out(t, f, ip(v4, a4, icmp(3, 3, 0, asked...)), Related)
	out(t, f, ip(v4, x4, icmp(3, 3, 0, asked...)), ICMPNoFlow)
	out(t, f, ip(v4, x4, icmp(3, 3, 0, ip(x4, v4, udp(5353, 53, 64))...)), ICMPNoFlow)

	f = newMesh(t, rule(1, acl.Accept, "v", "a", ports(53), protoUDP))
	sent = ip(v6, a6, udp(5353, 53, 64))
	out(t, f, sent, ByRule)
	tooBig := func(mtu uint32) []byte {
		m := icmp(2, 0, 0, sent...)
		binary.BigEndian.PutUint32(m.body[4:], mtu)
		return ip(a6, v6, m)
	}
	in(t, f, tooBig(1280), Related)
	in(t, f, tooBig(1279), ICMPType)
	in(t, f, ip(a6, v6, icmp(1, 4, 0, append(bytes.Clone(sent), make([]byte, 1200)...)...)), ICMPSize)

	f = newMesh(t, rule(1, acl.Accept, "v", "a", anyPort))
	out(t, f, ping(v4, a4, 7), ByRule)
	in(t, f, ip(a4, v4, icmp(11, 0, 0, ping(v4, a4, 7)...)), Related)
	in(t, f, ip(a4, v4, icmp(11, 0, 0, ping(v4, a4, 8)...)), ICMPNoFlow)
}

// T2.6: a flow made by A never admits X, not even when A's address becomes X's.
func TestFlowOfOnePeerNeverAdmitsAnother(t *testing.T) {
	rules := []acl.Rule{rule(1, acl.Accept, "v", "a", ports(53), protoUDP)}
	f := newMesh(t, rules...)
	out(t, f, ip(v4, a4, udp(5353, 53, 8)), ByRule)
	in(t, f, ip(a4, v4, udp(53, 5353, 8)), ByFlow)
	in(t, f, ip(x4, v4, udp(53, 5353, 8)), NoRule)
	in(t, f, ip("10.3.0.1", v4, udp(53, 5353, 8)), NoRule)

	moved := mesh(2, append(rules, rule(2, acl.Accept, "v", "x", anyPort))...)
	moved.Peers[0].Addrs, moved.Peers[1].Addrs = moved.Peers[1].Addrs, moved.Peers[0].Addrs
	cuts := f.Set(moved, t0)
	if len(cuts) != 1 || cuts[0].Peer != idA || cuts[0].Why.Reason != DstNotOwned {
		t.Fatalf("cuts %+v", cuts)
	}
	in(t, f, ip(a4, v4, udp(53, 5353, 8)), NoRule)
}

// T2.7: one peer tries to open a million flows, half of them TCP. The heap stays small, and of others' flows, old and
// new, none loses a packet.
func TestTableExhaustion(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	f := newMesh(t, rule(1, acl.Accept, "*", "v", anyPort))
	var m0, m1 runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m0)
	attacks, full := [][]byte{ip(x4, v4, udp(0, 0, 8)), ip(x4, v4, tcp(0, 0, syn))}, 0
	for i := range n {
		now := after(time.Duration(i) * time.Microsecond)
		pkt := attacks[i%2]
		binary.BigEndian.PutUint32(pkt[20:], uint32(i))
		if v := f.In(pkt, now); v.Reason == PeerFull {
			full++
		}
		if i%100 == 0 { // a thousand of A's, again and again
			port := uint16(i / 100 % 1000)
			want := ByFlow
			if i < 100_000 {
				want = ByRule
			}
			expect(t, f.In(ip(a4, v4, udp(port, 53, 8)), now), want)
			expect(t, f.Out(ip(v4, a4, udp(53, port, 8)), now), ByFlow)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&m1)
	grown := int64(m1.HeapAlloc) - int64(m0.HeapAlloc)
	t.Logf("%d flows tried, %d kept, in %.1f MiB of heap", n, f.Stats().Flows, float64(grown)/(1<<20))
	if grown > 32<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	if want := n - f.opt.MaxFlowsPerPeer; full != want {
		t.Errorf("%d refused as peer_full, want %d", full, want)
	}
	now := after(time.Second)
	expect(t, f.In(ip(r4, v4, udp(5001, 53, 8)), now), ByRule)
	f.Tick(after(24 * time.Hour))
	expect(t, f.In(ip(x4, v4, udp(1, 1, 8)), after(24*time.Hour)), ByRule)
	if st := f.Stats(); st.Flows != 1 {
		t.Errorf("%d flows are left", st.Flows)
	}
}

// Peers that together fill the table leave the last quarter to those with few flows.
func TestTableFullLeavesRoomForOthers(t *testing.T) {
	f := New(Options{MaxFlows: 4096, MaxFlowsPerPeer: 4096})
	f.Set(mesh(1, rule(1, acl.Accept, "*", "v", anyPort)), t0)
	for port := range uint16(5000) {
		v := f.In(ip(x4, v4, udp(port, 1, 0)), t0)
		if want := port < 3072; v.Allow != want {
			t.Fatalf("flow %d: %v", port, v)
		}
	}
	in(t, f, ip(a4, v4, udp(1, 1, 0)), ByRule)
	in(t, f, ip(x4, v4, udp(9000, 1, 0)), FlowsFull)
}

// T2.8
func TestMalformedHeaders(t *testing.T) {
	f := newMesh(t)
	good4, good6 := ip(a4, v4, tcp(5000, 22, syn)), ip(a6, v6, tcp(5000, 22, syn))
	set := func(b []byte, at int, v ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], v)
		return b
	}
	for _, tt := range []struct {
		name string
		pkt  []byte
		want Reason
	}{
		{"empty", nil, Malformed},
		{"19 bytes", good4[:19], Malformed},
		{"total length below the header", set(good4, 2, 0, 19), Malformed},
		{"total length of a header, TCP beyond it", set(good4, 2, 0, 20), Malformed},
		{"total length beyond the buffer", set(good4, 2, 0, 41), Malformed},
		{"options", append(set(good4, 0, 0x46, 0, 0, 44)[:20], append([]byte{131, 3, 4, 0}, good4[20:]...)...), IPOptions},
		{"options beyond the buffer", set(good4, 0, 0x4f), Malformed},
		{"TCP offset below five", set(good4, 32, 0x40), Malformed},
		{"TCP offset beyond the packet", set(good4, 32, 0x60), Malformed},
		{"UDP length below its header", set(ip(a4, v4, udp(1, 53, 4)), 24, 0, 7), Malformed},
		{"UDP length beyond the packet", set(ip(a4, v4, udp(1, 53, 4)), 24, 0, 13), Malformed},
		{"UDP of 7 bytes", ip(a4, v4, l4{protoUDP, make([]byte, 7)}), Malformed},
		{"ICMP of 7 bytes", ip(a4, v4, l4{protoICMP, make([]byte, 7)}), Malformed},
		{"ICMPv6 in IPv4", ip(a4, v4, l4{protoICMPv6, icmp(128, 0, 1).body}), Malformed},
		{"ICMP in IPv6", ip6(a6, v6, protoICMP, icmp(8, 0, 1).body), Malformed},
		{"v6 of 39 bytes", good6[:39], Malformed},
		{"v6 payload beyond the buffer", set(good6, 4, 0, 21), Malformed},
		{"v6 payload of zero", set(good6, 4, 0, 0), Malformed},
		{"v6 payload 65,496 wraps to 0", set(append(bytes.Clone(good6), make([]byte, 70000)...), 4, 0xff, 0xd8), Malformed},
		{"v6 payload 65,535 wraps to 39", set(append(bytes.Clone(good6), make([]byte, 70000)...), 4, 0xff, 0xff), Malformed},
	} {
		t.Run(tt.name, func(t *testing.T) { in(t, f, tt.pkt, tt.want); out(t, f, tt.pkt, tt.want) })
	}
	for v := range byte(16) {
		if v == 4 || v == 6 {
			continue
		}
		in(t, f, set(good4, 0, v<<4|5), Malformed)
		in(t, f, set(good6, 0, v<<4), Malformed)
	}
}

// T2.9: only a rule that names a protocol, on all ports, admits it.
func TestUnlistedProtocols(t *testing.T) {
	others := []uint8{2, 4, 41, 47, 50, 51, 89, 99, 115, 132, 253, 255}
	body := make([]byte, 32)
	body[12] = 1 // SCTP INIT
	f := newMesh(t, rule(1, acl.Accept, "a", "v", anyPort), rule(2, acl.Accept, "a", "v", anyPort, protoTCP, protoUDP))
	for _, proto := range others {
		in(t, f, ip(a4, v4, l4{proto, body}), NoRule)
		in(t, f, ip6(a6, v6, proto, body), NoRule)
	}
	f = newMesh(t, rule(1, acl.Accept, "a", "v", []acl.PortRange{{First: 1, Last: 65535}}, others...))
	for _, proto := range others {
		if proto != protoSCTP {
			in(t, f, ip(a4, v4, l4{proto, body}), NoRule)
		}
	}
	f = newMesh(t, rule(1, acl.Accept, "a", "v", anyPort, others...))
	for _, proto := range others {
		in(t, f, ip(a4, v4, l4{proto, body}), ByRule)
		out(t, f, ip(v4, a4, l4{proto, body}), ByFlow)
		in(t, f, ip(x4, v4, l4{proto, body}), NoRule)
	}
	in(t, f, ip(a4, v4, tcp(1, 22, syn)), NoRule)
	body[12] = 0 // SCTP DATA
	in(t, f, ip(a6, v6, l4{protoSCTP, body}), NoFlow)
}

// T2.10: through a subnet router, only what the policy names.
func TestRouterReachesOnlyWhatPolicyNames(t *testing.T) {
	f := newMesh(t, rule(1, acl.Accept, "a", "lan9", ports(80)), rule(2, acl.Accept, "x", "*", ports(80)))
	for _, tt := range []struct {
		src, dst string
		port     uint16
		want     Reason
	}{
		{a4, "10.9.0.80", 80, ByRule},
		{a4, "10.9.0.80", 81, NoRule},
		{a4, "10.3.0.80", 80, DstNotOwned}, // another router's
		{a4, "10.8.0.1", 80, DstNotOwned},
		{a4, v4, 80, NoRule}, // the router itself is not in its network
		{a4, "127.0.0.1", 80, DstNotOwned},
		{x4, "169.254.169.254", 80, DstNotOwned},
		{x4, "224.0.0.1", 80, DstNotOwned},
		{x4, "10.9.1.1", 80, ByRule},
		{x4, v4, 80, ByRule},
		{x4, a4, 80, DstNotOwned},
	} {
		in(t, f, ip(tt.src, tt.dst, tcp(5000, tt.port, syn)), tt.want)
	}
	v := f.In(ip(x4, v4, tcp(5000, 25, syn)), t0)
	if got := fmt.Sprint(v); got != "denied: no rule admits it" {
		t.Error(got)
	}
}

// An exit carries the internet for those with a rule for the internet or for "*", and nothing else: neither "*" nor a
// rule for a private network makes it a router of one, at either end.
func TestExitIsNoRouterOfPrivateNetworks(t *testing.T) {
	c := mesh(1, rule(1, acl.Accept, "a", "autogroup:internet", anyPort), rule(2, acl.Accept, "x", "ten", anyPort),
		rule(3, acl.Accept, "r", "*", anyPort), rule(4, acl.Accept, "x", "v", anyPort))
	c.Self.Routes = append(c.Self.Routes, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
	f := New(Options{})
	f.Set(c, t0)
	in(t, f, ip(a4, "8.8.8.8", tcp(5000, 443, syn)), ByRule)
	out(t, f, ip("8.8.8.8", a4, tcpSeg(443, 5000, syn|ackFlag, 1, 1001, "")), ByFlow)
	in(t, f, ip(a4, "192.168.1.1", tcp(5000, 443, syn)), DstNotOwned)
	in(t, f, ip(a4, v4, tcp(5000, 443, syn)), NoRule)
	in(t, f, ip(a6, "2001:db8::1", tcp(5000, 443, syn)), ByRule)
	in(t, f, ip(x4, "10.1.2.3", tcp(5000, 443, syn)), DstNotOwned)
	in(t, f, ip(x4, "8.8.8.8", tcp(5000, 443, syn)), NoRule)
	in(t, f, ip(x4, "10.9.2.3", tcp(5000, 443, syn)), ByRule)
	in(t, f, ip(r4, "8.8.8.8", tcp(5000, 443, syn)), ByRule)
	everything := New(Options{})
	everything.Set(mesh(1, rule(1, acl.Accept, "*", "*", anyPort)), t0) // R is the exit, and V uses it
	for _, dst := range []string{"10.4.1.2", "172.31.255.255", "192.168.1.1", "100.127.0.1", "127.0.0.1", "169.254.169.254", "0.0.0.0",
		"224.0.0.1", "255.255.255.255", "::1", "fd00::1", "fe80::1", "ff02::1", "64:ff9b::808:808", "::ffff:8.8.8.8"} {
		if to := netip.MustParseAddr(dst); to.Is4() {
			in(t, f, ip(r4, dst, tcp(5000, 443, syn)), DstNotOwned)
			out(t, everything, ip(v4, dst, tcp(5000, 443, syn)), DstNotOwned)
		} else {
			in(t, f, ip(r6, dst, tcp(5000, 443, syn)), DstNotOwned)
			out(t, everything, ip(v6, dst, tcp(5000, 443, syn)), DstNotOwned)
		}
	}
	for _, dst := range []string{"8.8.8.8", "172.32.0.1", "100.128.0.1", "223.255.255.255"} {
		out(t, everything, ip(v4, dst, tcp(5000, 443, syn)), ByRule)
	}
	out(t, everything, ip(v4, "10.3.1.2", tcp(5000, 443, syn)), ByRule) // of a router
	out(t, everything, ip(v6, "2001:db8::1", tcp(5000, 443, syn)), ByRule)
}
