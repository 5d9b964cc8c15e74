package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/acl"
)

func (a *app) aclDiffCmd() *cobra.Command {
	var inventory string
	var failOnGain bool
	cmd := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Say exactly who gains and loses what by a change of policy",
		Long: `Compares two ACL files by what they mean: who may newly open what (+), and who no more may (-), with the rule that
opens or shuts it. Nothing is tried or sampled: the rules are laid over each other, port by port, so two files that mean
the same differ in nothing, however they are written. Rules that come to an end, or come and go, are compared over time;
"from" is when a difference begins. Addresses that a rule names count even if no node carries them yet.

With --fail-on-gain it exits with 1 if anybody gains anything: for a pipeline that lets narrowing changes through.`,
		Example: "  hedge acl diff acl.hujson new.hujson\n  hedge acl diff /etc/hedge/acl.hujson new.hujson --inventory nodes.hujson --fail-on-gain",
		Args:    cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			deltas, err := a.diffACL(args[0], args[1], inventory)
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
	cmd.Flags().BoolVar(&failOnGain, "fail-on-gain", false, "exit with 1 if anybody may do more than before")
	return cmd
}

func (a *app) diffACL(before, after, inventory string) ([]acl.Delta, error) {
	var ps [2]*acl.Policy
	for i, file := range []string{before, after} {
		src, err := a.readInput(file)
		if err != nil {
			return nil, err
		}
		if ps[i], err = acl.Parse(displayName(file), src, acl.Options{}); err != nil {
			return nil, err
		}
	}
	var inv *acl.Inventory
	var err error
	if inventory != "" {
		inv, err = a.readInventory(inventory)
	} else {
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
