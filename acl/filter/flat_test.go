package filter

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"
)

// lane opens flows in one filter, over and over: as many as are to live, then, after those have idled out, again.
type lane struct {
	f     *Filter
	c     *Config
	now   time.Time
	peers int // that open them, in turn
	live  int
	pkt   []byte
	took  []float64 // ns a flow, of each turn
}

func newLane(peers, rules, openers, live int, t l4) *lane {
	l := &lane{f: New(Options{MaxFlows: 1 << 18, MaxFlowsPerPeer: 1 << 18}), c: bigMesh(peers, rules), now: clock, peers: openers, live: live}
	l.f.Set(l.c, l.now)
	l.pkt = ip(l.c.Peers[0].Addrs[0].String(), v4, t)
	return l
}

// pass opens all flows once. The order of peers is one in which neighbours lie far apart.
func (l *lane) pass(b *testing.B) {
	l.now = l.now.Add(5 * time.Minute)
	for i := range l.live {
		at := i * 7919 % l.peers
		x := 100<<24 | 64<<16 + 0x10000 + uint32(at)
		binary.BigEndian.PutUint32(l.pkt[12:], x)
		binary.BigEndian.PutUint16(l.pkt[20:], uint16(i))
		if v := l.f.In(l.pkt, l.now); v.Reason != ByRule {
			b.Fatalf("flow %d: %v", i, v)
		}
	}
}

func (l *lane) turn(b *testing.B) {
	l.pass(b) // what the others have pushed out of the cache comes back
	start := time.Now()
	l.pass(b)
	l.took = append(l.took, float64(time.Since(start))/float64(l.live))
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// BenchmarkFlat shows that a new flow costs the same whatever the number of rules and peers: the lanes go in turn, so
// that whatever else the machine does meets all of them. Each is reported as ns a flow, and as a ratio to the first.
func BenchmarkFlat(b *testing.B) {
	for _, live := range []int{1 << 10, 1 << 16} {
		for name, t := range map[string]l4{"udp": udp(5000, 53, 100), "tcp": tcp(5000, 443, syn)} {
			b.Run(fmt.Sprintf("%s/live=%d", name, live), func(b *testing.B) {
				names := []string{"10rules", "1krules", "10krules", "10kpeers", "10kopeners"}
				lanes := []*lane{newLane(10, 10, 10, live, t), newLane(10, 1000, 10, live, t), newLane(10, 10000, 10, live, t),
					newLane(10000, 10000, 10, live, t), newLane(10000, 10000, 10000, live, t)}
				n := 0
				for b.Loop() {
					for i := range lanes {
						lanes[(i+n)%len(lanes)].turn(b)
					}
					n++
				}
				b.ReportMetric(0, "ns/op")
				base := median(lanes[0].took)
				for i, l := range lanes {
					b.ReportMetric(median(l.took), "ns/"+names[i])
					if i > 0 {
						b.ReportMetric(median(l.took)/base, "x/"+names[i])
					}
				}
			})
		}
	}
}
