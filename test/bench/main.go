package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"
)

// worlds are what is measured; the first is compared with the others.
var worlds = []string{"hedge", "wireguard", "stack"}

// task is one measurement, made in every world of every round.
type task struct {
	Name    string
	Request request
}

var tasks = []task{
	{"tcp 1 stream", request{Test: "tcp", Streams: 1}},
	{"tcp 1 stream, back", request{Test: "tcp", Streams: 1, Back: true}},
	{"tcp 8 streams", request{Test: "tcp", Streams: 8}},
	{"tcp 8 streams, back", request{Test: "tcp", Streams: 8, Back: true}},
	{"request, idle", request{Test: "rtt"}},
	{"request, beside a stream", request{Test: "rtt", Streams: 1}},
}

func main() {
	var o options
	flag.StringVar(&o.world, "world", "", "run as the child of this `NAME`, requests on stdin")
	flag.StringVar(&o.profile, "profile", "", "child: write a CPU profile of all requests to `FILE`")
	flag.StringVar(&o.allocs, "allocs", "", "child: write a heap profile of all that was allocated to `FILE`")
	flag.IntVar(&o.rules, "rules", 1000, "rules of Hedge's policy that concern both nodes")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each measurement is made")
	flag.DurationVar(&o.time, "time", time.Minute, "about how long all of it may take")
	flag.StringVar(&o.json, "json", "", "write every figure to `FILE` as JSON")
	flag.Parse()
	run := parent
	if o.world != "" {
		run = child
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	world, profile, allocs, json string
	rules, rounds                int
	time                         time.Duration
}

// series is one kind of figure in one world, over the rounds.
type series struct {
	Measure string    `json:"measure"`
	Unit    string    `json:"unit"`
	World   string    `json:"world"`
	Values  []float64 `json:"values"` // one a round
}

// ratio compares Hedge with another world, round by round.
type ratio struct {
	Measure string  `json:"measure"`
	To      string  `json:"to"`
	Min     float64 `json:"min"`
	Median  float64 `json:"median"`
	Max     float64 `json:"max"`
}

// report is all that was measured.
type report struct {
	Go     string    `json:"go"`
	System string    `json:"system"`
	Cores  int       `json:"cores"`
	Rules  int       `json:"rules"`
	Series []*series `json:"series"`
	Ratios []ratio   `json:"ratios"`
}

func parent(o options) error {
	rep := &report{Go: runtime.Version(), System: runtime.GOOS + "/" + runtime.GOARCH, Cores: runtime.NumCPU(), Rules: o.rules}
	kids := make(map[string]*kid)
	for _, w := range worlds {
		k, err := startKid(w, o.rules)
		if err != nil {
			return fmt.Errorf("start %s: %w", w, err)
		}
		defer k.stop()
		kids[w] = k
	}
	if err := rep.memory(kids, "rss idle"); err != nil {
		return err
	}
	// A measurement takes a quarter longer than it is asked to: it warms up first.
	each := o.time * 4 / 5 / time.Duration(max(1, o.rounds*len(tasks)*len(worlds)))
	for r := range o.rounds {
		fmt.Fprintf(os.Stderr, "\rround %d of %d", r+1, o.rounds)
		for t, task := range tasks {
			for i := range worlds {
				w := worlds[(i+r+t)%len(worlds)]
				req := task.Request
				req.MS = int(each.Milliseconds())
				a, err := kids[w].ask(req)
				if err != nil {
					return fmt.Errorf("%s of %s: %w", task.Name, w, err)
				}
				rep.add(w, task, a)
			}
		}
		for _, size := range []int{1280, 1420} {
			seal, open := cipher(size, 50*time.Millisecond)
			rep.put("cipher", fmt.Sprintf("seal %d bytes, one core", size), "Gbit/s", seal)
			rep.put("cipher", fmt.Sprintf("open %d bytes, one core", size), "Gbit/s", open)
		}
	}
	fmt.Fprint(os.Stderr, "\r")
	if err := rep.memory(kids, "rss after"); err != nil {
		return err
	}
	rep.compare()
	rep.print(os.Stdout)
	if o.json == "" {
		return nil
	}
	b, err := json.MarshalIndent(rep, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(b, '\n'), 0o644)
}

// memory asks what each world takes now, both of its nodes together and less what an empty program takes.
func (r *report) memory(kids map[string]*kid, name string) error {
	for _, w := range worlds {
		a, err := kids[w].ask(request{Test: "mem"})
		if err != nil {
			return err
		}
		r.put(w, name+", both nodes", "MB", a.RSS)
	}
	return nil
}

func (r *report) add(w string, t task, a answer) {
	if t.Request.Test == "rtt" {
		r.put(w, t.Name+", p50", "µs", a.P50)
		r.put(w, t.Name+", p99", "µs", a.P99)
		return
	}
	r.put(w, t.Name, "Gbit/s", a.Gbit)
	if !t.Request.Back {
		r.put(w, t.Name+", cpu", "s/GB", a.CPU)
		r.put(w, t.Name+", allocations", "/packet", a.Allocs)
		r.put(w, t.Name+", rss", "MB", a.RSS)
	}
}

func (r *report) put(w, measure, unit string, v float64) {
	for _, s := range r.Series {
		if s.World == w && s.Measure == measure {
			s.Values = append(s.Values, v)
			return
		}
	}
	r.Series = append(r.Series, &series{measure, unit, w, []float64{v}})
}

func (r *report) find(w, measure string) *series {
	for _, s := range r.Series {
		if s.World == w && s.Measure == measure {
			return s
		}
	}
	return nil
}

func (r *report) compare() {
	for _, s := range r.Series {
		if s.World != worlds[0] {
			continue
		}
		for _, w := range worlds[1:] {
			other := r.find(w, s.Measure)
			var q []float64
			for i := range s.Values {
				if other.Values[i] > 0 {
					q = append(q, s.Values[i]/other.Values[i])
				}
			}
			if len(q) > 0 {
				r.Ratios = append(r.Ratios, ratio{s.Measure, w, slices.Min(q), median(q), slices.Max(q)})
			}
		}
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
