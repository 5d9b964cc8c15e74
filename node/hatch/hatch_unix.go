//go:build unix

package hatch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Listen makes the socket, and its folder if there is none. It takes the place of a socket that nobody listens on, and is
// removed when it is closed. It fails with [ErrTaken] or [*InTheWayError].
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, &InTheWayError{path}
		}
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, ErrTaken
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// Bound under another name, no longer than its own, and renamed: so that it never is there with a wider mode.
	tmp := strings.TrimSuffix(path, filepath.Ext(path)) + ".new"
	os.Remove(tmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		if len(tmp) > MaxPath {
			err = fmt.Errorf("%w; the path of a socket has %d bytes at most", err, MaxPath)
		}
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(tmp, 0o600); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		l.Close()
		os.Remove(tmp)
		return nil, err
	}
	return &listener{l, path}, nil
}

type listener struct {
	*net.UnixListener
	path string
}

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		os.Remove(l.path)
	}
	return err
}

// Dial connects to whoever listens at the path.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// User is the user at the other end of a connection that Listen's listener has accepted. Where the kernel does not say, it
// fails, and nobody is to be served.
func User(c net.Conn) (uid int, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return -1, errors.New("hatch: not a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return -1, err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { uid, inner = peer(int(fd)) }); err != nil {
		return -1, err
	}
	if inner != nil {
		return -1, inner
	}
	return uid, nil
}
