package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

type labLine = lab.Line

// result is what a case measured. Times are from the first datagram, or from the event.
type result struct {
	Name    string          `json:"name"` // a/b or a/b/event
	Err     string          `json:"error,omitempty"`
	Plain   []time.Duration `json:"plain"` // round trips of plain datagrams, before
	First   time.Duration   `json:"first_echo"`
	DirectA time.Duration   `json:"direct_a"` // 0: never; or on the path that is hoped for instead
	DirectB time.Duration   `json:"direct_b"`
	Cold    tally           `json:"cold"` // from the start until a second after both were direct
	Copies  int             `json:"copies"`
	NATs    string          `json:"nats"` // as the nodes found them

	Event  tally         `json:"event"`            // from the event until all was well for a second
	Back   time.Duration `json:"back"`             // from its end until the paths were as they are to be; 0: never
	Stall  time.Duration `json:"stall"`            // the longest the stream stood still
	Broken string        `json:"broken,omitempty"` // the stream's error
	Paths  string        `json:"paths"`            // all that were taken, for whoever asks why
}

// run is a case at work.
type run struct {
	m      *mesh
	flow   *flow
	stream *stream
	began  time.Time // the event
}

// rig is what all cases share.
type rig struct {
	bin, dir string
	pcap     bool
}

// spec is a case: who talks to whom, and what then happens.
type spec struct {
	a, b  string
	event string // "" for none
}

func (s spec) name() string { return strings.TrimSuffix(s.a+"/"+s.b+"/"+s.event, "/") }

// longest is how long a case looks for a direct path, by how it is to come about.
const (
	lookGuess = 8 * time.Second
	lookPlain = 6 * time.Second
	lookRelay = 2500 * time.Millisecond
)

// measure runs one case. Logs stay in dir.
func measure(ctx context.Context, g rig, s spec) (res result) {
	res.Name = s.name()
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	fail := func(err error) result {
		res.Err = strings.Join(append(strings.Fields(res.Err), err.Error()), " ")
		return res
	}
	dir := filepath.Join(g.dir, strings.NewReplacer("/", "_", "+", "").Replace(res.Name))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	m, err := newMesh(ctx, g.bin, dir, s.a, s.b, &res.Plain)
	if err != nil {
		return fail(err)
	}
	r := &run{m: m}
	defer func() {
		if err := m.close(); err != nil {
			fail(err)
		}
	}()
	if g.pcap {
		dump := m.world.Core().Command(context.Background(), "tcpdump", "-i", "any", "-U", "-s", "200", "-w", filepath.Join(dir, "core.pcap"))
		if err := dump.Start(); err != nil {
			return fail(err)
		}
		defer func() { dump.Process.Signal(os.Interrupt); dump.Wait() }()
		if err := pause(ctx, 300*time.Millisecond); err != nil {
			return fail(err)
		}
	}
	stop, err := echo(m.b.Space)
	if err != nil {
		return fail(err)
	}
	defer stop()
	defer func() {
		if r.stream != nil {
			r.stream.end()
		}
	}()
	var e *event
	if s.event != "" {
		found, err := eventNamed(s.event)
		if err != nil {
			return fail(err)
		}
		e = &found
		if e.prepare != nil {
			if err := errors.Join(e.prepare(ctx, r), pause(ctx, time.Second)); err != nil {
				return fail(err)
			}
		}
	}
	if err := r.cold(ctx, s, e, &res); err != nil {
		return fail(err)
	}
	if e != nil {
		if err := r.happen(ctx, e, expected(s.a, s.b), &res); err != nil {
			return fail(err)
		}
	}
	return res
}

// cold is the first conversation.
func (r *run) cold(ctx context.Context, s spec, e *event, res *result) (err error) {
	to, err := r.m.addrOf(ctx, r.m.a)
	if err != nil {
		return err
	}
	if r.flow, err = startFlow(r.m.a.Space, to); err != nil {
		return err
	}
	if e == nil {
		defer r.flow.end()
	}
	short, cancel := context.WithTimeout(ctx, 12*time.Second)
	defer cancel()
	if err := until(short, "something comes back", func() error {
		if r.flow.firstEcho() == 0 {
			return errors.New("nothing yet")
		}
		return nil
	}); err != nil {
		res.Paths = r.m.story(r.flow.start())
		return err
	}
	start := r.flow.start()
	look := map[string]time.Duration{"direct": lookPlain, "guess": lookGuess, "any": lookGuess, "relay": lookRelay}[expected(s.a, s.b)]
	if e != nil && e.name == "udp-on" {
		look = lookRelay
	}
	by := e.before()
	if by == byThird {
		look = lookGuess
	}
	for time.Since(start) < look && (r.m.a.on(by, start) == 0 || r.m.b.on(by, start) == 0) {
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	settled := time.Now().Add(time.Second)
	if err := pause(ctx, time.Second+300*time.Millisecond); err != nil {
		return err
	}
	res.First = r.flow.firstEcho()
	res.DirectA, res.DirectB = r.m.a.on(by, start), r.m.b.on(by, start)
	res.Cold = r.flow.between(start, settled)
	res.Copies = r.flow.dup
	res.NATs = r.m.a.nat(ctx) + "/" + r.m.b.nat(ctx)
	res.Paths = r.m.story(start)
	return nil
}

// talk begins a flow in place of one that has ended, and the event with it.
func (r *run) talk(ctx context.Context) error {
	to, err := r.m.addrOf(ctx, r.m.a)
	if err != nil {
		return err
	}
	f, err := startFlow(r.m.a.Space, to)
	if err != nil {
		return err
	}
	r.flow, r.began = f, f.start()
	return nil
}

// happen lets the event happen, and looks until all is well again.
func (r *run) happen(ctx context.Context, e *event, was string, res *result) (err error) {
	defer func() { r.flow.end() }() // perhaps another one by then
	to, err := r.m.addrOf(ctx, r.m.a)
	if err != nil {
		return err
	}
	if r.stream, err = startStream(ctx, r.m.a.Space, to); err != nil {
		return err
	}
	if err := pause(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	want := wanted(*e, *res)
	st := r.stream
	r.began = time.Now()
	if err := e.do(ctx, r); err != nil {
		return err
	}
	done := time.Now()
	watch := e.watch
	if watch == 0 {
		watch = watched
	}
	var well time.Time
	for time.Since(done) < watch {
		ok := (e.only == "b" || r.m.a.now(want)) && (e.only == "a" || r.m.b.now(want)) && time.Since(r.flow.lastEcho()) < 150*time.Millisecond
		switch {
		case !ok:
			well = time.Time{}
		case well.IsZero():
			well = time.Now()
		}
		flows := r.stream == nil || e.breaks || time.Since(r.stream.last()) < 500*time.Millisecond
		if !well.IsZero() && time.Since(well) > 1500*time.Millisecond && flows {
			break
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	end := time.Now()
	if !well.IsZero() {
		res.Back = max(well.Sub(done), time.Millisecond)
	}
	if st == r.stream {
		res.Stall = st.gap(r.began, end)
		if err := st.alive(); err != nil {
			res.Broken = err.Error()
		}
	}
	if err := pause(ctx, 300*time.Millisecond); err != nil {
		return err
	}
	res.Event = r.flow.between(r.began, end)
	res.Paths = r.m.story(r.flow.start())
	if at := fmt.Sprint(r.began.Sub(r.flow.start()).Milliseconds()); res.Paths != "" {
		res.Paths += "; event at " + at
	}
	return nil
}

// before is the path that a conversation is hoped to have moved to when the event comes; e may be nil.
func (e *event) before() string {
	if e == nil || e.by == "" {
		return "direct"
	}
	return e.by
}

// on is how long after start the peer first sent by a path of that kind, 0 if it does not now.
func (p *peer) on(kind string, start time.Time) time.Duration {
	paths := p.since(start)
	if len(paths) == 0 || !paths[len(paths)-1].is(kind) {
		return 0
	}
	for _, c := range paths {
		if c.is(kind) {
			return max(c.at.Sub(start), time.Millisecond)
		}
	}
	return 0
}

// now says whether the path is of the kind wanted. All begin on the relay.
func (p *peer) now(want string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return want == "any" || len(p.paths) == 0 && want == "relay" || len(p.paths) > 0 && p.paths[len(p.paths)-1].is(want)
}

func (p *peer) nat(ctx context.Context) string {
	n, err := p.api.Netcheck(ctx)
	if err != nil {
		return "?"
	}
	return n.NAT.Kind
}

// story is all paths of both, with the milliseconds at which they were taken.
func (m *mesh) story(start time.Time) string {
	var all []string
	for _, p := range []*peer{m.a, m.b} {
		for _, c := range p.since(start) {
			all = append(all, fmt.Sprintf("%s %d %s (%s)", p.name, c.at.Sub(start).Milliseconds(), c.path, c.why))
		}
	}
	return strings.Join(all, ", ")
}
