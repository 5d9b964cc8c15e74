package node

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// The exit codes that programs give for this package's errors: each error type has an ExitCode method.
const (
	exitFailed       = 1
	exitNotConnected = 3
	exitDenied       = 4
	exitUnreachable  = 5
)

// ErrNotJoined is a fresh state with no join string.
var ErrNotJoined = errors.New("not a member of a mesh yet; ask an admin for a join string (hedge admin join-key create) and give it to hedge up")

// ErrRemoved is a node whose membership has ended while it was running.
var ErrRemoved = errors.New("no longer a member of the mesh")

// StateError is a state that cannot be used. Its message says what to do; nothing was changed.
type StateError struct {
	Path   string
	Reason string
	Err    error // may be nil
}

func (e *StateError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("state %s: %v; %s", e.Path, e.Err, e.Reason)
	}
	return fmt.Sprintf("state %s: %s", e.Path, e.Reason)
}

func (e *StateError) Unwrap() error { return e.Err }

// ExitCode is 1.
func (*StateError) ExitCode() int { return exitFailed }

// LockedError is a state that another process uses.
type LockedError struct {
	Path string
	PID  int // 0 if it is not known
}

func (e *LockedError) Error() string {
	who := "another process"
	if e.PID > 0 {
		who = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("state %s is in use by %s; stop it (hedge down), or choose another with --state-dir", e.Path, who)
}

// ExitCode is 1.
func (*LockedError) ExitCode() int { return exitFailed }

// JoinError is a join string that does not fit this state.
type JoinError struct{ Reason string }

func (e *JoinError) Error() string { return e.Reason }

// ExitCode is 2: the join string was the wrong one to give.
func (*JoinError) ExitCode() int { return 2 }

// DeniedError is a connection that the policy does not allow, found out before any packet left.
type DeniedError struct {
	Dst string // as it was asked for
	Why WhyResult
}

func (e *DeniedError) Error() string { return fmt.Sprintf("%s: %s", e.Dst, e.Why.Text) }

// ExitCode is 4.
func (*DeniedError) ExitCode() int { return exitDenied }

// SOCKS5 is RFC 1928 section 6's "connection not allowed by ruleset".
func (*DeniedError) SOCKS5() byte { return 0x02 }

// HTTPStatus is 403 Forbidden.
func (*DeniedError) HTTPStatus() int { return 403 }

// UnknownNameError is a name that no peer this node may see has.
type UnknownNameError struct {
	Name string
	Near string // the nearest name there is, if any is near
}

func (e *UnknownNameError) Error() string {
	s := fmt.Sprintf("no peer named %q that this node may reach or be reached by", e.Name)
	if e.Near != "" {
		s += fmt.Sprintf("; did you mean %q?", e.Near)
	}
	return s
}

// ExitCode is 5.
func (*UnknownNameError) ExitCode() int { return exitUnreachable }

// SOCKS5 is RFC 1928 section 6's "host unreachable".
func (*UnknownNameError) SOCKS5() byte { return 0x04 }

// HTTPStatus is 502 Bad Gateway.
func (*UnknownNameError) HTTPStatus() int { return 502 }

// UnreachableError is a peer that did not answer, or refused the connection itself.
type UnreachableError struct {
	Dst     string
	Refused bool // the peer answered: nothing listens there, or its own policy says no
	Timeout bool
	Err     error
}

func (e *UnreachableError) Error() string { return fmt.Sprintf("%s: %v", e.Dst, e.Err) }
func (e *UnreachableError) Unwrap() error { return e.Err }

// ExitCode is 5.
func (*UnreachableError) ExitCode() int { return exitUnreachable }

// SOCKS5 is RFC 1928 section 6's "connection refused", "TTL expired" or "host unreachable".
func (e *UnreachableError) SOCKS5() byte {
	switch {
	case e.Refused:
		return 0x05
	case e.Timeout:
		return 0x06
	}
	return 0x04
}

// HTTPStatus is 502 Bad Gateway or 504 Gateway Timeout.
func (e *UnreachableError) HTTPStatus() int {
	if e.Timeout {
		return 504
	}
	return 502
}

// NotRunningError is a local API at which no node answers.
type NotRunningError struct {
	Socket string
	Err    error
}

func (e *NotRunningError) Error() string {
	why := ""
	switch {
	case errors.Is(e.Err, fs.ErrNotExist), errors.Is(e.Err, syscall.ECONNREFUSED):
		why = fmt.Sprintf(" (nobody listens at %s)", e.Socket)
	case e.Err != nil:
		why = fmt.Sprintf(" (%v)", e.Err)
	}
	return fmt.Sprintf("no node is running%s; start one with hedge up", why)
}
func (e *NotRunningError) Unwrap() error { return e.Err }

// ExitCode is 3.
func (*NotRunningError) ExitCode() int { return exitNotConnected }

// RemoteError is an error that the node behind a local API reported, other than those that have their own types.
type RemoteError struct {
	Msg  string `json:"error"`
	Code int    `json:"exit"`
}

func (e *RemoteError) Error() string { return e.Msg }

// ExitCode is what the node's own error has.
func (e *RemoteError) ExitCode() int { return e.Code }
