package path

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// T2.11: a peer that tells of addresses which are others' (another node's, the coordinator's, our own loopback or network)
// makes us ping there four times in ten seconds at most, whatever it does, and never send data: a path is used once it has
// answered with the key of the peer.
func TestPoisonedEndpoints(t *testing.T) {
	const victim = "203.0.113.7:7"
	for _, tt := range []struct {
		name  string
		lines func(at int) []string // each 100 ms
	}{
		{"told by the coordinator", func(at int) []string { return nil }},
		{"said once", func(at int) []string {
			if at == 1000 {
				return []string{"here b " + victim}
			}
			return nil
		}},
		{"said again and again", func(at int) []string { return []string{"here b " + victim} }},
		{"said, taken back, and said", func(at int) []string { return []string{"here b " + []string{victim, ""}[at/100%2]} }},
		{"said to be of a fresh socket", func(at int) []string { return []string{"fresh b " + victim, "outside b 198.51.100.1:7001"} }},
		{"taken back by the coordinator, and said", func(at int) []string {
			return []string{"peers b=" + []string{victim, ""}[at/100%2], "here b " + []string{"", victim}[at/100%2]}
		}},
		{"among many", func(at int) []string {
			return []string{fmt.Sprintf("here b %s,192.0.2.%d:1,192.0.2.%d:1", victim, at/100%200+1, at/100%100+100)}
		}},
	} {
		for _, traffic := range []string{"flow b", "send b", "probe b"} {
			t.Run(tt.name+", "+traffic, func(t *testing.T) {
				var src strings.Builder
				src.WriteString("0 self 198.51.100.1:7000\n0 nat easy 0-0\n")
				fmt.Fprintf(&src, "0 peers b=%s\n0 net b relay=40\n", map[bool]string{true: victim}[strings.HasPrefix(tt.name, "told")])
				for at := 100; at < 60_000; at += 100 {
					if at == 100 || traffic != "flow b" {
						fmt.Fprintf(&src, "%d %s\n", at, traffic)
					}
					for _, l := range tt.lines(at) {
						fmt.Fprintf(&src, "%d %s\n", at, l)
					}
				}
				out := newScript(t).run(src.String())
				var at []int
				for _, m := range regexp.MustCompile(`(?m)^ +(\d+)  ping b `+regexp.QuoteMeta(victim)).FindAllStringSubmatch(out, -1) {
					ms, _ := strconv.Atoi(m[1])
					at = append(at, ms)
				}
				first, worst := 0, 0
				for i := range at {
					n := 0
					for _, later := range at[i:] {
						if later < at[i]+10_000 {
							n++
						}
					}
					if first = max(first, n); at[i] > 20_000 {
						worst = max(worst, n)
					}
				}
				if first > 4 {
					t.Errorf("%d pings in ten seconds, later %d; at %v", first, worst, at[:min(len(at), 20)])
				}
				if regexp.MustCompile(`use  b ` + regexp.QuoteMeta(victim)).MatchString(out) {
					t.Error("data go there")
				}
				t.Logf("%d pings, at most %d in ten seconds, later %d", len(at), first, worst)
			})
		}
	}
}
