package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator"
)

func liveFlag(cmd *cobra.Command, live *bool) {
	cmd.Flags().BoolVar(live, "live", false, "ask about the nodes and users that the coordinator on this machine has now")
}

// coordinatorRuns reports whether one runs here.
func (a *app) coordinatorRuns() bool {
	d, err := a.dirs()
	if err != nil {
		return false
	}
	_, running := holder(d.lock("coordinator"))
	return running
}

func (a *app) liveInventory(ctx context.Context) (*acl.Inventory, error) {
	return admin(ctx, a, func(ctx context.Context, c *coordinator.AdminClient) (*acl.Inventory, error) { return c.Inventory(ctx) })
}

// liveSubject is a policy, the one in force unless a file is given, and who there is. It is compiled here, by the same
// code that the coordinator runs, and so says what the coordinator says.
func (a *app) liveSubject(ctx context.Context, file string) (*subject, error) {
	s := &subject{}
	var err error
	var src []byte
	name := displayName(file)
	if file != "" {
		src, err = a.readInput(file)
	} else {
		var info *coordinator.ACLInfo
		info, err = admin(ctx, a, func(ctx context.Context, c *coordinator.AdminClient) (*coordinator.ACLInfo, error) { return c.ACL(ctx) })
		if err == nil && info.Hash == "" {
			return nil, failed(errors.New("no policy is in force: nothing is allowed"), "write "+info.File+", or give one with hedge admin acl set FILE")
		}
		if err == nil {
			src, name = []byte(info.Source), info.File
		}
	}
	if err != nil {
		return nil, err
	}
	if s.inv, err = a.liveInventory(ctx); err != nil {
		return nil, err
	}
	if s.policy, err = acl.Parse(name, src, acl.Options{}); err != nil {
		return nil, err
	}
	if s.program, err = acl.Compile(s.policy, s.inv); err != nil {
		return nil, failed(err, "")
	}
	if !a.json {
		what := "the policy in force"
		if file != "" {
			what = name
		}
		fmt.Fprintf(a.stderr, "asked of %s and the %d nodes there are\n", what, len(s.inv.Nodes))
	}
	return s, nil
}
