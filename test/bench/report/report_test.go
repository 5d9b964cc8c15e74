package report

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSpread(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   Spread
		text   string
	}{
		{[]float64{3}, Spread{3, 3, 3}, "3"},
		{[]float64{9, 1, 4}, Spread{1, 4, 9}, "4 [1 9]"},
		{[]float64{4, 1, 2, 3}, Spread{1, 2.5, 4}, "2.5 [1 4]"},
		{[]float64{1234.5, 0, 99.96}, Spread{0, 99.96, 1234.5}, "100 [0 1234]"},
		{[]float64{0.00012, 0.02, 0.0456}, Spread{0.00012, 0.02, 0.0456}, "0.02 [0.0001 0.0456]"},
	} {
		given := slices.Clone(tt.values)
		if got := Of(tt.values); got != tt.want || got.String() != tt.text {
			t.Errorf("%v: %+v, %q; want %+v, %q", tt.values, got, got, tt.want, tt.text)
		}
		if !slices.Equal(given, tt.values) {
			t.Errorf("the values were changed from %v to %v", given, tt.values)
		}
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, tt := range []struct {
		v       []float64
		p, want float64
	}{
		{[]float64{7}, 50, 7}, {[]float64{7}, 99, 7},
		{[]float64{3, 1, 2}, 50, 2}, {[]float64{3, 1, 2}, 99, 3},
		{hundred, 50, 51}, {hundred, 99, 100}, {hundred, 0, 1}, {hundred, 100, 100},
	} {
		if got := Percentile(tt.v, tt.p); got != tt.want {
			t.Errorf("%v %% of %d values: %v, want %v", tt.p, len(tt.v), got, tt.want)
		}
	}
}

func TestCompare(t *testing.T) {
	for _, tt := range []struct {
		name         string
		ours, theirs map[int]float64 // by round
		want         []Ratio
	}{
		{"each round", map[int]float64{0: 4, 1: 6, 2: 9}, map[int]float64{0: 2, 1: 2, 2: 2}, []Ratio{{"tcp", "theirs", 3, Spread{2, 3, 4.5}}}},
		{"within a round, not across", map[int]float64{0: 10, 1: 1}, map[int]float64{0: 10, 1: 1}, []Ratio{{"tcp", "theirs", 2, Spread{1, 1, 1}}}},
		{"a round that failed", map[int]float64{0: 4, 2: 9}, map[int]float64{1: 1, 2: 3}, []Ratio{{"tcp", "theirs", 1, Spread{3, 3, 3}}}},
		{"nothing to divide by", map[int]float64{0: 4}, map[int]float64{0: 0}, nil},
		{"only one has it", map[int]float64{0: 4}, nil, nil},
		{"only the other has it", nil, map[int]float64{0: 4}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &Section{Worlds: []string{"ours", "theirs"}}
			for round := range 3 {
				if v, ok := tt.ours[round]; ok {
					s.Put(round, "ours", "tcp", "Gbit/s", v)
				}
				if v, ok := tt.theirs[round]; ok {
					s.Put(round, "theirs", "tcp", "Gbit/s", v)
				}
			}
			s.Compare()
			if d := cmp.Diff(tt.want, s.Ratios); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestSure(t *testing.T) {
	for _, tt := range []struct {
		rounds         int
		min, mid, most float64
		want           bool
	}{
		{6, 1.1, 1.2, 1.3, true}, {6, 0.5, 0.7, 0.99, true}, {9, 0.9, 1.2, 1.3, false}, {5, 2, 3, 4, false}, {7, 1, 1, 1, false},
	} {
		if q := (Ratio{Rounds: tt.rounds, Spread: Spread{tt.min, tt.mid, tt.most}}); q.Sure() != tt.want {
			t.Errorf("%+v: %v", q, q.Sure())
		}
	}
}

func TestDerive(t *testing.T) {
	s := &Section{Worlds: []string{"a", "b"}}
	for round, v := range [][2]float64{{2, 10}, {0, 7}, {4, 12}} {
		s.Put(round, "a", "idle", "µs", v[0])
		s.Put(round, "a", "busy", "µs", v[1])
	}
	s.Put(0, "b", "busy", "µs", 3)
	s.Derive("times", "×", "busy", "idle")
	want := &Series{Measure: "times", Unit: "×", World: "a", Rounds: []int{0, 2}, Values: []float64{5, 3}}
	if d := cmp.Diff(want, s.Find("a", "times")); d != "" {
		t.Error(d)
	}
	if s.Find("b", "times") != nil {
		t.Error("it was derived of nothing")
	}
}

func TestTurns(t *testing.T) {
	all := Turns(2, 3, 2)
	want := []Turn{ // A B, B A, A B; then B A, A B, B A
		{0, 0, 0}, {0, 0, 1}, {0, 1, 1}, {0, 1, 0}, {0, 2, 0}, {0, 2, 1},
		{1, 0, 1}, {1, 0, 0}, {1, 1, 0}, {1, 1, 1}, {1, 2, 1}, {1, 2, 0},
	}
	if !slices.Equal(all, want) {
		t.Errorf("%v", all)
	}
}

// sample has a figure of each kind: compared, of one world only, and failed.
func sample() *Report {
	s := &Section{Name: "hosts", About: "two namespaces", Worlds: []string{"hedge", "veth"}}
	for round, v := range [][2]float64{{2, 20}, {4, 30}, {3, 10}} {
		s.Put(round, "hedge", "tcp, 1 stream", "Gbit/s", v[0])
		s.Put(round, "veth", "tcp, 1 stream", "Gbit/s", v[1])
	}
	s.Put(0, "hedge", "memory", "MB", 40)
	s.Put(0, "hedge", "memory", "MB", 41) // corrected
	s.Compare()
	return &Report{Version: "v1", Began: time.Unix(1e9, 0), Took: "2s", Go: "go1", System: "linux/amd64", Cores: 2, TCP: "bbr", Load: [2]string{"0.1", "2.0"},
		LeftOut: []string{"nebula: not here"}, Failed: []string{"udp of veth"}, Sections: []*Section{s}}
}

func TestText(t *testing.T) {
	var b strings.Builder
	sample().Text(&b)
	want := `Hedge v1, go1, linux/amd64, 2 cores, TCP with bbr, 2001-09-09 01:46 UTC, in 2s; load before and after 0.1 and 2.0
figures: median [least most] of the rounds; × is the first column by another, within a round, ! where all of six rounds or more agree on which is greater
left out: nebula: not here
failed: udp of veth

hosts: two namespaces

measure        unit    hedge    veth        × veth
tcp, 1 stream  Gbit/s  3 [2 4]  20 [10 30]  0.133 [0.1 0.3]
memory         MB      41       -           -
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
}

// What all of many rounds agree on is marked.
func TestMark(t *testing.T) {
	s := &Section{Name: "x", About: "y", Worlds: []string{"a", "b"}}
	for round := range 6 {
		s.Put(round, "a", "speed", "", 3)
		s.Put(round, "b", "speed", "", 2)
	}
	s.Compare()
	var b strings.Builder
	(&Report{Sections: []*Section{s}}).Text(&b)
	if !strings.HasSuffix(b.String(), "1.5 !\n") {
		t.Error(b.String())
	}
}

func TestMarkdown(t *testing.T) {
	var b strings.Builder
	sample().Markdown(&b)
	_, table, _ := strings.Cut(b.String(), "###")
	want := ` Hosts

Two namespaces.

| measure | unit | hedge | veth | × veth |
|---|---|---|---|---|
| tcp, 1 stream | Gbit/s | 3 [2 4] | 20 [10 30] | 0.133 [0.1 0.3] |
| memory | MB | 41 | - | - |
`
	if d := cmp.Diff(want, table); d != "" {
		t.Error(d)
	}
}

// What is written as JSON can be read again, by this and by other programs.
func TestJSON(t *testing.T) {
	b, err := json.Marshal(sample())
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sample(), &back, cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })); d != "" {
		t.Error(d)
	}
	if !strings.Contains(string(b), `{"measure":"tcp, 1 stream","to":"veth","rounds":3,"min":0.1,"median":0.13333333333333333,"max":0.3}`) {
		t.Errorf("no ratio in %s", b)
	}
}
