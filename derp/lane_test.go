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
			w.heard = w.now
			if w.pong(w.now, a.sent, a.size) {
				w.sent, w.long = 0, 0
			}
		}
		if every > 0 && w.now%every == 0 {
			if w.traffic = w.now; w.usable() > 0 {
				if w.out = w.now; w.sent == 0 {
					w.sent = w.now
				}
				w.long = max(w.long, size)
			}
		}
		for {
			was := w.size
			a, next := w.act(w.now)
			switch {
			case a.ping > 0:
				w.say("ping %d", a.ping)
				if w.out = w.now; w.sent == 0 {
					w.sent = w.now
				}
				if a.ping <= w.pass {
					w.due = append(w.due, dueAnswer{w.now + w.rtt, w.now, a.ping})
				}
			case a.stop:
				w.say("stop")
			case a.other:
				w.say("other")
			case was > 0 && w.size == 0:
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
	if w.usable() != 1452 {
		t.Fatalf("not good: %+v", w.lane)
	}
	expect("busy: once in full, then what is used, each second or so", "21s ping 1452, 21.05s ping 46, 22.1s ping 200, 22.7s ping 200, 23.3s ping 200, 23.9s ping 200")

	w.pass = 0
	w.run(time.Second, 100*time.Millisecond, 200)
	if w.usable() != 0 {
		t.Error("it goes on though nothing is answered")
	}
	expect("cut", "24.5s ping 200, 24.7s ping 200, 24.9s stop")
	w.run(40*time.Second, time.Second, 200)
	if n := strings.Count(w.take(), "ping"); n > 4*6 {
		t.Errorf("%d pings in 40 s without an answer", n)
	}
	w.pass = 1400
	w.run(70*time.Second, time.Second, 200)
	if w.usable() != 1392 {
		t.Errorf("a network that passes 1400 bytes is good for %d", w.usable())
	}
	w.take()
	w.moved(w.now)
	w.run(10*time.Millisecond, 0, 0)
	expect("moved: the relay learns it at once", fmt.Sprintf("%v ping 1392", w.now-10*time.Millisecond))
	w.run(40*time.Second, 0, 0)
	if !strings.HasSuffix(w.take(), "asleep") || w.usable() != 0 {
		t.Errorf("it is awake for ever")
	}
	w.run(time.Minute, 0, 0)
	expect("asleep", "")
}

// TestLaneLongPackets: short datagrams that pass do not hide that long ones do not.
func TestLaneLongPackets(t *testing.T) {
	for _, at := range []int{200, 1300} {
		w := &world{now: time.Second, rtt: 20 * time.Millisecond, pass: 1500}
		w.run(5*time.Second, 20*time.Millisecond, at)
		w.pass = 1000
		w.run(2*time.Second, 20*time.Millisecond, at)
		if good := w.usable() > 0; good != (at < 1000) {
			t.Errorf("packets of %d bytes where 1000 pass: usable %v", at, good)
		}
	}
}
