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

func main() {
	out := flag.String("o", "", "write the report to this `FILE`")
	jsonTo := flag.String("json", "", "write what was measured to this `FILE`")
	pattern := flag.String("run", ".", "only cases whose name matches this `REGEXP`: a/b or a/b/event")
	parallel := flag.Int("p", 3, "`N` cases at once")
	pcap := flag.Bool("pcap", false, "keep what crosses the internet, with tcpdump, in the folder of logs")
	count := flag.Int("count", 1, "measure each `N` times")
	flag.Parse()
	if err := work(*out, *jsonTo, *pattern, *parallel, *count, *pcap); err != nil {
		fmt.Fprintln(os.Stderr, "paths:", err)
		os.Exit(1)
	}
}

func work(out, jsonTo, pattern string, parallel, count int, pcap bool) error {
	if err := lab.CanWorld(); err != nil {
		return err
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return err
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
	var todo []spec
	for _, s := range everything() {
		for range count {
			if re.MatchString(s.name()) {
				todo = append(todo, s)
			}
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	began := time.Now()
	results := all(ctx, rig{bin: bin, dir: dir, pcap: pcap}, todo, parallel, func(r result) { fmt.Println(r) })
	fmt.Printf("%d cases in %v\n", len(results), time.Since(began).Round(time.Second))
	if jsonTo != "" {
		b, err := json.MarshalIndent(results, "", "\t")
		if err != nil {
			return err
		}
		if err := os.WriteFile(jsonTo, b, 0o644); err != nil {
			return err
		}
	}
	if out != "" {
		return os.WriteFile(out, []byte(report(results, parallel)), 0o644)
	}
	return nil
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

// everything is every kind against every other, the less usual ones against some, both ways, and every event on the
// pairs of its cases.
func everything() (list []spec) {
	for _, a := range lab.Kinds {
		for _, b := range lab.Kinds {
			list = append(list, spec{a, b, ""})
		}
	}
	for _, a := range slices.Concat(lab.MoreKinds, lab.WorldKinds) {
		for _, b := range partners {
			list = append(list, spec{a, b, ""}, spec{b, a, ""})
		}
		list = append(list, spec{a, a, ""})
	}
	return slices.Concat(list, eventCases, moreCases)
}

// partners are whom the less usual kinds are set against.
var partners = []string{"none", "easy", "easyopen", "hard", "dual"}

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
	if r.Cold.Lost > 0 {
		s += fmt.Sprintf(" gone %v", r.Cold.Gone)
	}
	if r.Broken != "" {
		s += " BROKEN " + r.Broken
	}
	if r.Err != "" {
		s += " ERROR " + r.Err
	}
	return s + " nat " + r.NATs + " [" + r.Paths + "]"
}
