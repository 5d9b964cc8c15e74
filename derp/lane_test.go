package derp

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// world is a lane whose pings a made-up network answers.
type world struct {
	lane
	now  time.Duration
	rtt  time.Duration
	pass int // the longest datagram that comes through; 0 for none
	log  []string
	due  []dueAnswer
}

type dueAnswer struct {
	at, sent time.Duration
	size     int
}

// run lets time pass, in which the node sends a packet of size bytes every so often, if at all.
func (w *world) run(d, every time.Duration, size int) {
	const step = 10 * time.Millisecond
	for end := w.now + d; w.now < end; w.now += step {
		for len(w.due) > 0 && w.due[0].at <= w.now {
			a := w.due[0]
			w.due = w.due[1:]
			w.heard, w.mute = w.now, 0
			if w.pong(w.now, a.sent, a.size) {
				w.sent, w.long = 0, 0
			}
		}
		if every > 0 && w.now%every == 0 {
			if w.traffic = w.now; w.size > 0 {
				if w.out = w.now; w.sent == 0 {
					w.sent = w.now
				}
				if w.mute == 0 {
					w.mute = w.now
				}
				w.long = max(w.long, size)
			}
		}
		for {
			was := w.size
			a, next := w.act(w.now)
			if a.stop {
				w.say("stop")
			}
			switch {
			case a.ping > 0:
				w.say("ping %d", a.ping)
				if w.out = w.now; w.sent == 0 {
					w.sent = w.now
				}
				if w.mute == 0 {
					w.mute = w.now
				}
				if a.ping <= w.pass {
					w.due = append(w.due, dueAnswer{w.now + w.rtt, w.now, a.ping})
				}
			case a.other:
				w.say("other")
			case was > 0 && w.size == 0 && !a.stop:
				w.say("asleep")
			case next != 0 && next <= w.now:
				w.say("stuck")
			}
			if a.none() {
				break
			}
		}
	}
}

func (w *world) say(f string, a ...any) {
	w.log = append(w.log, fmt.Sprintf("%v ", w.now.Round(10*time.Millisecond))+fmt.Sprintf(f, a...))
}

func (w *world) take() string {
	s := strings.Join(w.log, ", ")
	w.log = nil
	return s
}

func TestLane(t *testing.T) {
	w := &world{now: time.Second, rtt: 50 * time.Millisecond, pass: 1500}
	expect := func(what, want string) {
		t.Helper()
		if got := w.take(); got != want {
			t.Errorf("%s:\n got %s\nwant %s", what, got, want)
		}
	}
	w.run(20*time.Second, 0, 0)
	expect("idle", "")

	w.run(3*time.Second, 100*time.Millisecond, 200)
	if w.size != 1452 {
		t.Fatalf("not good: %+v", w.lane)
	}
	expect("busy, and nobody else is: once in full, then what is used, while nothing is heard", "21s ping 1452, 21.05s ping 46, 21.35s ping 200, "+
		"21.65s ping 200, 21.95s ping 200, 22.25s ping 200, 22.55s ping 200, 22.85s ping 200, 23.15s ping 200, 23.45s ping 200, 23.75s ping 200")

	w.pass = 0
	w.run(time.Second, 100*time.Millisecond, 200)
	if w.size != 0 {
		t.Error("it goes on though nothing is answered")
	}
	expect("cut", "24.05s ping 200, 24.2s stop, 24.2s ping 200, 24.35s ping 200, 24.5s stop")
	w.run(40*time.Second, time.Second, 200)
	if n := strings.Count(w.take(), "ping"); n > 6*6 {
		t.Errorf("%d pings in 40 s without an answer", n)
	}
	w.pass = 1400
	w.run(70*time.Second, time.Second, 200)
	if w.size != 1392 {
		t.Errorf("a network that passes 1400 bytes is good for %d", w.size)
	}
	w.take()
	w.moved(w.now)
	w.run(10*time.Millisecond, 0, 0)
	expect("moved: the relay learns it at once", fmt.Sprintf("%[1]v ping 1392, %[1]v ping 1452", w.now-10*time.Millisecond))
	w.run(40*time.Second, 0, 0)
	if !strings.HasSuffix(w.take(), "asleep") || w.size != 0 {
		t.Errorf("it is awake for ever")
	}
	w.run(time.Minute, 0, 0)
	expect("asleep", "")
}

// TestLaneDoubt: when nothing is heard, though something was sent, packets go both ways within half a second, and by UDP alone
// again with the first answer; what was at rest is asked at once.
func TestLaneDoubt(t *testing.T) {
	w := &world{now: time.Second, rtt: 40 * time.Millisecond, pass: 1500}
	w.run(2*time.Second, 10*time.Millisecond, 200)
	state := func(what string, size int, both bool, use int) {
		t.Helper()
		if s, b := w.usable(); s != size || b != both || w.use() != use {
			t.Errorf("%s: up to %d bytes, both ways %v, the relay is told %d; want %d, %v, %d", what, s, b, w.use(), size, both, use)
		}
	}
	state("good", 1452, false, 1452)
	w.pass = 0
	for w.missed == 0 && w.now < time.Minute {
		w.run(10*time.Millisecond, 10*time.Millisecond, 200)
	}
	if d := w.now - w.heard; d > 450*time.Millisecond {
		t.Errorf("in doubt %v after the last sign of life", d)
	}
	state("in doubt", 1452, true, 0)
	w.pass = 1500
	w.run(200*time.Millisecond, 10*time.Millisecond, 200)
	state("answered", 1452, false, 1452)
	if s := w.take(); !strings.HasSuffix(s, "ping 46") {
		t.Errorf("the relay is not told: %s", s)
	}
	w.run(3*time.Second, 0, 0)
	w.take()
	w.stale = true
	w.traffic = w.now
	w.run(10*time.Millisecond, 0, 0)
	if s := w.take(); !strings.HasSuffix(s, "ping 200") {
		t.Errorf("stale: %q", s)
	}
}

// TestLaneShrinks: a path on which long datagrams vanish of a sudden goes on with shorter ones, and with long ones again when
// they pass.
func TestLaneShrinks(t *testing.T) {
	w := &world{now: time.Second, rtt: 40 * time.Millisecond, pass: 1500}
	w.run(2*time.Second, 10*time.Millisecond, 1300)
	w.pass = 1280
	for w.size > laneFloor && w.now < time.Minute {
		w.run(10*time.Millisecond, 10*time.Millisecond, 1300)
		if w.size == 0 {
			t.Fatal("UDP is given up, though datagrams of 1232 bytes pass")
		}
	}
	if w.size != laneFloor || w.now > 5*time.Second {
		t.Errorf("up to %d bytes at %v", w.size, w.now)
	}
	w.pass = 1500
	w.run(laneFull+time.Second, 10*time.Millisecond, 1300)
	if w.size != maxDatagram {
		t.Errorf("up to %d bytes where all pass again", w.size)
	}
}

// TestLaneLongPackets: short datagrams that pass do not hide that long ones do not.
func TestLaneLongPackets(t *testing.T) {
	for _, at := range []int{200, 1300} {
		w := &world{now: time.Second, rtt: 20 * time.Millisecond, pass: 1500}
		w.run(5*time.Second, 20*time.Millisecond, at)
		w.pass = 1000
		w.run(2*time.Second, 20*time.Millisecond, at)
		if good := w.size > 0; good != (at < 1000) {
			t.Errorf("packets of %d bytes where 1000 pass: usable %v", at, good)
		}
	}
}
