package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/node"
)

// stopTimeout is how long a daemon may take to end.
const stopTimeout = 15 * time.Second

func (a *app) downCmd() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the node; it stays a member and hedge up starts it again",
		Long: `Stops the node of this user and waits until it has ended. It stays a member: hedge up, without a join string, starts
it again as the same node. With --all the coordinator and relay that hedge init started are stopped too; the other
nodes then go on with the policy they have. Stopping what does not run is no error.`,
		Example: "  hedge down\n  hedge down --all",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), stopTimeout)
			defer cancel()
			stopped, err := a.down(ctx, all)
			if err != nil {
				return err
			}
			return a.print(map[string]any{"stopped": stopped}, func(w io.Writer) {
				if len(stopped) == 0 {
					fmt.Fprintln(w, "nothing was running")
					return
				}
				fmt.Fprintf(w, "stopped the %s\n", strings.Join(stopped, " and the "))
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "stop the coordinator too")
	return cmd
}

func (a *app) down(ctx context.Context, all bool) (stopped []string, err error) {
	d, err := a.dirs()
	if err != nil {
		return nil, err
	}
	stopped = []string{}
	local := node.NewLocalClient(d.nodeSocket())
	switch err := local.Down(ctx); {
	case err == nil:
		stopped = append(stopped, "node")
		if err := silent(ctx, local); err != nil {
			return nil, err
		}
	case !notRunning(err):
		return nil, err
	}
	if all {
		ended, err := halt(ctx, d.lock("coordinator"))
		if err != nil {
			return nil, err
		}
		if ended {
			stopped = append(stopped, "coordinator")
		}
	}
	return stopped, nil
}

// silent waits until nobody answers any more: a node answers that it has ended a moment before its socket is gone, and
// who asks it for something then would hear half an answer.
func silent(ctx context.Context, c *node.LocalClient) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := c.Status(ctx); notRunning(err) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
