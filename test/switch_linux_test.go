package test

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// policyAll lets the nodes of these tests reach each other.
const policyAll = `{
	"tagOwners": {"tag:web": [], "tag:db": []},
	"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
}`

// newPourMesh is alice and web with interfaces, and relays in between.
func newPourMesh(t testing.TB) *relayMesh {
	t.Helper()
	m := newRelayMeshWith(t, policyAll, "--tun=on")
	m.joinWith(m.alice, []string{"--tun=on"}, "--user", "alice@lab")
	return m
}

// refused are the packets that hedge0 of a host had no room for: they wait there for 50 ms at this rate, and on a machine with
// much else to do Hedge does not get to run so often.
func (m *mesh) refused(h *lab.Host) (n int) {
	m.t.Helper()
	out, err := h.Command(m.t.Context(), "cat", "/sys/class/net/hedge0/statistics/tx_dropped").Output()
	if err == nil {
		n, err = strconv.Atoi(strings.TrimSpace(string(out)))
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// switching is a stream of datagrams each way between alice and web.
type switching struct {
	*relayMesh
	names [2]string
	from  [2]*lab.Host
	ways  [2]*pour
}

// TestSwitchAtSpeed: at 10,000 datagrams a second each way, a path that changes costs one in ten thousand at most: from
// the relay to a direct one, and back to the relay when alice's own firewall forbids the direct one. What is missed while
// the machine has much else to do is tried again, and one that cannot carry as many while nothing happens carries fewer.
func TestSwitchAtSpeed(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary")
	}
	const rounds = 4
	m := newPourMesh(t)
	mute := "ip daddr " + m.web.Addr.String() + " meta l4proto udp drop" // nothing goes out directly, and Hedge is told
	s := &switching{relayMesh: m, names: [2]string{"there", "back"}, from: [2]*lab.Host{m.alice, m.web}}
	held := map[string]bool{}
	steps := []struct{ what, rules, kind string }{
		{"nothing happens, by relay", mute, "relay"},
		{"relay to direct", "", "direct"},
		{"nothing happens, directly", "", "direct"},
		{"direct to relay", mute, "relay"},
	}
	for rate := 10000; ; rate /= 2 {
		m.alice.Firewall("")
		m.pathIs("direct", m.alice, "web")
		m.alice.Firewall(mute) // not long ago: what is in vain is tried less and less often
		m.pathIs("relay", m.alice, "web")
		s.pour(rate, rounds*40*rate)
		if held[steps[0].what] = s.step(fmt.Sprintf("%s, %d a second", steps[0].what, rate), mute, "relay"); held[steps[0].what] || rate < 1000 {
			break
		}
		for _, p := range s.ways {
			p.end()
		}
	}
	for round := range rounds {
		for _, step := range steps[max(0, 1-round):] { // the first has just been made
			held[step.what] = s.step(step.what, step.rules, step.kind) || held[step.what]
		}
		if !slices.ContainsFunc(steps, func(c struct{ what, rules, kind string }) bool { return !held[c.what] }) {
			break
		}
	}
	for _, step := range steps {
		if !held[step.what] {
			t.Errorf("%s: more than one in ten thousand lost, each time", step.what)
		}
	}
	for _, p := range s.ways {
		if n := p.twice.Load(); n > 0 {
			t.Errorf("%d came twice", n)
		}
	}
}

// pour begins both streams, and waits until they come.
func (s *switching) pour(rate, most int) {
	s.t.Helper()
	for i, to := range []*lab.Host{s.web, s.alice} {
		s.ways[i] = newPour(s.t, s.from[i], to, netip.AddrPortFrom(s.status(to).Addrs[0], 9), rate, most)
	}
	s.eventually(40*time.Second, "datagrams come", func() error {
		for _, p := range s.ways {
			if n := p.sent.Load(); int(n) < rate || p.over(n-int64(rate), n).lost == rate {
				return fmt.Errorf("%d sent", n)
			}
		}
		return nil
	})
}

// step changes alice's firewall and reports whether what was sent in the three seconds from then on has come.
func (s *switching) step(what, rules, kind string) bool {
	var sent [2]int64
	var refused [2]int
	for i, p := range s.ways {
		refused[i], sent[i] = s.refused(s.from[i]), p.sent.Load()
	}
	s.alice.Firewall(rules)
	end := time.After(3 * time.Second)
	s.pathIs(kind, s.alice, "web")
	<-end
	var until [2]int64
	for i, p := range s.ways {
		until[i] = p.sent.Load()
	}
	<-time.After(500 * time.Millisecond) // what is under way may be late
	held := true
	for i, p := range s.ways {
		refused := s.refused(s.from[i]) - refused[i]
		f := p.over(sent[i], until[i])
		s.t.Logf("%s, %s: %v; %d refused by hedge0", what, s.names[i], f, refused)
		held = held && (f.lost-refused)*10000 <= f.sent
	}
	return held
}

// TestMoveOnRelayUDP: packets go to the relay by UDP, and alice's address changes. The relay follows what is authentic from
// the new one, so that packets come again within 100 ms both ways: the median of some moves, beside that of as many whiles
// in which nothing happened, for a busy machine has gaps of its own.
func TestMoveOnRelayUDP(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary")
	}
	const rate, moves = 500, 7
	m := newPourMesh(t)
	relays := "{ " + m.relay.Addr.String() + ", " + m.second.Addr.String() + " }"
	m.web.Firewall("ip daddr "+relays+" accept", "ip saddr "+relays+" accept", "meta l4proto udp iif eth0 drop", "meta l4proto udp oif eth0 drop")
	m.pathIs("relay", m.alice, "web")
	names := [2]string{"there", "back"}
	ways := [2]*pour{newPour(t, m.alice, m.web, netip.AddrPortFrom(m.status(m.web).Addrs[0], 9), rate, 200*rate),
		newPour(t, m.web, m.alice, netip.AddrPortFrom(m.status(m.alice).Addrs[0], 9), rate, 200*rate)}
	home, _ := m.homes()
	const udp = `hedge_relay_udp_packets_total{direction="out"}`
	at, next := m.alice.Addr, netip.MustParseAddr("10.77.0.200")
	var gaps, usual [2][]time.Duration
	while := func(to *[2][]time.Duration, what string, do func()) {
		from := [2]int64{ways[0].sent.Load(), ways[1].sent.Load()}
		do()
		<-time.After(1500 * time.Millisecond)
		for j, p := range ways {
			f := p.over(from[j], p.sent.Load()-rate/10)
			to[j] = append(to[j], f.gap)
			t.Logf("%s, %s: %v", what, names[j], f)
		}
	}
	for range moves {
		before := m.metric(home, udp)
		m.eventually(20*time.Second, "packets go to the relay by UDP", func() error {
			if n := m.metric(home, udp) - before; n < rate {
				return fmt.Errorf("%d of them", n)
			}
			return nil
		})
		while(&usual, "nothing happens", func() {})
		while(&gaps, "a move", func() {
			if err := m.alice.IP(fmt.Sprintf("addr del %v/%d dev eth0", at, lab.Subnet.Bits()), fmt.Sprintf("addr add %v/%d dev eth0", next, lab.Subnet.Bits())); err != nil {
				t.Fatal(err)
			}
		})
		at, next = next, at
	}
	for j := range gaps {
		slices.Sort(gaps[j])
		slices.Sort(usual[j])
		t.Logf("%s: none for %v, and while nothing happened for %v", names[j], gaps[j], usual[j])
		if got := gaps[j][moves/2] - usual[j][moves/2]; got > 100*time.Millisecond {
			t.Errorf("%s: a move costs %v; want 100 ms at most", names[j], got)
		}
	}
}

// BenchmarkStalledPeer is what a node that has stalled costs another, to which the same sender sends 2,000 datagrams a
// second beside 5,000 to the first, all by relay over TCP: it is stopped and goes on in turns.
func BenchmarkStalledPeer(b *testing.B) {
	const rate, flood, rounds = 2000, 5000, 5
	m := newPourMesh(b)
	m.db = m.lab.Host("db")
	m.joinWith(m.db, []string{"--tun=on"}, "--tag", "tag:db")
	for _, h := range []*lab.Host{m.alice, m.web, m.db} {
		h.Firewall("meta l4proto udp iif eth0 drop", "meta l4proto udp oif eth0 drop")
	}
	m.pathIs("relay", m.alice, "web")
	m.pathIs("relay", m.alice, "db")
	to := newPour(b, m.alice, m.web, netip.AddrPortFrom(m.status(m.web).Addrs[0], 9), rate, 2000*rate)
	newPour(b, m.alice, m.db, netip.AddrPortFrom(m.status(m.db).Addrs[0], 9), flood, 2000*flood)
	pid := m.status(m.db).PID
	kinds := [2]string{"reads", "stalled"}
	var came, p99 [2][]float64
	for range b.N {
		for range rounds {
			for i, sig := range []syscall.Signal{syscall.SIGCONT, syscall.SIGSTOP} {
				if err := syscall.Kill(pid, sig); err != nil {
					b.Fatal(err)
				}
				<-time.After(time.Second) // until its queue is full, or empty
				from := to.sent.Load()
				<-time.After(3 * time.Second)
				f := to.over(from, to.sent.Load()-rate/5)
				b.Logf("%s: %v", kinds[i], f)
				came[i] = append(came[i], float64(f.sent-f.lost)/float64(f.sent))
				p99[i] = append(p99[i], f.p99.Seconds()*1e3)
			}
		}
	}
	syscall.Kill(pid, syscall.SIGCONT)
	for i, k := range kinds {
		slices.Sort(came[i])
		slices.Sort(p99[i])
		b.Logf("%s: share that came %.4f, p99 %.2f ms", k, came[i], p99[i])
		b.ReportMetric(came[i][len(came[i])/2]*100, k+"-%")
		b.ReportMetric(p99[i][len(p99[i])/2], k+"-p99-ms")
	}
	b.ReportMetric(0, "ns/op")
}
