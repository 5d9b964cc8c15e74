package filter

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

func TestUDP(t *testing.T) {
	f := newMesh(t)
	in(t, f, ip(a4, v4, udp(5000, 53, 9)), ByRule)
	out(t, f, ip(v4, a4, udp(53, 5000, 90)), ByFlow)
	out(t, f, ip(v4, a4, udp(53, 5001, 90)), NoRule) // answers to nobody's question
	out(t, f, ip(v4, a4, udp(54, 5000, 90)), NoRule)
	expect(t, f.Out(ip(v4, a4, udp(53, 5000, 90)), after(179*time.Second)), ByFlow)
	expect(t, f.Out(ip(v4, a4, udp(53, 5000, 90)), after(360*time.Second)), NoRule)
}

// Ping follows a rule for icmp, or any accept between the two; a deny for icmp stops it, one for a port does not.
// A reply passes only to its request.
func TestPing(t *testing.T) {
	f := newMesh(t) // tcp/22 and udp/53 only
	in(t, f, ping(a4, v4, 7), ByRule)
	out(t, f, pong(v4, a4, 7), ByFlow)
	out(t, f, pong(v4, a4, 8), ICMPNoRequest)
	in(t, f, pong(a4, v4, 7), ICMPNoRequest)
	out(t, f, ping(v4, a4, 7), NoRule)
	in(t, f, ping(a6, v6, 7), ByRule)
	expect(t, f.Out(pong(v6, a6, 7), after(31*time.Second)), ICMPNoRequest)

	f = newMesh(t, rule(1, acl.Accept, "a", "v", ports(22)), rule(2, acl.Deny, "a", "v", anyPort, protoICMP))
	in(t, f, ping(a4, v4, 7), DenyRule)
	in(t, f, ping(a6, v6, 7), ByRule) // icmp means ICMP for IPv4 only
	f = newMesh(t, rule(1, acl.Accept, "a", "v", anyPort), rule(2, acl.Deny, "a", "v", ports(23)))
	in(t, f, ping(a4, v4, 7), ByRule)
	f = newMesh(t, rule(1, acl.Accept, "a4only", "v", ports(22)))
	in(t, f, ping(a4, v4, 7), ByRule)
	in(t, f, ping(a6, v6, 7), NoRule) // an address is not the node that holds it
}

// Both ends may ping with the same identifier; a request is no leave to send a reply.
func TestPingBothWays(t *testing.T) {
	for _, id := range []uint16{0, 1, 65535} {
		f := newMesh(t)
		in(t, f, ping(a4, v4, id), ByRule)
		in(t, f, pong(a4, v4, id), ICMPNoRequest)
		out(t, f, ping(v4, a4, id), NoRule)
	}
	f := newMesh(t, rule(1, acl.Accept, "a", "v", anyPort), rule(2, acl.Accept, "v", "a", anyPort))
	in(t, f, ping(a4, v4, 7), ByRule)
	out(t, f, ping(v4, a4, 7), ByRule)
	out(t, f, pong(v4, a4, 7), ByFlow)
	in(t, f, pong(a4, v4, 7), ByFlow)
	if n := f.Stats().Flows; n != 2 {
		t.Error(n)
	}
}

func TestDenyWinsWhateverItsPlace(t *testing.T) {
	accept, deny := rule(1, acl.Accept, "*", "v", []acl.PortRange{{First: 20, Last: 30}}), rule(2, acl.Deny, "x", "v", ports(22, 25))
	for _, rules := range [][]acl.Rule{{accept, deny}, {deny, accept}} {
		f := newMesh(t, rules...)
		in(t, f, ip(x4, v4, tcp(1, 21, syn)), ByRule)
		v := in(t, f, ip(x4, v4, tcp(1, 22, syn)), DenyRule)
		in(t, f, ip(x4, v4, tcp(1, 24, syn)), ByRule)
		in(t, f, ip(x4, v4, tcp(1, 25, syn)), DenyRule)
		in(t, f, ip(a4, v4, tcp(1, 22, syn)), ByRule)
		if v.Rule == nil || v.Rule.Path != "acls[2]" {
			t.Error(v)
		}
	}
}

// Without a configuration, with a nil one, and without rules, nothing passes.
func TestFailClosed(t *testing.T) {
	syn22 := ip(a4, v4, tcp(1, 22, syn))
	f := New(Options{})
	in(t, f, syn22, NoPolicy)
	out(t, f, syn22, NoPolicy)
	f.Set(&Config{}, t0)
	in(t, f, syn22, SrcNotOwned)
	c := mesh(1)
	c.View.Sets = nil
	f.Set(c, t0)
	in(t, f, syn22, NoRule)
	f.Set(mesh(1, acl.Rule{Src: []string{"*"}, Dst: []acl.Target{{Set: "*", Ports: anyPort}}}), t0)
	in(t, f, syn22, NoRule) // the zero Action admits nothing
	f.Set(mesh(1), t0)
	in(t, f, syn22, ByRule)
	if cuts := f.Set(nil, t0); len(cuts) != 1 || cuts[0].Why.Reason != NoPolicy {
		t.Error(cuts)
	}
	in(t, f, syn22, NoPolicy)
	if v := (Verdict{}); v.Allow || Unknown.Allows() {
		t.Error("the zero verdict allows")
	}
}

// A rule that ends takes its flows with it, on the next packet or at the next Tick, unless another rule admits them.
func TestExpiry(t *testing.T) {
	short, long := rule(1, acl.Accept, "a", "v", ports(22)), rule(2, acl.Accept, "a", "v", ports(22))
	short.Expires, long.Expires = after(time.Minute), after(2*time.Minute)
	f := newMesh(t, short, long)
	if d := f.Deadline(t0); !d.Equal(short.Expires) {
		t.Error(d)
	}
	play(t, f, handshake, t0)
	play(t, f, []step{{"< A 1000 5000 a", ByFlow}}, after(119*time.Second))
	if cuts := f.Tick(after(119 * time.Second)); cuts != nil {
		t.Error(cuts)
	}
	play(t, f, []step{{"< A 1001 5000 b", RuleExpired}}, after(2*time.Minute))
	cuts := f.Tick(after(2 * time.Minute))
	if len(cuts) != 1 || cuts[0].Why.Reason != RuleExpired || cuts[0].ToPeer == nil {
		t.Errorf("%+v", cuts)
	}
	play(t, f, []step{{"< S 999", RuleExpired}}, after(2*time.Minute))

	deny := rule(3, acl.Deny, "a", "v", ports(22))
	deny.Expires = after(time.Minute)
	f = newMesh(t, rule(1, acl.Accept, "a", "v", ports(22)), deny)
	play(t, f, []step{{"< S 999", DenyRule}}, t0)
	play(t, f, []step{{"< S 999", ByRule}}, after(time.Minute))
}

// A rule with a window opens and shuts by the wall clock; so do the flows that it admitted, and denies.
func TestWindow(t *testing.T) {
	open := rule(1, acl.Accept, "a", "v", ports(22))
	open.Window = "Sun 12:01-12:10 UTC" // t0 is a Sunday, 12:00
	f := newMesh(t, open)
	dial := func(at time.Time, port uint16, want Reason) Verdict {
		t.Helper()
		return expect(t, f.In(ip(a4, v4, udp(port, 22, 0)), at), want)
	}
	v := dial(t0, 1, RuleShut)
	from, to := netip.MustParseAddrPort(a4+":1"), netip.MustParseAddrPort(v4+":22")
	if got, want := f.Explain(v, from, to, protoUDP), "denied: acls[1] (acl.hujson:1:5) lets alice reach victim on udp/22 only at Sun 12:01-12:10 UTC"; got != want {
		t.Error(got)
	}
	if at := f.Deadline(t0); !at.Equal(after(time.Minute)) {
		t.Errorf("the deadline is %v", at)
	}
	dial(after(time.Minute), 1, ByRule)
	dial(after(599*time.Second), 2, ByRule)
	if at := f.Deadline(after(5 * time.Minute)); !at.Equal(after(10 * time.Minute)) {
		t.Errorf("the deadline is %v", at)
	}
	dial(after(600*time.Second), 2, RuleShut)
	cuts := f.Tick(after(600 * time.Second))
	if len(cuts) != 1 || cuts[0].Why.Reason != RuleShut || cuts[0].Src.Port() != 2 {
		t.Errorf("cuts %+v", cuts)
	}
	dial(after(7*24*time.Hour), 1, RuleShut)
	dial(after(7*24*time.Hour+time.Minute), 1, ByRule)

	shut := rule(2, acl.Deny, "a", "v", anyPort)
	shut.Window = "Sun 12:05-12:10 UTC"
	f = newMesh(t, rule(1, acl.Accept, "a", "v", ports(22)), shut)
	dial(after(299*time.Second), 1, ByRule)
	dial(after(300*time.Second), 1, DenyRule)
	if cuts := f.Tick(after(300 * time.Second)); len(cuts) != 1 || cuts[0].Why.Reason != DenyRule {
		t.Errorf("cuts %+v", cuts)
	}
	dial(after(600*time.Second), 1, ByRule)

	f = newMesh(t, open) // and the clock is set back: what it had opened is shut
	dial(after(2*time.Minute), 1, ByRule)
	f.Tick(after(2 * time.Minute))
	if cuts := f.Tick(t0); len(cuts) != 1 || cuts[0].Why.Reason != RuleShut {
		t.Errorf("cuts %+v", cuts)
	}

	open.Window = "whenever" // not to be read: admits nothing
	f = newMesh(t, open)
	dial(t0, 1, RuleShut)
}

// Set, In and Out at once: under -race, and no packet of the revoked connection passes after Set has returned.
func TestConcurrentSet(t *testing.T) {
	f := newMesh(t)
	const rounds = 200
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range 3 {
		wg.Go(func() {
			to, back := ip(a4, v4, udp(uint16(i), 53, 8)), ip(v4, a4, udp(53, uint16(i), 8))
			icmpError := ip(a4, v4, icmp(3, 3, 0, back...))
			frags := pieces(a4, v4, udp(uint16(i), 53, 2000), 1, 1480)
			piece, rest := frags[0], frags[1]
			for {
				select {
				case <-stop:
					return
				default:
					f.In(to, t0)
					f.Out(back, t0)
					f.In(icmpError, t0)
					f.In(piece, t0)
					f.In(rest, t0)
					for range f.Flows {
						break
					}
					f.Stats()
				}
			}
		})
	}
	for i := range rounds {
		f.Set(mesh(uint64(i)), t0)
		in(t, f, ip(a4, v4, udp(999, 53, 8)), ByRule)
		cuts := f.Set(mesh(uint64(i), rule(1, acl.Accept, "x", "v", anyPort)), t0)
		if !slices.ContainsFunc(cuts, func(c Cut) bool { return c.Src.Port() == 999 }) {
			t.Fatal("the flow was not cut")
		}
		in(t, f, ip(a4, v4, udp(0, 53, 8)), NoRule)
		if i%2 == 0 {
			f.Set(nil, t0)
		}
		if n := f.Stats().Flows; n != 0 {
			t.Fatalf("%d flows are left", n)
		}
	}
	close(stop)
	wg.Wait()
}

// While policies are swapped under it, traffic that all of them allow loses no packet: new connections and old, pieces,
// errors, both ways.
func TestSwapDropsNothingThatBothAllow(t *testing.T) {
	swaps := 300
	if testing.Short() {
		swaps = 60
	}
	both := []acl.Rule{rule(1, acl.Accept, "a", "v", ports(22, 53)), rule(2, acl.Accept, "v", "a", ports(53))}
	late := rule(3, acl.Accept, "r", "v", anyPort)
	late.Expires = after(time.Hour)
	f := newMesh(t, both...)
	var sent atomic.Int64
	lossless := func(f *Filter, in bool, pkt []byte) {
		judge := f.Out
		if in {
			judge = f.In
		}
		sent.Add(1)
		if v := judge(pkt, t0); !v.Allow {
			t.Errorf("dropped: %v: % x", v, pkt)
		}
	}
	var wg sync.WaitGroup
	var stop atomic.Bool
	for w := range uint16(3) {
		wg.Go(func() {
			fam := &families[w%2]
			for port := 1000 * (w + 1); !stop.Load() && !t.Failed(); port++ {
				if port == 1000*(w+1)+900 { // 900 flows each, again and again
					port = 1000 * (w + 1)
				}
				asked := ip(fam.v, fam.a, udp(port, 53, 40))
				lossless(f, true, ip(fam.a, fam.v, udp(port, 22, 8)))
				lossless(f, false, ip(fam.v, fam.a, udp(22, port, 8)))
				lossless(f, false, asked)
				lossless(f, true, fam.icmp(fam.a, fam.v, 3, 3, 1, 4, asked...))
				lossless(f, true, ping(fam.a, fam.v, port))
				lossless(f, false, pong(fam.v, fam.a, port))
				for _, piece := range pieces(fam.a, fam.v, udp(port, 53, 4000), port, 1232) {
					lossless(f, true, piece)
				}
				lossless(f, true, ip(fam.a, fam.v, tcpSeg(port, 22, syn, 999, 0, "")))
			}
		})
	}
	for i := range swaps {
		rules := slices.Clone(both)
		if i%2 == 0 {
			rules = append(rules, late, rule(4, acl.Deny, "x", "v", anyPort), rule(5, acl.Accept, "*", "*", ports(443)))
		}
		if cuts := f.Set(mesh(uint64(i+2), rules...), t0); cuts != nil {
			t.Errorf("cut %+v", cuts)
		}
		f.Tick(t0)
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d packets through %d swaps", sent.Load(), swaps)
}

// What was asked of the old rules is compiled for the new before they come into force.
func TestSetCompilesWhatIsInUse(t *testing.T) {
	f := newMesh(t)
	compiled := func() (n int) {
		s := f.snap.Load()
		for i := range s.programs.slots {
			if s.programs.slots[i].Load() != nil {
				n++
			}
		}
		return
	}
	if n := compiled(); n != 0 {
		t.Errorf("%d programs are compiled before anyone asks", n)
	}
	in(t, f, ip(a4, v4, udp(1, 53, 0)), ByRule)
	in(t, f, ip(x4, v4, udp(1, 53, 0)), NoRule)
	before := compiled()
	f.Set(mesh(2), t0)
	if n := compiled(); n != before || n == 0 {
		t.Errorf("%d programs are compiled, %d were in use", n, before)
	}
	in(t, f, ip(a4, v4, udp(2, 53, 0)), ByRule)
	in(t, f, ip(x6, v6, udp(2, 53, 0)), NoRule)
	if n := compiled(); n != before {
		t.Error("a packet had to wait for the compiler")
	}
}

func TestExplain(t *testing.T) {
	until := rule(3, acl.Accept, "a", "v", ports(80))
	until.Expires = t0
	f := newMesh(t, rule(1, acl.Accept, "a", "v", ports(22)), rule(2, acl.Deny, "a", "v", ports(23)), until, rule(4, acl.Accept, "a", "lan9", ports(1)))
	for _, tt := range []struct {
		src, dst string
		proto    uint8
		want     string
	}{
		{a4 + ":5", v4 + ":22", protoTCP, "allowed: alice may reach victim on tcp/22 by acls[1] (acl.hujson:1:5)"},
		{x4 + ":5", v4 + ":5432", protoTCP, "denied: no rule lets mallory reach victim on tcp/5432"},
		{v4 + ":5", a4 + ":53", protoUDP, "denied: no rule lets victim reach alice on udp/53"},
		{a4 + ":5", v4 + ":23", protoTCP, "denied: acls[2] (acl.hujson:2:5) forbids alice to reach victim on tcp/23"},
		{a4 + ":5", v4 + ":80", protoTCP, "denied: acls[3] (acl.hujson:3:5) let alice reach victim on tcp/80 only until 2026-03-01T12:00:00Z"},
		{x4 + ":0", v4 + ":0", 47, "denied: no rule lets mallory reach victim on protocol 47"},
		{"10.3.0.1:5", "10.9.0.1:1", protoTCP, "denied: no rule lets 10.3.0.1 (behind router) reach 10.9.0.1 (behind victim) on tcp/1"},
		{"127.0.0.1:5", v4 + ":1", protoTCP, "denied: source 127.0.0.1 belongs to no known peer and is not ours to send from"},
		{x4 + ":5", "10.8.0.1:1", protoTCP, "denied: destination 10.8.0.1 is not at the receiver"},
		{"[" + a6 + "]:5", "[" + v6 + "]:22", protoTCP, "allowed: alice may reach victim on tcp/22 by acls[1] (acl.hujson:1:5)"},
	} {
		src, dst := netip.MustParseAddrPort(tt.src), netip.MustParseAddrPort(tt.dst)
		v := f.Check(src, dst, tt.proto, t0)
		if got := f.Explain(v, src, dst, tt.proto); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
	if n := f.Stats().Flows; n != 0 {
		t.Errorf("Check made %d flows", n)
	}
	v := f.In(ip(a4, v4, tcp(1, 22, syn)), t0)
	if got := v.String(); got != "allowed by acls[1] (acl.hujson:1:5)" {
		t.Error(got)
	}
	seen := map[string]bool{}
	for _, r := range Reasons() {
		if s := r.String(); s == "" || seen[s] || strings.ToLower(s) != s || r.text() == "" {
			t.Errorf("reason %d is %q", r, s)
		}
		seen[r.String()] = true
	}
}

func TestPeer(t *testing.T) {
	f := newMesh(t)
	for addr, want := range map[string]acl.NodeID{a4: idA, x6: idX, "10.3.1.1": idR, "8.8.8.8": idR, v4: 0, "10.9.0.1": 0, "127.0.0.1": 0} {
		if got, ok := f.Peer(netip.MustParseAddr(addr)); got != want || ok != (want != 0) {
			t.Errorf("%s belongs to %d, %v", addr, got, ok)
		}
	}
}

func TestReject(t *testing.T) {
	for _, tt := range []struct {
		name string
		pkt  []byte
		want string // "" for no answer
	}{
		{"SYN", ip(v4, a4, tcp(5, 22, syn)), "rst+ack"},
		{"data", ip(v6, a6, tcpSeg(5, 22, ackFlag, 1, 7777, "x")), "rst"},
		{"RST", ip(v4, a4, tcp(5, 22, rst)), ""},
		{"UDP", ip(v4, a4, udp(5, 22, 1400)), "icmp"},
		{"UDP v6", ip(v6, a6, udp(5, 22, 1400)), "icmp"},
		{"ping", ping(v4, a4, 1), "icmp"},
		{"reply", pong(v4, a4, 1), ""},
		{"error", ip(v4, a4, icmp(3, 3, 0, make([]byte, 28)...)), ""},
		{"multicast", ip(v4, "224.0.0.251", udp(5353, 5353, 9)), ""},
		{"from loopback", ip("127.0.0.1", a4, udp(1, 1, 9)), ""},
		{"later fragment", fragOf(v4, a4, protoUDP, 1, 1480, false, make([]byte, 8)), ""},
		{"nonsense", []byte("hello, world, this is no packet"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			buf := make([]byte, 1280)
			b := Reject(tt.pkt, buf)
			if (b != nil) != (tt.want != "") {
				t.Fatalf("answer % x", b)
			}
			if b == nil {
				return
			}
			if &b[0] != &buf[0] {
				t.Error("not in the buffer")
			}
			checkSums(t, b)
			var p, q packet
			p.parse(b)
			q.parse(tt.pkt)
			if p.src != q.dst || p.dst != q.src {
				t.Error("not turned round")
			}
			switch tt.want {
			case "rst+ack":
				if p.flags != rst|ackFlag || p.ack != q.seq+1 || p.seq != 0 {
					t.Errorf("%+v", p)
				}
			case "rst":
				if p.flags != rst || p.seq != q.ack {
					t.Errorf("%+v", p)
				}
			case "icmp":
				most, typ, code := 576, byte(3), byte(13)
				if p.v6 {
					most, typ, code = 1280, 1, 1
				}
				if p.size > most || p.l4[0] != typ || p.l4[1] != code || binary.BigEndian.Uint32(p.l4[8:]) != binary.BigEndian.Uint32(tt.pkt) {
					t.Errorf("%+v", p)
				}
			}
		})
	}
}

func TestNoAllocations(t *testing.T) {
	f := newMesh(t, rule(1, acl.Accept, "a", "v", anyPort))
	play(t, f, handshake, t0)
	in(t, f, ip(a4, v4, udp(1, 2, 8)), ByRule)
	seg, reply := ip(a4, v4, tcpSeg(5000, 22, ackFlag, 1000, 5000, "")), ip(v4, a4, udp(2, 1, 8))
	denied, scan, fresh := ip(x4, v4, udp(1, 2, 8)), ip(x6, v6, tcp(1, 2, ackFlag)), ip(a6, v6, udp(0, 7, 8))
	buf := make([]byte, 1280)
	port := uint16(0)
	for name, run := range map[string]func(){
		"established TCP": func() { f.In(seg, t0) },
		"established UDP": func() { f.Out(reply, t0) },
		"denied":          func() { f.In(denied, t0); f.In(scan, t0) },
		"reject":          func() { Reject(denied, buf) },
		"new flow":        func() { port++; binary.BigEndian.PutUint16(fresh[40:], port); f.In(fresh, t0) },
	} {
		if n := testing.AllocsPerRun(1000, run); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
