package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/acl"
)

func (a *app) aclFmtCmd() *cobra.Command {
	var write bool
	cmd := &cobra.Command{
		Use:   "fmt FILE",
		Short: "Lay out an ACL file, comments and all",
		Long: `Writes an ACL file in the one usual layout: tabs, a comma after every line, comments where they were. It changes no
meaning, and formatting twice is formatting once. FILE may be - for standard input. With -w the file itself is
rewritten, if it needs it. A file with syntax errors is left alone.`,
		Example: "  hedge acl fmt acl.hujson\n  hedge acl fmt -w acl.hujson",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			src, err := a.readInput(args[0])
			if err != nil {
				return err
			}
			out, err := acl.Format(displayName(args[0]), src)
			if err != nil {
				return err
			}
			changed := !bytes.Equal(src, out)
			if write && args[0] != "-" {
				if changed {
					if err := replaceFile(args[0], out); err != nil {
						return failed(fmt.Errorf("cannot write %s: %w", args[0], reason(err)), "")
					}
				}
				return a.print(map[string]any{"file": args[0], "changed": changed}, func(w io.Writer) {
					if changed {
						fmt.Fprintf(w, "%s: rewritten\n", args[0])
					}
				})
			}
			return a.print(map[string]any{"file": args[0], "changed": changed, "text": string(out)}, func(w io.Writer) { w.Write(out) })
		},
	}
	cmd.Flags().BoolVarP(&write, "write", "w", false, "rewrite the file")
	return cmd
}

// replaceFile puts b in the file's place whole or not at all, with the permissions it had.
func replaceFile(file string, b []byte) error {
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	if file, err = filepath.EvalSymlinks(file); err != nil {
		return err
	}
	t, err := os.CreateTemp(filepath.Dir(file), ".acl-*")
	if err != nil {
		return err
	}
	defer os.Remove(t.Name())
	_, err = t.Write(b)
	for _, step := range []func() error{func() error { return t.Chmod(st.Mode().Perm()) }, t.Sync, t.Close, func() error { return os.Rename(t.Name(), file) }} {
		if err == nil {
			err = step()
		}
	}
	return err
}

func (a *app) aclTestCmd() *cobra.Command {
	var inventory string
	cmd := &cobra.Command{
		Use:   "test FILE",
		Short: "Run an ACL file's own tests",
		Long: `Runs the tests and sshTests of an ACL file and reports each that fails, with its place. It exits with 1 if any fails.
A test is judged of the nodes of the inventory; where a name has none, of the node that would be its first.

  "tests": [{"src": "alice@example.com", "accept": ["tag:web:80"], "deny": ["tag:db:22"]}]`,
		Example: "  hedge acl test acl.hujson\n  hedge acl test acl.hujson --inventory nodes.hujson",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := a.aclSubject(args[0], inventory)
			if err != nil {
				return err
			}
			if es := s.policy.Test(s.inv); len(es) > 0 {
				return es
			}
			return a.print(map[string]any{"ok": true, "tests": s.policy.Tests(), "sampled": s.sampled}, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %s\n", displayName(args[0]), count(s.policy.Tests(), "test holds", "tests hold"))
			})
		},
	}
	inventoryFlag(cmd, &inventory)
	return cmd
}

func count(n int, one, many string) string {
	switch n {
	case 0:
		return "it has no tests"
	case 1:
		return "1 " + one
	}
	return fmt.Sprintf("all %d %s", n, many)
}
