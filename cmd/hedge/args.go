package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// teach has a command, and those below it, say of arguments that do not fit what is missing, by its name in the usage
// line. What was given it does not repeat: it may be a join string.
func teach(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		teach(c)
	}
	if cmd.HasSubCommands() {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return unknownCommand(cmd, args[0])
		}
		return
	}
	fits := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		err := fits(cmd, args)
		if err == nil {
			return nil
		}
		next := cmd.CommandPath() + " --help shows more"
		if ex, _, _ := strings.Cut(strings.TrimSpace(cmd.Example), "\n"); ex != "" {
			ex, _, _ = strings.Cut(ex, "   ") // what it does
			next = "for example: " + ex + "\n" + next
		}
		return usage(wrongArgs(cmd, len(args)), next)
	}
}

// wrongArgs says why n arguments are too few or too many.
func wrongArgs(cmd *cobra.Command, n int) error {
	words, verb := strings.Fields(cmd.Use)[1:], strings.TrimPrefix(cmd.CommandPath(), "hedge ")
	if len(words) == 0 {
		return fmt.Errorf("%s takes no arguments", verb)
	}
	var needed []string
	for _, w := range words {
		if !strings.HasPrefix(w, "[") {
			needed = append(needed, w)
		}
	}
	switch missing := needed[min(n, len(needed)):]; len(missing) {
	case 0:
	case 1:
		return fmt.Errorf("%s: %s is missing", verb, missing[0])
	default:
		return fmt.Errorf("%s: %s are missing", verb, strings.Join(missing, " and "))
	}
	return fmt.Errorf("%s takes %s and no more: there are %d arguments", verb, strings.Join(words, " "), n)
}

// helpCmd is cobra's, but for a command that does not exist.
func helpCmd(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND...]",
		Short:   "Show how a command is used",
		Long:    `Shows how a command is used, as --help does.`,
		Example: "  hedge help up\n  hedge help admin node",
		Args:    cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			switch {
			case err != nil:
				return err
			case len(rest) > 0:
				return unknownCommand(cmd, rest[0])
			}
			return cmd.Help()
		},
	}
}

// unknownCommand is for a word that should be a command of cmd.
func unknownCommand(cmd *cobra.Command, word string) error {
	if strings.HasPrefix(word, "hedge1-") {
		return usage(errors.New("that is a join string and no command"), "give it to hedge up")
	}
	next := cmd.CommandPath() + " --help lists the commands"
	cmd.SuggestionsMinimumDistance = 2
	if s := cmd.SuggestionsFor(word); len(s) > 0 {
		next = fmt.Sprintf("did you mean %s %s?\n%s", cmd.CommandPath(), strings.Join(s, ", or "), next)
	}
	return usage(fmt.Errorf("unknown command %q for %q", word, cmd.CommandPath()), next)
}

// wrongFlag is an error of the flags' parser in words of ours.
func wrongFlag(cmd *cobra.Command, err error) error {
	next := cmd.CommandPath() + " --help shows how it is used"
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		hint, err := wrongValue(e)
		if hint == "" {
			hint = next
		}
		return usage(fmt.Errorf("--%s: %w", e.GetFlag().Name, err), hint)
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		what, _ := pflag.UnquoteUsage(e.GetFlag())
		return usage(fmt.Errorf("--%s is given without its %s", e.GetFlag().Name, what), next)
	}
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok && e.GetSpecifiedShortnames() == "" {
		if s := nearFlags(cmd, e.GetSpecifiedName()); len(s) > 0 {
			next = fmt.Sprintf("did you mean %s?\n%s", strings.Join(s, ", or "), next)
		}
	}
	return usage(err, next)
}

// wrongValue says what a flag's value should have been.
func wrongValue(e *pflag.InvalidValueError) (hint string, err error) {
	is := func(what string) error { return fmt.Errorf("%q is %s", e.GetValue(), what) }
	switch kind := e.GetFlag().Value.Type(); kind {
	case "bool":
		return "", is("neither true nor false")
	case "duration":
		return "write 300ms, 5s or 2h", is("no time")
	case "uint16":
		return "", is("no number from 0 to 65535")
	case "int":
		return "", is("no whole number")
	}
	return "", fmt.Errorf("%q: %w", e.GetValue(), e.Unwrap())
}

// nearFlags are those that are spelt nearly as a word. Cobra knows what is near, of commands only.
func nearFlags(cmd *cobra.Command, word string) (near []string) {
	names := cobra.Command{SuggestionsMinimumDistance: 2}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
		}
	})
	for _, s := range names.SuggestionsFor(word) {
		near = append(near, "--"+s)
	}
	return near
}
