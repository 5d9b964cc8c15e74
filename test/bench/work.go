package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/hedge-mesh/hedge/test/bench/hosts"
	"github.com/hedge-mesh/hedge/test/bench/kid"
	"github.com/hedge-mesh/hedge/test/bench/process"
	"github.com/hedge-mesh/hedge/test/bench/relays"
	"github.com/hedge-mesh/hedge/test/bench/report"
)

// settle is how long a node may take to give memory back once it is idle, and some more.
const settle = 40 * time.Second

// step is a section that will be made.
type step struct {
	cost time.Duration
	run  func(context.Context) error
}

// work makes the sections that are asked for and possible here, and prints the report, also of what was interrupted.
func work(ctx context.Context, o options) (err error) {
	rep := &report.Report{Version: version(), Began: time.Now(), Go: runtime.Version(), System: runtime.GOOS + "/" + runtime.GOARCH,
		CPU: processor(), Cores: runtime.NumCPU(), TCP: hosts.CongestionControl()}
	rep.Load[0] = load()
	dir, sweep, err := kid.Broom(ctx)
	if err != nil {
		return err
	}
	defer sweep()
	if err := os.Setenv("TMPDIR", dir); err != nil { // for all that is temporary, the kids' too
		return err
	}
	p := &progress{began: rep.Began, tty: term.IsTerminal(int(os.Stderr.Fd()))}
	b, err := prepare(ctx, rep, o, dir, p.say)
	if err != nil {
		return err
	}
	steps, err := plan(rep, o, b, p.say)
	if err != nil {
		return err
	}
	if len(steps) == 0 {
		return fmt.Errorf("nothing of it can be measured here: %s", strings.Join(rep.LeftOut, "; "))
	}
	for _, s := range steps {
		p.cost += s.cost
	}
	p.cost += time.Since(rep.Began)
	fmt.Fprintf(os.Stderr, "bench: this takes about %v\n", p.cost.Round(10*time.Second))
	for _, s := range steps {
		if e := s.run(ctx); e != nil {
			if ctx.Err() != nil {
				err = errors.New("interrupted; the figures are of what was done until then")
				rep.LeftOut = append(rep.LeftOut, "what was not done when the run was interrupted")
				break
			}
			err = errors.Join(err, e)
			rep.Failed = append(rep.Failed, oneLine(e))
		}
	}
	p.done()
	rep.Load[1], rep.Took = load(), time.Since(rep.Began).Round(time.Second).String()
	if o.markdown {
		rep.Markdown(os.Stdout)
	} else {
		rep.Text(os.Stdout)
	}
	if o.json != "" {
		err = errors.Join(err, writeJSON(o.json, rep))
	}
	return err
}

// builds is the programs that are measured; empty where they are not needed or cannot be had.
type builds struct {
	hedge, against string // binaries of hedge
	bench          string // another build of this program
	derper         string
}

// prepare builds them.
func prepare(ctx context.Context, rep *report.Report, o options, dir string, say func(string, ...any)) (b builds, err error) {
	b.hedge = o.hedge
	if b.hedge == "" && slices.ContainsFunc(o.only, func(s string) bool { return s == "hosts" || s == "relayed" || s == "relay" }) {
		say("building hedge")
		b.hedge = filepath.Join(dir, "hedge")
		if err := build(ctx, "", b.hedge, "github.com/hedge-mesh/hedge/cmd/hedge"); err != nil {
			if ctx.Err() != nil || o.against != "" {
				return b, err
			}
			b.hedge = ""
			rep.LeftOut = append(rep.LeftOut, "hosts, relayed and relay: "+oneLine(err)+"; -hedge names a binary")
		}
	}
	if slices.Contains(o.only, "relay") && b.hedge != "" {
		say("building derper")
		if b.derper, err = relays.BuildDerper(ctx, o.quick); err != nil {
			rep.LeftOut = append(rep.LeftOut, "derper: "+oneLine(err))
		}
	}
	if o.against == "" {
		return b, nil
	}
	if st, err := os.Stat(o.against); err == nil && st.Mode().IsRegular() {
		b.against, err = filepath.Abs(o.against)
		rep.LeftOut = append(rep.LeftOut, "netstack beside -against: a binary of hedge has no bench inside; name a git revision")
		return b, err
	}
	tree := filepath.Join(dir, "against")
	say("building %s", o.against)
	if out, err := exec.CommandContext(ctx, "git", "worktree", "add", "--detach", tree, o.against).CombinedOutput(); err != nil {
		return b, fmt.Errorf("-against %s is neither a file nor a revision: %s", o.against, bytes.TrimSpace(out))
	}
	defer exec.Command("git", "worktree", "remove", "--force", tree).Run()
	b.against = filepath.Join(dir, "hedge-against")
	if err := build(ctx, tree, b.against, "github.com/hedge-mesh/hedge/cmd/hedge"); err != nil {
		return b, err
	}
	b.bench = filepath.Join(dir, "bench-against")
	if _, err := os.Stat(filepath.Join(tree, "test/bench/process")); err != nil {
		rep.LeftOut, b.bench = append(rep.LeftOut, "netstack beside "+o.against+": its bench is too old"), ""
		return b, nil
	}
	return b, build(ctx, tree, b.bench, "github.com/hedge-mesh/hedge/test/bench")
}

func build(ctx context.Context, tree, out, pkg string) error {
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", out, pkg)
	c.Dir = tree
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, said)
	}
	return nil
}

// plan lists the steps, and notes what is left out.
func plan(rep *report.Report, o options, b builds, say func(string, ...any)) (steps []step, err error) {
	inside := process.Options{Worlds: []string{process.Hedge, process.WireGuard, process.Stacks}, Rules: o.rules, Peers: o.peers,
		Against: b.bench, Rounds: o.rounds, Each: o.each / 2, Say: say}
	if b.against != "" {
		inside.Worlds = []string{process.Hedge, process.Against}
	}
	if !o.quick && o.against == "" {
		inside.Settle = settle
	}
	if slices.Contains(o.only, "netstack") && (b.against == "" || b.bench != "") {
		steps = append(steps, step{inside.Cost(), func(ctx context.Context) error { return process.Measure(ctx, rep, inside) }})
	}
	if slices.Contains(o.only, "scale") {
		sizes, _ := numbers(o.scale, 1, 50_000)
		scaled := inside
		scaled.Worlds, scaled.Rounds = o.scale, max(1, o.rounds-1)
		cost := scaled.Cost()
		for _, n := range sizes {
			cost += time.Duration(n) * 6 * time.Millisecond
		}
		steps = append(steps, step{cost, func(ctx context.Context) error { return process.Scale(ctx, rep, scaled, sizes) }})
	}
	if slices.Contains(o.only, "known") {
		k := process.KnownOptions{Known: 10_000, Active: 100, Each: 20 * time.Second, Settle: settle, Say: say}
		steps = append(steps, step{k.Cost(), func(ctx context.Context) error { return process.MeasureKnown(ctx, rep, k) }})
	}
	if b.hedge == "" { // prepare has said why, if any of the following were wanted
		return steps, nil
	}
	if slices.Contains(o.only, "hosts") || slices.Contains(o.only, "relayed") {
		if why := hosts.Missing(); why != nil {
			rep.LeftOut = append(rep.LeftOut, "hosts and relayed: "+why.Error())
		} else {
			more, err := planHosts(rep, o, b, say)
			if err != nil {
				return nil, err
			}
			steps = append(steps, more...)
		}
	}
	if slices.Contains(o.only, "relay") {
		r := relays.Options{Worlds: []string{relays.TLS, relays.UDP}, Hedge: b.hedge, Derper: b.derper, Rounds: o.rounds, Each: o.each, Idle: 2000, Say: say}
		if b.derper != "" {
			r.Worlds = []string{relays.TLS, relays.Derper, relays.UDP}
		}
		if o.quick {
			r.Idle = 200
		}
		steps = append(steps, step{r.Cost(), func(ctx context.Context) error { return relays.Measure(ctx, rep, r) }})
	}
	return steps, nil
}

func planHosts(rep *report.Report, o options, b builds, say func(string, ...any)) (steps []step, err error) {
	h := hosts.Options{Hedge: b.hedge, Against: b.against, Rules: o.rules, Peers: o.peers, Rounds: o.rounds, Each: o.each, Warm: !o.quick, Say: say}
	if o.others != "" {
		if h.Others, err = hosts.ReadBaselines(o.others); err != nil {
			return nil, err
		}
	}
	add := func(h hosts.Options) {
		h.Worlds = possible(rep, h.Worlds)
		steps = append(steps, step{h.Cost(), func(ctx context.Context) error { return hosts.Measure(ctx, rep, h) }})
	}
	wires, _ := numbers(o.wire, 1420, 65_535)
	for i, wire := range wires {
		if !slices.Contains(o.only, "hosts") {
			break
		}
		h := h
		h.Wire = wire
		switch h.Name = fmt.Sprintf("hosts, wire of %d", wire); {
		case o.worlds != nil:
			h.Worlds = o.worlds
		case o.against != "":
			h.Worlds = []string{hosts.HedgeTUN, hosts.AgainstTUN}
		case i > 0: // the first said most of it
			h.Worlds, h.Few = []string{hosts.HedgeTUN, hosts.WireGuardWide, hosts.HedgeNarrow}, true
		case o.quick:
			h.Worlds = []string{hosts.HedgeTUN, hosts.WireGuard, hosts.Veth}
		default:
			h.Worlds, h.Settle = []string{hosts.HedgeTUN, hosts.WireGuard, hosts.HedgeUser, hosts.Veth}, settle
		}
		if o.worlds == nil {
			for _, x := range h.Others {
				h.Worlds = append(h.Worlds, x.Name)
			}
		}
		add(h)
	}
	if slices.Contains(o.only, "relayed") {
		h.Name, h.Wire, h.Few = "relayed", wires[0], true
		h.Worlds = []string{hosts.RelayTLS, hosts.RelayUDP, hosts.HedgeTUN}
		add(h)
	}
	return steps, nil
}

// oneLine is an error for a list of them.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// possible leaves out worlds whose tools are not here.
func possible(rep *report.Report, worlds []string) (out []string) {
	for _, w := range worlds {
		if why := hosts.Lacks(w); why != nil {
			if s := why.Error(); !slices.Contains(rep.LeftOut, s) {
				rep.LeftOut = append(rep.LeftOut, s)
			}
			continue
		}
		out = append(out, w)
	}
	return out
}

// progress is one line on a terminal that changes, and elsewhere a line now and then.
type progress struct {
	began, last time.Time
	cost        time.Duration
	about       string // what was said last
	tty         bool
}

func (p *progress) say(format string, args ...any) {
	now := time.Now()
	line := fmt.Sprintf("[%v] %s", now.Sub(p.began).Round(time.Second), fmt.Sprintf(format, args...))
	switch {
	case p.tty:
		fmt.Fprintf(os.Stderr, "\r\x1b[K%s", line)
	case format != p.about || now.Sub(p.last) > 15*time.Second:
		p.last, p.about = now, format
		fmt.Fprintln(os.Stderr, line)
	}
}

func (p *progress) done() {
	if p.tty {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}

// version is what git calls this tree.
func version() string {
	out, _ := exec.Command("git", "describe", "--tags", "--always", "--dirty").Output()
	return cmp.Or(string(bytes.TrimSpace(out)), "of unknown version")
}

// load is how many processes wanted a core, over one minute; empty where nobody says.
func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// processor is the model's name; empty where nobody says.
func processor() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return ""
}
