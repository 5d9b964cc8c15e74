package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// envName is the environment twin of a flag: --state-dir is HEDGE_STATE_DIR.
func envName(flag string) string {
	return "HEDGE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fromEnv gives each flag that was not on the command line the value of its twin. An empty twin is none.
func fromEnv(flags *pflag.FlagSet, lookup func(string) (string, bool)) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Hidden || f.Name == "help" || err != nil {
			return
		}
		v, ok := lookup(envName(f.Name))
		if !ok || v == "" {
			return
		}
		if e := flags.Set(f.Name, v); e != nil {
			next := "correct it or unset " + envName(f.Name)
			if bad, ok := errors.AsType[*pflag.InvalidValueError](e); ok {
				var hint string
				if hint, e = wrongValue(bad); hint != "" {
					next = hint + ", or unset " + envName(f.Name)
				}
			}
			err = usage(fmt.Errorf("%s in the environment: %w", envName(f.Name), e), next)
		}
	})
	return err
}

// showEnv writes each flag's twin into its help.
func showEnv(cmd *cobra.Command) {
	add := func(f *pflag.Flag) { f.Usage += " [" + envName(f.Name) + "]" }
	cmd.PersistentFlags().VisitAll(add)
	cmd.LocalNonPersistentFlags().VisitAll(add)
	for _, c := range cmd.Commands() {
		showEnv(c)
	}
}

// lookupEnv is where the environment is read.
var lookupEnv = os.LookupEnv
