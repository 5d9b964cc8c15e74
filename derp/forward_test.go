package derp

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// ferry is a Forwarder with some nodes, the first three of which may use it.
type ferry struct {
	t     testing.TB
	f     *Forwarder
	now   time.Time
	nodes []key.NodePublic
	tx    byte
}

func newFerry(t *testing.T, cfg ForwarderConfig) *ferry {
	x := &ferry{t: t, f: NewForwarder(cfg), now: time.Unix(1_700_000_000, 0)}
	for range 5 {
		x.nodes = append(x.nodes, key.ExchangePublic(key.NewNode()))
	}
	x.f.Allow(x.now, x.nodes[:3], nil, true)
	return x
}

func (x *ferry) ask(from, to int) (Offer, Refusal) {
	x.tx++
	return x.f.Ask(x.now, x.nodes[from], x.nodes[to], [12]byte{x.tx})
}

// hop asks, and must be given a leg.
func (x *ferry) hop(from, to int) *Hop {
	x.t.Helper()
	o, no := x.ask(from, to)
	if no != 0 {
		x.t.Fatalf("%d asked for %d and was refused: %v", from, to, no)
	}
	return NewHop(o)
}

var ferryAddrs = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1000"), netip.MustParseAddrPort("192.0.2.2:2000"), netip.MustParseAddrPort("192.0.2.3:3000"),
	netip.MustParseAddrPort("192.0.2.4:4000"), netip.MustParseAddrPort("192.0.2.5:5000")}

// send passes a datagram that comes from the address of a node; it returns what goes on, and where.
func (x *ferry) send(b []byte, node int) ([]byte, netip.AddrPort) {
	b = bytes.Clone(b)
	l, newest := x.f.Take(x.now, b)
	if l == nil {
		return nil, netip.AddrPort{}
	}
	if newest {
		l.Move(ferryAddrs[node])
	}
	to, ok := x.f.Onward(x.now, l, b)
	if !ok {
		return nil, netip.AddrPort{}
	}
	return b, to
}

// opened is a pair whose ends have both come.
func (x *ferry) opened(a, b int) (*Hop, *Hop) {
	ha, hb := x.hop(a, b), x.hop(b, a)
	x.send(ha.Wrap(nil, data("first")), a)
	x.send(hb.Wrap(nil, data("first")), b)
	return ha, hb
}

func (x *ferry) passes(from *Hop, to *Hop, a, b int) bool {
	out, at := x.send(from.Wrap(nil, data("hello")), a)
	if out == nil {
		return false
	}
	if at != ferryAddrs[b] {
		x.t.Errorf("a packet for %v goes to %v", ferryAddrs[b], at)
	}
	return bytes.Equal(to.Unwrap(out), data("hello"))
}

func TestForward(t *testing.T) {
	x := newFerry(t, ForwarderConfig{})
	a := x.hop(0, 1)
	if out, _ := x.send(a.Wrap(nil, data("early")), 0); out != nil {
		t.Error("a packet was forwarded to a node that has not asked")
	}
	b := x.hop(1, 0)
	if out, _ := x.send(a.Wrap(nil, data("early")), 0); out != nil {
		t.Error("a packet was forwarded to a node that has not come")
	}
	if out, to := x.send(b.Wrap(nil, data("now")), 1); out == nil || to != ferryAddrs[0] {
		t.Error("both have come, and nothing passes")
	}
	if !x.passes(a, b, 0, 1) || !x.passes(b, a, 1, 0) {
		t.Error("nothing passes")
	}
	in := a.Wrap(nil, data("as long"))
	if out, _ := x.send(in, 0); len(out) != len(in) || len(in) != len(data("as long"))+HopOverhead {
		t.Errorf("%d bytes came and %d went on", len(in), len(out))
	}
}

// TestForwardRefused: nobody else's datagram, and no copy, is taken, and none has an answer.
func TestForwardRefused(t *testing.T) {
	x := newFerry(t, ForwarderConfig{})
	a, b := x.opened(0, 1)
	good := a.Wrap(nil, data("hello"))
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if out, _ := x.send(bad, 0); out != nil {
			t.Errorf("byte %d changed, and forwarded", i)
		}
	}
	for n := range good {
		if out, _ := x.send(good[:n], 0); out != nil {
			t.Errorf("cut to %d bytes, and forwarded", n)
		}
	}
	out, _ := x.send(good, 0)
	if b.Unwrap(bytes.Clone(out)) == nil || b.Unwrap(out) != nil {
		t.Error("a packet was not taken once")
	}
	if again, _ := x.send(good, 0); again != nil {
		t.Error("a copy was forwarded")
	}
	if back, _ := x.send(out, 1); back != nil {
		t.Error("what the relay sent was forwarded when it came back")
	}
	if a.Unwrap(a.Wrap(nil, data("mirrored"))) != nil {
		t.Error("a node took its own datagram, sent back to it")
	}
	// A third node, with a leg of its own, is neither of the two.
	c, _ := x.opened(2, 1)
	forged := c.Wrap(nil, data("hello"))
	copy(forged[12:20], good[12:20])
	if out, _ := x.send(forged, 2); out != nil {
		t.Error("a third node's datagram was forwarded as another's")
	}
	if !x.passes(a, b, 0, 1) {
		t.Error("the pair is hurt by it")
	}
}

func TestForwardAsk(t *testing.T) {
	x := newFerry(t, ForwarderConfig{})
	for _, c := range []struct {
		name     string
		from, to int
		want     Refusal
	}{
		{"both may", 0, 1, 0},
		{"who asks may not", 3, 0, NotAllowed},
		{"whom it asks for may not", 0, 3, NotAllowed},
		{"neither may", 3, 4, NotAllowed},
		{"itself", 0, 0, NotAllowed},
	} {
		if _, no := x.ask(c.from, c.to); no != c.want {
			t.Errorf("%s: %v, want %v", c.name, no, c.want)
		}
	}
	x.tx--
	if _, no := x.ask(0, 1); no == Repeated {
		t.Error("the number of another node's ask is taken for a copy")
	}
	x.tx--
	if _, no := x.ask(0, 1); no != Repeated || no.Answered() {
		t.Error("a copy of an ask was heeded")
	}
	x.f.Allow(x.now, x.nodes, nil, false)
	if _, no := x.ask(0, 1); no != NotRelay {
		t.Errorf("no relay any more: %v", no)
	}
}

// TestForwardOneGranted: one of the two is enough, if the relay knows the other. With the right of that one the pair ends.
func TestForwardOneGranted(t *testing.T) {
	x := newFerry(t, ForwarderConfig{})
	allow := func(users, rest []key.NodePublic) []Ended { return x.f.Allow(x.now, users, rest, true) }
	allow(x.nodes[:1], x.nodes[:3])
	for _, c := range []struct {
		name     string
		from, to int
		want     Refusal
	}{
		{"it asks for one that is not granted it", 0, 1, 0},
		{"one that is not granted it asks for it", 2, 0, 0},
		{"neither is", 1, 2, NotAllowed},
		{"for one that the relay does not know", 0, 3, NotAllowed},
		{"one that it does not know", 3, 0, NotAllowed},
	} {
		if _, no := x.ask(c.from, c.to); no != c.want {
			t.Errorf("%s: %v, want %v", c.name, no, c.want)
		}
	}
	a, b := x.opened(0, 1)
	if !x.passes(a, b, 0, 1) || !x.passes(b, a, 1, 0) {
		t.Error("nothing passes")
	}
	if ended := allow(x.nodes[1:2], x.nodes[:3]); len(ended) != 0 || !x.passes(a, b, 0, 1) {
		t.Errorf("granted to the other instead, it ends: %+v", ended)
	}
	if ended := allow(x.nodes[2:3], x.nodes[:3]); len(ended) != 2 || x.passes(a, b, 0, 1) {
		t.Errorf("granted to neither any more, it goes on; to be told: %+v", ended)
	}
	allow(x.nodes[:1], x.nodes[:3])
	x.opened(0, 1)
	if ended := allow(x.nodes[:1], x.nodes[2:3]); len(ended) != 2 {
		t.Errorf("the other is not known any more; to be told: %+v", ended)
	}
}

// TestForwardRevoked: a pair ends with the right of either, at once; others go on.
func TestForwardRevoked(t *testing.T) {
	x := newFerry(t, ForwarderConfig{})
	a, b := x.opened(0, 1)
	c, d := x.opened(0, 2)
	ended := x.f.Allow(x.now, []key.NodePublic{x.nodes[0], x.nodes[2]}, nil, true)
	if len(ended) != 2 || ended[0].Node != ended[1].Peer || ended[0].Tx == ended[1].Tx {
		t.Errorf("to be told: %+v", ended)
	}
	if x.passes(a, b, 0, 1) || x.passes(b, a, 1, 0) {
		t.Error("a revoked pair goes on")
	}
	if !x.passes(c, d, 0, 2) {
		t.Error("another pair has ended")
	}
	x.f.Allow(x.now, x.nodes[:3], nil, true)
	if x.passes(a, b, 0, 1) {
		t.Error("the old legs are good again")
	}
	x.f.Allow(x.now, nil, nil, false)
	if x.passes(c, d, 0, 2) {
		t.Error("nobody may use it any more, and it forwards")
	}
	if s := x.f.Stats(x.now); len(s.Pairs) != 0 || len(x.f.legs) != 0 {
		t.Errorf("%d pairs and %d legs are left", len(s.Pairs), len(x.f.legs))
	}
}

// TestForwardDrains: a relay that wants to be none any more serves its pairs for another second, and no new ones.
func TestForwardDrains(t *testing.T) {
	x := newFerry(t, ForwarderConfig{})
	a, b := x.opened(0, 1)
	if ended := x.f.Allow(x.now, x.nodes[:3], nil, false); len(ended) != 2 {
		t.Errorf("to be told: %+v", ended)
	}
	if ended := x.f.Allow(x.now, x.nodes[:3], nil, false); len(ended) != 0 {
		t.Errorf("to be told again: %+v", ended)
	}
	if _, no := x.ask(0, 2); no != NotRelay {
		t.Errorf("a new pair: %v", no)
	}
	x.now = x.now.Add(drainFor - 1)
	if !x.passes(a, b, 0, 1) {
		t.Error("what is under way is lost")
	}
	x.now = x.now.Add(1)
	if x.passes(a, b, 0, 1) {
		t.Error("it goes on for ever")
	}
	if s := x.f.Stats(x.now.Add(time.Second)); len(s.Pairs) != 0 || len(x.f.legs) != 0 {
		t.Errorf("%d pairs and %d legs are left", len(s.Pairs), len(x.f.legs))
	}
	// Revoked meanwhile, they end at once.
	x.f.Allow(x.now, x.nodes[:3], nil, true)
	a, b = x.opened(0, 1)
	x.f.Allow(x.now, x.nodes[:3], nil, false)
	x.f.Allow(x.now, x.nodes[:1], nil, false)
	if x.passes(a, b, 0, 1) {
		t.Error("a revoked pair goes on")
	}
}

// TestForwardAnew: a node that asks anew goes on by its new leg; until it does the old one serves.
func TestForwardAnew(t *testing.T) {
	x := newFerry(t, ForwarderConfig{})
	a, b := x.opened(0, 1)
	x.hop(0, 1) // never used
	again := x.hop(0, 1)
	if !x.passes(a, b, 0, 1) {
		t.Error("the old leg ended before the new one was used")
	}
	x.send(again.Wrap(nil, data("here")), 0)
	if x.passes(a, b, 0, 1) {
		t.Error("the old leg is still good")
	}
	if !x.passes(again, b, 0, 1) || !x.passes(b, again, 1, 0) {
		t.Error("the new leg is not good")
	}
	if len(x.f.legs) != 2 {
		t.Errorf("%d legs are left", len(x.f.legs))
	}
}

func TestForwardBounds(t *testing.T) {
	x := newFerry(t, ForwarderConfig{Pairs: 2, PerNode: 1})
	x.f.Allow(x.now, x.nodes, nil, true)
	x.hop(0, 1)
	if _, no := x.ask(0, 2); no != Full {
		t.Errorf("a second pair of a node: %v", no)
	}
	a, b := x.opened(2, 3)
	if _, no := x.ask(4, 1); no != Full {
		t.Errorf("a third pair in all: %v", no)
	}
	if _, no := x.ask(4, 4); no != NotAllowed {
		t.Errorf("with itself: %v", no)
	}
	// The first has never come: its place is free after a while.
	x.now = x.now.Add(pairHalf)
	x.passes(a, b, 2, 3)
	x.hop(0, 4)
	x.now = x.now.Add(pairIdle - time.Second)
	if !x.passes(a, b, 2, 3) {
		t.Error("a pair that is used was forgotten")
	}
	x.now = x.now.Add(pairIdle)
	if s := x.f.Stats(x.now); len(s.Pairs) != 0 || len(x.f.legs) != 0 {
		t.Errorf("%d pairs and %d legs are left", len(s.Pairs), len(x.f.legs))
	}
	hasty := false
	for range 2 * askBurst {
		_, no := x.ask(0, 1)
		hasty = hasty || no == Hasty
	}
	if !hasty || len(x.f.legs) > 2 {
		t.Errorf("a node that asks all the time is heeded (%d legs)", len(x.f.legs))
	}
}

// TestForwardOneSided: whom a node asks for pays nothing for it, and the one that asks cannot keep a pair alone, however
// much it sends.
func TestForwardOneSided(t *testing.T) {
	x := newFerry(t, ForwarderConfig{Pairs: 8, PerNode: 2})
	x.f.Allow(x.now, x.nodes, nil, true)
	for _, from := range []int{2, 3, 4} { // more than a node may have
		x.hop(from, 0)
	}
	x.opened(0, 1)
	alone := x.hop(2, 1)
	if _, no := x.ask(2, 3); no != Full {
		t.Errorf("a third pair that a node asks for: %v", no)
	}
	x.hop(0, 2) // which 2 has asked for before
	if _, no := x.ask(0, 3); no != Full {
		t.Errorf("a pair that another has asked for does not count: %v", no)
	}
	for range 2 * int(pairHalf/time.Second) {
		x.now = x.now.Add(time.Second)
		x.send(alone.Wrap(nil, data("still here")), 2)
		x.f.Stats(x.now)
	}
	if l, _ := x.f.Take(x.now, alone.Wrap(nil, data("still here"))); l != nil {
		t.Error("a node keeps a pair that the other has never come to")
	}
	if s := x.f.Stats(x.now); len(s.Pairs) != 1 || !s.Pairs[0].Open {
		t.Errorf("left: %+v, want the one that both have come to", s.Pairs)
	}
	// All that was counted is given back.
	x.hop(2, 3)
	x.hop(2, 4)
	x.hop(0, 3)
	if _, no := x.ask(0, 4); no != Full {
		t.Errorf("beside a pair that is open: %v", no)
	}
}

func TestForwardRate(t *testing.T) {
	x := newFerry(t, ForwarderConfig{Rate: 1 << 20})
	a, b := x.opened(0, 1)
	for range 2 * (1 << 18) / 1000 {
		x.send(a.Wrap(nil, make([]byte, 1000)), 0)
	}
	s := x.f.Stats(x.now)
	if s.Limited == 0 || s.Bytes > 1<<18+4096 {
		t.Errorf("%d bytes at once, and %d packets held back", s.Bytes, s.Limited)
	}
	x.now = x.now.Add(time.Second)
	if !x.passes(a, b, 0, 1) {
		t.Error("a second later nothing passes")
	}
}

func TestForwardGolden(t *testing.T) {
	hop := NewHop(Offer(fixedOffer()))
	relay, _ := newSeals(fixedOffer(), dgDown)
	up := hop.Wrap(nil, data("hi"))
	down := bytes.Clone(up)
	relay.restamp(down)
	for _, c := range []struct {
		name, want string
		got        []byte
	}{
		{"to the relay", `ed520103 0000000000000001 0102030405060708 040000006869 37f96f95c5bd82ff4ceedd3a95f11f21`, up},
		{"from the relay", `ed520183 0000000000000001 0102030405060708 040000006869 819699392394a22bb6ce6fcbc0eb1252`, down},
	} {
		if want := unhex(t, c.want); !bytes.Equal(c.got, want) {
			t.Errorf("%s:\n got %x\nwant %x", c.name, c.got, want)
		}
	}
	if !bytes.Equal(NewHop(Offer(fixedOffer())).Unwrap(down), data("hi")) {
		t.Error("the relay's does not open")
	}
}

func FuzzForward(f *testing.F) {
	x := &ferry{f: NewForwarder(ForwarderConfig{}), now: time.Unix(1_700_000_000, 0)}
	a, b := key.ExchangePublic(key.NewNode()), key.ExchangePublic(key.NewNode())
	x.f.Allow(x.now, []key.NodePublic{a, b}, nil, true)
	o, _ := x.f.Ask(x.now, a, b, [12]byte{1})
	hop := NewHop(o)
	f.Add(hop.Wrap(nil, data("hello")))
	f.Add([]byte(datagramMagic + "\x03"))
	id := hop.ID()
	f.Fuzz(func(t *testing.T, in []byte) {
		if l, _ := x.f.Take(x.now, in); l != nil && l.in.session != id {
			t.Error("a leg that was never given")
		}
		NewHop(o).Unwrap(in)
	})
}

// BenchmarkPeerRelay is one packet through a relay: taken and sent on.
func BenchmarkPeerRelay(b *testing.B) {
	x := &ferry{t: b, f: NewForwarder(ForwarderConfig{Rate: 1 << 40}), now: time.Unix(1_700_000_000, 0)}
	for range 2 {
		x.nodes = append(x.nodes, key.ExchangePublic(key.NewNode()))
	}
	x.f.Allow(x.now, x.nodes, nil, true)
	one, two := x.hop(0, 1), x.hop(1, 0)
	x.send(one.Wrap(nil, data("x")), 0)
	x.send(two.Wrap(nil, data("x")), 1)
	pkt, buf := make([]byte, 1312), make([]byte, 0, 2048)
	b.SetBytes(int64(len(pkt)))
	b.ReportAllocs()
	for b.Loop() {
		d := one.Wrap(buf, pkt)
		l, _ := x.f.Take(x.now, d)
		if _, ok := x.f.Onward(x.now, l, d); !ok {
			b.Fatal("not forwarded")
		}
	}
}
