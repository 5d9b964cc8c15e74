// Package report holds what a bench has measured: figures of several worlds, taken in turns, and the ratios between them.
//
//	Report ── Section ──┬── Series   one measure of one world, a value a round
//	             …      └── Ratio    the first world's measure by another's, of the same round: least, median, most
//
// What is compared is the ratio within a round, and its median over the rounds, because a machine's speed drifts more
// than the worlds differ. A world that failed in a round lacks that value only.
package report

import (
	"slices"
	"time"
)

// Report is all that one run of the bench has measured.
type Report struct {
	Version  string     `json:"version"` // of Hedge
	Began    time.Time  `json:"began"`
	Took     string     `json:"took"`
	Go       string     `json:"go"`
	System   string     `json:"system"`
	CPU      string     `json:"cpu,omitempty"`
	Cores    int        `json:"cores"`
	TCP      string     `json:"tcp,omitempty"`      // the congestion control of the hosts; empty if unknown
	Load     [2]string  `json:"load"`               // before and after: processes that wanted a core, over one minute; empty if unknown
	LeftOut  []string   `json:"left_out,omitempty"` // what was not measured, and why
	Failed   []string   `json:"failed,omitempty"`   // single measurements
	Sections []*Section `json:"sections"`
}

// Section is worlds that were measured alike.
type Section struct {
	Name   string    `json:"name"`
	About  string    `json:"about"`  // one sentence: what was set up
	Worlds []string  `json:"worlds"` // the first is compared with the others
	Series []*Series `json:"series"`
	Ratios []Ratio   `json:"ratios"`
}

// Series is one measure of one world. Values are in the order of their Rounds.
type Series struct {
	Measure string    `json:"measure"`
	Unit    string    `json:"unit"`
	World   string    `json:"world"`
	Rounds  []int     `json:"rounds"`
	Values  []float64 `json:"values"`
}

// Ratio is the first world's measure divided by that of another, in the rounds that have both.
type Ratio struct {
	Measure string `json:"measure"`
	To      string `json:"to"`
	Rounds  int    `json:"rounds"`
	Spread
}

// Sure says whether all rounds, and at least six, agree on which is the greater. Of two that are alike, one measure in 32
// is so by chance.
func (q Ratio) Sure() bool { return q.Rounds >= 6 && (q.Min > 1 || q.Max < 1) }

// Spread is how far values of one kind lie apart.
type Spread struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

// Put notes a value of a round. A second value of the same round replaces the first.
func (s *Section) Put(round int, world, measure, unit string, v float64) {
	x := s.Find(world, measure)
	if x == nil {
		x = &Series{Measure: measure, Unit: unit, World: world}
		s.Series = append(s.Series, x)
	}
	if i := slices.Index(x.Rounds, round); i >= 0 {
		x.Values[i] = v
		return
	}
	x.Rounds, x.Values = append(x.Rounds, round), append(x.Values, v)
}

// Find returns a world's series of a measure; nil if it has none.
func (s *Section) Find(world, measure string) *Series {
	for _, x := range s.Series {
		if x.World == world && x.Measure == measure {
			return x
		}
	}
	return nil
}

// Derive adds a measure to each world: one of its measures by another, of the same round.
func (s *Section) Derive(measure, unit, of, by string) {
	for _, w := range s.Worlds {
		a, b := s.Find(w, of), s.Find(w, by)
		if a == nil || b == nil {
			continue
		}
		for i, round := range a.Rounds {
			if j := slices.Index(b.Rounds, round); j >= 0 && b.Values[j] != 0 {
				s.Put(round, w, measure, unit, a.Values[i]/b.Values[j])
			}
		}
	}
}

// Compare fills in the Ratios.
func (s *Section) Compare() {
	s.Ratios = nil
	if len(s.Worlds) == 0 {
		return
	}
	for _, m := range s.measures() {
		first := s.Find(s.Worlds[0], m)
		for _, to := range s.Worlds[1:] {
			if q := divide(first, s.Find(to, m)); len(q) > 0 {
				s.Ratios = append(s.Ratios, Ratio{m, to, len(q), Of(q)})
			}
		}
	}
}

// divide gives a's values by b's, of the rounds in which both have one and b's is not 0.
func divide(a, b *Series) (q []float64) {
	if a == nil || b == nil {
		return nil
	}
	for i, round := range a.Rounds {
		if j := slices.Index(b.Rounds, round); j >= 0 && b.Values[j] != 0 {
			q = append(q, a.Values[i]/b.Values[j])
		}
	}
	return q
}

// measures lists them in the order in which they came first.
func (s *Section) measures() (names []string) {
	for _, x := range s.Series {
		if !slices.Contains(names, x.Measure) {
			names = append(names, x.Measure)
		}
	}
	return names
}

// Of returns the spread of at least one value. The median of an even number of values is the mean of the middle two.
func Of(v []float64) Spread {
	v = slices.Sorted(slices.Values(v))
	return Spread{v[0], (v[(len(v)-1)/2] + v[len(v)/2]) / 2, v[len(v)-1]}
}

// Percentile returns the value below which p percent of v lie (nearest rank). It sorts v, which must not be empty.
func Percentile(v []float64, p float64) float64 {
	slices.Sort(v)
	return v[min(len(v)-1, int(p/100*float64(len(v))))]
}

// Turn is one measurement of a run.
type Turn struct{ Round, Task, World int }

// Turns lists all measurements: every task in every world of every round, the worlds in an order that rotates.
func Turns(rounds, tasks, worlds int) (all []Turn) {
	for r := range rounds {
		for t := range tasks {
			for i := range worlds {
				all = append(all, Turn{r, t, (i + r + t) % worlds})
			}
		}
	}
	return all
}
