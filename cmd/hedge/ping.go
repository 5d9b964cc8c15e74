package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/node"
)

func (a *app) pingCmd() *cobra.Command {
	var count int
	var interval, timeout time.Duration
	cmd := &cobra.Command{
		Use:   "ping NAME",
		Short: "Measure the way to a peer: direct or by relay, and how long",
		Long: `Measures the way to a peer and says which it is: direct, with the peer's address, via a peer relay, or by a relay. A path that starts
on the relay moves to a direct one as soon as one is found; each change is told when it happens. It exits with 5 if
nothing answered; hedge status --why NAME tells what was tried.`,
		Example: "  hedge ping web\n  hedge ping web -c 1 --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 1 {
				return usage(fmt.Errorf("--count %d: there must be one ping at least", count), "")
			}
			return a.ping(cmd.Context(), args[0], count, interval, timeout)
		},
	}
	cmd.Flags().IntVarP(&count, "count", "c", 3, "`N` pings")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "`TIME` between them")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "`TIME` to wait for each answer")
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

	path string // as last printed
}

func (r *pingReport) add(p node.PingResult) {
	r.Peer, r.Addr, r.Path, r.Endpoint, r.Via, r.Relay, r.RTT = p.Peer, p.Addr, p.Path.Kind, p.Path.Addr, p.Path.Via, p.Path.Relay, p.RTT
	r.path = p.Path.String()
	r.Received++
	r.Answers = append(r.Answers, p)
}

func (a *app) ping(ctx context.Context, name string, count int, interval, timeout time.Duration) error {
	var report pingReport
	var last error
	for i := range count {
		if i > 0 {
			if err := a.pause(ctx, interval, &report); err != nil {
				return err
			}
		}
		report.Sent++
		r, err := ask(ctx, a, timeout, func(ctx context.Context, c *node.LocalClient) (node.PingResult, error) { return c.Ping(ctx, name) })
		if err != nil {
			_, unknown := errors.AsType[*node.UnknownNameError](err)
			if code, _ := classify(err); unknown || code != exitUnreachable {
				return err
			}
			last = err
			if !a.json {
				fmt.Fprintf(a.stdout, "%s: no answer within %s\n", name, timeout)
			}
			continue
		}
		report.add(r)
		if !a.json {
			fmt.Fprintf(a.stdout, "%s (%s): %s, %s\n", r.Peer, r.Addr, r.Path, short(time.Duration(r.RTT)))
		}
	}
	if report.Received == 0 {
		return &fault{exitUnreachable, fmt.Errorf("%s did not answer: %w", name, last), "hedge status shows whether it is online"}
	}
	return a.print(report, func(io.Writer) {})
}

// pause waits for the next ping, and tells of changes of the path meanwhile.
func (a *app) pause(ctx context.Context, interval time.Duration, r *pingReport) error {
	end, cancel := context.WithTimeout(ctx, interval)
	defer cancel()
	if c, err := a.local(); err == nil && !a.json && r.Received > 0 {
		_ = c.Watch(end, func(s node.Status) bool {
			for _, p := range s.Peers {
				if now := p.Path.String(); p.Name == r.Peer && now != r.path {
					fmt.Fprintf(a.stdout, "%s: the path is now %s, no longer %s\n", r.Peer, now, r.path)
					r.path = now
				}
			}
			return true
		})
	}
	<-end.Done()
	return ctx.Err()
}
