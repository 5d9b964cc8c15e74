package filter

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// The battery: V has live conversations with A. X, who has no rule, sends everything else, and so does A where it
// wants more than its rules. Nothing of it may pass, and nothing of the conversations may be lost for it.
//
//	A ── tcp/22, udp/53, ping ──▶ V ── udp/53 ──▶ A
//	X ── anything ──▶ V            must not pass
var batteryRules = []acl.Rule{rule(1, acl.Accept, "a", "v", ports(22), protoTCP), rule(2, acl.Accept, "a", "v", ports(53), protoUDP),
	rule(3, acl.Accept, "v", "a", ports(53), protoUDP)}

// family is one of the two, with the addresses of all.
type family struct {
	name       string
	a, x, r, v string
	v6         bool
}

var families = []family{{"v4", a4, x4, r4, v4, false}, {"v6", a6, x6, r6, v6, true}}

// icmp is an error or another message by its IPv4 type and code, or the IPv6 ones.
func (fam *family) icmp(src, dst string, typ4, code4, typ6, code6 byte, body ...byte) []byte {
	if fam.v6 {
		return ip(src, dst, icmp(typ6, code6, 1, body...))
	}
	return ip(src, dst, icmp(typ4, code4, 1, body...))
}

// chain puts extension headers before a SYN to the open port.
func chain(src, dst string, protos ...uint8) []byte {
	body, next := tcp(5000, 22, syn).body, uint8(protoTCP)
	for _, p := range protos {
		h := []byte{next, 0, 1, 4, 0, 0, 0, 0}
		if p == protoFragment {
			h = []byte{next, 0, 0, 0, 0, 0, 0, 9}
		}
		body, next = append(h, body...), p
	}
	return ip6(src, dst, next, body)
}

// hostile is one attack: a name, and the packets of it in one family.
type hostile struct {
	name string
	pkts func(fam *family) [][]byte
}

// one is an attack of a single packet, the same in both families.
func one(name string, pkt func(fam *family) []byte) hostile {
	return hostile{name, func(fam *family) [][]byte { return [][]byte{pkt(fam)} }}
}

func fromX(name string, t l4) hostile {
	return one(name, func(fam *family) []byte { return ip(fam.x, fam.v, t) })
}

func patched(pkt []byte, at int, b ...byte) []byte {
	pkt = bytes.Clone(pkt)
	copy(pkt[at:], b)
	return pkt
}

// The first part is what three other filters were sent, of which they let in up to 14 of 22.
var attacks = []hostile{
	fromX("TCP SYN", tcp(5000, 9999, syn)),
	fromX("TCP SYN to the open port", tcp(5000, 22, syn)),
	fromX("TCP ACK, no flow", tcp(5000, 9999, ackFlag)),
	fromX("TCP RST, no flow", tcp(5000, 9999, rst)),
	fromX("TCP FIN, no flow", tcp(5000, 9999, fin)),
	fromX("TCP NULL, no flow", tcp(5000, 9999, 0)),
	fromX("TCP SYN+ACK, no flow", tcp(5000, 9999, syn|ackFlag)),
	fromX("TCP SYN+FIN", tcp(5000, 9999, syn|fin)),
	one("non-first fragment, TCP", func(fam *family) []byte {
		return fragOf(fam.x, fam.v, protoTCP, 7, 80, false, make([]byte, 80))
	}),
	one("non-first fragment, GRE", func(fam *family) []byte { return fragOf(fam.x, fam.v, 47, 7, 80, false, make([]byte, 80)) }),
	one("fragment at offset 1, over the header", func(fam *family) []byte {
		return fragOf(fam.x, fam.v, protoTCP, 7, 8, false, make([]byte, 80))
	}),
	one("unsolicited echo reply of 1,200 bytes", func(fam *family) []byte {
		return fam.icmp(fam.x, fam.v, 0, 0, 129, 0, make([]byte, 1200)...)
	}),
	one("unsolicited unreachable of 1,200 bytes", func(fam *family) []byte {
		return fam.icmp(fam.x, fam.v, 3, 1, 1, 4, make([]byte, 1200)...)
	}),
	one("echo request", func(fam *family) []byte { return ping(fam.x, fam.v, 1) }),
	one("redirect", func(fam *family) []byte { return fam.icmp(fam.x, fam.v, 5, 1, 137, 0, make([]byte, 32)...) }),
	fromX("UDP 53", udp(5000, 53, 20)),
	fromX("protocol 99", l4{99, make([]byte, 20)}),
	one("first fragment of protocol 99", func(fam *family) []byte { return fragOf(fam.x, fam.v, 99, 7, 0, true, make([]byte, 80)) }),
	{"IHL of 0 to 4, and options", func(fam *family) (pkts [][]byte) {
		for ihl := range byte(16) {
			if !fam.v6 && ihl != 5 { // from the peer that may
				pkts = append(pkts, patched(ip(fam.a, fam.v, tcpSeg(6000, 22, syn, 1, 0, string(make([]byte, 60)))), 0, 0x40|ihl))
			}
		}
		return
	}},
	{"total length below the headers", func(fam *family) (pkts [][]byte) {
		for n := range byte(20) {
			if pkt := ip(fam.a, fam.v, tcp(6000, 22, syn)); fam.v6 {
				pkts = append(pkts, patched(pkt, 4, 0, n))
			} else {
				pkts = append(pkts, patched(pkt, 2, 0, n), patched(pkt, 2, 0, 20+n))
			}
		}
		return
	}},
	{"extension headers before a SYN", func(fam *family) (pkts [][]byte) {
		exts := []uint8{protoHopByHop, protoDestOpts, protoRouting, protoFragment, 51, 135, 139, 140, 253, 254}
		for _, p := range exts {
			for _, q := range exts {
				if fam.v6 {
					pkts = append(pkts, chain(fam.x, fam.v, p, q))
				}
			}
			if fam.v6 {
				pkts = append(pkts, chain(fam.x, fam.v, p))
			}
		}
		return
	}},
	// From here on, what they were not sent.
	{"every combination of TCP flags, on the ports of a live connection", func(fam *family) (pkts [][]byte) {
		for flags := range 64 {
			pkts = append(pkts, ip(fam.x, fam.v, tcpSeg(5000, 22, uint8(flags), 1000, 5000, "x")))
		}
		return
	}},
	{"flags that no TCP sends, from the peer of a live connection", func(fam *family) (pkts [][]byte) {
		for flags := range 64 {
			if !sane(uint8(flags)) {
				pkts = append(pkts, ip(fam.a, fam.v, tcpSeg(5000, 22, uint8(flags), 1000, 5000, "x")))
			}
		}
		return
	}},
	{"segments outside the windows of a live connection", func(fam *family) (pkts [][]byte) {
		for i := range uint32(20) {
			pkts = append(pkts, ip(fam.a, fam.v, tcpSeg(5000, 22, ackFlag, 1<<20+i<<26, 5000, "x")),
				ip(fam.a, fam.v, tcpSeg(5000, 22, rst, 1<<20+i<<26, 0, "")), ip(fam.a, fam.v, tcpSeg(5000, 22, ackFlag, 1000, 1<<20+i<<26, "x")))
		}
		return
	}},
	{"sources that are not the sender's", func(fam *family) (pkts [][]byte) {
		srcs := []string{"127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.169.254", "10.9.1.1", "100.64.0.77", v4}
		if fam.v6 {
			srcs = []string{"::", "::1", "fe80::1", "ff02::1", "::ffff:100.64.0.1", "::100.64.0.1", "fd68::77", v6}
		}
		for _, s := range srcs {
			for _, t := range []l4{tcp(5000, 22, syn), tcp(5000, 22, ackFlag), udp(5000, 53, 8), {99, make([]byte, 20)}} {
				if fam.v6 {
					pkts = append(pkts, ip6(s, fam.v, t.proto, t.body))
				} else {
					pkts = append(pkts, ip(s, fam.v, t))
				}
			}
		}
		return
	}},
	{"destinations that are not here", func(fam *family) (pkts [][]byte) {
		dsts := []string{"127.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255", "10.3.0.1", "8.8.8.8", "100.64.0.77", x4}
		if fam.v6 {
			dsts = []string{"::1", "fe80::1", "ff02::1", "2001:db8::1", "fd68::77", x6}
		}
		for _, d := range dsts {
			pkts = append(pkts, ip(fam.a, d, tcp(6000, 22, syn)), ip(fam.a, d, udp(6000, 53, 8)))
		}
		return
	}},
	{"other ports of the peer with a rule", func(fam *family) (pkts [][]byte) {
		for _, p := range []uint16{0, 1, 21, 23, 53, 80, 443, 5353, 8080, 65535} {
			pkts = append(pkts, ip(fam.a, fam.v, tcp(6000, p, syn)), ip(fam.a, fam.v, udp(22, p^53^22, 8)), ip(fam.a, fam.v, tcp(p, 22, ackFlag)))
		}
		return
	}},
	{"replies to a flow of another peer's", func(fam *family) [][]byte {
		return [][]byte{ip(fam.x, fam.v, udp(53, 5353, 8)), ip(fam.r, fam.v, udp(53, 5353, 8)), ip(fam.a, fam.v, udp(54, 5353, 8)),
			ip(fam.a, fam.v, udp(53, 5354, 8)), pong(fam.a, fam.v, 999), pong(fam.x, fam.v, 1)}
	}},
	{"ICMP that is neither echo nor error", func(fam *family) (pkts [][]byte) {
		types := []byte{4, 5, 9, 10, 13, 14, 15, 17, 30, 40, 42, 255}
		if fam.v6 {
			types = []byte{0, 5, 100, 127, 130, 131, 133, 134, 135, 136, 137, 143, 151, 160, 255}
		}
		for _, typ := range types {
			pkts = append(pkts, fam.icmp(fam.a, fam.v, typ, 0, typ, 0, make([]byte, 40)...), fam.icmp(fam.x, fam.v, typ, 0, typ, 0, make([]byte, 40)...))
		}
		return
	}},
	{"ICMP errors that quote no flow of their sender's", func(fam *family) (pkts [][]byte) {
		live := ip(fam.v, fam.a, udp(5353, 53, 20))
		for _, quote := range [][]byte{ip(fam.v, fam.a, udp(5354, 53, 20)), ip(fam.a, fam.v, udp(53, 5353, 20)), ip(fam.v, fam.x, udp(5353, 53, 20)),
			ip(fam.v, fam.a, tcp(5353, 53, syn)), live[:len(live)-21], append(bytes.Clone(live), make([]byte, 1300)...)} {
			pkts = append(pkts, fam.icmp(fam.a, fam.v, 3, 1, 1, 4, quote...), fam.icmp(fam.a, fam.v, 11, 0, 3, 0, quote...))
		}
		return append(pkts, fam.icmp(fam.x, fam.v, 3, 1, 1, 4, live...), fam.icmp(fam.r, fam.v, 3, 1, 1, 4, live...))
	}},
	{"protocols without a rule", func(fam *family) (pkts [][]byte) {
		for _, p := range []uint8{2, 4, 41, 47, 50, 51, 89, 99, 103, 115, 132, 253, 254, 255} {
			body := make([]byte, 32)
			body[12] = 1
			pkts = append(pkts, ip(fam.a, fam.v, l4{p, body}), ip(fam.x, fam.v, l4{p, body}))
		}
		return
	}},
	{"fragments: tiny, late, overlapping, too long", func(fam *family) (pkts [][]byte) {
		seg := tcpSeg(6000, 22, syn, 1, 0, string(make([]byte, 64))).body
		for n := 8; n < 20; n += 8 {
			pkts = append(pkts, fragOf(fam.a, fam.v, protoTCP, 1, 0, true, seg[:n]), fragOf(fam.a, fam.v, protoTCP, 1, n, false, seg[n:]))
		}
		for off := 24; off < 24*20; off += 24 {
			pkts = append(pkts, fragOf(fam.x, fam.v, protoUDP, 2, off, off%48 == 0, make([]byte, 24)))
		}
		return append(pkts, fragOf(fam.a, fam.v, protoUDP, 3, 65528, false, make([]byte, 100)), fragOf(fam.a, fam.v, protoUDP, 3, 1480, true, make([]byte, 81)))
	}},
	{"versions that are no IP", func(fam *family) (pkts [][]byte) {
		for v := range byte(16) {
			if v != 4 && v != 6 {
				pkts = append(pkts, patched(ip(fam.a, fam.v, tcp(6000, 22, syn)), 0, v<<4|5))
			}
		}
		return
	}},
	{"cut short", func(fam *family) (pkts [][]byte) {
		pkt := ip(fam.a, fam.v, tcp(6000, 22, syn))
		for n := range len(pkt) {
			pkts = append(pkts, pkt[:n])
		}
		return
	}},
}

// conversation is what A and V say to each other on one port, all of it legitimate.
func (fam *family) conversation(port uint16) (pkts [][]byte, inbound []bool) {
	say := func(in bool, list ...[]byte) {
		for _, p := range list {
			pkts, inbound = append(pkts, p), append(inbound, in)
		}
	}
	seg := func(in bool, flags uint8, seq, ack uint32, data string) {
		if in {
			say(true, ip(fam.a, fam.v, tcpSeg(port, 22, flags, seq, ack, data)))
		} else {
			say(false, ip(fam.v, fam.a, tcpSeg(22, port, flags, seq, ack, data)))
		}
	}
	seg(true, syn, 999, 0, "")
	seg(false, syn|ackFlag, 4999, 1000, "")
	seg(true, ackFlag, 1000, 5000, "")
	seg(true, ackFlag|psh, 1000, 5000, "hello")
	seg(false, ackFlag|psh, 5000, 1005, "hi")
	seg(true, ackFlag, 1005, 5002, "")
	say(true, ip(fam.a, fam.v, udp(port, 53, 40)))
	say(false, ip(fam.v, fam.a, udp(53, port, 400)))
	asked := ip(fam.v, fam.a, udp(port, 53, 40))
	say(false, asked)
	say(true, ip(fam.a, fam.v, udp(53, port, 40)), fam.icmp(fam.a, fam.v, 3, 3, 1, 4, asked...))
	say(true, ping(fam.a, fam.v, port))
	say(false, pong(fam.v, fam.a, port))
	say(true, pieces(fam.a, fam.v, udp(port, 53, 4000), port, 1232)...)
	if fam.v6 {
		say(true, ip6(fam.a, fam.v, protoDestOpts, append([]byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, udp(port, 53, 8).body...)))
	}
	seg(true, ackFlag|fin, 1005, 5002, "")
	seg(false, ackFlag|fin, 5002, 1006, "")
	seg(true, ackFlag, 1006, 5003, "")
	return
}

func TestBattery(t *testing.T) {
	f := newMesh(t, batteryRules...)
	for _, fam := range families { // the live flows that attacks refer to
		in(t, f, ip(fam.a, fam.v, tcpSeg(5000, 22, syn, 999, 0, "")), ByRule)
		out(t, f, ip(fam.v, fam.a, tcpSeg(22, 5000, syn|ackFlag, 4999, 1000, "")), ByFlow)
		in(t, f, ip(fam.a, fam.v, tcpSeg(5000, 22, ackFlag, 1000, 5000, "")), ByFlow)
		out(t, f, ip(fam.v, fam.a, udp(5353, 53, 20)), ByRule)
	}
	tried, accepted, said, dropped := 0, 0, 0, 0
	now := t0
	for i, attack := range attacks {
		for _, fam := range families {
			t.Run(fam.name+"/"+attack.name, func(t *testing.T) {
				talk, inbound := fam.conversation(uint16(10000 + i))
				pkts := attack.pkts(&fam)
				for k := range max(len(pkts), len(talk)) { // the two by turns
					now = now.Add(time.Millisecond)
					if k < len(pkts) {
						tried++
						if v := f.In(pkts[k], now); v.Allow {
							accepted++
							t.Errorf("%d accepted: %v: % x", k, v, pkts[k])
						}
					}
					if k < len(talk) {
						said++
						judge := f.Out
						if inbound[k] {
							judge = f.In
						}
						if v := judge(talk[k], now); !v.Allow {
							dropped++
							t.Errorf("%d of the conversation dropped: %v: % x", k, v, talk[k])
						}
					}
				}
			})
		}
	}
	t.Logf("%d hostile packets, %d accepted; %d legitimate, %d dropped", tried, accepted, said, dropped)
	if tried < 500 || said < 200 || accepted+dropped != 0 {
		t.Error("the battery is too small or the filter too weak")
	}
	for _, fam := range families { // nothing has torn the first connection down
		expect(t, f.In(ip(fam.a, fam.v, tcpSeg(5000, 22, ackFlag, 1000, 5000, "still")), now), ByFlow)
	}
	var all uint64
	for r, n := range f.Stats().In {
		if !Reason(r).Allows() {
			all += n
		}
	}
	if all != uint64(tried) {
		t.Errorf("the counters know of %d denials, not %d", all, tried)
	}
}

// What has gone wrong elsewhere, each under the name that it is known by here.
func TestRegressions(t *testing.T) {
	open := rule(1, acl.Accept, "*", "*", anyPort)
	all := func(c *Config) *Filter {
		f := New(Options{})
		f.Set(c, t0)
		return f
	}
	// A sender with several addresses and routes was let in with any of its neighbours'.
	t.Run("R-spoof-matrix", func(t *testing.T) {
		f := all(mesh(1, open))
		own := map[string]acl.NodeID{a4: idA, x4: idX, r4: idR, "10.3.0.1": idR, "10.3.255.255": idR, a6: idA, x6: idX, r6: idR}
		for _, src := range []string{a4, x4, r4, v4, "10.3.0.1", "10.3.255.255", "10.4.0.1", "10.2.255.255", "10.9.0.1", "100.64.0.77", "127.0.0.1",
			"0.0.0.0", "224.0.0.1", "169.254.169.254", a6, x6, r6, v6, "::1", "::", "fe80::1", "ff02::1", "fd68::77"} {
			dst := v4
			if !bytes.Contains([]byte(src), []byte(".")) {
				dst = v6
			}
			for _, body := range []l4{tcp(5000, 22, syn), udp(5000, 53, 8)} {
				if v := f.In(ip(src, dst, body), t0); v.Allow != (own[src] != 0) || v.Allow && v.Peer != own[src] {
					t.Errorf("from %s: %+v", src, v)
				}
			}
		}
	})
	// The length of an extension header overflowed: ports were read elsewhere, or the walk never ended.
	t.Run("R-v6-ext", func(t *testing.T) {
		f := newMesh(t)
		for _, p := range []uint8{protoHopByHop, protoDestOpts} {
			for length := range 256 {
				body := append([]byte{protoTCP, byte(length), 1, 4, 0, 0, 0, 0}, tcp(5000, 9999, syn).body...)
				for len(body) < 2048 { // a SYN to the open port wherever a wrong sum might look for one
					body = append(body, tcp(5000, 22, syn).body[:8]...)
				}
				if v := f.In(ip6(x6, v6, p, body), t0); v.Allow {
					t.Errorf("length %d: %v", length, v)
				}
				if v := f.In(ip6(a6, v6, p, body), t0); v.Allow && length == 0 {
					t.Errorf("length %d: %v", length, v)
				}
			}
		}
	})
	// A next header that is not known was read as if it had ports.
	t.Run("R-v6-unknown-proto", func(t *testing.T) {
		f := newMesh(t, rule(1, acl.Accept, "a", "v", ports(22), protoTCP, protoUDP), rule(2, acl.Accept, "a", "v", ports(53)))
		for p := range 256 {
			switch p {
			case protoTCP, protoUDP, protoHopByHop, protoDestOpts, protoFragment, protoICMPv6:
				continue
			}
			for _, port := range []uint16{22, 53} {
				if v := f.In(ip6(a6, v6, uint8(p), tcp(5000, port, syn).body), t0); v.Allow {
					t.Errorf("protocol %d: %v", p, v)
				}
			}
		}
	})
	// Hosts behind an exit or a router could open connections into the mesh.
	t.Run("R-forward-inbound", func(t *testing.T) {
		c := mesh(1, rule(1, acl.Accept, "*", "v", anyPort), rule(2, acl.Accept, "v", "*", anyPort))
		f := all(c)
		out(t, f, ip(v4, "8.8.8.8", tcpSeg(5000, 443, syn, 999, 0, "")), ByRule)
		in(t, f, ip("8.8.8.8", v4, tcpSeg(443, 5000, syn|ackFlag, 1, 1000, "")), ByFlow)
		for _, body := range []l4{tcp(443, 5001, syn), tcp(443, 22, syn), udp(53, 5000, 8), icmp(8, 0, 1)} {
			in(t, f, ip("8.8.8.8", v4, body), NoRule) // "*" are nodes and their networks, not the internet
			in(t, f, ip("100.64.0.77", v4, body), SrcNotOwned)
		}
		f = newMesh(t, rule(1, acl.Accept, "r", "v", anyPort)) // a rule for the router is none for its network
		in(t, f, ip(r4, v4, tcp(5000, 22, syn)), ByRule)
		in(t, f, ip("10.3.0.1", v4, tcp(5000, 22, syn)), NoRule)
	})
	// A node took another's routes by announcing them too.
	t.Run("R-allowedips-owner", func(t *testing.T) {
		c := mesh(1, rule(1, acl.Accept, "*", "*", anyPort))
		c.Peers = append(c.Peers, node(4, "thief", []string{"100.64.0.4"}, "10.3.0.0/16", a4+"/32", "100.64.0.0/24"))
		f := all(c)
		for addr, want := range map[string]acl.NodeID{"10.3.0.1": idR, a4: idA, "100.64.0.4": 4} {
			if v := out(t, f, ip(v4, addr, tcp(5000, 22, syn)), ByRule); v.Peer != want {
				t.Errorf("%s is of %d", addr, v.Peer)
			}
		}
		out(t, f, ip(v4, "100.64.0.77", tcp(5000, 22, syn)), DstNotOwned)
	})
	// Anyone could tear a session down.
	t.Run("R-unauth-teardown", func(t *testing.T) {
		f := newMesh(t)
		play(t, f, handshake, t0)
		sent := ip(v4, a4, tcpSeg(22, 5000, ackFlag, 5000, 1000, ""))
		for _, from := range []string{x4, r4, "10.3.0.1"} {
			for seq := uint32(990); seq < 1010; seq++ {
				if f.In(ip(from, v4, tcpSeg(5000, 22, rst, seq, 0, "")), t0).Allow || f.In(ip(from, v4, icmp(3, 3, 0, sent...)), t0).Allow {
					t.Error("passed from", from)
				}
			}
		}
		play(t, f, []step{{"> A 5000 1000 alive", ByFlow}}, t0)
	})
	// Tables were reserved, or grew, at the word of a stranger.
	t.Run("R-prealloc", func(t *testing.T) {
		f := newMesh(t)
		pkt := ip(x4, v4, udp(0, 53, 8))
		frag := fragOf(x4, v4, protoUDP, 0, 0, true, udp(1, 53, 4000).body[:1480])
		for i := range 100_000 {
			binary.BigEndian.PutUint16(pkt[20:], uint16(i))
			binary.BigEndian.PutUint16(frag[4:], uint16(i))
			f.In(pkt, t0)
			f.In(frag, t0)
		}
		if st := f.Stats(); st.Flows != 0 || st.Fragments != 0 {
			t.Errorf("%d flows, %d fragments", st.Flows, st.Fragments)
		}
	})
	// Each update of the map leaked.
	t.Run("R-leak-netmap-10k", func(t *testing.T) {
		f := newMesh(t, batteryRules...)
		heap := func() uint64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		var early uint64
		for i := range 10_000 {
			if i == 1000 {
				early = heap()
			}
			c := mesh(uint64(i), batteryRules...)
			c.Peers[1].ID = acl.NodeID(100 + i) // someone new each time, who talks
			f.Set(c, t0)
			in(t, f, ip(x4, v4, udp(1, 53, 8)), NoRule)
		}
		if grown := int64(heap()) - int64(early); grown > 1<<20 {
			t.Errorf("the heap grew by %d bytes", grown)
		}
		if n := len(f.peers); n != 3 {
			t.Errorf("%d peers are remembered", n)
		}
	})
	// The clock was set back, and sessions ended.
	t.Run("R-clock", func(t *testing.T) {
		f := New(Options{})
		now := time.Now()
		f.Set(mesh(1), now)
		expect(t, f.In(ip(a4, v4, udp(1, 53, 8)), now), ByRule)
		f.Tick(now.Add(time.Second))
		expect(t, f.In(ip(a4, v4, udp(1, 53, 8)), now.Add(-24*time.Hour)), ByFlow)
		if cuts := f.Tick(now.Add(-24 * time.Hour)); cuts != nil {
			t.Errorf("cut %+v", cuts)
		}
	})
}
