package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// report is all that was measured.
type report struct {
	Go     string    `json:"go"`
	Cores  int       `json:"cores"`
	Rules  int       `json:"rules"`
	MTU    int       `json:"mtu"`
	Worlds []string  `json:"worlds"`
	Series []*series `json:"series"`
	Ratios []ratio   `json:"ratios"`
}

// series is one kind of figure in one world, over the rounds.
type series struct {
	Measure string    `json:"measure"`
	Unit    string    `json:"unit"`
	World   string    `json:"world"`
	Values  []float64 `json:"values"`
}

// ratio compares the first world with another, round by round.
type ratio struct {
	Measure string  `json:"measure"`
	To      string  `json:"to"`
	Min     float64 `json:"min"`
	Median  float64 `json:"median"`
	Max     float64 `json:"max"`
}

func (r *report) find(world, measure string) *series {
	i := slices.IndexFunc(r.Series, func(s *series) bool { return s.World == world && s.Measure == measure })
	if i < 0 {
		return nil
	}
	return r.Series[i]
}

func (r *report) put(world, measure, unit string, v float64) {
	if s := r.find(world, measure); s != nil {
		s.Values = append(s.Values, v)
		return
	}
	r.Series = append(r.Series, &series{measure, unit, world, []float64{v}})
}

func (r *report) measures() (names, units []string) {
	for _, s := range r.Series {
		if !slices.Contains(names, s.Measure) {
			names, units = append(names, s.Measure), append(units, s.Unit)
		}
	}
	return names, units
}

func (r *report) compare() {
	names, _ := r.measures()
	for _, m := range names {
		first := r.find(r.Worlds[0], m)
		for _, to := range r.Worlds[1:] {
			other := r.find(to, m)
			if first == nil || other == nil {
				continue
			}
			var q []float64
			for i := range min(len(first.Values), len(other.Values)) {
				if other.Values[i] > 0 {
					q = append(q, first.Values[i]/other.Values[i])
				}
			}
			if len(q) > 0 {
				r.Ratios = append(r.Ratios, ratio{m, to, slices.Min(q), median(q), slices.Max(q)})
			}
		}
	}
}

// print writes each figure as "median [least most]", a line a measure, and then the first world's ratio to the others.
func (r *report) print(out io.Writer) {
	fmt.Fprintf(out, "%s, %d cores, wire of %d bytes, %d rules\n\n", r.Go, r.Cores, r.MTU, r.Rules)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "measure\tunit")
	for _, name := range r.Worlds {
		fmt.Fprintf(w, "\t%s", name)
	}
	for _, to := range r.Worlds[1:] {
		fmt.Fprintf(w, "\t× %s", to)
	}
	fmt.Fprintln(w)
	names, units := r.measures()
	for i, m := range names {
		fmt.Fprintf(w, "%s\t%s", m, units[i])
		for _, name := range r.Worlds {
			if s := r.find(name, m); s != nil {
				fmt.Fprintf(w, "\t%s", spread(median(s.Values), slices.Min(s.Values), slices.Max(s.Values)))
			} else {
				fmt.Fprint(w, "\t-")
			}
		}
		for _, to := range r.Worlds[1:] {
			j := slices.IndexFunc(r.Ratios, func(q ratio) bool { return q.Measure == m && q.To == to })
			if j < 0 {
				fmt.Fprint(w, "\t-")
				continue
			}
			q := r.Ratios[j]
			fmt.Fprintf(w, "\t%s", spread(q.Median, q.Min, q.Max))
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}

func spread(mid, low, high float64) string {
	if low == high {
		return fmt.Sprintf("%.3g", mid)
	}
	return fmt.Sprintf("%.3g [%.3g %.3g]", mid, low, high)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
