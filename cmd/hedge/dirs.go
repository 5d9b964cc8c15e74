package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/rs/zerolog"

	"github.com/hedge-mesh/hedge/node/hatch"
)

// dirs says where things live.
//
//	            root               a user                       --state-dir DIR
//	state       /var/lib/hedge     $XDG_STATE_HOME/hedge        DIR
//	run         /run/hedge         $XDG_RUNTIME_DIR/hedge       DIR/run
//	acl         /etc/hedge/acl.hujson  $XDG_CONFIG_HOME/hedge/acl.hujson  DIR/acl.hujson
type dirs struct{ state, run, acl string }

func (a *app) dirs() (dirs, error) {
	d, err := findDirs(a.stateDir, os.Geteuid() == 0, os.Getenv)
	if err != nil {
		return d, err
	}
	for _, s := range []string{d.nodeSocket(), d.adminSocket()} {
		if len(s) > hatch.MaxPath {
			return d, failed(fmt.Errorf("%s is %d bytes long, and a socket's path can have %d", s, len(s), hatch.MaxPath), "use a shorter --state-dir")
		}
	}
	return d, nil
}

// madeDirs are dirs that are there.
func (a *app) madeDirs() (dirs, error) {
	d, err := a.dirs()
	if err == nil {
		err = d.make()
	}
	return d, err
}

// station is what a daemon begins with: its log, and where it keeps things.
func (a *app) station() (zerolog.Logger, dirs, error) {
	log, err := a.logger()
	if err != nil {
		return log, dirs{}, err
	}
	d, err := a.madeDirs()
	return log, d, err
}

// findDirs takes an absolute stateDir, or an empty one for the places that a system gives.
func findDirs(stateDir string, root bool, env func(string) string) (dirs, error) {
	if stateDir != "" {
		return dirs{stateDir, filepath.Join(stateDir, "run"), filepath.Join(stateDir, "acl.hujson")}, nil
	}
	if root {
		return dirs{"/var/lib/hedge", "/run/hedge", "/etc/hedge/acl.hujson"}, nil
	}
	home := env("HOME")
	if home == "" {
		home = env("USERPROFILE")
	}
	xdg := func(name string, under ...string) string {
		if v := env(name); filepath.IsAbs(v) { // the XDG specification has relative ones ignored
			return v
		}
		if home == "" {
			return ""
		}
		return filepath.Join(append([]string{home}, under...)...)
	}
	state, config := xdg("XDG_STATE_HOME", ".local", "state"), xdg("XDG_CONFIG_HOME", ".config")
	if state == "" || config == "" {
		return dirs{}, failed(errors.New("there is no home folder: HOME is not set"), "set HOME, or say where to keep things with --state-dir DIR")
	}
	d := dirs{state: filepath.Join(state, "hedge"), acl: filepath.Join(config, "hedge", "acl.hujson")}
	d.run = filepath.Join(d.state, "run")
	if v := env("XDG_RUNTIME_DIR"); filepath.IsAbs(v) {
		d.run = filepath.Join(v, "hedge")
	}
	return d, nil
}

// The files of a node and of a coordinator. Neither reads the other's.
func (d dirs) node() string        { return filepath.Join(d.state, "node") }
func (d dirs) nodeSocket() string  { return filepath.Join(d.run, "node.sock") }
func (d dirs) adminSocket() string { return filepath.Join(d.run, "coordinator.sock") }
func (d dirs) database() string    { return filepath.Join(d.state, "coordinator.db") }
func (d dirs) controlKey() string  { return filepath.Join(d.state, "control.key") }
func (d dirs) relayKey() string    { return filepath.Join(d.state, "relay.key") }
func (d dirs) settings() string    { return filepath.Join(d.state, "init.json") }
func (d dirs) log(daemon string) string {
	return filepath.Join(d.state, "log", daemon+".log")
}
func (d dirs) lock(daemon string) string { return filepath.Join(d.run, daemon+".pid") }

// make makes the folders, for this user alone.
func (d dirs) make() error {
	for _, dir := range []string{d.state, d.run, filepath.Join(d.state, "log"), filepath.Dir(d.acl)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return failed(fmt.Errorf("cannot make the folder %s: %w", dir, reason(err)), "make it writable for this user, or choose another place with --state-dir DIR")
		}
	}
	return nil
}

// loadKey reads a private key that this machine made before, or makes it. A file that is there and holds no key is an
// error: a new key is another identity, which nobody would know.
func loadKey[P interface{ Secret() string }](path string, parse func(string) (P, error), generate func() P) (P, error) {
	var none P
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		k := generate()
		if err := writeNew(path, []byte(k.Secret()+"\n")); err != nil {
			return none, failed(fmt.Errorf("cannot write the key %s: %w", path, reason(err)), "make its folder writable for this user, or choose another with --state-dir DIR")
		}
		return k, nil
	}
	if err != nil {
		return none, failed(fmt.Errorf("cannot read the key %s: %w", path, reason(err)), "run as the user that owns it, or choose another place with --state-dir DIR")
	}
	if fi, err := os.Stat(path); err == nil && privateModes && fi.Mode().Perm()&0o077 != 0 {
		return none, failed(fmt.Errorf("others can read the key %s (mode %04o)", path, fi.Mode().Perm()), "chmod 600 "+path)
	}
	const next = "restore it from a backup; removing it makes a new identity, and every machine must then join anew"
	if len(strings.TrimSpace(string(b))) == 0 {
		return none, failed(fmt.Errorf("the key %s is empty", path), next)
	}
	k, err := parse(string(b))
	if err != nil {
		return none, failed(fmt.Errorf("%s holds no key: %w", path, err), next)
	}
	return k, nil
}

// writeNew writes a file that must not be there yet, for this user alone, whole or not at all.
func writeNew(path string, b []byte) error {
	return writeWhole(path, b, os.Link) // unlike a rename, never over another
}

// replace writes a file whole or not at all, over one that may be there.
func replace(path string, b []byte) error { return writeWhole(path, b, os.Rename) }

func writeWhole(path string, b []byte, name func(tmp, path string) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(b); err != nil {
		tmp.Close()
		return err
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := name(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a new name last through a crash, where the system can.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && privateModes {
		return err
	}
	return nil
}

// reason is why a file operation failed, without repeating its path.
func reason(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
