package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// matrix is the section of the usual kinds, every one against every other.
func matrix(b *strings.Builder, results []result) {
	cold := byName(results)
	b.WriteString("## Direct both ways\n\nThe row speaks first. A number is the time from its first datagram until both nodes send directly; `relay` is for good.\n\n")
	grid(b, cold, untilDirect)
	b.WriteString("\n## First echo\n\nFrom the first datagram, WireGuard's handshake included, until its answer: by relay, or directly where that is sooner.\n\n")
	grid(b, cold, func(r result) string { return millis(r.First) })
	summary(b, cold)
	beside(b, cold)
}

// byName are results by the names of their cases; of several of one case the last.
func byName(results []result) map[string]result {
	m := make(map[string]result, len(results))
	for _, r := range results {
		m[r.Name] = r
	}
	return m
}

// untilDirect is when both were, or that they never were.
func untilDirect(r result) string {
	if r.DirectA == 0 || r.DirectB == 0 {
		return "relay"
	}
	return millis(max(r.DirectA, r.DirectB))
}

// load is the system's load average over the last 1, 5 and 15 minutes.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(b)); err == nil && len(f) > 2 {
		return strings.Join(f[:3], " ")
	}
	return "not known"
}

func millis(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprint(d.Milliseconds())
}

// grid is a table of every kind against every kind.
func grid(b *strings.Builder, cold map[string]result, cell func(result) string) {
	fmt.Fprintf(b, "| | %s |\n|---%s|\n", strings.Join(lab.Kinds, " | "), strings.Repeat("|--:", len(lab.Kinds)))
	for _, x := range lab.Kinds {
		fmt.Fprintf(b, "| **%s** |", x)
		for _, y := range lab.Kinds {
			r, ok := cold[x+"/"+y]
			switch {
			case !ok:
				b.WriteString(" |")
			case r.Err != "":
				b.WriteString(" failed |")
			default:
				fmt.Fprintf(b, " %s |", cell(r))
			}
		}
		b.WriteString("\n")
	}
}

// lessUsual is the section of the less usual kinds against some others, both ways.
func lessUsual(b *strings.Builder, results []result) {
	cold := byName(results)
	b.WriteString("## Less usual places\n\nTime until direct both ways where the row speaks first / where the column does; the last column is two of the row's kind.\n\n")
	fmt.Fprintf(b, "| | %s | itself |\n|---%s|\n", strings.Join(partners, " | "), strings.Repeat("|--:", len(partners)+1))
	cell := func(name string) string {
		switch r, ok := cold[name]; {
		case !ok:
			return ""
		case r.Err != "":
			return "failed"
		default:
			return untilDirect(r)
		}
	}
	for _, k := range slices.Concat(lessUsualKinds(), lab.PairKinds) {
		fmt.Fprintf(b, "| **%s** |", k)
		for _, p := range partners {
			fmt.Fprintf(b, " %s / %s |", cell(k+"/"+p), cell(p+"/"+k))
		}
		fmt.Fprintf(b, " %s |\n", cell(k+"/"+k))
	}
	summary(b, cold)
}

// group are the pairs of a sort, and how they did.
type group struct {
	name      string
	in        func(a, b string) bool
	tailscale string // the same, measured on it
	goal      string
}

func either(a, b, x, y string) bool { return a == x && b == y || a == y && b == x }

var groups = []group{
	{"easy x easy", func(a, b string) bool { return either(a, b, "easy", "easy") }, "5050 in 7 of 8 runs", "150"},
	{"dual x dual", func(a, b string) bool { return either(a, b, "dual", "dual") }, "5000", "150"},
	{"easyopen to easy", func(a, b string) bool { return a == "easyopen" && b == "easy" }, "42-129", "300"},
	{"easy to easyopen", func(a, b string) bool { return a == "easy" && b == "easyopen" }, "never (0 of 4)", "300"},
	{"easyopen x easyopen", func(a, b string) bool { return either(a, b, "easyopen", "easyopen") }, "", "300"},
	{"fullcone x hard", func(a, b string) bool { return either(a, b, "fullcone", "hard") }, "131-217", "150"},
	{"easy x hard", func(a, b string) bool { return either(a, b, "easy", "hard") }, "never (0 of 5)", "4000"},
	{"hardblk x hardblk, hardseq x hardseq", func(a, b string) bool { return a == b && (a == "hardblk" || a == "hardseq") }, "", "5000"},
	{"hard x hard", func(a, b string) bool { return either(a, b, "hard", "hard") }, "never (0 of 2)", "relay"},
	{"cgn x cgn, one provider", func(a, b string) bool { return either(a, b, "cgn", "cgn") }, "never (0 of 3)", "relay"},
	{"cgn+hp x cgn+hp", func(a, b string) bool { return either(a, b, "cgn+hp", "cgn+hp") }, "1-85", "100"},
	{"blocked x easy", func(a, b string) bool { return either(a, b, "blocked", "easy") }, "never (right)", "relay"},
	{"all that need no guess", func(a, b string) bool { return expected(a, b) == "direct" }, "", "150"},
	{"all that need a guess", func(a, b string) bool { return expected(a, b) == "guess" }, "", "5000"},
	{"all that cannot", func(a, b string) bool { return expected(a, b) == "relay" }, "", "relay"},
}

// spread is "least / median / most".
func spread(list []time.Duration) string {
	if len(list) == 0 {
		return "-"
	}
	slices.Sort(list)
	if len(list) == 1 {
		return millis(list[0])
	}
	return fmt.Sprintf("%s / %s / %s", millis(list[0]), millis(list[len(list)/2]), millis(list[len(list)-1]))
}

// beside sets groups of pairs beside what was measured on Tailscale.
func beside(b *strings.Builder, cold map[string]result) {
	b.WriteString("\n## Beside Tailscale\n\nleast / median / most of the pairs above. Tailscale's figures (commit de9ec7ee) were measured before, in namespaces with the\nsame NATs and delays, on a machine of the same sort; its first byte took 128-261 ms by relay.\n\n")
	b.WriteString("| pairs | runs | direct | first echo | direct both ways | goal | Tailscale, direct both ways |\n|---|--:|--:|--:|--:|--:|--:|\n")
	for _, g := range groups {
		n, direct := 0, 0
		var first, both []time.Duration
		for _, x := range lab.Kinds {
			for _, y := range lab.Kinds {
				r, ok := cold[x+"/"+y]
				if !ok || !g.in(x, y) || r.Err != "" {
					continue
				}
				n++
				first = append(first, r.First)
				if r.DirectA > 0 && r.DirectB > 0 {
					direct++
					both = append(both, max(r.DirectA, r.DirectB))
				}
			}
		}
		if n > 0 {
			fmt.Fprintf(b, "| %s | %d | %d | %s | %s | %s | %s |\n", g.name, n, direct, spread(first), spread(both), g.goal, g.tailscale)
		}
	}
}

// summary is what all cold cases have in common.
func summary(b *strings.Builder, cold map[string]result) {
	sent, lost, copies, late, moved, clean := 0, 0, 0, 0, 0, 0
	for _, r := range cold {
		if r.Err != "" {
			continue
		}
		sent, lost, copies, late = sent+r.Cold.Sent, lost+r.Cold.Lost, copies+r.Copies, late+r.Cold.Late
		if r.DirectA > 0 && r.DirectB > 0 {
			if moved++; r.Cold.Lost == 0 {
				clean++
			}
		}
	}
	fmt.Fprintf(b, "\nOf %d datagrams in all of these, from the first on, %d were lost, %d were overtaken by others, and %d arrived twice. Of the %d conversations\nthat moved to a direct path %d lost none.\n",
		sent, lost, late, copies, moved, clean)
}

// usualEvents is the section of what may happen to most.
func usualEvents(b *strings.Builder, results []result) {
	b.WriteString("## Events\n\nWhat happens to a while b answers it, the longest outage, the datagrams lost of those sent, the time until the path is\nagain what it is to be, and how long a TCP stream stood still. Beside it what Tailscale took on easy x easy, or with UDP blocked.\n\n")
	happenings(b, results)
}

// moreEvents is the section of what happens less often.
func moreEvents(b *strings.Builder, results []result) {
	b.WriteString("## More events\n\nThe same of what happens less often, or only to some.\n\n")
	happenings(b, results)
}

// happenings are events, with their outages.
func happenings(b *strings.Builder, results []result) {
	b.WriteString("| event | pair | outage | goal | lost | path again | stream stood | Tailscale's outage |\n|---|---|--:|--:|--:|--:|--:|--:|\n")
	for _, r := range results {
		e, pair := r.event()
		if r.Err != "" {
			fmt.Fprintf(b, "| %s | %s | failed: %s | | | | | |\n", e.text, pair, r.Err)
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s |\n", e.text, pair, millis(r.Event.Gap), millis(e.outage), r.afterwards(e), e.tailscale[pair])
	}
}

// event is what happened, and to which pair.
func (r result) event() (e event, pair string) {
	i := strings.LastIndexByte(r.Name, '/')
	e, _ = eventNamed(r.Name[i+1:]) // it has been measured, so there is one
	return e, r.Name[:i]
}

// afterwards is how many datagrams were lost, when the path was what it is to be, and how long the stream stood: three cells.
func (r result) afterwards(e event) string {
	stall, back := millis(r.Stall), millis(r.Back)
	if r.Broken != "" {
		stall = "broke"
	}
	if r.Back == 0 {
		back = "not in " + millis(max(e.watch, watched))
	}
	return fmt.Sprintf("%d of %d | %s: %s | %s", r.Event.Lost, r.Event.Sent, wanted(e, r), back, stall)
}
