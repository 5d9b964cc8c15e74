package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node"
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
	if r, ok := errors.AsType[*wire.Refused](err); ok {
		return refusal(r.Code)
	}
	if _, ok := errors.AsType[*wire.PinError](err); ok {
		return exitFailed, "nothing was sent to it; check the address, and ask whoever runs the mesh for a new join string if its key was changed on purpose"
	}
	if p, ok := errors.AsType[*wire.ProxyError](err); ok && p.Credentials() {
		return exitNotConnected, "nothing more was tried, for many proxies lock an account; NO_PROXY=HOST goes past the proxy, where that is permitted"
	}
	if _, ok := errors.AsType[*wire.UnreachableError](err); ok {
		return exitUnreachable, "check that the coordinator runs and that this machine can reach one of its addresses"
	}
	if c, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](err); ok {
		return c.ExitCode(), ""
	}
	switch {
	case errors.Is(err, node.ErrNotJoined), errors.Is(err, node.ErrRemoved):
		return exitNotConnected, ""
	case errors.Is(err, context.DeadlineExceeded):
		return exitUnreachable, "try again; hedge status shows what is missing"
	}
	return exitFailed, ""
}

// refusal is what a coordinator's refusal means here. Its message already says what is wrong.
func refusal(c wire.RefusalCode) (code int, next string) {
	switch c {
	case wire.RefusedKeyWrong, wire.RefusedKeyUsed, wire.RefusedKeyEnded:
		return exitFailed, "ask for a new line: hedge admin join-key create, on the coordinator's machine"
	case wire.RefusedName:
		return exitFailed, "choose another name with --name"
	case wire.RefusedUnknown, wire.RefusedRemoved:
		return exitNotConnected, "join anew: hedge logout, then hedge up with a new line from hedge admin join-key create"
	case wire.RefusedExpired:
		return exitNotConnected, "a new line from hedge admin join-key create lets it in again: hedge up hedge1-…"
	case wire.RefusedBusy:
		return exitTryAgain, ""
	}
	return exitFailed, ""
}

// failure is an error as --json prints it, and as a daemon in the background reports it.
type failure struct {
	Error  string     `json:"error"`
	Next   string     `json:"next,omitempty"`
	Code   int        `json:"code"`
	Errors acl.Errors `json:"errors,omitempty"` // of an ACL file
}

// fail prints err and returns its exit code. People get it on stderr; --json also puts it on stdout.
func (a *app) fail(cmd *cobra.Command, err error) int {
	if q, ok := errors.AsType[errQuiet](err); ok {
		return int(q)
	}
	code, next := classify(err)
	if _, ours := errors.AsType[*fault](err); !a.parsed && !ours {
		code = exitUsage // cobra's own: an unknown command, a missing argument
	}
	if code == exitUsage && next == "" {
		next = fmt.Sprintf("%s --help shows how it is used", cmd.CommandPath())
	}
	f := failure{strings.TrimSpace(err.Error()), next, code, acl.Of(err)}
	rendered := f.Errors.Render()
	if p, ok := errors.AsType[*policyError](err); ok {
		f.Errors, rendered = p.check.Errors, p.check.Rendered
	}
	if a.json || a.notify {
		json.NewEncoder(a.stdout).Encode(f)
	}
	if rendered != "" {
		fmt.Fprintln(a.stderr, strings.TrimRight(rendered, "\n"))
	} else {
		fmt.Fprintf(a.stderr, "hedge: %s\n", f.Error)
	}
	if next != "" {
		fmt.Fprintf(a.stderr, "  %s\n", strings.ReplaceAll(next, "\n", "\n  "))
	}
	return code
}

// errQuiet is an exit code whose reason was already printed.
type errQuiet int

func (e errQuiet) Error() string { return "" }
