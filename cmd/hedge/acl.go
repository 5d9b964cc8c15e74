package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/acl"
)

func (a *app) aclCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "acl",
		Short: "Check, explain and compare ACL files, without a network",
		Long: `Works with ACL files on this machine alone; no coordinator is asked. To see or change what a running network
enforces, use hedge admin acl.

Before a change goes live:
  hedge acl check FILE            is it right? every error, with its place
  hedge acl test FILE             do its own tests hold?
  hedge acl diff OLD NEW          who gains what, who loses what

To understand a policy:
  hedge acl why SRC DST:PORT      may SRC reach it, by which rule, and if not, what is missing?
  hedge acl who DST               everyone who can reach DST
  hedge acl reach SRC             everything that SRC can reach
  hedge acl compile FILE          what each node enforces

Whom a policy is about is an inventory, an HuJSON file given with --inventory:
  {
    "users": [{"login": "alice@example.com", "roles": ["admin"]}],
    "nodes": [
      {"name": "laptop", "user": "alice@example.com"},
      {"name": "router", "tags": ["tag:router"], "routes": ["10.33.0.0/16"]},   // approved routes
    ],
  }
A node may also have "id", "addrs" and "attrs" (what postures ask about). Without an inventory, one is made up from the
policy: one device for each user and tag that it names.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.aclCheckCmd(), a.aclTestCmd(), a.aclFmtCmd(), a.aclCompileCmd(), a.aclWhyCmd(), a.aclWhoCmd(), a.aclReachCmd(), a.aclDiffCmd(), a.aclSchemaCmd())
	return cmd
}

func (a *app) aclCheckCmd() *cobra.Command {
	var inventory string
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Say everything that is wrong with an ACL file",
		Long: `Reads an ACL file and reports every error in it, each with its place, the line, and what to do. FILE may be - for
standard input. It exits with 1 if there is any error. What is valid but may not be meant is remarked on, and is no error.

With --inventory, the file's own tests are run as well (see hedge acl --help for the form). A coordinator runs them
against its real nodes: hedge admin acl check.`,
		Example: "  hedge acl check acl.hujson\n  hedge acl check - < acl.hujson\n  hedge acl check acl.hujson --inventory nodes.hujson",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			src, err := a.readInput(args[0])
			if err != nil {
				return err
			}
			var inv *acl.Inventory
			if inventory != "" {
				if inv, err = a.readInventory(inventory); err != nil {
					return err
				}
			}
			p, err := checkACL(displayName(args[0]), src, inv)
			if err != nil {
				return err
			}
			remarks := p.Lint(inv)
			if len(remarks) > 0 && !a.json {
				fmt.Fprintln(a.stderr, strings.TrimRight(remarks.Render(), "\n"))
			}
			return a.print(map[string]any{"ok": true, "file": args[0], "remarks": noNil(remarks)}, func(w io.Writer) {
				fmt.Fprintf(w, "%s: no errors\n", displayName(args[0]))
			})
		},
	}
	inventoryFlag(cmd, &inventory)
	return cmd
}

func inventoryFlag(cmd *cobra.Command, inventory *string) {
	cmd.Flags().StringVar(inventory, "inventory", "", "`FILE` of users and nodes that the policy is about")
}

// checkACL is everything that can be wrong with an ACL file; its error holds acl.Errors.
func checkACL(file string, src []byte, inv *acl.Inventory) (*acl.Policy, error) {
	p, err := acl.Parse(file, src, acl.Options{})
	if err != nil || inv == nil {
		return p, err
	}
	if _, err := acl.Compile(p, inv); err != nil {
		return p, err
	}
	if es := p.Test(inv); len(es) > 0 {
		return p, es
	}
	return p, nil
}

func (a *app) readInventory(file string) (*acl.Inventory, error) {
	b, err := a.readInput(file)
	if err != nil {
		return nil, err
	}
	return acl.ParseInventory(displayName(file), b)
}

// subject is a policy and whom it is about.
type subject struct {
	policy  *acl.Policy
	inv     *acl.Inventory
	program *acl.Program
	sampled bool // inv was made up
}

// aclSubject reads a policy and an inventory. Without a name of one, it makes one up and says so.
func (a *app) aclSubject(file, inventory string) (*subject, error) {
	src, err := a.readInput(file)
	if err != nil {
		return nil, err
	}
	s := &subject{}
	if s.policy, err = acl.Parse(displayName(file), src, acl.Options{}); err != nil {
		return nil, err
	}
	if inventory != "" {
		s.inv, err = a.readInventory(inventory)
	} else {
		s.inv, s.sampled = a.sample(s.policy), true
	}
	if err != nil {
		return nil, err
	}
	if s.program, err = acl.Compile(s.policy, s.inv); err != nil {
		return nil, failed(err, "")
	}
	return s, nil
}

// sample makes up an inventory, and says so to people.
func (a *app) sample(ps ...*acl.Policy) *acl.Inventory {
	inv := acl.Sample(ps...)
	if !a.json {
		fmt.Fprintf(a.stderr, "no --inventory: asked of a made-up mesh with one device for each user and tag of the policy (%d nodes)\n", len(inv.Nodes))
	}
	return inv
}

// aclFile is the file that --acl names, or the coordinator's of this machine.
func (a *app) aclFile(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	d, err := a.dirs()
	return d.acl, err
}

// maxInput bounds what is read from a file that a person names.
const maxInput = 16 << 20

// readInput reads a file, or standard input for "-".
func (a *app) readInput(file string) ([]byte, error) {
	r := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, failed(fmt.Errorf("there is no file %s", file), "")
		} else if err != nil {
			return nil, failed(fmt.Errorf("cannot read %s: %w", file, reason(err)), "")
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxInput+1))
	if err != nil {
		return nil, failed(fmt.Errorf("cannot read %s: %w", displayName(file), reason(err)), "")
	}
	if len(b) > maxInput {
		return nil, failed(fmt.Errorf("%s is longer than %d MiB", displayName(file), maxInput>>20), "")
	}
	return b, nil
}

func displayName(file string) string {
	if file == "-" {
		return "<stdin>"
	}
	return file
}
