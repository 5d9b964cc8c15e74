package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// section is a part of docs/paths.md that is measured and written by itself. There it stands between two lines,
//
//	<!-- section NAME -->
//	…
//	<!-- end of NAME -->
//
// and everything outside of all of them is written by hand.
type section struct {
	name, what string
	cases      []spec
	write      func(*strings.Builder, []result) // the tables of those of its cases that were measured, in their order
}

// sections are all, in the order of the document.
func sections() []section {
	return []section{
		{"matrix", "every usual kind of NAT against every other, from cold", matrixCases(), matrix},
		{"kinds", "the less usual kinds against some of those, both ways", kindCases(), lessUsual},
		{"events", "what may happen to a network while two nodes talk", eventCases, usualEvents},
		{"more", "what happens less often, or only to some", slices.Concat(moreCases, unlike), moreEvents},
		{"peer", "by a peer relay, where there is no direct path", peerCases, byPeer},
	}
}

// matrixCases are the usual kinds, every one against every other.
func matrixCases() (list []spec) {
	for _, a := range lab.Kinds {
		for _, b := range lab.Kinds {
			list = append(list, spec{a, b, ""})
		}
	}
	return list
}

// lessUsualKinds have a table of their own.
func lessUsualKinds() []string { return slices.Concat(lab.MoreKinds, lab.WorldKinds) }

// kindCases are the less usual kinds, each against its partners, both ways, and against itself.
func kindCases() (list []spec) {
	for _, a := range lessUsualKinds() {
		for _, b := range partners {
			list = append(list, spec{a, b, ""}, spec{b, a, ""})
		}
		list = append(list, spec{a, a, ""})
	}
	for _, a := range lab.PairKinds {
		list = append(list, spec{a, a, ""})
	}
	return list
}

// partners are whom the less usual kinds are set against.
var partners = []string{"none", "easy", "easyopen", "hard", "dual"}

// chosen are the sections with these names, all if there are none.
func chosen(names string) (list []section, err error) {
	all := sections()
	if names == "" {
		return all, nil
	}
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(s section) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no section %q: there are %s", name, strings.Join(sectionNames(), ", "))
		}
		list = append(list, all[i])
	}
	return list, nil
}

func sectionNames() (names []string) {
	for _, s := range sections() {
		names = append(names, s.name)
	}
	return names
}

// conditions are those of one run.
type conditions struct {
	pattern  string
	parallel int
	load     string
	at       time.Time
}

// text is what stands between a section's marks.
func (s section) text(results []result, c conditions) string {
	var b strings.Builder
	s.write(&b, results)
	which := fmt.Sprintf("all %d cases", len(s.cases))
	if len(results) != len(s.cases) {
		which = fmt.Sprintf("%d runs, of those of its %d cases that match `%s`", len(results), len(s.cases), c.pattern)
	}
	fmt.Fprintf(&b, "\n*Measured from %s on: %s. %d at once, on %s with %d CPUs; load at the end, other work of the machine included: %s.\nTimes are in milliseconds, each from a single run.*\n",
		c.at.UTC().Format("2006-01-02 15:04 UTC"), which, c.parallel, runtime.GOOS, runtime.NumCPU(), c.load)
	b.WriteString(plainly(results))
	return b.String()
}

// marks are the lines around a section.
func marks(name string) (begin, end string) {
	return "<!-- section " + name + " -->\n", "<!-- end of " + name + " -->\n"
}

// replace puts a section's text in its place in the document, and leaves all else as it is.
func replace(doc, name, text string) (string, error) {
	begin, end := marks(name)
	head, rest, found := strings.Cut(doc, begin)
	_, tail, ended := strings.Cut(rest, end)
	if !found || !ended || strings.Contains(tail, begin) {
		return "", fmt.Errorf("the document has no place for section %s, or two: it goes between the lines %q and %q", name, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return head + begin + "\n" + strings.TrimLeft(text, "\n") + "\n" + end + tail, nil
}
