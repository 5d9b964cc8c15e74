package main

import (
	"slices"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// atOnce is how many cases run at a time; mostly they wait.
const atOnce = 5

// patience is how long cases may be measured again.
const patience = 6 * time.Minute

// The cases that must hold on every change: each kind of NAT against some others, and every event. One that misses
// a limit is measured again, alone, and must then hold: on a shared machine a late timer is not Hedge's.
func TestPaths(t *testing.T) {
	if testing.Short() {
		t.Skip("some minutes of real networks")
	}
	if err := lab.CanWorld(); err != nil {
		t.Skip(err)
	}
	g := rig{dir: t.TempDir()}
	var err error
	if g.bin, err = build(g.dir); err != nil {
		t.Fatal(err)
	}
	todo := slices.Concat(coldCases(), eventCases, sharpest)
	if len(todo) < 60 {
		t.Fatalf("only %d cases", len(todo))
	}
	began := time.Now()
	results := all(t.Context(), g, todo, atOnce, func(r result) { t.Log(r) })
	slack := slackNow()
	t.Logf("the slack of each limit is %v, as the load is %s", slack, load())
	lucky, guesses := 0, 0
	for i, s := range todo {
		t.Run(s.name(), func(t *testing.T) {
			bad := faults(s, results[i], slack)
			if guess := expected(s.a, s.b) == "guess"; guess && s.event == "" {
				guesses++
				if results[i].DirectA > 0 && results[i].DirectB > 0 {
					lucky++
				}
			}
			if len(bad) == 0 {
				return
			}
			if time.Since(began) > patience {
				t.Fatalf("%q, and no time to measure it again", bad)
			}
			t.Logf("%v: %q; once more, alone", results[i], bad)
			again := all(t.Context(), g, todo[i:i+1], 1, func(r result) { t.Log(r) })
			for _, b := range faults(s, again[0], max(slack, slackNow())) {
				t.Error(b)
			}
		})
	}
	t.Logf("%d cases in %v; %d of %d guesses hit", len(todo), time.Since(began).Round(time.Second), lucky, guesses)
}

// coldCases are pairs to which nothing happens: every kind both ways, with one that is easy for it and one that is not.
func coldCases() (list []spec) {
	partner := map[string][]string{
		"none": {"none", "hard"}, "easy": {"easy", "hard"}, "easyopen": {"easyopen", "easy"}, "fullcone": {"hardblk"},
		"addrrestr": {"addrrestr", "hard"}, "hard": {"easy", "hard"}, "hardseq": {"hardseq", "addrrestr"}, "hardblk": {"hardblk", "easy"},
		"cgn": {"easy", "cgn"}, "cgn+hp": {"cgn+hp"}, "blocked": {"none"}, "v6": {"v6", "easy"}, "dual": {"v6", "dual"},
	}
	for _, a := range lab.Kinds {
		for _, b := range partner[a] {
			list = append(list, spec{a, b, ""})
		}
	}
	return append(list, spec{"easy", "easyopen", ""}, spec{"easyopen", "hard", ""},
		spec{"easyrand", "easy", ""}, spec{"opencgn", "none", ""}, spec{"nat66", "dual", ""}, spec{"firewall", "easy", ""})
}

// What a table says of pairs must be the same both ways.
func TestExpected(t *testing.T) {
	all := slices.Concat(lab.Kinds, lab.MoreKinds, lab.WorldKinds)
	for _, a := range all {
		for _, b := range all {
			if x, y := expected(a, b), expected(b, a); x != y || !slices.Contains([]string{"direct", "guess", "relay", "any"}, x) {
				t.Errorf("%s and %s: %q, the other way %q", a, b, x, y)
			}
		}
	}
}

// Every case names an event that there is.
func TestCases(t *testing.T) {
	for _, s := range slices.Concat(eventCases, moreCases, unlike, sharpest) {
		if _, err := eventNamed(s.event); err != nil {
			t.Error(err)
		}
	}
}
