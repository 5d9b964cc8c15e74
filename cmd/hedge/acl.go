package main

import (
	"encoding/json"
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
		Short: "Work with ACL files, without a network",
		Long: `Works with ACL files on this machine alone; no coordinator is asked. To see or change what a running network
enforces, use hedge admin acl.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.aclCheckCmd(), a.aclCompileCmd())
	return cmd
}

func (a *app) aclCheckCmd() *cobra.Command {
	var inventory string
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Say everything that is wrong with an ACL file",
		Long: `Reads an ACL file and reports every error in it, each with its place, the line, and what to do. FILE may be - for
standard input. It exits with 1 if there is any error. What is valid but may not be meant is remarked on, and is no error.

With --inventory, a JSON file {"users": [...], "nodes": [...]}, the file's own tests are run as well. A coordinator
runs them against its real nodes: hedge admin acl check.`,
		Example: "  hedge acl check acl.hujson\n  hedge acl check - < acl.hujson\n  hedge acl check acl.hujson --inventory nodes.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			src, err := a.readInput(args[0])
			if err != nil {
				return err
			}
			var inv *acl.Inventory
			if inventory != "" {
				if inv, err = readInventory(inventory); err != nil {
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
	cmd.Flags().StringVar(&inventory, "inventory", "", "`FILE` of users and nodes to run the file's tests against")
	return cmd
}

// aclCompileCmd shows a policy in Tailscale's flat form, for people and tests that compare.
func (a *app) aclCompileCmd() *cobra.Command {
	var compat bool
	var file string
	cmd := &cobra.Command{
		Use:   "compile --compat --case FILE",
		Short: "Expand a policy into the flat form of Tailscale's clients",
		Long: `Reads one case, a JSON object {"policy", "domains", "prefixes", "users", "nodes"}, compiles its policy as Tailscale's service
would, and prints what each node would receive. Nothing that Hedge enforces is ever expanded so; this is for comparing.`,
		Example: "  hedge acl compile --compat --case case.json\n  hedge acl compile --compat --case - < case.json",
		Args:    cobra.NoArgs,
		Hidden:  true,
		RunE: func(*cobra.Command, []string) error {
			if !compat || file == "" {
				return usage(errors.New("--compat and --case are both needed"), "")
			}
			src, err := a.readInput(file)
			if err != nil {
				return err
			}
			out, err := acl.CompatCase(src)
			if err != nil {
				return failed(err, "")
			}
			_, err = fmt.Fprintln(a.stdout, string(out))
			return err
		},
	}
	cmd.Flags().BoolVar(&compat, "compat", false, "read the policy as Tailscale's service would")
	cmd.Flags().StringVar(&file, "case", "", "`FILE` that holds the case; - for standard input")
	return cmd
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

func readInventory(file string) (*acl.Inventory, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, failed(fmt.Errorf("cannot read %s: %w", file, reason(err)), "")
	}
	inv := new(acl.Inventory)
	if err := json.Unmarshal(b, inv); err != nil {
		return nil, failed(fmt.Errorf("%s is no inventory: %w", file, err), `it is JSON: {"users": [{"login": …}], "nodes": [{"id": 1, "name": …, "addrs": […]}]}`)
	}
	return inv, nil
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
