package path

import (
	"testing"
	"time"
)

// reasons runs a script and tells why a peer's ports are not guessed then, and why no fresh socket is tried.
func reasons(t *testing.T, src string) (guess, fresh string) {
	s := newScript(t)
	s.run(src)
	pr := s.p.look(peerKey("b"))
	return pr.noGuess(s.now), pr.noFresh()
}

// Each reason for which no ports are guessed, in the order in which they are looked for: every script does away with the one
// before.
func TestNoGuess(t *testing.T) {
	const begin = "0 self 198.51.100.1:7000\n0 nat random 0-0\n0 peers b=192.0.2.2:1\n"
	for _, tt := range []struct{ why, script string }{
		{"the search has not begun", begin},
		{"there is a direct path", begin + "0 net b 192.0.2.2:1=20\n0 flow b\n40 heard b easy\n300 run\n"},
		{"an attempt is under way", begin + "0 flow b\n40 heard b easy\n300 run\n"},
		{"nobody wants to reach the peer", begin + "40 heard b easy\n100 run\n"},
		{"the peer has not said where it is", begin + "0 flow b\n300 run\n"},
		{"", begin + "0 flow b\n40 heard b easy\n100 run\n"},
		{"a direct path answers, and was left for its quality", begin + "0 net b relay=20 192.0.2.2:1=20\n0 talk b\n40 heard b easy\n" +
			"5000 loss b 300\n5700 loss b 300\n6400 loss b 300\n7100 loss b 300\n7200 heard b easy\n7300 run\n"},
	} {
		if why, _ := reasons(t, tt.script); why != tt.why {
			t.Errorf("%q, want %q, after\n%s", why, tt.why, tt.script)
		}
	}
	s := newScript(t)
	s.p.budget.Sockets = -1
	s.run(begin + "0 flow b\n40 heard b easy\n100 run\n")
	if why := s.p.look(peerKey("b")).noGuess(s.now); why != "guessing is switched off" {
		t.Errorf("%q, though there is no budget", why)
	}
}

// The same of fresh sockets.
func TestNoFresh(t *testing.T) {
	const peers = "0 peers b=192.0.2.2:1\n"
	const begin = "0 self 198.51.100.1:7000\n0 nat easy\n" + peers
	for _, tt := range []struct{ why, script string }{
		{"there is a direct path", begin + "0 net b 192.0.2.2:1=20\n0 flow b\n300 run\n"},
		{"an attempt is under way", begin + "0 flow b\n40 heard b easy\n1000 run\n"},
		{"the peer has not said where it is", begin},
		{"our network lets no UDP through", "0 self 198.51.100.1:7000\n0 nat blocked\n" + peers + "0 heard b easy\n"},
		{"our NAT is not known to have one port for all far ends", "0 self 198.51.100.1:7000\n" + peers + "0 heard b easy\n"},
		{"the peer's NAT gives a port of its own to each far end", begin + "0 heard b random\n"},
		{"the peer's network lets no UDP through", begin + "0 heard b blocked\n"},
		{"the peer has said no address outside its NAT", begin + "0 here b 10.0.0.2:1\n"},
		{"we have no IPv4 address", "0 self [2001:db8::1]:1\n0 nat easy\n" + peers + "0 heard b easy\n"},
		{"", begin + "0 heard b easy\n"},
		{"the direct path was left for its quality, and not lost", begin + "0 net b relay=20 192.0.2.2:1=20\n0 talk b\n40 heard b easy\n" +
			"5000 loss b 300\n5700 loss b 300\n6400 loss b 300\n7100 loss b 300\n7200 run\n"},
	} {
		if _, why := reasons(t, tt.script); why != tt.why {
			t.Errorf("%q, want %q, after\n%s", why, tt.why, tt.script)
		}
	}
}

// An account has the reason that matters for the two NATs, and none where there is a direct path or an attempt is under way.
func TestAccountOfReasons(t *testing.T) {
	const easy = "0 self 198.51.100.1:7000\n0 nat easy\n0 peers b=192.0.2.2:1\n"
	for _, tt := range []struct{ guess, fresh, script string }{
		{"", "the peer has not said where it is", easy + "0 flow b\n300 run\n"},
		{"nobody wants to reach the peer", "", easy + "40 heard b random\n100 run\n"},
		{"", "", easy + "0 flow b\n40 heard b random\n300 run\n"},
		{"", "", easy + "0 flow b\n40 heard b easy\n1000 run\n"},
		{"", "", easy + "0 net b 192.0.2.2:1=20\n0 flow b\n40 heard b random\n300 run\n"},
	} {
		s := newScript(t)
		s.run(tt.script)
		if a, ok := s.p.Account(s.now, peerKey("b")); !ok || a.NoGuess != tt.guess || a.NoFresh != tt.fresh {
			t.Errorf("%q, %q, want %q, %q, after\n%s", a.NoGuess, a.NoFresh, tt.guess, tt.fresh, tt.script)
		}
	}
}

// Of the parts of a peer, what belongs to a path goes with it, and what does not stays.
func TestPartsEnd(t *testing.T) {
	now := epoch
	s := search{began: now, round: 7, next: now, clear: now}
	if s.restart(now.Add(time.Second)); s.round != 0 || s.clear != now || s.early(now, 0) {
		t.Errorf("a search begun anew does not know any more that the peer has opened its side: %+v", s)
	}
	var g guesses
	for i, wait := range []time.Duration{guessSoon, 10 * time.Minute, 10 * time.Minute} {
		if g.begin(now, nil, 10*time.Minute); !g.again().Equal(now.Add(wait)) {
			t.Errorf("after attempt %d in vain the next is in %v, want %v", i, g.again().Sub(now), wait)
		}
	}
	if g.renew(); g.again().After(now) {
		t.Errorf("in another network it is in %v", g.again().Sub(now))
	}
	b := shunned{}
	b.begin(now, stopStreak)
	b.lift()
	if b.begin(now, stopStreak); b.need != 2*stopStreak || b.streak != 0 {
		t.Errorf("the second time a path is shunned it takes %d answers, want %d", b.need, 2*stopStreak)
	}
	var v vain
	for i := range 20 {
		v.count(now)
		if want := min(freshAgain<<min(i, 16), freshMost); !v.again.Equal(now.Add(want)) {
			t.Errorf("after fresh socket %d the next is in %v, want %v", i, v.again.Sub(now), want)
		}
	}
}
