package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hedge-mesh/hedge/coordinator"
)

func (a *app) adminNodeCmd() *cobra.Command {
	return group("node", "List, tag, expire and remove nodes, and approve their routes",
		`Lists the nodes of the network and changes them. Removing or expiring a node cuts it off at its peers within a second,
running connections included.`,
		a.nodeListCmd(), a.nodeShowCmd(),
		a.nodeChangeCmd("remove NAME", "End a node's membership",
			`Ends a node's membership. Its peers drop it at once; only a new join key lets the machine in again, as a new node.`,
			"  hedge admin node remove old-laptop", "removed",
			func(ctx context.Context, c *coordinator.AdminClient, name string) (*coordinator.NodeInfo, error) {
				return c.Remove(ctx, name)
			}),
		a.nodeChangeCmd("expire NAME", "End a node's key, and keep the node",
			`Ends a node's key now. Its peers drop it at once; the node keeps its name and addresses, and a join key lets it in again.`,
			"  hedge admin node expire alice-laptop", "expired",
			func(ctx context.Context, c *coordinator.AdminClient, name string) (*coordinator.NodeInfo, error) {
				return c.Expire(ctx, name)
			}),
		a.nodeTagCmd(), a.nodeRoutesCmd())
}

func (a *app) nodeListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all nodes", Long: `Lists all nodes, by name.`,
		Example: "  hedge admin node list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			nodes, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) ([]coordinator.NodeInfo, error) {
				return c.Nodes(ctx)
			})
			if err != nil {
				return err
			}
			return a.print(noNil(nodes), func(w io.Writer) {
				if len(nodes) == 0 {
					fmt.Fprintln(w, "no nodes yet; hedge admin join-key create prints the line for the first")
					return
				}
				rows := [][]string{{"ID", "NAME", "ADDRESS", "OWNER", "STATE", "REVISION", "KEY EXPIRES"}}
				for _, n := range nodes {
					rows = append(rows, []string{fmt.Sprint(n.ID), n.Name, first(n.Addrs), dash(owner(n.User, n.Tags)), nodeState(n), fmt.Sprint(n.Enforced), ago(n.Expires, time.Now())})
				}
				table(w, rows...)
			})
		},
	}
}

func nodeState(n coordinator.NodeInfo) string {
	switch {
	case n.Expired:
		return "expired"
	case n.Online:
		return "online"
	case n.LastSeen.IsZero():
		return "never seen"
	}
	return "seen " + ago(n.LastSeen, time.Now())
}

func (a *app) nodeShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show one node", Long: `Shows all that the coordinator knows of a node, by its name or number.`,
		Example: "  hedge admin node show web\n  hedge admin node show 7 --json", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) (*coordinator.NodeInfo, error) {
				return c.Node(ctx, args[0])
			})
			if err != nil {
				return err
			}
			return a.print(n, func(w io.Writer) {
				table(w, []string{"name", n.Name}, []string{"id", fmt.Sprint(n.ID)}, []string{"addresses", list(n.Addrs)},
					[]string{"owner", dash(owner(n.User, n.Tags))}, []string{"state", nodeState(*n)}, []string{"enforces", fmt.Sprintf("revision %d", n.Enforced)},
					[]string{"peers", fmt.Sprint(n.Peers)}, []string{"carries", carriesText(n)}, []string{"endpoints", dash(list(n.Endpoints))}, []string{"relay", fmt.Sprint(n.Relay)},
					[]string{"software", n.Software + " on " + n.OS}, []string{"created", n.Created.Format(time.DateTime)},
					[]string{"key expires", ago(n.Expires, time.Now())}, []string{"node key", n.Key.String()}, []string{"machine key", n.Machine.String()})
			})
		},
	}
}

func (a *app) nodeChangeCmd(use, short, long, example, done string,
	change func(context.Context, *coordinator.AdminClient, string) (*coordinator.NodeInfo, error)) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes && !a.confirm(fmt.Sprintf("%s: %s?", args[0], strings.ToLower(short))) {
				return failed(errors.New("nothing was changed"), "")
			}
			n, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) (*coordinator.NodeInfo, error) {
				return change(ctx, c, args[0])
			})
			if err != nil {
				return err
			}
			return a.print(n, func(w io.Writer) { fmt.Fprintf(w, "%s %s (%s)\n", done, n.Name, first(n.Addrs)) })
		}}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask first")
	return cmd
}

// confirm asks a person at a terminal; a script has made up its mind.
func (a *app) confirm(question string) bool {
	if f, ok := a.stdin.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) || a.json {
		return true
	}
	fmt.Fprintf(a.stderr, "%s [y/N] ", question)
	var answer string
	fmt.Fscanln(a.stdin, &answer)
	return strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes")
}

func (a *app) nodeTagCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "tag NAME [TAG...]",
		Short: "Replace a node's tags",
		Long: `Replaces the tags of a node. A node with tags belongs to no user: rules for its tags apply to it, and rules for the
person who made it no longer do. Tags must be declared in the ACL file's tagOwners. Without any TAG its tags are removed.`,
		Example: "  hedge admin node tag server1 tag:web tag:prod",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) (*coordinator.NodeInfo, error) {
				return c.Tag(ctx, args[0], noNil(args[1:]))
			})
			if err != nil {
				return err
			}
			return a.print(n, func(w io.Writer) { fmt.Fprintf(w, "%s: %s\n", n.Name, dash(owner(n.User, n.Tags))) })
		},
	}
}

// noNil has JSON show [] for nothing.
func noNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
