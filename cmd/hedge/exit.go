package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// The exit codes, the same for every verb.
const (
	exitOK           = 0
	exitFailed       = 1
	exitUsage        = 2
	exitNotConnected = 3
	exitDenied       = 4
	exitUnreachable  = 5
	exitTryAgain     = 75
)

// fault is an error with its exit code and what a person can do next.
type fault struct {
	code int
	err  error
	next string
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// usage makes err one about the command line.
func usage(err error, next string) error { return &fault{exitUsage, err, next} }

// failed makes an error of exit code 1 that says what to do next.
func failed(err error, next string) error { return &fault{exitFailed, err, next} }

// classify is the one place that maps errors to exit codes and, where the error itself does not say, to what to do next.
func classify(err error) (code int, next string) {
	if f, ok := errors.AsType[*fault](err); ok {
		return f.code, f.next
	}
	switch {
	case errors.Is(err, context.Canceled):
		return exitFailed, ""
	case errors.Is(err, context.DeadlineExceeded):
		return exitUnreachable, ""
	}
	return exitFailed, ""
}

// failure is an error as --json prints it and as a background process reports it.
type failure struct {
	Error string `json:"error"`
	Next  string `json:"next,omitempty"`
	Code  int    `json:"code"`
}

// fail prints err and returns its exit code. People get it on stderr; --json also puts it on stdout as {"error": …}.
func (a *app) fail(cmd *cobra.Command, err error) int {
	code, next := classify(err)
	if _, ours := errors.AsType[*fault](err); !a.parsed && !ours {
		code = exitUsage // cobra's own: an unknown command, a missing argument
	}
	if code == exitUsage && next == "" {
		next = fmt.Sprintf("%s --help shows how it is used", cmd.CommandPath())
	}
	if a.json {
		json.NewEncoder(a.stdout).Encode(failure{err.Error(), next, code})
	}
	fmt.Fprintf(a.stderr, "hedge: %s\n", strings.TrimSpace(err.Error()))
	if next != "" {
		fmt.Fprintf(a.stderr, "  %s\n", strings.ReplaceAll(next, "\n", "\n  "))
	}
	return code
}
