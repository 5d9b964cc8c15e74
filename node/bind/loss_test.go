package bind

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// A path that loses much is left for a relay that does not, by those who send into the loss: within 5 s, but for one throw of the
// dice in some hundred, and at 5 %, where little is lost to know by, one in twenty. HEDGE_MATRIX_SEEDS asks for more than five.
func TestLossIsLeft(t *testing.T) {
	seeds, _ := strconv.Atoi(os.Getenv("HEDGE_MATRIX_SEEDS"))
	for _, c := range []struct {
		up, down float64 // of a's uplink
		late     int     // of a hundred throws that may take longer, and one more
	}{{0.1, 0, 0}, {0, 0.1, 0}, {0.1, 0.1, 0}, {0.05, 0, 5}, {0, 0.05, 5}, {0.05, 0.05, 5}} {
		t.Run(fmt.Sprintf("%v up %v down", c.up, c.down), func(t *testing.T) {
			var took []time.Duration
			for seed := range uint64(max(seeds, 5)) {
				synctest.Test(t, func(t *testing.T) {
					m := meet(t, 900+seed, "easy", "easy")
					defer m.end()
					m.shake()
					if m.talk(4*time.Second, nil); m.both() == 0 {
						t.Fatal("not direct")
					}
					m.ra.Links(lab.Link{Latency: lab.Edge, Loss: c.up}, lab.Link{Latency: lab.Edge, Loss: c.down})
					start := time.Now()
					left := func(s *side, loss float64) bool { return loss == 0 || !s.relayed().IsZero() }
					m.talk(12*time.Second, func() bool { return left(m.a, c.up) && left(m.b, c.down) })
					took = append(took, time.Since(start)-300*time.Millisecond)
				})
			}
			slices.Sort(took)
			late := 0
			for _, d := range took {
				if d > 5*time.Second {
					late++
				}
			}
			t.Logf("of %d: half within %v, the last after %v, %d after more than 5 s", len(took), took[len(took)/2], took[len(took)-1], late)
			if late > 1+(c.late*len(took)+99)/100 || took[len(took)-1] > 11*time.Second {
				t.Errorf("%d of %d left the path after more than 5 s: %v", late, len(took), took)
			}
		})
	}
}

// relayed is since when a side has sent by relay alone; zero if it does not.
func (s *side) relayed() (since time.Time) {
	for _, p := range s.table.Load().byNode {
		if r := p.routes.Load(); !r.primary.IsValid() {
			since = r.since
		}
	}
	return since
}
