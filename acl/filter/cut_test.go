package filter

import (
	"maps"
	"slices"
	"testing"

	"github.com/hedge-mesh/hedge/acl"
)

// Revocation: the rule goes, and so does the connection, before its next packet and with an RST for each end.
//
//	A ═══ tcp/22 ═══ V      Set without the rule      A ◀─ RST ─┤├─ RST ─▶ V
func TestRevocationCutsFlows(t *testing.T) {
	f := newMesh(t)
	play(t, f, append(slices.Clone(handshake), step{"< A 1000 5000 hello", ByFlow}, step{"> A 5000 1005 welcome", ByFlow}), t0)
	in(t, f, ip(a4, v4, udp(5000, 53, 1)), ByRule)

	if cuts := f.Set(mesh(2), t0); len(cuts) != 0 {
		t.Fatalf("the same rules cut %v", cuts)
	}
	for fl := range f.Flows {
		if fl.Revision != 1 && fl.Revision != 2 {
			t.Error(fl)
		}
	}
	cuts := f.Set(mesh(3, rule(2, acl.Accept, "a", "v", ports(53), protoUDP)), t0)
	if len(cuts) != 1 {
		t.Fatalf("%d cuts", len(cuts))
	}
	c := cuts[0]
	if c.Peer != idA || c.Proto != protoTCP || c.Src.String() != a4+":5000" || c.Dst.String() != v4+":22" ||
		c.Why.Reason != NoRule || c.Rule.Path != "acls[1]" || c.Revision != 2 {
		t.Errorf("%+v", c)
	}
	checkRSTs(t, c.ToSelf, a4, v4, 5000, 22, 5007, 1005)
	checkRSTs(t, c.ToPeer, v4, a4, 22, 5000, 1005, 5007)
	expect(t, send(t, f, "< A 1005 5007", t0), TCPNoFlow)
	expect(t, send(t, f, "> A 5007 1005", t0), TCPNoFlow)
	in(t, f, ip(a4, v4, udp(5000, 53, 1)), ByFlow)

	cuts = f.Set(mesh(4, rule(3, acl.Deny, "*", "*", anyPort)), t0)
	if len(cuts) != 1 || cuts[0].Proto != protoUDP || cuts[0].ToPeer == nil || cuts[0].ToSelf != nil || cuts[0].Why.Reason != DenyRule {
		t.Errorf("%+v", cuts)
	}
}

// Both ends of what is no TCP connection are told by ICMP that it is prohibited, each about what it has sent. A peer that
// still has the flow lets that in.
//
//	A ═══ udp/53 ═══ V      Set without the rule      A ◀─ ICMP ─┤├─ ICMP ─▶ V
func TestRevocationTellsByICMP(t *testing.T) {
	for _, fam := range families {
		rules := []acl.Rule{rule(1, acl.Accept, "a", "v", anyPort), rule(2, acl.Accept, "a", "v", anyPort, protoSCTP)}
		f, peer := newMesh(t, rules...), New(Options{})
		c := mesh(1, rules...)
		c.Self, c.Peers[0] = c.Peers[0], c.Self
		peer.Set(c, t0)
		init := l4{protoSCTP, append(udp(7, 8, 0).body[:4], make([]byte, 16)...)}
		init.body[12] = 1
		for _, pkts := range [][2][]byte{
			{ip(fam.a, fam.v, udp(5000, 53, 8)), ip(fam.v, fam.a, udp(53, 5000, 8))},
			{ping(fam.a, fam.v, 9), pong(fam.v, fam.a, 9)},
			{ip(fam.a, fam.v, init), nil},
		} {
			out(t, peer, pkts[0], ByRule)
			in(t, f, pkts[0], ByRule)
			if pkts[1] != nil {
				out(t, f, pkts[1], ByFlow)
			}
		}
		told := map[uint8]bool{}
		for _, c := range f.Set(mesh(2, rule(1, acl.Accept, "x", "v", anyPort)), t0) {
			told[c.Proto] = c.ToSelf != nil
			for _, b := range slices.Concat(c.ToPeer, c.ToSelf) {
				checkSums(t, b)
			}
			in(t, peer, c.ToPeer[0], Related)
		}
		if want := map[uint8]bool{protoUDP: true, ping(fam.a, fam.v, 9)[map[bool]int{false: 9, true: 6}[fam.v6]]: false, protoSCTP: false}; !maps.Equal(told, want) {
			t.Errorf("%s: what tells us is %v, want %v", fam.name, told, want)
		}
	}
}

// An RST is placed behind all that was sent, whether or not holes in it were filled since. While there is one, another is
// placed before it, as an end that knows of a hole expects that: it may be silent to the other, if it has answered another
// RST with a challenge just before, as to that of a peer which was cut first.
func TestCutAfterReordering(t *testing.T) {
	f := newMesh(t)
	play(t, f, append(slices.Clone(handshake), step{"< A 1005 5000 later", ByFlow}, step{"> A 5000 1000", ByFlow}), t0)
	if cuts := f.Set(nil, t0); len(cuts) == 1 {
		checkRSTs(t, cuts[0].ToSelf, a4, v4, 5000, 22, 5000, 1000, 1010) // the hole is still open
	}
	f = newMesh(t)
	play(t, f, append(slices.Clone(handshake), step{"< A 1005 5000 later", ByFlow}, step{"< A 1000 5000 first", ByFlow},
		step{"> A 5000 1010", ByFlow}), t0)
	cuts := f.Set(nil, t0)
	if len(cuts) != 1 {
		t.Fatal(cuts)
	}
	checkRSTs(t, cuts[0].ToSelf, a4, v4, 5000, 22, 5000, 1010)
	checkRSTs(t, cuts[0].ToPeer, v4, a4, 22, 5000, 1010, 5000)
}

// checkRSTs expects one at each place.
func checkRSTs(t *testing.T, told [][]byte, src, dst string, sport, dport uint16, ack uint32, places ...uint32) {
	t.Helper()
	if len(told) != len(places) {
		t.Fatalf("%d RSTs, want %d", len(told), len(places))
	}
	for i, seq := range places {
		checkRST(t, told[i], src, dst, sport, dport, seq, ack)
	}
}

func checkRST(t *testing.T, b []byte, src, dst string, sport, dport uint16, seq, ack uint32) {
	t.Helper()
	var p packet
	if r, ok := p.parse(b); !ok || p.size != len(b) {
		t.Fatalf("RST % x: %v", b, r)
	}
	if p.src.netip().String() != src || p.dst.netip().String() != dst || p.sport != sport || p.dport != dport ||
		p.seq != seq || p.ack != ack || p.flags != rst|ackFlag {
		t.Errorf("RST %v:%d > %v:%d seq %d ack %d flags %x", p.src.netip(), p.sport, p.dst.netip(), p.dport, p.seq, p.ack, p.flags)
	}
	checkSums(t, b)
}

// checkSums verifies the checksums of a packet of ours: summed with themselves they are zero.
func checkSums(t testing.TB, b []byte) {
	t.Helper()
	var p packet
	if _, ok := p.parse(b); !ok {
		t.Fatalf("% x does not parse", b)
	}
	if !p.v6 && checksum(b[:20], 0) != 0 {
		t.Error("bad IP checksum")
	}
	sum := pseudo(p.src, p.dst, p.proto, len(p.l4))
	if p.proto == protoICMP {
		sum = 0
	}
	if checksum(p.l4, sum) != 0 {
		t.Error("bad transport checksum")
	}
}

// A connection that is cut while it opens is refused to whoever opened it.
func TestCutDuringHandshake(t *testing.T) {
	f := newMesh(t, rule(1, acl.Accept, "v", "a", anyPort))
	out(t, f, ip(v6, a6, tcpSeg(40000, 443, syn, 999, 0, "")), ByRule)
	cuts := f.Set(mesh(2), t0)
	if len(cuts) != 1 {
		t.Fatal(cuts)
	}
	checkRSTs(t, cuts[0].ToSelf, a6, v6, 443, 40000, 1000, 0)
	checkRSTs(t, cuts[0].ToPeer, v6, a6, 40000, 443, 0, 1000)
}

func TestVanishedPeerIsCut(t *testing.T) {
	f := newMesh(t)
	play(t, f, handshake, t0)
	c := mesh(2)
	c.Peers = c.Peers[1:]
	cuts := f.Set(c, t0)
	if len(cuts) != 1 || cuts[0].Peer != idA || cuts[0].Why.Reason != SrcNotOwned || cuts[0].ToSelf == nil {
		t.Fatalf("%+v", cuts)
	}
	if len(f.peers) != 2 {
		t.Errorf("%d peers are remembered", len(f.peers))
	}
	f.Set(mesh(3), t0)
	play(t, f, []step{{"< A 1000 5000", TCPLost}}, t0)
}
