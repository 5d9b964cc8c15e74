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

func (a *app) adminACLCmd() *cobra.Command {
	return group("acl", "See, check and replace the policy in force",
		`Shows, checks and replaces the policy that the network enforces. Editing the ACL file does the same as set: the
coordinator watches it. A policy with errors is never put in force.`,
		a.aclGetCmd(), a.aclSetCmd(), a.adminACLCheckCmd())
}

func (a *app) aclGetCmd() *cobra.Command {
	return &cobra.Command{
		Use: "get", Short: "Print the policy in force",
		Long:    `Prints the policy in force. If its file has been changed since and has errors, they are told on stderr.`,
		Example: "  hedge admin acl get > acl.hujson\n  hedge admin acl get --json", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) (*coordinator.ACLInfo, error) { return c.ACL(ctx) })
			if err != nil {
				return err
			}
			if info.Rejected != nil {
				fmt.Fprintf(a.stderr, "%s has errors, and the policy before it is in force:\n%s\n", info.File, strings.TrimRight(info.Rejected.Rendered, "\n"))
			}
			if info.Hash == "" && !a.json {
				return failed(fmt.Errorf("no policy is in force: nothing is allowed"), "write "+info.File+", or give one with hedge admin acl set FILE")
			}
			return a.print(info, func(w io.Writer) { fmt.Fprint(w, info.Source) })
		},
	}
}

func (a *app) aclSetCmd() *cobra.Command {
	return &cobra.Command{
		Use: "set FILE", Short: "Put a policy in force",
		Long: `Checks a policy, its own tests against the nodes there are included, writes it over the coordinator's ACL file, and
puts it in force. FILE may be - for standard input. One with errors changes nothing.`,
		Example: "  hedge admin acl set acl.hujson\n  hedge admin acl set - < acl.hujson", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := a.readInput(args[0])
			if err != nil {
				return err
			}
			if _, err := checkACL(displayName(args[0]), src, nil); err != nil {
				return err // here it is named as it was given
			}
			info, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) (*coordinator.ACLInfo, error) {
				return c.SetACL(ctx, src)
			})
			if e, ok := errors.AsType[*coordinator.AdminError](err); ok && e.Check != nil {
				return &policyError{e.Check, e.Msg}
			}
			if err != nil {
				return err
			}
			return a.print(info, func(w io.Writer) { showACLInfo(w, info) })
		},
	}
}

func (a *app) adminACLCheckCmd() *cobra.Command {
	return &cobra.Command{
		Use: "check FILE", Short: "Say what is wrong with a policy, tried against this network",
		Long: `Checks a policy as set would, its own tests against the nodes there are included, and changes nothing. FILE may be -
for standard input. It exits with 1 if there is any error.`,
		Example: "  hedge admin acl check acl.hujson", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := a.readInput(args[0])
			if err != nil {
				return err
			}
			if _, err := checkACL(displayName(args[0]), src, nil); err != nil {
				return err
			}
			check, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) (*coordinator.ACLCheck, error) {
				return c.CheckACL(ctx, src)
			})
			if err != nil {
				return err
			}
			if !check.OK {
				return &policyError{check, "the policy does not stand"}
			}
			return a.print(check, func(w io.Writer) { fmt.Fprintf(w, "%s: no errors\n", displayName(args[0])) })
		},
	}
}

// policyError is a coordinator's refusal of a policy. Its errors are shown as the coordinator rendered them.
type policyError struct {
	check *coordinator.ACLCheck
	msg   string
}

func (e *policyError) Error() string { return e.msg }

func showACLInfo(w io.Writer, i *coordinator.ACLInfo) {
	if i.Hash == "" {
		fmt.Fprintf(w, "policy       none is in force: nothing is allowed (%s)\n", i.File)
	} else {
		fmt.Fprintf(w, "policy       %s, in force since %s as revision %d\n", i.File, i.Since.Local().Format(time.TimeOnly), i.Revision)
	}
	if i.Rejected != nil {
		fmt.Fprintf(w, "the file has errors, and the policy before it stays:\n%s\n", strings.TrimRight(i.Rejected.Rendered, "\n"))
	}
}
