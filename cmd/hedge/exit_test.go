package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node"
)

// Every kind of error has its exit code, however it is wrapped.
func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{errors.New("anything"), exitFailed},
		{usage(errors.New("a flag"), ""), exitUsage},
		{&node.JoinError{Reason: "a typo"}, exitUsage},
		{&node.NotRunningError{}, exitNotConnected},
		{node.ErrNotJoined, exitNotConnected},
		{node.ErrRemoved, exitNotConnected},
		{&node.DeniedError{}, exitDenied},
		{&node.UnreachableError{Err: errors.New("no answer")}, exitUnreachable},
		{&node.UnknownNameError{Name: "web"}, exitUnreachable},
		{&wire.UnreachableError{}, exitUnreachable},
		{&wire.UnreachableError{Tried: []wire.Attempt{{Err: &wire.ProxyError{Code: 407}}}}, exitNotConnected},
		{&wire.UnreachableError{Tried: []wire.Attempt{{Err: &wire.ProxyError{Code: 502}}}}, exitUnreachable},
		{context.DeadlineExceeded, exitUnreachable},
		{&wire.PinError{}, exitFailed},
		{&wire.Refused{Code: wire.RefusedKeyUsed}, exitFailed},
		{&wire.Refused{Code: wire.RefusedName}, exitFailed},
		{&wire.Refused{Code: wire.RefusedRemoved}, exitNotConnected},
		{&wire.Refused{Code: wire.RefusedBusy}, exitTryAgain},
	} {
		for _, err := range []error{c.err, fmt.Errorf("while doing so: %w", c.err)} {
			if got, _ := classify(err); got != c.want {
				t.Errorf("%T %q: exit code %d, want %d", c.err, err, got, c.want)
			}
		}
	}
}
