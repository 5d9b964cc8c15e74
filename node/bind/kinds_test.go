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

// reach is how two places are to meet: "direct", "guess" where ports are guessed, or "relay".
func reach(a, b string) string {
	// What a place gives its ports by, and who it lets in.
	random := []string{"hard", "hardaddr", "hardfree", "hardshort", "hardcgn", "hardhard"}
	ports := func(k string) string {
		switch {
		case slices.Contains(random, k):
			return "random"
		case k == "hardseq" || k == "hardblk":
			return k
		}
		return "one"
	}
	// Packets from an address sent to get in, whatever their port.
	open := func(k string) bool { return slices.Contains([]string{"none", "fullcone", "addrrestr"}, k) }
	pa, pb := ports(a), ports(b)
	switch {
	case a == "blocked" || b == "blocked":
		return "relay"
	case a == "v6" || b == "v6":
		if slices.Contains([]string{"v6", "dual"}, a) && slices.Contains([]string{"v6", "dual"}, b) {
			return "direct"
		}
		return "relay"
	case a == b && slices.Contains([]string{"cgn", "opencgn", "hardcgn", "hardhard"}, a):
		return "relay"
	case pa == "one" && pb == "one":
		return "direct"
	case pa == "one" || pb == "one":
		if open(a) || open(b) {
			return "direct"
		}
		return "guess"
	}
	if pa != "random" && pb != "random" {
		return "guess"
	}
	return "relay"
}

// TestMoreKinds sets less usual places against all. HEDGE_MATRIX_SEEDS asks for more runs of each pair.
func TestMoreKinds(t *testing.T) {
	seeds, _ := strconv.Atoi(os.Getenv("HEDGE_MATRIX_SEEDS"))
	all := slices.Concat(lab.Kinds, lab.MoreKinds)
	var table strings.Builder
	for _, a := range all {
		fmt.Fprintf(&table, "%-10s", a)
		for _, b := range all {
			if !slices.Contains(lab.MoreKinds, a) && !slices.Contains(lab.MoreKinds, b) {
				fmt.Fprintf(&table, "     .")
				continue
			}
			worst, relayed := time.Duration(0), 0
			for seed := range uint64(max(seeds, 1)) {
				t.Run(a+" to "+b, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						took, f := cell(t, seed, a, b)
						if worst = max(worst, took); took == 0 {
							relayed++
						}
						if f.lost > 0 {
							t.Errorf("%d of %d packets are lost", f.lost, f.sent)
						}
						switch want := reach(a, b); {
						case a == "opencgn" && b == "pool": // which has no one address for a fresh socket
						case want == "direct" && (took == 0 || took > 700*time.Millisecond):
							t.Errorf("direct after %v", took)
						}
					})
				})
			}
			if relayed > 0 {
				fmt.Fprintf(&table, "  %4s", fmt.Sprintf("-%d", relayed))
			} else {
				fmt.Fprintf(&table, " %5d", worst.Milliseconds())
			}
		}
		table.WriteByte('\n')
	}
	t.Logf("milliseconds until both sides are direct:\n%10s %s\n%s", "", strings.Join(all, " "), table.String())
}

// TestOuterTrap sets two NATs in a row, the outer of which is spoilt by packets that come too early, against others, by links
// that lose and delay some, so that the two sides do not act in step: an opener that dies before the outer one opens
// nothing, so later ones come one router further.
func TestOuterTrap(t *testing.T) {
	for _, b := range []string{"easy", "easyopen", "cgn"} {
		var took []time.Duration
		for seed := range uint64(40) {
			synctest.Test(t, func(t *testing.T) {
				m := meet(t, seed, "opencgn", b)
				defer m.end()
				l := lab.Link{Latency: lab.Edge, Jitter: 80 * time.Millisecond, Loss: 0.03}
				m.ra.Links(l, l)
				m.rb.Links(l, l)
				m.shake()
				m.talk(8*time.Second, func() bool { return m.both() > 0 })
				if took = append(took, m.both()); m.both() == 0 {
					t.Errorf("opencgn to %s, seed %d: not direct", b, seed)
				}
			})
		}
		slices.Sort(took)
		t.Logf("opencgn to %s: median %v, p90 %v, most %v", b, took[20].Round(time.Millisecond), took[36].Round(time.Millisecond), took[39].Round(time.Millisecond))
	}
}
