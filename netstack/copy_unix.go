//go:build unix

package netstack

import (
	"io"
	"os"
	"syscall"
)

// socket is reads of a connection of the host's; nil if r is none.
func socket(r io.Reader) func(*chunk) ([]byte, error) {
	c, ok := r.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	var buf *chunk
	var got []byte
	var failed error
	try := func(fd uintptr) bool { // made once: it would else be for each call
		b := buf.take()
		n, err := syscall.Read(int(fd), b)
		for err == syscall.EINTR {
			n, err = syscall.Read(int(fd), b)
		}
		got, failed = b[:max(n, 0)], nil
		switch {
		case err == syscall.EAGAIN:
			buf.give()
			return false
		case err != nil:
			failed = os.NewSyscallError("read", err)
		case n == 0:
			failed = io.EOF
		}
		return true
	}
	return func(to *chunk) ([]byte, error) {
		buf, got, failed = to, nil, nil
		if err := raw.Read(try); err != nil {
			return nil, err
		}
		return got, failed
	}
}
