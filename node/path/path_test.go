package path

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world is one peer and a network that answers, or does not; it holds what must always be true.
type world struct {
	*rapid.T
	p        *Paths
	now      time.Time
	flow     flow
	answered map[Route]time.Time // last pong given
	pongs    []pong
	use      Use
	pings    int // sent
	openers  int // the same, of those that die on the way
	ticks    int
	hops     []Hop
}

var addresses = addrs(nil, "hop1,hop2,192.0.2.1:1,192.0.2.1:2,192.0.2.1:3,192.0.2.1:4,192.0.2.1:5,192.0.2.2:1,10.0.0.1:1,[2001:db8::1]:1")

func newWorld(t *rapid.T) *world {
	w := &world{T: t, p: New(Config{Plain: rapid.Bool().Draw(t, "plain")}), now: epoch, answered: map[Route]time.Time{}}
	w.flow.net = map[Route]time.Duration{}
	return w
}

func (w *world) step(ev Event) {
	for _, a := range slices.Clone(w.p.Step(w.now, ev)) {
		switch a := a.(type) {
		case Send:
			m, ok := a.Msg.(Ping)
			if !ok {
				break
			}
			if a.TTL != 0 {
				w.openers++
				break // it dies on the way
			}
			w.pings++
			if rtt, ok := w.flow.net[a.To]; ok {
				w.later(rtt, Got{Peer: a.Peer, From: a.To, Msg: Pong{Tx: m.Tx}})
			}
		case AskHop:
			if !slices.ContainsFunc(w.hops, func(h Hop) bool { return h.Route == a.Route }) {
				w.Fatalf("%v was asked for, which is not to be used", a.Route)
			}
			if rtt, ok := w.flow.net[a.Route]; ok {
				w.later(rtt, Hopped{Peer: a.Peer, Route: a.Route})
			}
		case Alive:
			w.flow.hear(w.now, a.From)
		case Use:
			w.used(a)
		case Sleep:
			w.flow.up = false
		}
	}
	if pr := w.p.peers[peerKey("b")]; pr != nil && (len(pr.candidates) > MaxCandidates+MaxHops || len(pr.pings.flight) > maxPings) {
		w.Fatalf("%d candidates, %d pings in flight", len(pr.candidates), len(pr.pings.flight))
	}
}

func (w *world) later(d time.Duration, ev Event) {
	w.pongs = append(w.pongs, pong{w.now.Add(d), ev})
	slices.SortStableFunc(w.pongs, func(a, b pong) int { return a.at.Compare(b.at) })
}

// allow replaces the peer relays and the addresses that the coordinator tells.
func (w *world) allow(told []netip.AddrPort, hops []Hop) {
	w.hops = hops
	w.step(Peers{[]Peer{{Key: peerKey("b"), Candidates: told, Hops: hops}}})
	if r := w.use.Primary; ByHop(r) && !slices.ContainsFunc(hops, func(h Hop) bool { return h.Route == r }) {
		w.Fatalf("%v is used, and may not be", r)
	}
}

// used checks that data goes to addresses that answered, and nowhere else.
func (w *world) used(u Use) {
	for _, r := range append([]Route{u.Primary, u.Other}, u.Proven...) {
		if ByHop(r) && !slices.ContainsFunc(w.hops, func(h Hop) bool { return h.Route == r }) {
			w.Fatalf("%v: %+v, but %v may not be used", w.now.Sub(epoch), u, r)
		}
		if _, ok := w.answered[r]; r.IsValid() && !ok {
			w.Fatalf("%v: %+v, but %v never answered", w.now.Sub(epoch), u, r)
		}
	}
	if len(u.First) > maxFirst {
		w.Fatalf("handshakes to %d addresses", len(u.First))
	}
	if u.Primary != w.flow.direct {
		w.flow.direct, w.flow.Waiting = u.Primary, time.Time{}
	}
	w.use = u
}

// alone reports whether packets go by a direct path only.
func (w *world) alone() bool {
	return w.use.Primary.IsValid() && (!w.use.Both || !w.use.Until.IsZero() && !w.use.Until.After(w.now))
}

func (w *world) send() {
	w.flow.Sent = w.now
	if w.flow.Waiting.IsZero() && w.flow.direct.IsValid() {
		w.flow.Waiting = w.now
	}
	if !w.flow.up {
		w.flow.up = true
		w.step(Tick{peerKey("b"), w.flow.Traffic})
	}
}

func (w *world) pass(d time.Duration, flowing bool) {
	for end := w.now.Add(d); w.now.Before(end); {
		next := w.now.Add(10 * time.Millisecond)
		if k, wake, ok := w.p.Next(); ok && !wake.After(next) && (len(w.pongs) == 0 || wake.Before(w.pongs[0].at)) {
			if w.now = wake; w.ticks > 1000 {
				w.Fatalf("%d ticks in %v", w.ticks, d)
			}
			w.ticks++
			w.step(Tick{k, w.flow.Traffic})
			continue
		}
		if len(w.pongs) > 0 && !w.pongs[0].at.After(next) {
			g := w.pongs[0]
			w.pongs, w.now = w.pongs[1:], g.at
			if got, ok := g.ev.(Got); ok {
				w.answered[got.From] = w.now
			}
			w.step(g.ev)
			continue
		}
		w.now = next
		if !flowing {
			continue
		}
		w.send()
		if _, ok := w.flow.net[w.flow.direct]; ok && w.flow.talking {
			w.flow.hear(w.now, w.flow.direct)
			w.answered[w.flow.direct] = w.now
		}
		// Detection: silence while sending, then a missed answer.
		if f := w.flow; w.alone() && !f.Waiting.IsZero() && w.now.Sub(f.Waiting) > silenceMost+pongMost+20*time.Millisecond {
			w.Fatalf("%v: only %v is used, silent since %v", w.now.Sub(epoch), w.use.Primary, f.Waiting.Sub(epoch))
		}
	}
	w.ticks = 0
}

// Whatever happens, data goes only where pongs came from, a dead path is not the only one used, probes are few, and a
// peer at rest costs nothing.
func TestAlways(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		b := peerKey("b")
		addr := rapid.SampledFrom(addresses)
		list := rapid.SliceOfN(addr, 0, 20)
		hops := rapid.SampledFrom([][]Hop{nil, peerOf(nil, "", "hop1").Hops, peerOf(nil, "", "hop1,hop2").Hops, peerOf(nil, "", "hop2,hop3").Hops})
		w.allow(list.Draw(t, "told"), hops.Draw(t, "hops"))
		t.Repeat(map[string]func(*rapid.T){
			"told": func(t *rapid.T) { w.allow(list.Draw(t, "told"), hops.Draw(t, "hops")) },
			"refused": func(t *rapid.T) {
				w.step(Hopped{b, addr.Draw(t, "hop"), rapid.SampledFrom([]string{"", "full"}).Draw(t, "refusal")})
			},
			"self": func(t *rapid.T) { w.step(Self{Here{Endpoints: list.Draw(t, "self")}}) },
			"here": func(t *rapid.T) {
				w.step(Got{b, Relay, Here{Endpoints: list.Draw(t, "here")}, Order(rapid.Uint64().Draw(t, "order"))})
			},
			"ping": func(t *rapid.T) {
				w.step(Got{b, addr.Draw(t, "from"), Ping{Tx: TxID(rapid.SliceOfN(rapid.Byte(), 12, 12).Draw(t, "tx"))}, 0})
			},
			"forged": func(t *rapid.T) { w.step(Got{b, addr.Draw(t, "from"), Pong{}, 0}) },
			"seen":   func(t *rapid.T) { w.step(Seen{b, addr.Draw(t, "from")}) },
			"moved":  func(t *rapid.T) { w.step(Moved{}) },
			"probe":  func(t *rapid.T) { w.step(Probe{b, 1}) },
			"revive": func(t *rapid.T) {
				w.flow.net[addr.Draw(t, "addr")] = time.Duration(rapid.IntRange(0, 250).Draw(t, "ms")) * time.Millisecond
			},
			"cut":  func(t *rapid.T) { delete(w.flow.net, addr.Draw(t, "addr")) },
			"talk": func(t *rapid.T) { w.flow.talking = rapid.Bool().Draw(t, "talking") },
			"flow": func(t *rapid.T) { w.pass(time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms"))*time.Millisecond, true) },
			"rest": func(t *rapid.T) {
				w.pass(time.Duration(rapid.IntRange(1, 20000).Draw(t, "ms"))*time.Millisecond, false)
			},
		})
		most := probeBurst + (probeRate+20)*int(w.now.Sub(epoch)/time.Second+1)
		attempts := guessBurst + 1 + int(w.now.Sub(epoch)/(10*time.Minute)) // at an address of a pool's
		if w.pings > most+attempts*poolPings*len(addresses) || w.openers > most+attempts*poolNets*2*254 {
			t.Fatalf("%d pings and %d openers in %v", w.pings, w.openers, w.now.Sub(epoch))
		}
		w.pass(15*time.Second, false)
		sent := w.pings + w.openers
		if k, at, ok := w.p.Next(); ok {
			t.Fatalf("%s at rest wants a tick at %v", peerName(k), at)
		}
		if w.step(Self{}); w.pings+w.openers != sent {
			t.Fatal("a peer at rest was pinged")
		}
	})
}

// A peer that asks too much is not answered, and who asks twice the same is answered once.
func TestPongsAreFew(t *testing.T) {
	p := New(Config{})
	b, from := peerKey("b"), addresses[2]
	p.Step(epoch, Peers{[]Peer{{Key: b}}})
	pongs := func(at time.Duration, tx TxID) (n int) {
		for _, a := range p.Step(epoch.Add(at), Got{b, from, Ping{Tx: tx}, 0}) {
			if s, ok := a.(Send); ok && s.Msg.kind() == kindPong {
				n++
			}
		}
		return n
	}
	all := 0
	for i := range 10000 {
		all += pongs(time.Duration(i)*time.Millisecond, TxID{1, byte(i >> 8), byte(i)})
	}
	if most := pongBurst + 10*pongRate; all > most || all < 10*pongRate {
		t.Errorf("%d pongs in 10 s, want %d to %d", all, 10*pongRate, most)
	}
	once, again, other := pongs(time.Minute, TxID{2}), pongs(time.Minute+time.Millisecond, TxID{2}), pongs(time.Minute+2*time.Millisecond, TxID{3})
	if once != 1 || again != 0 || other != 1 {
		t.Errorf("%d pongs to a ping, %d to its copy, %d to another; want 1, 0 and 1", once, again, other)
	}
	if acts := p.Step(epoch.Add(time.Minute), Got{peerKey("x"), from, Ping{}, 0}); len(acts) > 0 {
		t.Errorf("a stranger got %v", acts)
	}
}

// A peer's pings come in, and no ping to where they come from is answered: they are not sent for as long as that lasts, or two ends
// of which neither hears the other's pongs would provoke each other for ever.
func TestPingsBackEnd(t *testing.T) {
	p := New(Config{})
	b, from := peerKey("b"), addresses[2]
	p.Step(epoch, Peers{[]Peer{{Key: b}}})
	var first, later int
	for at := time.Duration(0); at < 2*time.Minute; at += 50 * time.Millisecond {
		for k, due, ok := p.Next(); ok && !due.After(epoch.Add(at)); k, due, ok = p.Next() {
			p.Step(due, Tick{Peer: k})
		}
		for _, a := range p.Step(epoch.Add(at), Got{b, from, Ping{Tx: NewTx()}, 0}) {
			if s, ok := a.(Send); !ok || s.Msg.kind() != kindPing {
				continue
			}
			if first++; at > 10*time.Second {
				first--
				later++
			}
		}
	}
	if most := 110*rationRate + 1; first < seenMost || float64(later) > most {
		t.Errorf("%d pings in 10 s and %d in 110 s more, want %d at least and %.0f at most", first, later, seenMost, most)
	}
}

// With a live address and traffic there is a direct path, soon.
func TestFindsAPath(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.flow.talking = rapid.Bool().Draw(t, "talking")
		told := rapid.SliceOfNDistinct(rapid.SampledFrom(addresses[2:]), 1, -1, func(a netip.AddrPort) netip.AddrPort { return a }).Draw(t, "told")
		w.step(Peers{[]Peer{{Key: peerKey("b"), Candidates: told[:1]}}})
		w.flow.net[told[0]] = 50 * time.Millisecond
		w.pass(openBlind+100*time.Millisecond, true)
		if w.use.Primary != told[0] {
			t.Fatalf("no path, and no word by relay, after that: %+v", w.use)
		}
		if w.pass(300*time.Millisecond, true); !w.alone() {
			t.Fatalf("still both ways: %+v", w.use)
		}
	})
}

// The set of peers comes anew with every change of one of them.
func BenchmarkPeers(b *testing.B) {
	p := New(Config{})
	var set []Peer
	for i := range 10000 {
		set = append(set, Peer{Key: peerKey(fmt.Sprint(i)), Candidates: addresses[2:]})
	}
	p.Step(epoch, Peers{set})
	for b.Loop() {
		p.Step(epoch, Peers{set})
	}
}

// An idle mesh of many peers wants no time, and one event costs one peer's work.
func BenchmarkTick(b *testing.B) {
	p := New(Config{})
	var set []Peer
	for i := range 10000 {
		set = append(set, Peer{Key: peerKey(fmt.Sprint(i)), Candidates: addresses[2:]})
	}
	p.Step(epoch, Peers{set})
	now := epoch
	var n int
	b.ReportAllocs()
	for b.Loop() {
		k := set[n%len(set)].Key
		n++
		now = now.Add(100 * time.Microsecond)
		p.Step(now, Tick{k, Traffic{Sent: now}})
	}
}
