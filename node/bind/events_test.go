package bind

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// incidents are what may happen to two nodes that talk, and what it may cost: the longest time in which nothing arrives, and
// the time until the path is direct again, wherever it can be without guessing.
var incidents = []struct {
	name           string
	do             func(m *meeting)
	outage, direct time.Duration
}{
	{"own address", readdress, 150 * time.Millisecond, time.Second},
	{"both addresses", readdressBoth, 150 * time.Millisecond, time.Second},
	{"three addresses", func(m *meeting) {
		for range 3 {
			readdress(m)
			m.talk(700*time.Millisecond, nil)
		}
	}, 150 * time.Millisecond, time.Second},
	{"to an easy network", uplink, 150 * time.Millisecond, time.Second},
	{"to an open network", func(m *meeting) { m.ma.Move(m.net.Router(lab.Home("fullcone"))); m.moved(m.a) }, 150 * time.Millisecond, time.Second},
	{"to a shared network", func(m *meeting) { m.ma.Move(m.net.Router(lab.Home("easyopen"))); m.moved(m.a) }, 150 * time.Millisecond, time.Second},
	{"to a hard network", func(m *meeting) { m.ma.Move(m.net.Router(lab.Home("hard"))); m.moved(m.a) }, 150 * time.Millisecond, 0},
	{"both elsewhere", func(m *meeting) {
		m.mb.Move(m.net.Router(lab.Home("easyopen")))
		m.moved(m.b)
		uplink(m)
	}, 150 * time.Millisecond, 0},
	{"away and back", func(m *meeting) {
		old := m.ra
		uplink(m)
		m.talk(500*time.Millisecond, nil)
		m.ma.Move(old)
		m.moved(m.a)
	}, 250 * time.Millisecond, 4 * time.Second},
	{"silent WAN", silent, 400 * time.Millisecond, 2 * time.Second},
	{"both WANs silently", silentBoth, 400 * time.Millisecond, 2 * time.Second},
	{"NAT forgets", forget, time.Second, 2 * time.Second},
	{"both NATs forget", forgetBoth, time.Second, 2 * time.Second},
	{"NAT forgets thrice", func(m *meeting) {
		for range 3 {
			forget(m)
			m.talk(2*time.Second, nil)
		}
	}, time.Second, 2 * time.Second},
	{"an hour of sleep", func(m *meeting) {
		<-time.After(time.Hour)
	}, time.Second, 2 * time.Second},
	{"silence of 12 s", func(m *meeting) { <-time.After(12 * time.Second) }, time.Second, 2 * time.Second},
	{"silence of 90 s", func(m *meeting) { <-time.After(90 * time.Second) }, time.Second, 2 * time.Second},
	{"wakes up elsewhere", func(m *meeting) { <-time.After(time.Minute); wake(m) }, time.Second, 2 * time.Second},
	{"one way is lost", func(m *meeting) { m.ra.Links(lab.Link{Latency: lab.Edge, Loss: 1}, lab.Link{Latency: lab.Edge}) }, 400 * time.Millisecond, 0},
	{"20 % one way", func(m *meeting) { m.ra.Links(lab.Link{Latency: lab.Edge, Loss: 0.2}, lab.Link{Latency: lab.Edge}) }, time.Second, 0},
	{"no UDP for 3 s", func(m *meeting) {
		m.ra.BlockUDP(true)
		m.talk(3*time.Second, nil)
		m.ra.BlockUDP(false)
	}, time.Second, 5 * time.Second},
	{"NAT reboots", func(m *meeting) {
		m.ra.BlockUDP(true)
		m.rel.setLose(func([]byte) bool { return true })
		m.talk(2*time.Second, nil)
		m.ra.Rebind()
		m.rel.setLose(nil)
		m.ra.BlockUDP(false)
	}, 400 * time.Millisecond, 4 * time.Second},
	{"no UDP for 20.5 s", func(m *meeting) {
		m.ra.BlockUDP(true)
		m.talk(20*time.Second+500*time.Millisecond, nil)
		m.ra.BlockUDP(false)
	}, time.Second, 2 * time.Second},
}

// newHome is the kind of place that a is in after an incident, where that is another.
var newHome = map[string]string{"to an easy network": "easy", "to an open network": "fullcone", "to a shared network": "easyopen"}

// TestIncidents lets everything happen to all kinds of places. HEDGE_MATRIX_SEEDS asks for more runs of each.
func TestIncidents(t *testing.T) {
	if testing.Short() {
		t.Skip("some seconds")
	}
	seeds, _ := strconv.Atoi(os.Getenv("HEDGE_MATRIX_SEEDS"))
	pairs := [][2]string{{"easy", "easy"}, {"easyopen", "easy"}, {"easy", "easyopen"}, {"easyopen", "easyopen"}, {"fullcone", "hard"}, {"hard", "addrrestr"},
		{"short", "short"}, {"easyrand", "easyrand"}, {"opencgn", "easy"}, {"dual", "dual"}, {"v6", "v6"}, {"cgn", "easy"}, {"cgn+hp", "cgn+hp"},
		{"easy", "hard"}, {"hard", "easy"}, {"hardseq", "hardseq"}, {"hardblk", "easyopen"}, {"hardaddr", "easy"}, {"hardshort", "addrrestr"}, {"hardcgn", "easy"}}
	var table strings.Builder
	for _, c := range incidents {
		var gaps, backs []time.Duration
		worstGap, worstBack := "", ""
		for _, p := range pairs {
			for seed := range uint64(max(seeds, 1)) {
				t.Run(c.name+", "+p[0]+" to "+p[1], func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						m := meet(t, 77+seed, p[0], p[1])
						defer m.end()
						m.shake()
						settled := 0
						m.talk(7*time.Second, func() bool {
							if m.both() > 0 {
								settled++
							}
							return settled > 200
						})
						was := m.both() > 0
						start := time.Now()
						var f fate
						c.do(m)
						if rest := time.Since(start); rest > 9*time.Second { // nothing was said
							start = time.Now()
						}
						back := time.Duration(0)
						g := m.talk(15*time.Second, func() bool {
							if !m.a.alone() || !m.b.alone() {
								back = time.Since(start)
							}
							return time.Since(start) > back+2*time.Second
						})
						f.gap = g.gap
						easy := reach(p[0], p[1]) == "direct" && c.direct > 0 && was
						switch home := newHome[c.name]; {
						case p[0] == "opencgn": // openers die between its NATs, so that luck has a part
							easy = false
						case home == "":
						case p[0] == "v6": // has no IPv6 there
							easy = false
						default:
							easy = reach(home, p[1]) == "direct"
						}
						if f.gap > c.outage {
							t.Errorf("outage %v", f.gap)
						}
						if easy && back > c.direct {
							t.Errorf("direct again after %v", back)
						}
						if len(gaps) == 0 || f.gap > slices.Max(gaps) {
							worstGap = p[0] + "/" + p[1]
						}
						gaps = append(gaps, f.gap)
						if easy {
							if len(backs) == 0 || back > slices.Max(backs) {
								worstBack = p[0] + "/" + p[1]
							}
							backs = append(backs, back)
						}
					})
				})
			}
		}
		slices.Sort(gaps)
		slices.Sort(backs)
		if len(gaps) > 0 {
			fmt.Fprintf(&table, "%-22s outage %6v .. %6v (%s)", c.name, gaps[len(gaps)/2], gaps[len(gaps)-1], worstGap)
		}
		if len(backs) > 0 {
			fmt.Fprintf(&table, "  direct %6v .. %6v (%s)", backs[len(backs)/2].Round(time.Millisecond), backs[len(backs)-1].Round(time.Millisecond), worstBack)
		}
		table.WriteByte('\n')
	}
	t.Logf("median and most:\n%s", table.String())
}
