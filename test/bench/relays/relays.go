package relays

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/test/bench/kid"
	"github.com/hedge-mesh/hedge/test/bench/meter"
	"github.com/hedge-mesh/hedge/test/bench/report"
)

// The worlds.
const (
	TLS    = "hedge-tls"
	UDP    = "hedge-udp"
	Derper = "derper"
)

const wait = 20 * time.Second // for what should take milliseconds

// Jobs are what kids of this package do: "keep" runs a program for as long as its parent lasts.
var Jobs = map[string]func([]string) error{"keep": keep}

// Options say what to measure.
type Options struct {
	Worlds []string // the first is compared with the others
	Hedge  string   // the binary
	Derper string   // the binary
	Rounds int
	Each   time.Duration // one measurement, besides a quarter more to warm up
	Idle   int           // clients, for the memory of one
	Say    func(format string, args ...any)
}

// task is one measurement.
type task struct {
	name string
	run  func(context.Context, *relay, *report.Section, int, string, time.Duration) error
}

var tasks = []task{
	{"one pair", pairsTask(1)},
	{"ten pairs", pairsTask(10)},
	{"request", requestTask},
	{"a pair beside a client that has stalled", stalledTask},
}

// Cost is how long a run takes, about.
func (o Options) Cost() time.Duration {
	each := time.Duration(len(tasks)+1) * (o.Each*5/4 + 100*time.Millisecond) // one of the tasks runs twice
	return time.Duration(o.Rounds*len(o.Worlds))*each + time.Duration(len(o.Worlds)*o.Idle)*3*time.Millisecond + 3*time.Second
}

// Measure starts the relays and makes every measurement with each.
func Measure(ctx context.Context, rep *report.Report, o Options) error {
	s := &report.Section{Name: "relay",
		About: fmt.Sprintf("relays in processes of their own, their clients in one, on loopback; packets of %d bytes, 256 of a pair on their way", size)}
	rep.Sections = append(rep.Sections, s)
	defer s.Compare()
	dir, err := os.MkdirTemp("", "hedge-relays")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var relays []*relay
	for _, name := range o.Worlds {
		o.Say("%s comes up", name)
		r, err := start(ctx, o, name, filepath.Join(dir, name))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && len(relays) == 0: // nothing to compare the others with
			return fmt.Errorf("%s: %w", name, err)
		case err != nil:
			rep.LeftOut = append(rep.LeftOut, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		defer r.keeper.Stop()
		relays, s.Worlds = append(relays, r), append(s.Worlds, name)
	}
	for _, r := range relays {
		if r.name == UDP { // the connections of hedge-tls are what its clients keep as well
			continue
		}
		o.Say("%d idle clients of %s", o.Idle, r.name)
		kb, err := r.idle(ctx, o.Idle)
		if err != nil {
			rep.Failed = append(rep.Failed, fmt.Sprintf("memory of %s: %v", r.name, err))
			continue
		}
		s.Put(0, r.name, fmt.Sprintf("memory for an idle client, of %d", o.Idle), "kB", kb)
	}
	for _, turn := range report.Turns(o.Rounds, len(tasks), len(relays)) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		t, r := tasks[turn.Task], relays[turn.World]
		o.Say("%s, round %d of %d: %-40s %s", s.Name, turn.Round+1, o.Rounds, t.name, r.name)
		if err := t.run(ctx, r, s, turn.Round, t.name, o.Each); err != nil && ctx.Err() == nil {
			rep.Failed = append(rep.Failed, fmt.Sprintf("%s of %s, round %d: %v", t.name, r.name, turn.Round+1, err))
		}
	}
	return nil
}

// id is a client's public key.
type id = [32]byte

// link is a client's connection to a relay.
type link interface {
	Send(to id, pkts [][]byte)
	Close()
}

// relay is a relay that runs.
type relay struct {
	name   string
	addr   string // host:port
	keeper *kid.Kid[struct{}, int]
	// dial connects a new client. receive is called with packets that came for it, one call at a time.
	dial func(ctx context.Context, receive func(from id, pkts [][]byte)) (link, id, error)
}

func start(ctx context.Context, o Options, name, dir string) (*relay, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free, for now
	if err != nil {
		return nil, err
	}
	r := &relay{name: name, addr: l.Addr().String()}
	_ = l.Close()
	switch name {
	case TLS, UDP:
		return r, r.hedge(ctx, o.Hedge, dir)
	case Derper:
		return r, r.derper(ctx, o.Derper, dir)
	}
	return nil, errors.New("there is no such relay")
}

// run starts the relay's program, and waits until ready finds in what it printed, and otherwise, that it serves.
func (r *relay) run(ctx context.Context, dir string, ready func(said []byte) bool, command ...string) (err error) {
	log := filepath.Join(dir, "said")
	if r.keeper, err = kid.Start[struct{}, int](ctx, "keep", nil, append([]string{log}, command...)...); err != nil {
		return err
	}
	for end := time.Now().Add(wait); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		said, _ := os.ReadFile(log)
		if c, err := net.Dial("tcp", r.addr); err == nil {
			_ = c.Close()
			if ready(said) {
				return nil
			}
		}
		if _, err := r.keeper.Ask(struct{}{}); err != nil {
			break
		}
	}
	r.keeper.Stop()
	said, _ := os.ReadFile(log)
	return errors.Join(fmt.Errorf("it does not serve; it said %q", bytes.TrimSpace(said)), ctx.Err())
}

// keep runs the program of its second and following arguments until its parent ends, and writes what it says to the file
// that is the first. It answers with the program's process ID while that runs.
func keep(args []string) error {
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	c := exec.Command(args[1], args[2:]...)
	c.Stdout, c.Stderr = f, f
	if err := c.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = c.Wait()
		close(ended)
	}()
	defer func() {
		_ = c.Process.Kill()
		<-ended
	}()
	return kid.Serve(c.Process.Pid, func(struct{}) (int, error) {
		select {
		case <-ended:
			return 0, errors.New("it has ended")
		default:
			return c.Process.Pid, nil
		}
	})
}

// idle is the relay's memory for each of n clients that are connected and quiet, in kilobytes.
func (r *relay) idle(ctx context.Context, n int) (float64, error) {
	links := make([]link, n)
	defer func() {
		for l := range slices.Values(links) {
			if l != nil {
				l.Close()
			}
		}
	}()
	first, _, err := r.dial(ctx, func(id, [][]byte) {})
	if err != nil {
		return 0, err
	}
	defer first.Close()
	before := meter.Of(r.keeper.Ready).RSS
	if before == 0 {
		return 0, errors.New("nobody says how much memory it takes")
	}
	for i := range links {
		if links[i], _, err = r.dial(ctx, func(id, [][]byte) {}); err != nil {
			return 0, err
		}
	}
	return (meter.Of(r.keeper.Ready).RSS - before) * 1e3 / float64(n), nil
}
