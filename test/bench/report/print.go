package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Text writes tables for a terminal: a line a measure, figures as "median [least most]", ratios as "× median [least most]".
func (r *Report) Text(out io.Writer) {
	r.head(out, "")
	for _, s := range r.Sections {
		fmt.Fprintf(out, "\n%s: %s\n\n", s.Name, s.About)
		w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
		for _, row := range s.rows() {
			fmt.Fprintln(w, strings.Join(row, "\t"))
		}
		w.Flush()
	}
}

// Markdown writes the same as tables of markdown.
func (r *Report) Markdown(out io.Writer) {
	r.head(out, "- ")
	for _, s := range r.Sections {
		fmt.Fprintf(out, "\n### %s\n\n%s.\n\n", strings.ToUpper(s.Name[:1])+s.Name[1:], strings.ToUpper(s.About[:1])+s.About[1:])
		for i, row := range s.rows() {
			fmt.Fprintf(out, "| %s |\n", strings.Join(row, " | "))
			if i == 0 {
				fmt.Fprintf(out, "|%s\n", strings.Repeat("---|", len(row)))
			}
		}
	}
}

// head says what was measured, where, and what is not in the tables.
func (r *Report) head(out io.Writer, bullet string) {
	fmt.Fprintf(out, "%sHedge %s, %s, %s, %d cores", bullet, r.Version, r.Go, r.System, r.Cores)
	if r.CPU != "" {
		fmt.Fprintf(out, " (%s)", r.CPU)
	}
	if r.TCP != "" {
		fmt.Fprintf(out, ", TCP with %s", r.TCP)
	}
	fmt.Fprintf(out, ", %s, in %s", r.Began.UTC().Format("2006-01-02 15:04 UTC"), r.Took)
	if r.Load[0] != "" {
		fmt.Fprintf(out, "; load before and after %s and %s", r.Load[0], r.Load[1])
	}
	fmt.Fprintf(out, "\n%sfigures: median [least most] of the rounds; × is the first column by another, within a round, ! where all of six rounds or more agree on which is greater\n", bullet)
	for _, s := range r.LeftOut {
		fmt.Fprintf(out, "%sleft out: %s\n", bullet, s)
	}
	for _, s := range r.Failed {
		fmt.Fprintf(out, "%sfailed: %s\n", bullet, s)
	}
}

// rows is the section as a table, its head first. Worlds that are never compared stand last, without a column of ratios.
func (s *Section) rows() [][]string {
	head := []string{"measure", "unit"}
	var compared []string
	for i, w := range s.Worlds {
		head = append(head, w)
		if i > 0 && slices.ContainsFunc(s.Ratios, func(q Ratio) bool { return q.To == w }) {
			compared = append(compared, w)
		}
	}
	for _, w := range compared {
		head = append(head, "× "+w)
	}
	rows := [][]string{head}
	for _, m := range s.measures() {
		row := []string{m, ""}
		for _, w := range s.Worlds {
			cell := "-"
			if x := s.Find(w, m); x != nil {
				cell, row[1] = Of(x.Values).String(), x.Unit
			}
			row = append(row, cell)
		}
		for _, w := range compared {
			cell := "-"
			if i := slices.IndexFunc(s.Ratios, func(q Ratio) bool { return q.Measure == m && q.To == w }); i >= 0 {
				if cell = s.Ratios[i].String(); s.Ratios[i].Sure() {
					cell += " !"
				}
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	return rows
}

// String is "median [least most]", or the one value that all are.
func (s Spread) String() string {
	if s.Min == s.Max {
		return number(s.Median)
	}
	return fmt.Sprintf("%s [%s %s]", number(s.Median), number(s.Min), number(s.Max))
}

// number has three digits that say something, and no exponent.
func number(v float64) string {
	switch a := max(v, -v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a == 0:
		return "0"
	case a < 0.001:
		return fmt.Sprintf("%.1g", v)
	}
	return fmt.Sprintf("%.3g", v)
}
