package path

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A node that has just started knows from its disk where the peer was, which may have started anew too: sockets are opened for
// where the peer says that it is, not before, and not for where it was.
func TestGuessOfTheLivingOnly(t *testing.T) {
	const was, is = "192.0.2.2:1", "192.0.2.2:2"
	for _, kind := range []string{"random 0-0", "block 20000-21023", "sequential 30000-1"} {
		out := newScript(t).run("0 self 198.51.100.1:7000\n0 nat " + kind + "\n0 openers\n0 peers b=" + was + "\n0 flow b\n400 here b 10.0.0.2:1\n800 here b " + is + "\n6000 run\n")
		before, after, _ := strings.Cut(out, "800 here b")
		bySocket := regexp.MustCompile(`(?m)(open|ping) b (\S+) by socket`)
		if m := bySocket.FindString(before); m != "" {
			t.Errorf("%s: before the peer has said where it is: %s", kind, m)
		}
		tried := bySocket.FindAllStringSubmatch(after, -1)
		if len(tried) < someSocks {
			t.Errorf("%s: %d packets by sockets of their own", kind, len(tried))
		}
		for _, m := range tried {
			if m[2] != is {
				t.Fatalf("%s: %s, where the peer is at %s", kind, m[0], is)
			}
		}
	}
}

// tries is at how many milliseconds an attempt began, and by whose word.
func tries(out string) (at []int, told int) {
	seen := map[int]bool{}
	for _, m := range regexp.MustCompile(`(?m)^ +(\d+)  (sockets b [1-9]|guess b)`).FindAllStringSubmatch(out, -1) {
		ms, _ := strconv.Atoi(m[1])
		if strings.HasPrefix(m[2], "guess") {
			told++
		}
		if !seen[ms] {
			seen[ms] = true
			at = append(at, ms)
		}
	}
	return at, told
}

// After an attempt in vain it is 20 s until the next, and then 10 min, but not where the network of either end is another one
// meanwhile: that is no reason to hope for less.
func TestGuessAnew(t *testing.T) {
	const begin = "0 self 198.51.100.1:7000\n0 nat random 0-0\n0 peers b=192.0.2.2:1\n0 flow b\n40 heard b easy\n"
	for _, tt := range []struct {
		what, script string
		want         []int
	}{
		{"nothing happens", "59000 heard b easy\n100000 run\n", []int{240, 20240}},
		{"the peer says the same again", "9000 heard b easy\n15000 run\n", []int{240}},
		{"the peer has another address", "9000 here b 192.0.2.3:1\n9010 heard b easy\n15000 run\n", []int{240, 9210}},
		{"the peer has another NAT", "9000 heard b block 20000-21023\n9010 heard b easy\n15000 run\n", []int{240, 9210}},
		{"we move", "9000 moved\n15000 run\n", []int{240, 9200}},
		{"our NAT has another address", "9000 self 198.51.100.9:7000\n9000 nat random 0-0\n9001 heard b easy\n15000 run\n", []int{240, 9001}},
		{"our NAT has another port, as hard ones do", "9000 outside-port\n15000 run\n", []int{240}},
	} {
		s := newScript(t)
		head, tail, port := strings.Cut(tt.script, "9000 outside-port\n")
		out := s.run(begin + head)
		if port {
			s.run("9000 run\n")
			s.step(Self{Here{Relay: 1, NAT: NAT{Kind: Random}, Endpoints: addrs(t, "198.51.100.1:7001")}})
			out = s.run(tail)
		}
		if at, told := tries(out); !slices.Equal(at, tt.want) || told != len(at) {
			t.Errorf("%s: attempts at %v, of which the peer was told %d; want %v, and all", tt.what, at, told, tt.want)
		}
	}
}

// A peer that says all the time that it guesses, and moves all the time, has us do so six times, and then once in ten minutes.
func TestGuessBounds(t *testing.T) {
	s := newScript(t)
	var b strings.Builder
	b.WriteString("0 self 198.51.100.1:7000\n0 nat random 0-0\n0 peers b=192.0.2.2:1\n0 flow b\n40 heard b easy\n")
	const hours = 2
	for ms := 7000; ms < hours*3600_000; ms += 7000 {
		fmt.Fprintf(&b, "%d here b 192.0.2.%d:1\n%d heard b easy\n%d guess b\n", ms, 2+ms/7000%200, ms+10, ms+20)
		if ms == 70_000 {
			b.WriteString("70500 hush b\n70500 brief\n")
		}
	}
	s.run(b.String())
	if s.attempts < guessBurst+6*hours-2 || s.attempts > guessBurst+6*hours+1 || s.most != 1 {
		t.Errorf("%d attempts in %d hours, %d at a time", s.attempts, hours, s.most)
	}
}

// Of many peers that want it at once four are served at a time, and no more than 60 in an hour.
func TestGuessMany(t *testing.T) {
	s := newScript(t)
	const peers = 100
	var b strings.Builder
	b.WriteString("0 self 198.51.100.1:7000\n0 nat random 0-0\n0 brief\n0 peers")
	for i := range peers {
		fmt.Fprintf(&b, " p%d=192.0.2.%d:1", i, i+1)
	}
	b.WriteString("\n")
	for i := range peers {
		fmt.Fprintf(&b, "0 flow p%d\n40 heard p%d easy\n", i, i)
	}
	for at := 50_000; at < 200_000; at += 50_000 { // they go on saying where they are
		for i := range peers {
			fmt.Fprintf(&b, "%d heard p%d easy\n", at, i)
		}
	}
	b.WriteString("200000 run\n")
	s.run(b.String())
	if s.attempts < guessAll || s.attempts > guessAll+200/60 || s.most != guessMost {
		t.Errorf("%d attempts, %d at a time; want %d, and one a minute, and %d", s.attempts, s.most, guessAll, guessMost)
	}
}

// Where a peer's NAT has several addresses and takes any of them, ours is opened for its port at all that are near, by packets
// that reach none; where the NAT with the pool is ours, the peer is pinged when that has been done.
func TestGuessPool(t *testing.T) {
	const we = "0 openers\n0 nat easy\n0 peers b=192.0.2.2:1\n0 flow b\n"
	for _, tt := range []struct {
		what, script  string
		opened, pings int // addresses opened, and pings by the end, at least
	}{
		{"the peer has a pool", "0 self 198.51.100.1:7000\n40 here b 192.0.2.2:1,192.0.2.9:1\n3000 run\n", 254, 16},
		{"it has two", "0 self 198.51.100.1:7000\n40 here b 192.0.2.2:1,192.0.3.9:1,10.0.0.1:1\n3000 run\n", 508, 16},
		{"its ports differ", "0 self 198.51.100.1:7000\n40 here b 192.0.2.2:1,192.0.2.9:2\n3000 run\n", 2, 1},
		{"we have a pool", "0 self 198.51.100.1:7000,198.51.100.2:7000\n40 here b 192.0.2.2:1\n3000 run\n", 1, 8},
	} {
		out := newScript(t).run(we + tt.script)
		opened := map[string]bool{}
		for _, m := range regexp.MustCompile(`(?m)^ +\d+  open b (192\S+)`).FindAllStringSubmatch(out, -1) {
			opened[m[1]] = true
		}
		pings := len(regexp.MustCompile(`(?m)^ +\d+  ping b 192`).FindAllString(out, -1))
		if len(opened) != tt.opened || pings < tt.pings || pings > tt.pings+20 {
			t.Errorf("%s: %d addresses opened, want %d; %d pings, want %d or some more", tt.what, len(opened), tt.opened, pings, tt.pings)
		}
	}
}
