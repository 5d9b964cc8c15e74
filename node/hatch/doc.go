// Package hatch is a local socket by which a process is talked to by its own user and by the system's, and by nobody else.
//
//	hedge status ── Dial ──▶ a Unix socket of mode 0600 ──▶ Listen ── Accept ── User: who is at the other end, by the kernel's word
//
// On Windows it is a named pipe, and its security descriptor does both; it has been built and not been tried there.
package hatch

import (
	"errors"
	"fmt"
)

// MaxPath is the longest path of a Unix socket that every system takes, in bytes (sun_path of macOS, without its final NUL).
const MaxPath = 103

// ErrTaken is that another process answers at the path.
var ErrTaken = errors.New("hatch: another process answers there")

// InTheWayError is that a file that is no socket has the path.
type InTheWayError struct{ Path string }

func (e *InTheWayError) Error() string {
	return fmt.Sprintf("%s is in the way and is not a socket; move it", e.Path)
}
