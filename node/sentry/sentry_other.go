//go:build !linux

package sentry

import (
	"errors"
	"io"
	"syscall"
	"time"
)

// Sentry is for Linux only.
type Sentry struct{}

// New says that there is none here.
func New(syscall.RawConn) (*Sentry, error) { return nil, errors.ErrUnsupported }

// Wait is never called.
func (*Sentry) Wait(time.Duration) (bool, error) { return false, errors.ErrUnsupported }

// Wake is never called.
func (*Sentry) Wake() {}

// Close is never called.
func (*Sentry) Close(what io.Closer) error { return what.Close() }
