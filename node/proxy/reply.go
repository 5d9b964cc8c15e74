package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"syscall"
)

// Reply codes of RFC 1928 section 6.
const (
	replySucceeded          = 0x00
	replyFailure            = 0x01
	replyNotAllowed         = 0x02
	replyNetworkUnreachable = 0x03
	replyHostUnreachable    = 0x04
	replyRefused            = 0x05
	replyTTLExpired         = 0x06 // what other servers say for a timeout, too
	replyBadCommand         = 0x07
	replyBadAddressType     = 0x08
)

// socksReply is the reply code for a failed dial: the error's own if it has one.
func socksReply(err error) byte {
	if own, ok := errors.AsType[interface {
		error
		SOCKS5() byte
	}](err); ok {
		return own.SOCKS5()
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return replyRefused
	case errors.Is(err, syscall.EHOSTUNREACH), isNoSuchHost(err):
		return replyHostUnreachable
	case errors.Is(err, syscall.ENETUNREACH):
		return replyNetworkUnreachable
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return replyNotAllowed
	case isTimeout(err):
		return replyTTLExpired
	}
	return replyFailure
}

// httpStatus is the status for a failed dial: the error's own if it has one.
func httpStatus(err error) int {
	if own, ok := errors.AsType[interface {
		error
		HTTPStatus() int
	}](err); ok {
		return own.HTTPStatus()
	}
	switch {
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), socksReply(err) == replyNotAllowed:
		return http.StatusForbidden
	case isTimeout(err):
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

func isNoSuchHost(err error) bool {
	e, ok := errors.AsType[*net.DNSError](err)
	return ok && e.IsNotFound
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout() || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

func tooManyFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED)
}
