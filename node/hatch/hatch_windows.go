package hatch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/ipc/namedpipe"
)

// name is that of the pipe for a path: all pipes of a machine are in one folder.
func name(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(strings.ToLower(abs)))
	return `\\.\pipe\hedge\` + hex.EncodeToString(sum[:16]), nil
}

// self is the user this process runs as.
func self() (*windows.SID, error) {
	u, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, err
	}
	return u.User.Sid, nil
}

// Listen makes the pipe. Its descriptor is protected, which lets nobody in by inheritance, and grants all to the system, to
// administrators whose rights are raised, and to the user who makes it; it is that user's. Other machines are never let in.
// It fails with [ErrTaken] if there is such a pipe, also if this user may not know of whom.
func Listen(path string) (net.Listener, error) {
	at, err := name(path)
	if err != nil {
		return nil, err
	}
	sid, err := self()
	if err != nil {
		return nil, err
	}
	sd, err := windows.SecurityDescriptorFromString(fmt.Sprintf("O:%[1]sD:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;%[1]s)", sid))
	if err != nil {
		return nil, err
	}
	l, err := (&namedpipe.ListenConfig{SecurityDescriptor: sd}).Listen(at)
	switch {
	case errors.Is(err, fs.ErrExist), errors.Is(err, fs.ErrPermission), errors.Is(err, windows.ERROR_PIPE_BUSY):
		return nil, ErrTaken
	case err != nil:
		return nil, err
	}
	return listener{l}, nil
}

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return guest{c}, nil
}

// guest is a connection that the pipe's descriptor has let in.
type guest struct{ net.Conn }

// Dial connects to whoever listens at the path, if that is a process of the same user, or of the system or an administrator
// where this one may talk to them: another could have made the pipe first.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	at, err := name(path)
	if err != nil {
		return nil, err
	}
	owners := make([]*windows.SID, 0, 3)
	if sid, err := self(); err == nil {
		owners = append(owners, sid)
	}
	for _, known := range []windows.WELL_KNOWN_SID_TYPE{windows.WinLocalSystemSid, windows.WinBuiltinAdministratorsSid} {
		if sid, err := windows.CreateWellKnownSid(known); err == nil {
			owners = append(owners, sid)
		}
	}
	err = errors.New("hatch: no user to ask for")
	for _, owner := range owners {
		var c net.Conn
		if c, err = (&namedpipe.DialConfig{ExpectedOwner: owner}).DialContext(ctx, at); err == nil {
			return c, nil
		}
		if !errors.Is(err, windows.ERROR_ACCESS_DENIED) {
			break
		}
	}
	return nil, &net.OpError{Op: "dial", Net: "pipe", Err: err}
}

// User is this process's own, of a connection that Listen's listener has accepted: the system asks who it is before.
func User(c net.Conn) (uid int, err error) {
	if _, ok := c.(guest); !ok {
		return -1, errors.New("hatch: not a connection to a pipe of this process")
	}
	return os.Getuid(), nil
}
