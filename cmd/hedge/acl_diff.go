package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/acl"
)

func (a *app) aclDiffCmd() *cobra.Command {
	var inventory string
	var failOnGain, live bool
	cmd := &cobra.Command{
		Use:   "diff [OLD] NEW",
		Short: "Say exactly who gains and loses what by a change of policy",
		Long: `Compares two ACL files by what they mean: who may newly open what (+), and who no more may (-), with the rule that
opens or shuts it. Nothing is tried or sampled: the rules are laid over each other, port by port, so two files that mean
the same differ in nothing, however they are written. Rules that come to an end, or come and go, are compared over time;
"from" is when a difference begins. Addresses that a rule names count even if no node carries them yet.

With one file it says what this file would change if it were put in force now: OLD is then the policy in force on this
machine's coordinator, of the nodes and users that it has.

With --fail-on-gain it exits with 1 if anybody gains anything: for a pipeline that lets narrowing changes through.`,
		Example: "  hedge acl diff new.hujson\n  hedge acl diff acl.hujson new.hujson\n  hedge acl diff /etc/hedge/acl.hujson new.hujson --inventory nodes.hujson --fail-on-gain",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			deltas, err := a.diffACL(cmd.Context(), args, inventory, live)
			if err != nil {
				return err
			}
			gains := 0
			for _, d := range deltas {
				if len(d.Gained) > 0 {
					gains++
				}
			}
			if err := a.print(noNil(deltas), func(w io.Writer) { showDeltas(w, deltas) }); err != nil {
				return err
			}
			if failOnGain && gains > 0 {
				if !a.json {
					fmt.Fprintln(a.stderr, "hedge: the new policy lets somebody do more")
				}
				return errQuiet(exitFailed)
			}
			return nil
		},
	}
	inventoryFlag(cmd, &inventory)
	liveFlag(cmd, &live)
	cmd.Flags().BoolVar(&failOnGain, "fail-on-gain", false, "exit with 1 if anybody may do more than before")
	return cmd
}

func (a *app) diffACL(ctx context.Context, files []string, inventory string, live bool) ([]acl.Delta, error) {
	live = live || len(files) == 1 && inventory == ""
	var inv *acl.Inventory
	var ps [2]*acl.Policy
	var err error
	switch {
	case live && inventory != "":
		return nil, usage(errors.New("--live and --inventory both say who there is"), "give one of them")
	case len(files) == 1:
		s, err := a.liveSubject(ctx, "")
		if err != nil {
			return nil, err
		}
		ps[0], inv = s.policy, s.inv
	case live:
		if inv, err = a.liveInventory(ctx); err != nil {
			return nil, err
		}
	}
	for i, file := range files {
		src, err := a.readInput(file)
		if err != nil {
			return nil, err
		}
		if ps[i+2-len(files)], err = acl.Parse(displayName(file), src, acl.Options{}); err != nil {
			return nil, err
		}
	}
	switch {
	case inventory != "":
		inv, err = a.readInventory(inventory)
	case !live:
		inv = a.sample(ps[0], ps[1])
	}
	if err != nil {
		return nil, err
	}
	var cs [2]*acl.Program
	for i, p := range ps {
		if cs[i], err = acl.Compile(p, inv); err != nil {
			return nil, failed(err, "")
		}
	}
	return acl.Diff(cs[0], cs[1], time.Now()), nil
}

func showDeltas(w io.Writer, ds []acl.Delta) {
	if len(ds) == 0 {
		fmt.Fprintln(w, "no difference: everyone may do what they could")
		return
	}
	rows := [][]string{{"", "WHO", "TO", "ON", "BY"}}
	for _, d := range ds {
		for _, l := range []struct {
			sign string
			ss   []acl.Service
		}{{"+", d.Gained}, {"-", d.Lost}} {
			for _, x := range servicesByRule(l.ss) {
				rows = append(rows, []string{l.sign, acl.PartiesText(d.Src), acl.PartiesText(d.Dst) + familyText(d.Family), x.what, x.rule})
			}
		}
	}
	table(w, rows...)
}
