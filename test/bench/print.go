package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// print writes the figures as "median [min max]", a line each, and then the ratios.
func (r *report) print(out io.Writer) {
	fmt.Fprintf(out, "%s %s, %d cores, %d rules\n\n", r.Go, r.System, r.Cores, r.Rules)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "measure\tunit")
	for _, name := range worlds {
		fmt.Fprintf(w, "\t%s", name)
	}
	for _, to := range worlds[1:] {
		fmt.Fprintf(w, "\t× %s", to)
	}
	fmt.Fprintln(w)
	for _, s := range r.Series {
		switch s.World {
		case worlds[0]:
			fmt.Fprintf(w, "%s\t%s", s.Measure, s.Unit)
			for _, name := range worlds {
				fmt.Fprintf(w, "\t%s", r.find(name, s.Measure))
			}
			for _, q := range r.Ratios {
				if q.Measure == s.Measure {
					fmt.Fprintf(w, "\t%s", spread(q.Median, q.Min, q.Max))
				}
			}
			fmt.Fprintln(w)
		case "cipher":
			fmt.Fprintf(w, "%s\t%s\t%s\n", s.Measure, s.Unit, s)
		}
	}
	w.Flush()
}

func (s *series) String() string {
	return spread(median(s.Values), slices.Min(s.Values), slices.Max(s.Values))
}

func spread(mid, low, high float64) string {
	if low == high {
		return fmt.Sprintf("%.3g", mid)
	}
	return fmt.Sprintf("%.3g [%.3g %.3g]", mid, low, high)
}
