package process

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/test/bench/kid"
	"github.com/hedge-mesh/hedge/test/bench/report"
)

// The worlds.
const (
	Hedge     = "hedge"
	WireGuard = "wireguard-go"
	Stacks    = "stacks"
	Against   = "against"
)

// Jobs are what kids of this package do.
var Jobs = map[string]func([]string) error{
	"world":  func([]string) error { return serveWorld("", "") },
	"hub":    func([]string) error { return serveHub() },
	"active": func([]string) error { return serveActive() },
}

// Options say what to measure.
type Options struct {
	Worlds  []string // the first is compared with the others
	Rules   int      // of Hedge's policy, that concern both nodes
	Peers   int      // that each of Hedge's nodes knows
	Against string   // another build of the bench, for the world of that name
	Rounds  int
	Each    time.Duration // one measurement, besides a quarter more to warm up
	Settle  time.Duration // before memory is looked at for the last time
	Say     func(format string, args ...any)
}

// task is one measurement, made in every world of every round.
type task struct {
	name    string
	request Request
}

var tasks = []task{
	{"tcp, 1 stream", Request{Test: "tcp", Streams: 1}},
	{"tcp, 1 stream, back", Request{Test: "tcp", Streams: 1, Back: true}},
	{"tcp, 8 streams", Request{Test: "tcp", Streams: 8}},
	{"tcp, 8 streams, back", Request{Test: "tcp", Streams: 8, Back: true}},
	{"udp, 64 bytes", Request{Test: "udp", Size: 64}},
	{"udp, packets of 1280 bytes", Request{Test: "udp", Size: mtu - udpHeaders}},
	{"request, idle", Request{Test: "rtt"}},
	{"request, beside a stream", Request{Test: "rtt", Streams: 1}},
}

// Cost is how long a run takes, about.
func (o Options) Cost() time.Duration {
	return time.Duration(o.Rounds*len(o.Worlds)*len(tasks))*(o.Each*5/4+20*time.Millisecond) + o.Settle + 2*time.Second
}

// Measure makes every measurement in every world, and the cipher's.
func Measure(ctx context.Context, rep *report.Report, o Options) error {
	s := &report.Section{Name: "netstack", Worlds: append(slices.Clone(o.Worlds), "cipher"),
		About: fmt.Sprintf("two nodes in one process, on loopback, MTU %d inside; Hedge with %d rules, %d peers and the filter on", mtu, o.Rules, o.Peers)}
	rep.Sections = append(rep.Sections, s)
	var worlds []*world
	for _, name := range o.Worlds {
		o.Say("%s comes up", name)
		w, err := start(ctx, name, o.Against, o.Rules, o.Peers)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer w.stop()
		worlds = append(worlds, w)
	}
	return run(ctx, rep, s, worlds, tasks, o, func(round int) {
		for _, size := range []int{1280, 1420} {
			seal, open := cipher(size, 50*time.Millisecond)
			s.Put(round, "cipher", fmt.Sprintf("seal %d bytes, one core", size), "Gbit/s", seal)
			s.Put(round, "cipher", fmt.Sprintf("open %d bytes, one core", size), "Gbit/s", open)
		}
	})
}

// Scale measures Hedge with each of these numbers of rules and peers; the first is compared with the others.
func Scale(ctx context.Context, rep *report.Report, o Options, sizes []int) error {
	s := &report.Section{Name: "scale", About: "Hedge as above, with so many rules that concern both nodes and so many peers that both know"}
	rep.Sections = append(rep.Sections, s)
	var worlds []*world
	for _, n := range sizes {
		name := fmt.Sprint(n)
		s.Worlds = append(s.Worlds, name)
		o.Say("a mesh of %d rules and peers comes up", n)
		w, err := start(ctx, Hedge, "", n, n)
		if err != nil {
			return fmt.Errorf("%d rules and peers: %w", n, err)
		}
		w.name = name
		defer w.stop()
		worlds = append(worlds, w)
	}
	return run(ctx, rep, s, worlds, tasks, o, func(int) {})
}

// run takes turns. A measurement that fails is noted, and the others go on.
func run(ctx context.Context, rep *report.Report, s *report.Section, worlds []*world, tasks []task, o Options, eachRound func(int)) error {
	defer func() {
		s.Derive("request, p99 beside a stream by p99 idle", "×", "request, beside a stream, p99", "request, idle, p99")
		s.Compare()
	}()
	memory := func(when string) {
		for _, w := range worlds {
			if a, err := w.kid.Ask(Request{Test: "mem"}); err == nil && a.RSS > 0 {
				s.Put(0, w.name, "memory, "+when+", both nodes", "MB", a.RSS)
			}
		}
	}
	memory("idle")
	last := -1
	for _, turn := range report.Turns(o.Rounds, len(tasks), len(worlds)) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		t, w := tasks[turn.Task], worlds[turn.World]
		if turn.Round != last {
			last = turn.Round
			eachRound(turn.Round)
		}
		o.Say("%s, round %d of %d: %-28s %s", s.Name, turn.Round+1, o.Rounds, t.name, w.name)
		req := t.request
		req.MS = int(o.Each.Milliseconds())
		a, err := w.kid.Ask(req)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			rep.Failed = append(rep.Failed, fmt.Sprintf("%s of %s, round %d: %v", t.name, w.name, turn.Round+1, err))
			continue
		}
		put(s, turn.Round, w.name, t, a)
	}
	memory("at the end")
	return report.Settle(ctx, o.Settle, o.Say, memory)
}

func put(s *report.Section, round int, w string, t task, a Answer) {
	switch t.request.Test {
	case "rtt":
		s.Put(round, w, t.name+", p50", "µs", a.P50)
		s.Put(round, w, t.name+", p99", "µs", a.P99)
	case "udp":
		s.Put(round, w, t.name+", arrived", "1000/s", a.Packets/1e3)
		s.Put(round, w, t.name+", lost", "%", a.Lost)
		s.Put(round, w, t.name+", processor", "µs/packet", a.CPU)
		s.Put(round, w, t.name+", allocations", "/packet", a.Allocs)
	case "tcp":
		s.Put(round, w, t.name, "Gbit/s", a.Gbit)
		s.Put(round, w, t.name+", processor", "s/GB", a.CPU)
		if !t.request.Back {
			s.Put(round, w, t.name+", allocations", "/packet", a.Allocs)
			s.Put(round, w, t.name+", memory", "MB", a.RSS)
		}
	}
}

// world is a kid that holds both nodes, and the one that holds their coordinator if they have one.
type world struct {
	name string
	kid  *kid.Kid[Request, Answer]
	hub  *kid.Kid[hubRequest, hubAnswer]
	dir  string
}

func start(ctx context.Context, name, against string, rules, peers int) (w *world, err error) {
	w = &world{name: name}
	defer func() {
		if err != nil {
			w.stop()
		}
	}()
	if w.dir, err = os.MkdirTemp("", "hedge-bench"); err != nil {
		return nil, err
	}
	program, kind := against, name
	if name == Against {
		kind = Hedge
	} else if program, err = os.Executable(); err != nil {
		return nil, err
	}
	place := &Place{Kind: kind, Dir: w.dir, Rules: rules, Peers: peers}
	if kind == Hedge {
		if w.hub, err = kid.Run[hubRequest, hubAnswer](ctx, program, "hub", nil); err != nil {
			return nil, err
		}
		a, err := w.hub.Ask(hubRequest{Dir: w.dir, Rules: rules, Peers: peers})
		if err != nil {
			return nil, err
		}
		place.Joins = a.Joins
	}
	if w.kid, err = kid.Run[Request, Answer](ctx, program, "world", nil); err != nil {
		return nil, err
	}
	_, err = w.kid.Ask(Request{Test: "open", Place: place})
	return w, err
}

func (w *world) stop() {
	if w.kid != nil {
		w.kid.Stop()
	}
	if w.hub != nil {
		w.hub.Stop()
	}
	if w.dir != "" {
		_ = os.RemoveAll(w.dir)
	}
}

// ByHand opens one world and answers requests from stdin, one a line, for a profiler.
func ByHand(ctx context.Context, kind string, rules, peers int, profile, allocs string) error {
	place := &Place{Kind: kind, Rules: rules, Peers: peers}
	dir, err := os.MkdirTemp("", "hedge-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	place.Dir = dir
	if kind == Hedge {
		hub, err := kid.Start[hubRequest, hubAnswer](ctx, "hub", nil)
		if err != nil {
			return err
		}
		defer hub.Stop()
		a, err := hub.Ask(hubRequest{Dir: dir, Rules: rules, Peers: peers})
		if err != nil {
			return err
		}
		place.Joins = a.Joins
	}
	opened = place
	return serveWorld(profile, allocs)
}
