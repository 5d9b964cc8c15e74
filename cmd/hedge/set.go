package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/node"
)

// routingFlags say what a node does for others, and which exit it uses.
type routingFlags struct {
	routes    []string
	exit      bool
	exitNode  string
	peerRelay bool
}

// liveFlags are the flags of those: they may change while a node runs.
var liveFlags = []string{"advertise-routes", "advertise-exit", "exit-node", "peer-relay"}

func (f *routingFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.routes, "advertise-routes", nil, "`PREFIXES` of networks behind this machine to carry for others, once approved; \"\" for none")
	cmd.Flags().BoolVar(&f.exit, "advertise-exit", false, "carry all of the internet for others, once approved")
	cmd.Flags().StringVar(&f.exitNode, "exit-node", "", "`NAME` of the peer by which to reach the internet; none for none")
	cmd.Flags().BoolVar(&f.peerRelay, "peer-relay", false, "be a relay for peers that cannot reach each other directly and that the policy lets use this node so")
}

func (f *routingFlags) routing() (r node.Routing, err error) {
	r.Exit, r.PeerRelay = f.exit, f.peerRelay
	if r.ExitNode = f.exitNode; r.ExitNode == "none" {
		r.ExitNode = ""
	}
	r.Routes, err = parseRoutes("--advertise-routes", f.routes, false)
	return r, err
}

func (a *app) setCmd() *cobra.Command {
	var f nodeFlags
	cmd := &cobra.Command{
		Use:   "set",
		Short: "Change what this node does for others, and the exit it uses",
		Long: `Changes what this node does for others and the exit it uses, at once and for good: the node keeps it when it is
stopped. What is not given stays as it is.

A node with --advertise-routes is a router: others reach the networks behind this machine through it, by sockets of this
machine's own. With --advertise-exit they reach the internet. An admin approves either (hedge admin node routes), or the
ACL file does by autoApprovers, and its rules say who may use it. Routes that others carry are used by themselves; an
exit only if it is chosen with --exit-node. Connections through the exit before are ended.

A node with --peer-relay forwards what two peers send each other, encrypted by them, when they find no direct path and
reach this node directly. The ACL file says who may use it: one of the two must be in the src of a grant of
tailscale.com/cap/relay with this node in its dst. Otherwise they use the relays that everybody has.`,
		Example: `  hedge set --advertise-routes 10.33.0.0/16,fd00:33::/48
  hedge set --advertise-routes ""
  hedge set --advertise-exit
  hedge set --exit-node frankfurt
  hedge set --exit-node none
  hedge set --peer-relay
  hedge set --peer-relay=false`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.ContainsFunc(liveFlags, cmd.Flags().Changed) {
				return usage(errors.New("there is nothing to set"), "give --"+strings.Join(liveFlags, ", --")+"; hedge status shows how it is")
			}
			return a.setRouting(cmd.Context(), &f)
		},
	}
	f.routingFlags.add(cmd)
	f.set = cmd.Flags()
	return cmd
}

// setReport is what hedge set says.
type setReport struct {
	Running  bool           `json:"running"` // else it counts from the next start on
	Carries  []node.Carried `json:"carries"`
	ExitNode *node.ExitNode `json:"exit_node"`

	PeerRelay *node.PeerRelay `json:"peer_relay"`
}

func (a *app) setRouting(ctx context.Context, f *nodeFlags) error {
	d, err := a.madeDirs()
	if err != nil {
		return err
	}
	var s node.Status
	_, err = a.change(ctx, d, node.NewLocalClient(d.nodeSocket()), f, &s)
	if err != nil && !notRunning(err) {
		return err
	}
	r := setReport{Running: err == nil, Carries: noNil(s.Carries), ExitNode: s.ExitNode, PeerRelay: s.PeerRelay}
	if !r.Running {
		if err := keepFlags(d, f); err != nil {
			return err
		}
	}
	return a.print(r, func(w io.Writer) {
		if !r.Running {
			fmt.Fprintln(w, "kept; no node is running, and hedge up starts it so")
			return
		}
		none := true
		showRouting(s, func(name, text string) {
			none = false
			fmt.Fprintf(w, "%-10s %s\n", name, text)
		})
		if none {
			fmt.Fprintln(w, "this node does nothing for others, and uses no exit")
		}
	})
}

// change gives a running node the flags that were given and that it can change, and keeps them all. It returns the names
// of those that count only once it is started again.
func (a *app) change(ctx context.Context, d dirs, c *node.LocalClient, f *nodeFlags, s *node.Status) (later []string, err error) {
	r, err := f.routing()
	if err != nil {
		return nil, err
	}
	var change node.RoutingChange
	if f.set.Changed("advertise-routes") {
		rs := noNil(r.Routes)
		change.Routes = &rs
	}
	if f.set.Changed("advertise-exit") {
		change.Exit = &r.Exit
	}
	if f.set.Changed("exit-node") {
		change.ExitNode = &r.ExitNode
	}
	if f.set.Changed("peer-relay") {
		change.PeerRelay = &r.PeerRelay
	}
	if change != (node.RoutingChange{}) {
		asked, cancel := context.WithTimeout(ctx, localTimeout)
		defer cancel()
		if *s, err = c.Set(asked, change); err != nil {
			return nil, err
		}
		if *s, err = approved(asked, c, *s); err != nil {
			return nil, err
		}
	}
	kept, err := recall(d)
	if err != nil {
		return nil, err
	}
	for _, name := range keptFlags {
		if flag := f.set.Lookup(name); flag != nil && flag.Changed && !slices.Contains(liveFlags, name) && kept[name] != flagText(flag) {
			later = append(later, name)
		}
	}
	return later, keepFlags(d, f)
}

// approved is the status once the coordinator has had a moment to say what it approves.
func approved(ctx context.Context, c *node.LocalClient, s node.Status) (node.Status, error) {
	late := time.After(500 * time.Millisecond)
	for s.Control.Connected && slices.ContainsFunc(s.Carries, func(r node.Carried) bool { return !r.Approved }) {
		select {
		case <-late:
			return s, nil
		case <-time.After(10 * time.Millisecond):
		}
		next, err := c.Status(ctx)
		if err != nil {
			return s, err
		}
		s = next
	}
	return s, nil
}

// keepFlags adds the flags that were given to those that the node keeps.
func keepFlags(d dirs, f *nodeFlags) error {
	kept, err := recall(d)
	if err == nil && kept.take(f.set, keptFlags) {
		err = kept.keep(d)
	}
	return err
}

// showRouting calls row with what a node does for others and the exit it uses, if there is either.
func showRouting(s node.Status, row func(name, text string)) {
	byProblem := map[string][]netip.Prefix{}
	var problems []string
	for _, c := range s.Carries {
		if byProblem[c.Problem] == nil {
			problems = append(problems, c.Problem)
		}
		byProblem[c.Problem] = append(byProblem[c.Problem], c.Route)
	}
	slices.Sort(problems)
	for _, p := range problems {
		text := routesText(byProblem[p])
		if p != "" {
			text += ": " + p
		}
		row("carries", text)
	}
	if s.NoPings != "" {
		row("", s.NoPings)
	}
	if e := s.ExitNode; e != nil {
		text := e.Name
		if !e.InUse {
			text += ", and it is not used: " + e.Problem
		} else if e.Names == "local" {
			text += "; names are looked up here, as no rule lets this node ask an exit for them (udp/53 of autogroup:internet)"
		}
		row("exit node", text)
	}
	if r := s.PeerRelay; r != nil {
		row("peer relay", relayText(r))
	}
}

// relayText is what a node does as a relay for its peers.
func relayText(r *node.PeerRelay) string {
	if r.Users < 2 {
		return fmt.Sprintf("on, and not used: the policy lets %s use this node so, and it takes two (grant tailscale.com/cap/relay)",
			map[bool]string{true: "one peer", false: "nobody"}[r.Users == 1])
	}
	var pairs []string
	for _, p := range r.Pairs {
		if p.Open {
			pairs = append(pairs, p.A+" and "+p.B)
		}
	}
	text := fmt.Sprintf("on, for %d peers; %d packets, %s", r.Users, r.Packets, bytesText(r.Bytes))
	if len(pairs) > 0 {
		text += "; now between " + strings.Join(pairs, ", ")
	}
	return text
}

// bytesText is a number of bytes for people.
func bytesText(n uint64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d bytes", n)
}

// routesText lists routes, both /0 as the internet.
func routesText(rs []netip.Prefix) string {
	var out []string
	internet := slices.ContainsFunc(rs, func(r netip.Prefix) bool { return r.Bits() == 0 })
	if internet {
		out = append(out, "the internet")
	}
	for _, r := range rs {
		if r.Bits() > 0 {
			out = append(out, r.String())
		}
	}
	return strings.Join(out, ", ")
}
