package filter

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// A step of a connection is written as it would be drawn:
//
//	"< S 999"            A ▶ V  SYN, sequence number 999
//	"> SA 4999 1000"     V ▶ A  SYN+ACK, acknowledging 1000
//	"< A 1000 5000 abc"  A ▶ V  three bytes
//
// with the verdict it must meet.
type step struct {
	seg  string
	want Reason
}

var flagOf = map[rune]uint8{'S': syn, 'A': ackFlag, 'F': fin, 'R': rst, 'P': psh, 'E': ece, 'C': cwr, '.': 0}

func play(t *testing.T, f *Filter, steps []step, now time.Time) {
	t.Helper()
	for _, s := range steps {
		expect(t, send(t, f, s.seg, now), s.want)
		if t.Failed() {
			t.Fatalf("at %q", s.seg)
		}
	}
}

func send(t *testing.T, f *Filter, seg string, now time.Time) Verdict {
	t.Helper()
	var dir, flags, data string
	var seq, ack uint32
	if n, _ := fmt.Sscan(seg, &dir, &flags, &seq, &ack, &data); n < 3 {
		t.Fatalf("bad step %q", seg)
	}
	bits := uint8(0)
	for _, r := range flags {
		bits |= flagOf[r]
	}
	if dir == "<" {
		return f.In(ip(a4, v4, tcpSeg(5000, 22, bits, seq, ack, data)), now)
	}
	return f.Out(ip(v4, a4, tcpSeg(22, 5000, bits, seq, ack, data)), now)
}

var handshake = []step{{"< S 999", ByRule}, {"> SA 4999 1000", ByFlow}, {"< A 1000 5000", ByFlow}}

func TestTCP(t *testing.T) {
	for _, tt := range []struct {
		name  string
		steps []step
		state string
	}{
		{"whole life", append(slices.Clone(handshake), []step{
			{"< PA 1000 5000 hello", ByFlow}, {"> A 5000 1005", ByFlow}, {"> PA 5000 1005 hi", ByFlow}, {"< A 1005 5002", ByFlow},
			{"< FA 1005 5002", ByFlow}, {"> A 5002 1006", ByFlow}, {"> FA 5002 1006", ByFlow}, {"< A 1006 5003", ByFlow},
			{"< A 1006 5003", ByFlow}}...), "time-wait"},
		{"no mid-stream pickup", []step{{"< A 1000 5000", TCPLost}, {"< PA 1000 5000 x", TCPLost}, {"> SA 4999 1000", TCPNoFlow}}, ""},
		{"SYN again, SYN+ACK again", []step{{"< S 999", ByRule}, {"< S 999", ByFlow}, {"> SA 4999 1000", ByFlow}, {"> SA 4999 1000", ByFlow},
			{"< A 1000 5000", ByFlow}}, "established"},
		{"refused", []step{{"< S 999", ByRule}, {"> RA 0 1000", ByFlow}, {"< A 1000 1", TCPState}}, "closed"},
		{"refused with a wrong acknowledgment", []step{{"< S 999", ByRule}, {"> RA 0 1001", TCPSeq}, {"> R 0", TCPSeq}}, "syn-sent"},
		{"SYN+ACK of the wrong sequence", []step{{"< S 999", ByRule}, {"> SA 4999 1001", TCPSeq}, {"> SA 4999 999", TCPSeq}}, "syn-sent"},
		{"the responder sends a SYN, which no rule lets it", []step{{"< S 999", ByRule}, {"> S 4999", NoRule}}, "syn-sent"},
		{"the opener sends SYN+ACK", []step{{"< S 999", ByRule}, {"< SA 999 1", TCPState}}, "syn-sent"},
		{"data before the handshake ends", []step{{"< S 999", ByRule}, {"< A 1000 5000 x", TCPState}, {"> A 5000 1000 x", TCPState}}, "syn-sent"},
		{"a new try on the same port", []step{{"< S 999", ByRule}, {"< S 7777", ByRule}, {"> SA 4999 1000", TCPSeq}, {"> SA 4999 7778", ByFlow}}, "syn-received"},
		{"data in the SYN", []step{{"< S 999 0 fast", ByRule}, {"> SA 4999 1004", ByFlow}, {"< A 1004 5000", ByFlow}}, "established"},
		{"data in the SYN not taken", []step{{"< S 999 0 fast", ByRule}, {"> SA 4999 1000", ByFlow}, {"< A 1000 5000 fast", ByFlow}}, "established"},
		{"RST in its place", append(slices.Clone(handshake), step{"< R 1000", ByFlow}, step{"< A 1000 5000", TCPState}), "closed"},
		{"RST in the window but not in its place", append(slices.Clone(handshake), step{"< R 1500", ByFlow}, step{"> A 5000 1000", ByFlow}), "established"},
		{"RST outside the window", append(slices.Clone(handshake), step{"< R 900000", TCPSeq}, step{"< R 4000000000", TCPSeq}), "established"},
		{"data outside the window", append(slices.Clone(handshake), step{"< A 131001 5000 x", TCPSeq}, step{"> A 900000 1000 x", TCPSeq}), "established"},
		{"acknowledging what was not sent", append(slices.Clone(handshake), step{"< A 1000 5001", TCPSeq}, step{"> A 5000 1001", TCPSeq}), "established"},
		{"keepalive", append(slices.Clone(handshake), step{"< A 999 5000", ByFlow}, step{"> A 5000 1000", ByFlow}), "established"},
		{"both close at once", append(slices.Clone(handshake), step{"< FA 1000 5000", ByFlow}, step{"> FA 5000 1000", ByFlow},
			step{"< A 1001 5001", ByFlow}, step{"> A 5001 1001", ByFlow}), "time-wait"},
		{"half closed, data still flows back", append(slices.Clone(handshake), step{"< FA 1000 5000", ByFlow}, step{"> A 5000 1001 more", ByFlow},
			step{"< A 1001 5004", ByFlow}), "closing"},
		{"new connection after TIME_WAIT", append(slices.Clone(handshake), step{"< FA 1000 5000", ByFlow}, step{"> FA 5000 1001", ByFlow},
			step{"< A 1001 5001", ByFlow}, step{"< S 90000", ByRule}, step{"> SA 100 90001", ByFlow}), "syn-received"},
		{"an end forgot and is told so", append(slices.Clone(handshake), step{"< S 70000", ByFlow}, step{"> A 5000 1000", ByFlow},
			step{"< R 1000", ByFlow}, step{"< S 70000", ByRule}, step{"> SA 100 70001", ByFlow}), "syn-received"},
		{"the other end still has an old connection", []step{{"< S 999", ByRule}, {"> A 777 333", ByFlow}, {"< R 333", ByFlow}, {"< S 999", ByFlow},
			{"> SA 4999 1000", ByFlow}}, "syn-received"},
		{"congestion flags", []step{{"< SEC 999", ByRule}, {"> SAE 4999 1000", ByFlow}, {"< AE 1000 5000", ByFlow}}, "established"},
		{"sequence numbers wrap", []step{{"< S 4294967295", ByRule}, {"> SA 4294967294 0", ByFlow}, {"< A 0 4294967295 abc", ByFlow},
			{"> A 4294967295 3 de", ByFlow}, {"< A 3 1", ByFlow}}, "established"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newMesh(t)
			play(t, f, tt.steps, t0)
			got := ""
			for fl := range f.Flows {
				got = fl.State
			}
			if got != tt.state {
				t.Errorf("ends %q, want %q", got, tt.state)
			}
		})
	}
}

// Two SYNs cross (RFC 9293 section 3.5, figure 7): one connection, if the rules admit it from either end.
func TestSimultaneousOpen(t *testing.T) {
	there, back := rule(1, acl.Accept, "a", "v", ports(22)), rule(2, acl.Accept, "v", "a", ports(5000))
	for _, tt := range []struct {
		name  string
		steps []step
		state string
	}{
		{"figure 7", []step{{"< S 100", ByRule}, {"> S 300", ByFlow}, {"< SA 100 301", ByFlow}, {"> SA 300 101", ByFlow},
			{"< A 101 301 hello", ByFlow}, {"> A 301 106 hi", ByFlow}, {"< A 106 303", ByFlow}}, "established"},
		{"the other SYN first", []step{{"> S 300", ByRule}, {"< S 100", ByFlow}, {"> SA 300 101", ByFlow}, {"< SA 100 301", ByFlow},
			{"> A 301 101 hi", ByFlow}}, "established"},
		{"each SYN again", []step{{"< S 100", ByRule}, {"> S 300", ByFlow}, {"> S 300", ByFlow}, {"< S 100", ByFlow}, {"> SA 300 101", ByFlow},
			{"> SA 300 101", ByFlow}}, "syn-received"},
		{"a SYN of another sequence", []step{{"< S 100", ByRule}, {"> S 300", ByFlow}, {"> S 9000", TCPState}}, "syn-received"},
		{"SYN+ACKs out of place", []step{{"< S 100", ByRule}, {"> S 300", ByFlow}, {"< SA 99 301", TCPSeq}, {"< SA 100 302", TCPSeq},
			{"> SA 300 102", TCPSeq}}, "syn-received"},
		{"data before either is acknowledged", []step{{"< S 100", ByRule}, {"> S 300", ByFlow}, {"> A 301 102 x", TCPSeq}}, "syn-received"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newMesh(t, there, back)
			play(t, f, tt.steps, t0)
			for fl := range f.Flows {
				if fl.State != tt.state {
					t.Errorf("ends %q, want %q", fl.State, tt.state)
				}
			}
			if n := f.Stats().Flows; n != 1 {
				t.Errorf("%d flows", n)
			}
			for i, rules := range [][]acl.Rule{{there}, {back}} { // either is enough to keep it
				if cuts := f.Set(mesh(uint64(i+2), rules...), t0); cuts != nil {
					t.Errorf("cut: %+v", cuts)
				}
			}
			if cuts := f.Set(mesh(4, rule(1, acl.Accept, "x", "v", anyPort)), t0); len(cuts) != 1 {
				t.Errorf("%d cuts", len(cuts))
			}
		})
	}
	f := newMesh(t, there)
	play(t, f, []step{{"< S 100", ByRule}, {"> S 300", NoRule}, {"> SA 300 101", ByFlow}}, t0)
}

// After a restart of V, A is told that its connection is gone; whoever could not open it is told nothing.
func TestLostConnection(t *testing.T) {
	f := newMesh(t)
	seg := func(from string, port uint16, flags uint8) []byte {
		return ip(from, v4, tcpSeg(5000, port, flags, 1000, 5000, "data"))
	}
	for _, tt := range []struct {
		name   string
		pkt    []byte
		answer bool
	}{
		{"data", seg(a4, 22, ackFlag|psh), true},
		{"FIN", seg(a4, 22, ackFlag|fin), true},
		{"SYN+ACK", seg(a4, 22, ackFlag|syn), true},
		{"v6", ip(a6, v6, tcpSeg(5000, 22, ackFlag, 1, 1, "x")), true},
		{"RST", seg(a4, 22, rst), false},
		{"another port", seg(a4, 23, ackFlag), false},
		{"a peer without a rule", seg(x4, 22, ackFlag), false},
		{"impossible flags", seg(a4, 22, fin), false},
		{"not at this node", ip(a4, "100.64.0.50", tcpSeg(5000, 22, ackFlag, 1, 1, "")), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := f.In(tt.pkt, t0)
			if v.Allow || v.Answer() != tt.answer {
				t.Errorf("%+v", v)
			}
			if !v.Answer() {
				return
			}
			if rst := Reject(tt.pkt, nil); rst == nil {
				t.Error("there is no answer")
			} else {
				checkSums(t, rst)
			}
		})
	}
	answers := 0
	for range 10_000 { // all within a second: what is left of 100, and 100 more
		if f.In(seg(a4, 22, ackFlag), after(time.Second)).Answer() {
			answers++
		}
	}
	if answers > 200 || answers < 90 {
		t.Errorf("%d answers in a second", answers)
	}
	if !f.In(seg(a4, 22, ackFlag), after(2*time.Second)).Answer() {
		t.Error("the allowance does not come back")
	}
	if out(t, f, ip(v4, a4, tcpSeg(22, 5000, ackFlag, 1, 1, "")), TCPNoFlow).Answer() {
		t.Error("our own are answered as all are that may not leave")
	}
}

// Windows are scaled as both ends agreed in their SYNs: 65000 << 7 allows 8 MB ahead, and only then.
func TestTCPWindowScale(t *testing.T) {
	for _, both := range []bool{true, false} {
		f := newMesh(t)
		in(t, f, ip(a4, v4, tcpSeg(5000, 22, syn, 999, 0, "", 2, 4, 5, 0xb4, 3, 3, 7)), ByRule)
		var answer []byte
		if both {
			answer = []byte{1, 3, 3, 7}
		}
		out(t, f, ip(v4, a4, tcpSeg(22, 5000, syn|ackFlag, 4999, 1000, "", answer...)), ByFlow)
		in(t, f, ip(a4, v4, tcpSeg(5000, 22, ackFlag, 1000, 5000, "")), ByFlow)
		want := TCPSeq
		if both {
			want = ByFlow
		}
		out(t, f, ip(v4, a4, tcpSeg(22, 5000, ackFlag, 5000, 1000, "")), ByFlow)
		out(t, f, ip(v4, a4, tcpSeg(22, 5000, ackFlag, 5_000_000, 1000, "far")), want)
	}
}
