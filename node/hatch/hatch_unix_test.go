//go:build unix

package hatch

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// folder is one whose sockets' paths are short enough.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hatch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Whoever calls is known, others than the user cannot, and nobody serves beside who does.
func TestHatch(t *testing.T) {
	at := filepath.Join(folder(t), "sub", "node.sock")
	l, err := Listen(at)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{at: 0o600, filepath.Dir(at): 0o700} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, fi.Mode().Perm(), err, want)
		}
	}
	if _, err := Listen(at); !errors.Is(err, ErrTaken) {
		t.Errorf("a second one: %v, want ErrTaken", err)
	}
	c, err := Dial(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 { // the one that asked whether somebody answers, and c
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		uid, err := User(s)
		if known := runtime.GOOS == "linux" || runtime.GOOS == "darwin"; known && (uid != os.Getuid() || err != nil) || !known && err == nil {
			t.Errorf("user %d, %v, want %d", uid, err, os.Getuid())
		}
		s.Close()
	}
	if uid, err := User(nil); uid != -1 || err == nil {
		t.Errorf("no connection: user %d, %v", uid, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Dir(at))
	if len(left) > 0 || err != nil {
		t.Errorf("after the end: %v, %v", left, err)
	}
	if _, err := Dial(t.Context(), at); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nobody there: %v", err)
	}
}

// A socket that a dead process has left is replaced, a file is not touched.
func TestInTheWay(t *testing.T) {
	at := filepath.Join(folder(t), "sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := Listen(at)
	if err != nil {
		t.Fatalf("a dead process's socket: %v", err)
	}
	l.Close()
	if err := os.WriteFile(at, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	var inTheWay *InTheWayError
	if _, err := Listen(at); !errors.As(err, &inTheWay) || !strings.Contains(err.Error(), at) {
		t.Errorf("a file: %v, want an InTheWayError", err)
	}
	if b, err := os.ReadFile(at); string(b) != "data" || err != nil {
		t.Errorf("the file is %q, %v", b, err)
	}
}

// A path that is too long says how long it may be, and the longest works.
func TestLongPath(t *testing.T) {
	dir := folder(t)
	base := strings.Repeat("d", MaxPath-len(dir)-len("//.sock")) + "/"
	for more, good := range map[string]bool{"": true, "longer": false} {
		at := dir + "/" + base + more + ".sock"
		l, err := Listen(at)
		if good != (err == nil) || !good && !strings.Contains(err.Error(), "103 bytes at most") {
			t.Errorf("%d bytes: %v", len(at), err)
		}
		if l != nil {
			l.Close()
		}
	}
}
