package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/coordinator"
)

func (a *app) adminCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "admin",
		Short: "Administer the coordinator on this machine: nodes, users, join keys, policy",
		Long: `Administers the coordinator that runs on this machine, over its local socket. Only the user it runs as, and root, may.
Nothing here needs the network to be up.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.adminStatusCmd(), a.adminNodeCmd(), a.adminUserCmd(), a.adminKeyCmd(), a.adminACLCmd())
	return cmd
}

// group is a command that only holds others.
func group(use, short, long string, cmds ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	c.AddCommand(cmds...)
	return c
}

// admin asks the coordinator on this machine.
func admin[T any](ctx context.Context, a *app, f func(context.Context, *coordinator.AdminClient) (T, error)) (T, error) {
	var none T
	d, err := a.dirs()
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	v, err := f(ctx, coordinator.NewAdminClient(d.adminSocket()))
	if err == nil {
		return v, nil
	}
	if _, refused := errors.AsType[*coordinator.AdminError](err); !refused {
		if _, running := holder(d.lock("coordinator")); !running {
			return none, &fault{exitNotConnected, errors.New("no coordinator is running here"), "start it with hedge init, or hedge coordinator; if it keeps its state elsewhere, say where with --state-dir DIR"}
		}
	}
	return none, err
}

func (a *app) adminStatusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say how the coordinator and its network are",
		Long: `Says where the coordinator is reached, how many nodes it has, and how many of them enforce the newest revision of the
policy.`,
		Example: "  hedge admin status\n  hedge admin status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) (*coordinator.AdminStatus, error) {
				return c.Status(ctx)
			})
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) {
				fmt.Fprintf(w, "coordinator  %s, for %s\n", strings.Join(s.URLs, ", "), span(time.Since(s.Started)))
				fmt.Fprintf(w, "key          %s\n", s.Control)
				fmt.Fprintf(w, "network      %s, %s\n", s.Domain, list(s.Prefixes))
				fmt.Fprintf(w, "nodes        %d, %d online\n", s.Nodes, s.Online)
				fmt.Fprintf(w, "revision     %d, enforced by %d of %d\n", s.Revision, s.Enforced, s.Nodes)
				if len(s.Behind) > 0 {
					fmt.Fprintf(w, "behind       %s\n", strings.Join(s.Behind, ", "))
				}
				showACLInfo(w, &s.Policy)
			})
		},
	}
}
