package path

import (
	"slices"
	"testing"
	"time"
)

// News count in the order in which they were said, whoever says them again and when.
func TestNewsInOrder(t *testing.T) {
	const here, loss, sec = kindHere, kindLoss, Order(time.Second)
	type said struct {
		kind byte // 0 for an answer to a ping
		at   Order
		want bool
	}
	for name, list := range map[string][]said{
		"each once":                  {{here, 5, true}, {here, 5, false}, {here, 6, true}, {here, 6, false}},
		"overtaken":                  {{here, 7, true}, {here, 6, false}, {loss, 6, true}, {loss, 7, true}, {loss, 6, false}},
		"of another kind, long ago":  {{here, 100 * sec, true}, {loss, 50 * sec, false}, {loss, 98 * sec, true}},
		"before an answer":           {{0, 100 * sec, true}, {here, 50 * sec, false}, {here, 99 * sec, true}},
		"started again":              {{here, 100 * sec, true}, {here, 105 * sec, true}},
		"started with a late clock":  {{here, 100 * sec, true}, {here, 9 * sec, false}, {0, 10 * sec, true}, {here, 11 * sec, true}, {here, 11 * sec, false}},
		"an answer that was held up": {{here, 100 * sec, true}, {0, 98 * sec, true}, {here, 99 * sec, false}, {here, 101 * sec, true}},
		"as late as can be":          {{here, ^Order(0), true}, {here, ^Order(0), false}, {0, 5 * sec, true}, {here, 6 * sec, true}},
	} {
		var o ordered
		for i, s := range list {
			got := true
			if s.kind == 0 {
				o.answer(s.at)
			} else {
				got = o.news(s.kind, s.at)
			}
			if got != s.want {
				t.Errorf("%s: message %d: %v, want %v", name, i, got, s.want)
			}
		}
	}
}

// A Here that was recorded and is said again after a move, or overtaken by another, changes nothing: neither the addresses nor
// the relay, and nothing is sent for it. A peer whose clock was set back while it was started again is heeded after it was asked.
func TestOldHere(t *testing.T) {
	s := newScript(t)
	s.run("0 peers b=\n0 net b relay=80\n0 flow b\n500 run\n")
	b := peerKey("b")
	at := func(d time.Duration) Order { return Order(epoch.Add(d).UnixNano()) }
	hear := func(at Order, relay uint16, addr string) (did []Action) {
		return slices.Clone(s.p.Step(s.now, Got{b, Relay, Here{Relay: relay, Endpoints: addrs(t, addr)}, at}))
	}
	home := func(did []Action) (relay uint16) {
		for _, a := range did {
			if h, ok := a.(Home); ok {
				relay = h.Relay
			}
		}
		return relay
	}
	if did := hear(at(500*time.Millisecond), 3, "192.0.2.1:1"); home(did) != 3 {
		t.Fatalf("the first was not heeded: %v", did)
	}
	s.run("900 run\n")
	if did := hear(at(900*time.Millisecond), 4, "192.0.2.9:9"); home(did) != 4 {
		t.Fatalf("that after the move was not heeded: %v", did)
	}
	s.run("1500 run\n")
	before := len(s.p.look(b).candidates)
	for _, old := range []time.Duration{500, 700, 900} { // copies, and one that was overtaken
		if did := hear(at(old*time.Millisecond), 3, "192.0.2.66:6"); len(did) > 0 {
			t.Errorf("one of %d ms made it do %v", old, did)
		}
	}
	if n := len(s.p.look(b).candidates); n != before {
		t.Errorf("%d candidates, had %d", n, before)
	}
	// An hour back: not heeded at first, but asked.
	back := at(-time.Hour)
	s.run("9000 run\n")
	asked := false
	for _, a := range hear(back, 5, "192.0.2.7:7") {
		if m, ok := a.(Send); ok && m.To == Relay {
			if p, ok := m.Msg.(Ping); ok {
				asked = true
				s.p.Step(s.now, Got{b, Relay, Pong{Tx: p.Tx}, back.Next(time.Time{})})
			}
		}
	}
	if did := hear(back.Next(time.Time{}).Next(time.Time{}), 5, "192.0.2.7:7"); !asked || home(did) != 5 {
		t.Errorf("asked: %v; whose clock is an hour late is not heeded then: %v", asked, did)
	}
}
