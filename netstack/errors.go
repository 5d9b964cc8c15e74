package netstack

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// errno is the error an operating system's socket would give for a gVisor error, so that errors.Is works as
// it does with package net.
func errno(e tcpip.Error) error {
	switch e.(type) {
	case nil:
		return nil
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNABORTED
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown, *tcpip.ErrNoNet:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrPortInUse:
		return syscall.EADDRINUSE
	case *tcpip.ErrNoPortAvailable:
		return syscall.EADDRNOTAVAIL
	case *tcpip.ErrBadLocalAddress:
		return syscall.EADDRNOTAVAIL
	case *tcpip.ErrMessageTooLong:
		return syscall.EMSGSIZE
	case *tcpip.ErrNoBufferSpace:
		return syscall.ENOBUFS
	case *tcpip.ErrClosedForSend:
		return syscall.EPIPE
	case *tcpip.ErrInvalidEndpointState:
		return net.ErrClosed
	case *tcpip.ErrNotConnected:
		return syscall.ENOTCONN
	}
	return errors.New(e.String())
}

// byText turns the text of a gVisor error, which is all that gonet keeps of it, back into an errno.
var byText = func() map[string]error {
	m := make(map[string]error)
	for _, e := range []tcpip.Error{
		&tcpip.ErrConnectionRefused{}, &tcpip.ErrConnectionReset{}, &tcpip.ErrConnectionAborted{}, &tcpip.ErrAborted{},
		&tcpip.ErrHostUnreachable{}, &tcpip.ErrHostDown{}, &tcpip.ErrNoNet{}, &tcpip.ErrNetworkUnreachable{},
		&tcpip.ErrTimeout{}, &tcpip.ErrPortInUse{}, &tcpip.ErrNoPortAvailable{}, &tcpip.ErrBadLocalAddress{},
		&tcpip.ErrMessageTooLong{}, &tcpip.ErrNoBufferSpace{}, &tcpip.ErrClosedForSend{},
		&tcpip.ErrInvalidEndpointState{}, &tcpip.ErrNotConnected{},
	} {
		m[e.String()] = errno(e)
	}
	return m
}()

// fix gives an error of gonet the cause and the addresses package net would give it. closed says that our own
// side was closed, which is then the reason whatever gVisor says.
func fix(err error, closed bool, op, network string, local, remote net.Addr) error {
	e := &net.OpError{Op: op, Net: network, Source: local, Addr: remote, Err: err}
	var oe *net.OpError
	if errors.As(err, &oe) {
		e.Err = oe.Err
	}
	switch t, ok := e.Err.(interface{ Timeout() bool }); {
	case closed:
		e.Err = net.ErrClosed
	case ok && t.Timeout():
		e.Err = os.ErrDeadlineExceeded
	default:
		if known := byText[e.Err.Error()]; known != nil {
			e.Err = known
		}
	}
	return e
}

// gone is the error of a dial or ping whose context ended.
func gone(ctx context.Context) error { return context.Cause(ctx) }
