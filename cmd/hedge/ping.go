package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/node"
)

func (a *app) pingCmd() *cobra.Command {
	p := pinger{app: a}
	cmd := &cobra.Command{
		Use:   "ping NAME",
		Short: "Measure the way to a peer: direct or by relay, and how long",
		Long: `Measures the way to a peer and says which it is: direct, with the peer's address, via a peer relay, or by a relay.
A path that starts on the relay moves to a direct one as soon as one is found; each change is told when it happens, with the reason.

With --json there is one report at the end, in which "changes" are those of the path; or, with --count 0, one line of JSON
for each answer, each ping without one, and each change, when it happens.

It exits with 5 if nothing answered; hedge status --why NAME tells what was tried.`,
		Example: "  hedge ping web\n  hedge ping web -c 0 --interval 200ms     until it is interrupted\n  hedge ping web -c 1 --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if p.count < 0 {
				return usage(fmt.Errorf("--count %d: there cannot be less than none", p.count), "--count 0 pings until it is interrupted")
			}
			if p.interval <= 0 {
				return usage(fmt.Errorf("--interval %s: there must be some time between pings", p.interval), "")
			}
			if p.timeout <= 0 {
				return usage(fmt.Errorf("--timeout %s: there must be some time for an answer", p.timeout), "")
			}
			return p.ping(cmd.Context(), args[0])
		},
	}
	cmd.Flags().IntVarP(&p.count, "count", "c", 3, "`N` pings; 0 until it is interrupted")
	cmd.Flags().DurationVar(&p.interval, "interval", time.Second, "`TIME` between them")
	cmd.Flags().DurationVar(&p.timeout, "timeout", 5*time.Second, "`TIME` to wait for each answer")
	return cmd
}

// pingReport is what hedge ping found; it is that of the last answer where they differ.
type pingReport struct {
	Peer     string            `json:"peer"`
	Addr     netip.Addr        `json:"addr"`
	Path     string            `json:"path"`               // "direct", "peer-relay", "relay" or "none"
	Endpoint string            `json:"endpoint,omitempty"` // of a direct path
	Via      string            `json:"via,omitempty"`      // the name of the peer relay
	Relay    uint16            `json:"relay_id,omitempty"`
	RTT      node.Seconds      `json:"rtt_seconds"`
	Sent     int               `json:"sent"`
	Received int               `json:"received"`
	Answers  []node.PingResult `json:"answers"`
	Changes  []pathChange      `json:"changes,omitempty"`
}

// pathChange is one change of the path while hedge ping ran.
type pathChange struct {
	At  time.Time `json:"at"`
	Was node.Path `json:"was"`
	Now node.Path `json:"now"`
}

// pingEvent is a line of hedge ping --count 0 --json.
type pingEvent struct {
	Event  string           `json:"event"` // "answer", "none" or "change"
	At     time.Time        `json:"at"`
	Answer *node.PingResult `json:"answer,omitempty"`
	Change *pathChange      `json:"change,omitempty"`
}

func (r *pingReport) add(p node.PingResult) {
	r.Peer, r.Addr, r.Path, r.Endpoint, r.Via, r.Relay, r.RTT = p.Peer, p.Addr, p.Path.Kind, p.Path.Addr, p.Path.Via, p.Path.Relay, p.RTT
	r.Received++
	r.Answers = append(r.Answers, p)
}

// pinger is one run of hedge ping.
type pinger struct {
	*app
	count             int
	interval, timeout time.Duration

	name   string
	report pingReport
	path   *node.Path // as last known
}

// ping asks, and meanwhile tells of changes of the path as the node tells them.
func (p *pinger) ping(ctx context.Context, name string) error {
	c, err := p.local()
	if err != nil {
		return err
	}
	p.name = name
	var wg sync.WaitGroup
	defer wg.Wait()
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	seen := make(chan node.Peer)
	wg.Go(func() { _ = c.Watch(inner, func(s node.Status) bool { return p.see(inner, s, seen) }) })
	answers := make(chan answer, 1)
	due := time.NewTimer(0)
	defer due.Stop()
	var last error
	for {
		select {
		case <-ctx.Done():
			if p.count > 0 {
				return ctx.Err()
			}
			return p.end(last)
		case s := <-seen:
			p.now(s.Name, s.Path)
		case <-due.C:
			p.report.Sent++
			wg.Go(func() {
				r, err := ask(inner, p.app, p.timeout, func(ctx context.Context, c *node.LocalClient) (node.PingResult, error) { return c.Ping(ctx, name) })
				answers <- answer{r, err}
			})
		case r := <-answers:
			if ctx.Err() != nil {
				continue
			}
			if last = r.err; last == nil {
				p.answered(r.PingResult)
			} else if !p.unanswered(last) {
				return last
			}
			if p.report.Sent == p.count {
				return p.end(last)
			}
			due.Reset(p.interval)
		}
	}
}

// answer is what came of one ping.
type answer struct {
	node.PingResult
	err error
}

// see passes on the peer as the node sees it now.
func (p *pinger) see(ctx context.Context, s node.Status, seen chan<- node.Peer) bool {
	name := strings.TrimSuffix(strings.ToLower(p.name), ".")
	for _, peer := range s.Peers {
		if name != peer.Name && name != peer.FullName && !slices.ContainsFunc(peer.Addrs, func(a netip.Addr) bool { return a.String() == name }) {
			continue
		}
		select {
		case seen <- peer:
			return true
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// now tells of a change of the path.
func (p *pinger) now(name string, path node.Path) {
	was := p.path
	p.path = &path
	if was == nil || was.String() == path.String() {
		return
	}
	c := pathChange{At: path.Since, Was: *was, Now: path}
	p.report.Changes = append(p.report.Changes, c)
	p.tell(pingEvent{Event: "change", At: c.At, Change: &c}, "%s: the path is now %s, no longer %s: %s\n", name, path, was, path.Why)
}

func (p *pinger) answered(r node.PingResult) {
	p.report.add(r)
	if p.path == nil {
		p.path = &r.Path
	}
	p.tell(pingEvent{Event: "answer", At: time.Now(), Answer: &r}, "%s (%s): %s, %s\n", r.Peer, r.Addr, r.Path, short(time.Duration(r.RTT)))
}

// unanswered tells of a ping without an answer, unless err says that there will never be one.
func (p *pinger) unanswered(err error) bool {
	_, unknown := errors.AsType[*node.UnknownNameError](err)
	if code, _ := classify(err); unknown || code != exitUnreachable {
		return false
	}
	p.tell(pingEvent{Event: "none", At: time.Now()}, "%s: no answer within %s\n", p.name, p.timeout)
	return true
}

// tell prints what happens at once: text, or a line of JSON if there is no report at the end.
func (p *pinger) tell(e pingEvent, format string, args ...any) {
	switch {
	case !p.json:
		fmt.Fprintf(p.stdout, format, args...)
	case p.count == 0:
		_ = json.NewEncoder(p.stdout).Encode(e)
	}
}

func (p *pinger) end(last error) error {
	switch {
	case p.report.Received == 0 && last == nil: // interrupted at once
		return nil
	case p.report.Received == 0:
		return &fault{exitUnreachable, fmt.Errorf("%s did not answer: %w", p.name, last), "hedge status shows whether it is online"}
	case p.count == 0:
		return nil
	}
	return p.print(p.report, func(io.Writer) {})
}
