package path

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

var update = flag.Bool("update", false, "write what happens into testdata/*.txt")

// A script is lines of what happens, each followed by what Paths do about it, indented:
//
//	AT peers NAME=ADDR,ADDR …    the coordinator's set of peers; hop1 is a way by the peer relay r1, which is given after
//	                             as long as its pings take, if it has any answers
//	AT self ADDR,ADDR            our endpoints
//	AT moved                     our network changed
//	AT net NAME ROUTE=MS …       pings to these routes are answered after MS from now on, to others not; a route is an
//	                             address or relay; MS~N is up to N longer, and MS%N loses N of 100 pings
//	AT send NAME                 a packet to the peer
//	AT flow NAME                 a packet to the peer every 10 ms, until "hush NAME"
//	AT talk NAME                 the same, and the peer sends as much by the direct path if its address answers
//	AT ping NAME ROUTE           a ping from the peer
//	AT here NAME ADDR,ADDR       a Here of the peer
//	AT fresh NAME ADDR           a Here of the peer with that of a fresh socket
//	AT seen NAME ADDR            a WireGuard packet of its session from an unknown address
//	AT outside NAME ADDR         how the fresh socket looks from outside
//	AT probe NAME                hedge ping
//	AT refused NAME hopN         the peer relay rN gives no way to the peer
//	AT openers                   packets can be sent with a short time to live
//	AT nat KIND LOW-HIGH         ours
//	AT guess NAME                the peer says that it guesses ports
//	AT heard NAME KIND LOW-HIGH  a Here of the peer with its NAT and no addresses but those it told before; it has opened its side
//	AT loss NAME N               the peer says that so much of 1000 does not arrive
//	AT run                       nothing: time passes up to AT
//	AT link N                    our link takes IP packets of N bytes, and path MTUs are sought
//	AT pass N                    the network takes IP packets of N bytes
//	AT brief                     from now on only changes of the path are shown, until "AT whole"
//
// AT is milliseconds since the start. Between the lines, ticks are given as Paths ask for them.
func TestScripts(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txt")
	if len(files) == 0 {
		t.Fatal("no scripts in testdata")
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			src, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := newScript(t).run(string(src))
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(src) {
				t.Errorf("%s differs from what happened (go test -update writes it):\n%s", f, firstDifference(string(src), got))
			}
		})
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		at := func(s []string) string {
			if i < len(s) {
				return s[i]
			}
			return "(end)"
		}
		if at(w) != at(g) {
			return fmt.Sprintf("line %d\n want %s\n  got %s", i+1, at(w), at(g))
		}
	}
	return ""
}

var epoch = time.Unix(1e9, 0)

type script struct {
	t     *testing.T
	p     *Paths
	now   time.Time
	n     uint32 // pings
	order Order  // of the last message of a peer
	flows map[key.NodePublic]*flow
	pongs []pong // to come
	out   strings.Builder
	rng   *rand.Rand
	brief bool
	mtu   int    // of the network, 0 for any
	shown string // last, in brief

	attempts, most int // to guess by sockets, and so many at a time
	open           map[key.NodePublic]bool
}

type pong struct {
	at time.Time
	ev Event
}

// flow is the driver's part: what it knows of the packets of a peer.
type flow struct {
	Traffic
	up, flowing, talking bool
	direct               Route
	net                  map[Route]time.Duration
	jitter, loss         map[Route]int
}

func newScript(t *testing.T) *script {
	s := &script{t: t, now: epoch, rng: rand.New(rand.NewPCG(1, 1)), flows: map[key.NodePublic]*flow{}, open: map[key.NodePublic]bool{}}
	s.p = New(Config{Plain: true, Rand: func(n int) int { return n / 3 }, Tx: func() (tx TxID) { s.n++; binary.BigEndian.PutUint32(tx[8:], s.n); return }})
	return s
}

func peerKey(name string) key.NodePublic {
	var b [key.Size]byte
	copy(b[:], name)
	return key.NodePublicFromRaw(b)
}

func peerName(k key.NodePublic) string { b := k.Raw(); return strings.TrimRight(string(b[:]), "\x00") }

// hopRoute is the route of "hop1", by the peer relay r1.
func hopRoute(s string) (r Route, ok bool) {
	n, err := strconv.Atoi(strings.TrimPrefix(s, "hop"))
	a := Hops.Addr().As16()
	a[15] = byte(n)
	return netip.AddrPortFrom(netip.AddrFrom16(a), 1), err == nil && strings.HasPrefix(s, "hop")
}

func peerOf(t *testing.T, name, list string) Peer {
	p := Peer{Key: peerKey(name), Candidates: addrs(t, list)}
	p.Candidates = slices.DeleteFunc(p.Candidates, ByHop)
	for f := range strings.SplitSeq(list, ",") {
		if r, ok := hopRoute(f); ok {
			p.Hops = append(p.Hops, Hop{peerKey("r" + f[3:]), "r" + f[3:], r})
		}
	}
	return p
}

func addrs(t *testing.T, s string) (out []netip.AddrPort) {
	for f := range strings.SplitSeq(s, ",") {
		if f == "" {
			continue
		}
		if r, ok := hopRoute(f); ok {
			out = append(out, r)
			continue
		}
		a, err := netip.ParseAddrPort(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, a)
	}
	return out
}

func route(t *testing.T, s string) Route {
	if s == "relay" {
		return Relay
	}
	return addrs(t, s)[0]
}

func (s *script) run(src string) string {
	for line := range strings.Lines(src) {
		if strings.HasPrefix(line, " ") {
			continue // what happened last time
		}
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			s.out.WriteString(line)
			continue
		}
		ms, err := strconv.Atoi(f[0])
		if err != nil || len(f) < 2 {
			s.t.Fatalf("not a line of a script: %q", line)
		}
		s.until(epoch.Add(time.Duration(ms) * time.Millisecond))
		s.out.WriteString(line)
		s.line(f[1], append(f[2:], "", ""))
	}
	return s.out.String()
}

func (s *script) line(verb string, arg []string) {
	k := peerKey(arg[0])
	switch verb {
	case "peers":
		var ev Peers
		for _, a := range arg {
			if name, list, ok := strings.Cut(a, "="); ok {
				ev.Set = append(ev.Set, peerOf(s.t, name, list))
				if s.flows[peerKey(name)] == nil {
					s.flows[peerKey(name)] = &flow{}
				}
			}
		}
		s.step(ev)
	case "self":
		s.step(Self{Here{Relay: 1, Endpoints: addrs(s.t, arg[0])}})
	case "moved":
		s.step(Moved{})
	case "unblocked":
		s.step(Unblocked{})
	case "send":
		s.send(k)
	case "flow", "talk", "hush":
		s.flows[k].flowing, s.flows[k].talking = verb != "hush", verb == "talk"
	case "net":
		f := s.flows[k]
		f.net, f.jitter, f.loss = map[Route]time.Duration{}, map[Route]int{}, map[Route]int{}
		for _, a := range arg[1:] {
			if r, ms, ok := strings.Cut(a, "="); ok {
				var n, jitter, loss int
				fmt.Sscanf(ms, "%d~%d", &n, &jitter)
				fmt.Sscanf(ms, "%d%%%d", &n, &loss)
				f.net[route(s.t, r)] = time.Duration(n) * time.Millisecond
				f.jitter[route(s.t, r)], f.loss[route(s.t, r)] = jitter, loss
			}
		}
	case "ping":
		s.n++
		tx := TxID{1}
		binary.BigEndian.PutUint32(tx[8:], s.n)
		s.step(s.got(k, route(s.t, arg[1]), Ping{Tx: tx}))
	case "here":
		s.step(s.got(k, Relay, Here{Relay: 2, Endpoints: addrs(s.t, arg[1])}))
	case "fresh":
		s.step(s.got(k, Relay, Here{Relay: 2, Endpoints: addrs(s.t, arg[1]), Fresh: true}))
	case "seen":
		s.step(Seen{k, route(s.t, arg[1])})
	case "outside":
		s.step(Outside{k, route(s.t, arg[1])})
	case "probe":
		s.step(Probe{k, 7})
	case "refused":
		s.step(Hopped{k, route(s.t, arg[1]), "it is full"})
	case "run":
	case "link":
		n, _ := strconv.Atoi(arg[0])
		s.p.cfg.LinkMTU = func(netip.AddrPort) int { return n }
	case "pass":
		s.mtu, _ = strconv.Atoi(arg[0])
	case "brief", "whole":
		s.brief = verb == "brief"
	case "guess":
		s.step(s.got(k, Relay, Guess{}))
	case "loss":
		n, _ := strconv.Atoi(arg[1])
		s.step(s.got(k, Relay, Loss{uint16(n), lossEvery}))
	case "openers":
		s.p.cfg.Plain = false
	case "nat":
		s.p.self.NAT = natOf(arg)
	case "heard":
		h := Here{Relay: 2, NAT: natOf(arg[1:]), Opened: sum(s.p.self.Endpoints)}
		for _, c := range s.p.look(k).candidates {
			h.Endpoints = append(h.Endpoints, c.addr)
		}
		s.step(s.got(k, Relay, h))
	default:
		s.t.Fatalf("no verb %q", verb)
	}
}

func (s *script) got(k key.NodePublic, from Route, m Message) Got {
	s.order = s.order.Next(s.now)
	return Got{k, from, m, s.order}
}

func natOf(arg []string) (n NAT) {
	n.Kind = Kind(slices.Index(kindNames[:], arg[0]))
	fmt.Sscanf(arg[1], "%d-%d", &n.Low, &n.High)
	return n
}

func (s *script) send(k key.NodePublic) {
	f := s.flows[k]
	f.Sent = s.now
	if f.Waiting.IsZero() && f.direct.IsValid() {
		f.Waiting = s.now
	}
	if !f.up {
		f.up = true
		s.step(Tick{k, f.Traffic})
	}
}

func (f *flow) hear(now time.Time, from Route) {
	if from.IsValid() && f.direct == from {
		f.Heard, f.Waiting = now, time.Time{}
	}
}

// until lets time pass: flows every 10 ms, ticks and pongs at their very moment.
func (s *script) until(end time.Time) {
	for s.now.Before(end) {
		next := s.now.Truncate(10 * time.Millisecond).Add(10 * time.Millisecond)
		if next.After(end) {
			next = end
		}
		if k, wake, ok := s.p.Next(); ok && !wake.After(next) && (len(s.pongs) == 0 || wake.Before(s.pongs[0].at)) {
			s.now = wake
			s.step(Tick{k, s.flows[k].Traffic})
			continue
		}
		if len(s.pongs) > 0 && !s.pongs[0].at.After(next) {
			g := s.pongs[0]
			s.pongs = s.pongs[1:]
			s.now = g.at
			s.step(g.ev)
			continue
		}
		s.now = next
		for k, f := range s.flows {
			if f.flowing && s.now.Sub(epoch)%(10*time.Millisecond) == 0 {
				s.send(k)
				if _, ok := f.net[f.direct]; ok && f.talking {
					f.hear(s.now, f.direct)
					f.Session, f.Got, f.Top = 1, f.Got+1, f.Top+1
				}
			}
		}
	}
}

func (s *script) step(ev Event) {
	for _, a := range slices.Clone(s.p.Step(s.now, ev)) {
		if s.shows(a) {
			fmt.Fprintf(&s.out, "  %5d  %s\n", s.now.Sub(epoch).Milliseconds(), s.describe(a))
		}
		switch a := a.(type) {
		case Alive:
			s.flows[a.Peer].hear(s.now, a.From)
		case Send:
			f := s.flows[a.Peer]
			rtt, ok := f.net[a.To]
			if j := f.jitter[a.To]; j > 0 {
				rtt += time.Duration(s.rng.IntN(j)) * time.Millisecond
			}
			ok = ok && (f.loss[a.To] == 0 || s.rng.IntN(100) >= f.loss[a.To])
			m, isPing := a.Msg.(Ping)
			if s.mtu > 0 && headers(a.To.Addr())+Shortest+m.Pad > s.mtu {
				ok = false
			}
			if ok && isPing && a.TTL == 0 {
				s.later(rtt, s.got(a.Peer, a.To, Pong{Tx: m.Tx}))
			}
		case AskHop:
			if rtt, ok := s.flows[a.Peer].net[a.Route]; ok {
				s.later(rtt, Hopped{Peer: a.Peer, Route: a.Route})
			}
		case Use:
			if f := s.flows[a.Peer]; f.direct != a.Primary {
				f.direct, f.Waiting = a.Primary, time.Time{}
			}
		case Sleep:
			s.flows[a.Peer].up = false
		case Sockets:
			if delete(s.open, a.Peer); a.Count > 1 {
				s.attempts++
				s.open[a.Peer] = true
				s.most = max(s.most, len(s.open))
			}
		}
	}
}

func (s *script) later(d time.Duration, ev Event) {
	s.pongs = append(s.pongs, pong{s.now.Add(d), ev})
	slices.SortStableFunc(s.pongs, func(a, b pong) int { return a.at.Compare(b.at) })
}

// shows reports whether an action is worth a line.
func (s *script) shows(a Action) bool {
	switch a.(type) {
	case Alive, Home:
		return false
	}
	if !s.brief {
		return true
	}
	u, ok := a.(Use)
	if !ok || s.shown == fmt.Sprintf("%s %v %d", u.Why, u.Primary, u.MTU) {
		return false
	}
	s.shown = fmt.Sprintf("%s %v %d", u.Why, u.Primary, u.MTU)
	return true
}

func routeName(r Route) string {
	if !r.IsValid() {
		return "relay"
	}
	if a := r.Addr().As16(); ByHop(r) {
		return fmt.Sprintf("hop%d", a[15])
	}
	return r.String()
}

func (s *script) describe(a Action) string {
	switch a := a.(type) {
	case Send:
		to := peerName(a.Peer) + " " + routeName(a.To)
		switch m := a.Msg.(type) {
		case Ping:
			if a.Socket != 0 {
				to += fmt.Sprintf(" by socket %d", a.Socket)
			}
			if a.TTL != 0 {
				return "open " + to
			}
			if a.Wide {
				to += "s"
			}
			if m.Pad != 0 {
				return fmt.Sprintf("ping %s of %d bytes", to, headers(a.To.Addr())+Shortest+m.Pad)
			}
			return "ping " + to
		case Pong:
			return "pong " + to
		case Loss:
			return fmt.Sprintf("loss %s %d", to, m.PerMille)
		case Here:
			return fmt.Sprintf("here %s %v", to, m.Endpoints)
		case Guess:
			return "guess " + to
		}
	case Use:
		both := ""
		if a.Both && a.Until.IsZero() {
			both = " and " + routeName(a.Other) + " until it is clear"
		} else if a.Both && a.Until.After(s.now) {
			both = fmt.Sprintf(" and %s for %d ms", routeName(a.Other), a.Until.Sub(s.now).Milliseconds())
		}
		rtt := ""
		if a.RTT > 0 {
			rtt = fmt.Sprintf(", %v", a.RTT)
		}
		first := ""
		if len(a.First) > 0 {
			first = fmt.Sprintf(", handshakes also to %v", a.First)
		}
		if s.p.cfg.LinkMTU != nil {
			first += fmt.Sprintf(", MTU %d", a.MTU)
		}
		return fmt.Sprintf("use  %s %s%s%s%s (%s)", peerName(a.Peer), routeName(a.Primary), both, rtt, first, a.Why)
	case AskHop:
		return fmt.Sprintf("ask %s for %s", routeName(a.Route), peerName(a.Peer))
	case Sleep:
		return "sleep " + peerName(a.Peer)
	case Look:
		return "look"
	case Sockets:
		if a.Ask {
			return fmt.Sprintf("socket %s, and ask for its outside", peerName(a.Peer))
		}
		return fmt.Sprintf("sockets %s %d", peerName(a.Peer), a.Count)
	case Probed:
		return fmt.Sprintf("probed %s by %s in %v", peerName(a.Peer), routeName(a.From), a.RTT)
	}
	return fmt.Sprintf("%+v", a)
}
