package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node"
)

func (a *app) logoutCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "Leave the network: the coordinator forgets this node, and its keys are deleted",
		Long: `Ends this node's membership and stops it. The coordinator forgets it, if it can be reached, and its peers cut it off;
the keys on this machine are deleted in any case. To come back, this machine needs a new join string. To stop the node
and stay a member, use hedge down.`,
		Example: "  hedge logout",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), stopTimeout)
			defer cancel()
			if err := a.logout(ctx); err != nil {
				return err
			}
			return a.print(map[string]any{"logged_out": true}, func(w io.Writer) { fmt.Fprintln(w, "left the network; the keys of this node are deleted") })
		},
	}
}

func (a *app) logout(ctx context.Context) error {
	d, err := a.dirs()
	if err != nil {
		return err
	}
	err = node.NewLocalClient(d.nodeSocket()).Logout(ctx)
	if err == nil || notRunning(err) {
		os.Remove(d.flags()) // they were for this network
	}
	if !notRunning(err) {
		return err
	}
	n, err := node.Start(ctx, node.Config{StateDir: d.node(), Version: buildInfo().Version}) // not running: just for this
	if _, refused := errors.AsType[*wire.Refused](err); refused {
		return node.Forget(d.node()) // the coordinator has forgotten it already
	}
	if err != nil {
		return err
	}
	defer n.Close()
	return n.Logout(ctx)
}
