package hosts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/test/bench/meter"
	"github.com/hedge-mesh/hedge/test/bench/report"
)

const (
	iperfPort = 5201
	echoPort  = 5202
	upTime    = 30 * time.Second // for a world to come up
)

// Missing says why nothing can be measured here; nil if it can.
func Missing() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, for network namespaces")
	}
	for _, tool := range []string{"ip", "iperf3", "ping"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("needs %s", tool)
		}
	}
	return nil
}

// Lacks says why a world cannot be measured here; nil if it can.
func Lacks(world string) error {
	tool := map[string]string{HedgeUser: "proxychains4", AgainstUser: "proxychains4", RelayTLS: "nft"}[world]
	if tool == "" {
		return nil
	}
	if _, err := exec.LookPath(tool); err != nil {
		return fmt.Errorf("%s needs %s", world, tool)
	}
	return nil
}

// Measure brings the worlds up, makes every measurement in each, and takes them down.
func Measure(ctx context.Context, rep *report.Report, o Options) error {
	s := &report.Section{Name: cmp.Or(o.Name, "hosts"),
		About: fmt.Sprintf("two hosts in network namespaces, a wire of %d bytes; Hedge with %d rules, %d peers and the filter on", o.Wire, o.Rules, o.Peers)}
	rep.Sections = append(rep.Sections, s)
	defer func() {
		s.Derive("request, p99 beside a stream by p99 idle", "×", "request, beside a stream, p99", "request, idle, p99")
		s.Compare()
	}()
	site, err := newSite(ctx)
	if err != nil {
		return err
	}
	defer site.close()
	var worlds []*world
	for _, name := range o.Worlds {
		o.Say("%s comes up", name)
		w, err := site.open(ctx, o, name)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && len(worlds) == 0: // nothing to compare the others with
			return fmt.Errorf("%s: %w", name, err)
		case err != nil:
			rep.LeftOut = append(rep.LeftOut, fmt.Sprintf("%s of %s: %s", name, s.Name, strings.Join(strings.Fields(err.Error()), " ")))
			continue
		}
		worlds, s.Worlds = append(worlds, w), append(s.Worlds, name)
	}
	memory := func(when string) {
		for _, w := range worlds {
			if len(w.tunnel) > 0 {
				s.Put(0, w.name, "memory, "+when+", both ends", "MB", meter.Of(w.tunnel...).RSS)
			}
		}
	}
	memory("idle")
	tasks := o.tasks()
	for _, turn := range report.Turns(o.Rounds, len(tasks), len(worlds)) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		t, w := tasks[turn.Task], worlds[turn.World]
		if t.kind == flood && w.socks != "" { // proxychains knows no UDP
			continue
		}
		o.Say("%s, round %d of %d: %-28s %s", s.Name, turn.Round+1, o.Rounds, t.name, w.name)
		if err := w.measure(ctx, s, turn.Round, t, o); err != nil && ctx.Err() == nil {
			rep.Failed = append(rep.Failed, fmt.Sprintf("%s of %s, round %d: %v", t.name, w.name, turn.Round+1, err))
		}
	}
	return report.Settle(ctx, o.Settle, o.Say, memory)
}

func (w *world) measure(ctx context.Context, s *report.Section, round int, t task, o Options) error {
	switch t.kind {
	case flood:
		r, err := w.iperf(ctx, o.seconds(), "-u", "-b", "0", "-l", strconv.Itoa(t.size))
		if err != nil {
			return err
		}
		arrived, lost, err := r.datagrams()
		if err != nil {
			return err
		}
		s.Put(round, w.name, t.name+", arrived", "1000/s", arrived/1e3)
		s.Put(round, w.name, t.name+", lost", "%", lost)
	case request:
		l, err := w.requests(ctx, t.beside, o.Each)
		if err != nil {
			return err
		}
		s.Put(round, w.name, t.name+", p50", "µs", l.P50)
		s.Put(round, w.name, t.name+", p99", "µs", l.P99)
	default:
		args := t.args
		if o.Warm {
			args = append(args[:len(args):len(args)], "-O", "1")
		}
		before := meter.Of(w.tunnel...)
		r, err := w.iperf(ctx, o.seconds(), args...)
		if err != nil {
			return err
		}
		after := meter.Of(w.tunnel...)
		gbit, err := r.gbit()
		if err != nil {
			return err
		}
		s.Put(round, w.name, t.name, "Gbit/s", gbit)
		if len(w.tunnel) > 0 {
			s.Put(round, w.name, t.name+", processor", "s/GB", (after.CPU-before.CPU)/r.bytes()*1e9)
			s.Put(round, w.name, t.name+", memory", "MB", after.RSS)
		}
	}
	return nil
}

// iperf runs iperf3 at a: again while the server still ends the test before, and once more if its own talk broke off, as
// happens now and then beside a flood.
func (w *world) iperf(ctx context.Context, seconds int, args ...string) (r iperf, err error) {
	failed := 0
	for range 25 {
		if r, err = w.iperfOnce(ctx, seconds, args...); err == nil || ctx.Err() != nil {
			return r, err
		}
		if !errors.Is(err, errBusy) {
			if failed++; failed == 2 {
				break
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	said, _ := os.ReadFile(filepath.Join(w.dir, "iperf3.log"))
	return r, fmt.Errorf("%w; the server said %q", err, said[max(0, len(said)-200):])
}

func (w *world) iperfOnce(ctx context.Context, seconds int, args ...string) (iperf, error) {
	args = append([]string{"-c", w.address, "-p", strconv.Itoa(iperfPort), "-J", "-t", strconv.Itoa(seconds), "--connect-timeout", "2000"}, args...)
	name := "iperf3"
	if w.socks != "" {
		conf := filepath.Join(w.dir, "proxychains.conf")
		host, port, err := net.SplitHostPort(w.socks)
		if err != nil {
			return iperf{}, err
		}
		if err := os.WriteFile(conf, fmt.Appendf(nil, "strict_chain\nquiet_mode\n[ProxyList]\nsocks5 %s %s\n", host, port), 0o600); err != nil {
			return iperf{}, err
		}
		name, args = "proxychains4", append([]string{"-q", "-f", conf, "iperf3"}, args...)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+upTime)
	defer cancel()
	out, err := in(ctx, w.a, name, args...).Output()
	r, perr := parseIperf(out)
	if perr != nil {
		return r, errors.Join(perr, ctx.Err())
	}
	return r, err
}

// requests measures 64 bytes there and back, with a stream beside them or not.
func (w *world) requests(ctx context.Context, beside bool, d time.Duration) (latency, error) {
	done := make(chan error, 1)
	if beside {
		go func() {
			_, err := w.iperf(ctx, int(d/time.Second)+2)
			done <- err
		}()
		time.Sleep(time.Second)
	} else {
		done <- nil
	}
	l, err := w.client.Ask(asking{To: net.JoinHostPort(w.address, strconv.Itoa(echoPort)), Socks: w.socks, For: d})
	return l, errors.Join(err, <-done)
}
