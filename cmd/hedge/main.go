// Command hedge is all of Hedge in one binary: the coordinator, the relay, the node, and the verbs that talk to them.
//
//	hedge coordinator ──┐ unix socket ◀── hedge admin …, init
//	hedge relay         │
//	hedge node ─────────┘ unix socket ◀── hedge up, down, status, ping, ip, why, logout
//	hedge demo            all of them in one process, on loopback
//
// Each verb has its own file. What they share is small: exit.go maps errors to exit codes, env.go gives every flag its
// environment twin, dirs.go says where things live, daemon.go starts and stops processes.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	slacken(os.Args[1:])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second Ctrl-C kills
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(a.run(ctx, os.Args[1:]))
}

// app is one run of the command: where it reads and writes, and the flags every verb has.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	json     bool
	stateDir string
	logLevel string

	notify bool // a daemon in the background: tell the starter on stdout
	parsed bool // the command line was understood: errors from here on are not about usage
}

// run runs one command line and returns its exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.rootCmd()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	return a.fail(cmd, err)
}

func (a *app) rootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "hedge",
		Short: "A mesh network of your own machines, where nothing is allowed unless a rule says so",
		Long: `Hedge joins machines into one private network. Every machine has its own key, every packet between them is
encrypted end to end by WireGuard, and one ACL file decides who may reach what: nothing is allowed unless a rule
says so, and every refusal says why.

Try it, with no other machine and no privileges:
  hedge demo

Build a network:
  hedge init              on the first machine; prints the line for the next one
  hedge up hedge1-…       on the next machine
  hedge status            who is there, and how they are reached

Every flag can also be given by the environment as HEDGE_FLAG: --state-dir is HEDGE_STATE_DIR.
Exit codes: 0 ok, 1 failed, 2 usage, 3 not connected, 4 denied by policy, 5 unreachable or timed out, 75 try again.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnv(cmd.Flags(), lookupEnv); err != nil {
				return err
			}
			a.parsed = true
			if a.stateDir != "" {
				abs, err := filepath.Abs(a.stateDir) // a daemon started from here stands elsewhere
				if err != nil {
					return usage(fmt.Errorf("--state-dir %q: %w", a.stateDir, err), "")
				}
				a.stateDir = abs
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(wrongFlag)
	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "print JSON, for programs")
	f.StringVar(&a.stateDir, "state-dir", "", "keep everything under this `DIR` (default: the XDG folders; /var/lib/hedge and /etc/hedge as root)")
	f.StringVar(&a.logLevel, "log-level", "info", "least `LEVEL` that is logged: trace, debug, info, warn, error")
	root.AddCommand(a.commands()...)
	root.SetHelpCommand(helpCmd(root))
	showEnv(root)
	teach(root)
	return root
}

// print shows v as JSON, or calls human for people.
func (a *app) print(v any, human func(w io.Writer)) error {
	if !a.json {
		human(a.stdout)
		return nil
	}
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}
