package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// options are what the command line says.
type options struct {
	out, json, run, section string
	parallel, count         int
	pcap                    bool
}

func main() {
	var o options
	flag.StringVar(&o.section, "section", "", "only these `NAMES` of sections, with commas between; all without it")
	flag.StringVar(&o.run, "run", ".", "only cases whose name matches this `REGEXP`: a/b or a/b/event")
	flag.StringVar(&o.out, "o", "", "write each section to its place in this `FILE` when it is done, and leave the others as they stand there")
	flag.StringVar(&o.json, "json", "", "write what was measured to this `FILE`")
	flag.IntVar(&o.parallel, "p", 3, "`N` cases at once")
	flag.BoolVar(&o.pcap, "pcap", false, "keep what crosses the internet, with tcpdump, in the folder of logs")
	flag.IntVar(&o.count, "count", 1, "measure each `N` times")
	flag.Usage = usage
	flag.Parse()
	if err := work(o); err != nil {
		fmt.Fprintln(os.Stderr, "paths:", err)
		os.Exit(1)
	}
}

func usage() {
	w := flag.CommandLine.Output()
	fmt.Fprint(w, `Measures how two nodes reach each other through the networks between them: the real binary between real NATs. Needs Linux and root.

  go run ./test/paths -o docs/paths.md                        all of it: half an hour
  go run ./test/paths -section events,more -o docs/paths.md   two sections of it
  go run ./test/paths -run '^easy/hard$' -count 5             one pair, five times, on the screen only

Sections:
`)
	for _, s := range sections() {
		fmt.Fprintf(w, "  %-8s%3d cases: %s\n", s.name, len(s.cases), s.what)
	}
	fmt.Fprintln(w, "\nFlags:")
	flag.PrintDefaults()
}

// work measures section by section, and writes each as soon as it is done: a run that is broken off leaves the rest as it was.
func work(o options) error {
	if err := lab.CanWorld(); err != nil {
		return err
	}
	re, err := regexp.Compile(o.run)
	if err != nil {
		return err
	}
	list, err := chosen(o.section)
	if err != nil {
		return err
	}
	if o.out != "" {
		if err := places(o.out, list); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "hedge-paths")
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "logs are in", dir)
	bin, err := build(dir)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	began := time.Now()
	var results []result
	for _, s := range list {
		todo := s.matching(re, o.count)
		at := time.Now()
		part := all(ctx, rig{bin: bin, dir: filepath.Join(dir, s.name), pcap: o.pcap}, todo, o.parallel, func(r result) { fmt.Println(r) })
		results = append(results, part...)
		if o.out == "" || len(todo) == 0 || ctx.Err() != nil {
			continue
		}
		if err := put(o.out, s.name, s.text(part, conditions{o.run, o.parallel, load(), at})); err != nil {
			return err
		}
	}
	fmt.Printf("%d cases in %v\n", len(results), time.Since(began).Round(time.Second))
	if o.json == "" {
		return nil
	}
	b, err := json.MarshalIndent(results, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, b, 0o644)
}

// matching are the cases whose name matches, each count times.
func (s section) matching(re *regexp.Regexp, count int) (todo []spec) {
	for _, c := range s.cases {
		for range count {
			if re.MatchString(c.name()) {
				todo = append(todo, c)
			}
		}
	}
	return todo
}

// places reports whether a document has a place for each section, before half an hour is spent on them.
func places(file string, list []section) error {
	doc, err := os.ReadFile(file)
	for _, s := range list {
		if err == nil {
			_, err = replace(string(doc), s.name, "")
		}
	}
	return err
}

// put replaces one section of a document.
func put(file, name, text string) error {
	doc, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	next, err := replace(string(doc), name, text)
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(next), 0o644)
}

// build compiles the binary.
func build(dir string) (string, error) {
	bin := filepath.Join(dir, "hedge")
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, "github.com/hedge-mesh/hedge/cmd/hedge")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, b)
	}
	return bin, nil
}

// all measures every case, some at once, in order of their names' list.
func all(ctx context.Context, g rig, todo []spec, parallel int, done func(result)) []result {
	results := make([]result, len(todo))
	next := make(chan int)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range parallel {
		wg.Go(func() {
			for i := range next {
				one := g
				one.dir = filepath.Join(g.dir, fmt.Sprint(i))
				r := measure(ctx, one, todo[i])
				mu.Lock()
				results[i] = r
				done(r)
				mu.Unlock()
			}
		})
	}
	for i := range todo {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	wg.Wait()
	return results
}

// String is one line for people.
func (r result) String() string {
	ms := func(d time.Duration) string {
		if d == 0 {
			return "-"
		}
		return fmt.Sprint(d.Milliseconds())
	}
	s := fmt.Sprintf("%-28s first %s direct %s %s lost %d/%d late %d copies %d", r.Name, ms(r.First), ms(r.DirectA), ms(r.DirectB), r.Cold.Lost, r.Cold.Sent, r.Cold.Late, r.Copies)
	if r.Event.Sent > 0 {
		s += fmt.Sprintf(" | outage %s lost %d/%d back %s stall %s", ms(r.Event.Gap), r.Event.Lost, r.Event.Sent, ms(r.Back), ms(r.Stall))
	}
	if len(r.Plain) > 0 {
		s += fmt.Sprintf(" plain %.1f", float64(slices.Sorted(slices.Values(r.Plain))[len(r.Plain)/2].Microseconds())/1000)
	}
	if r.Cold.Lost > 0 {
		s += fmt.Sprintf(" gone %v", r.Cold.Gone)
	}
	if r.Event.Lost > 0 {
		s += fmt.Sprintf(" gone %v", r.Event.Gone)
	}
	if r.Broken != "" {
		s += " BROKEN " + r.Broken
	}
	if r.Err != "" {
		s += " ERROR " + r.Err
	}
	return s + " nat " + r.NATs + " [" + r.Paths + "]"
}
