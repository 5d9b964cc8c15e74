package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

// The files of a state directory.
//
//	lock           held (flock) by the process that uses the state; holds its process number
//	identity.json  machine, node and disco private keys, coordinator URLs and pin
//	map.cbor       the last Map, with a checksum ([wire.EncodeMap])
//
// Each is replaced as a whole (write beside, fsync, rename, fsync the directory), so that a crash leaves the old or the
// new. What cannot be read is an error, never a reason for a new identity: that would be another node.
const (
	lockFile     = "lock"
	identityFile = "identity.json"
	mapFile      = "map.cbor"
	namesFile    = "names.json"

	maxState   = 256 << 20 // bytes; more is no file of ours
	identityV1 = 1
)

// state is a state directory that this process holds the lock of.
type state struct {
	dir  string
	lock *os.File

	mu   sync.Mutex // held while files change
	gone bool       // forgotten: nothing is written any more
}

// identity is who this node is, and which coordinator it believes.
type identity struct {
	machine key.MachinePrivate
	node    key.NodePrivate
	disco   key.DiscoPrivate // kept, so that peers know it after a restart while the coordinator is down
	urls    []string
	pin     key.ControlPublic
	joined  bool // it has had a Map
}

func newIdentity() identity {
	return identity{machine: key.NewMachine(), node: key.NewNode(), disco: key.NewDisco()}
}

// identityJSON is identity as it stands in its file.
type identityJSON struct {
	Version int               `json:"version"`
	Machine string            `json:"machine"`
	Node    string            `json:"node"`
	Disco   string            `json:"disco"`
	URLs    []string          `json:"coordinator_urls"`
	Pin     key.ControlPublic `json:"coordinator_pin"`
	Joined  bool              `json:"joined"`
}

var errLocked = errors.New("locked")

// openState takes the state directory, making it if need be.
func openState(dir string) (*state, error) {
	if dir == "" {
		return nil, &StateError{Path: "(none)", Reason: "give a state directory"}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, &StateError{Path: dir, Err: err, Reason: "give an absolute path"}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &StateError{Path: dir, Err: err, Reason: "choose a directory that this user may write (--state-dir)"}
	}
	if err := private(dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, &StateError{Path: dir, Err: err, Reason: "choose a directory that this user may write (--state-dir)"}
	}
	if err := tryLock(f); err != nil {
		defer f.Close()
		if errors.Is(err, errLocked) {
			b, _ := io.ReadAll(io.LimitReader(f, 32))
			pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
			return nil, &LockedError{Path: dir, PID: pid}
		}
		return nil, &StateError{Path: dir, Err: err, Reason: "put the state on a filesystem that can lock files"}
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0) // only a hint for LockedError
	}
	return &state{dir: dir, lock: f}, nil
}

// private makes sure that nobody else can write in dir, nor read it if that can be had.
func private(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return &StateError{Path: dir, Err: err, Reason: "make it readable for this user"}
	}
	if !fi.IsDir() {
		return &StateError{Path: dir, Reason: "it is not a directory; choose another with --state-dir"}
	}
	if fi.Mode().Perm()&0o077 == 0 {
		return nil
	}
	if err := os.Chmod(dir, 0o700); err != nil && fi.Mode().Perm()&0o022 != 0 {
		return &StateError{Path: dir, Err: err, Reason: "other users can write in it; run chmod 700 on it as its owner"}
	}
	return nil
}

// close lets go of the state. The lock file stays: removing it would let two processes each lock one of two.
func (s *state) close() error { return s.lock.Close() }

func (s *state) path(name string) string { return filepath.Join(s.dir, name) }

// identity reads the node's identity; ok is false if the state is fresh.
func (s *state) identity() (id identity, ok bool, err error) {
	p := s.path(identityFile)
	b, err := s.read(identityFile)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(s.path(mapFile)); err == nil {
			return id, false, &StateError{Path: p, Reason: "it is missing although " + mapFile + " is there; restore it from a backup, or empty the directory to join as a new node"}
		}
		return id, false, nil
	}
	if err != nil {
		return id, false, err
	}
	damaged := func(err error) (identity, bool, error) {
		return identity{}, false, &StateError{Path: p, Err: err, Reason: "restore it from a backup, or have an admin remove this node, delete the file and join again as a new one"}
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return damaged(errors.New("the file is empty"))
	}
	var j identityJSON
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&j); err != nil {
		return damaged(errors.New("it is damaged")) // the decoder's own words may quote a key
	}
	if j.Version != identityV1 {
		return damaged(fmt.Errorf("it has version %d, this software knows %d", j.Version, identityV1))
	}
	if id.machine, err = key.ParseMachinePrivate(j.Machine); err != nil {
		return damaged(errors.New("the machine key is damaged"))
	}
	if id.node, err = key.ParseNodePrivate(j.Node); err != nil {
		return damaged(errors.New("the node key is damaged"))
	}
	if id.disco, err = key.ParseDiscoPrivate(j.Disco); err != nil {
		return damaged(errors.New("the disco key is damaged"))
	}
	if j.Pin.IsZero() || len(j.URLs) == 0 {
		return damaged(errors.New("the coordinator is missing"))
	}
	id.urls, id.pin, id.joined = j.URLs, j.Pin, j.Joined
	return id, true, nil
}

// member is the identity to run with: the state's own, or a new one that join is for. A state is never moved from one
// mesh to another, since who ran it under the old one would not know.
func (s *state) member(join wire.Join) (identity, error) {
	given := !join.Pin.IsZero()
	id, ok, err := s.identity()
	switch {
	case err != nil:
		return id, err
	case !ok && !given:
		return id, ErrNotJoined
	case !ok:
		id = newIdentity()
		id.urls, id.pin = join.URLs, join.Pin
		return id, s.saveIdentity(id)
	case !given:
		return id, nil
	case id.pin != join.Pin && id.joined:
		return id, &JoinError{Reason: fmt.Sprintf("this join string is for another mesh (its coordinator's key is %s, "+
			"this node's is %s); leave the present one first with hedge logout, or choose another --state-dir",
			join.Pin.Short(), id.pin.Short())}
	case id.pin != join.Pin:
		id = newIdentity() // it never became a member of the other
	case slices.Equal(id.urls, join.URLs):
		return id, nil
	}
	id.urls, id.pin = join.URLs, join.Pin // the coordinator may have moved
	return id, s.saveIdentity(id)
}

// saveIdentity replaces the node's identity.
func (s *state) saveIdentity(id identity) error {
	b, err := json.MarshalIndent(identityJSON{
		Version: identityV1, Machine: id.machine.Secret(), Node: id.node.Secret(), Disco: id.disco.Secret(),
		URLs: id.urls, Pin: id.pin, Joined: id.joined,
	}, "", "  ")
	if err != nil {
		return &StateError{Path: s.path(identityFile), Err: err, Reason: "this is a fault in the software"}
	}
	return s.replace(identityFile, append(b, '\n'))
}

// loadMap reads the last Map; nil if there is none.
func (s *state) loadMap() (*wire.Map, error) {
	b, err := s.read(mapFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	damaged := func(err error) (*wire.Map, error) {
		return nil, &StateError{Path: s.path(mapFile), Err: err, Reason: "delete the file; the node keeps its identity and asks the coordinator for the map again"}
	}
	if len(b) == 0 {
		return damaged(errors.New("the file is empty"))
	}
	m, err := wire.DecodeMap(b)
	if err != nil {
		return damaged(err)
	}
	return m, nil
}

// saveMap replaces the last Map.
func (s *state) saveMap(m *wire.Map) error {
	b, err := wire.EncodeMap(m)
	if err != nil {
		return &StateError{Path: s.path(mapFile), Err: err, Reason: "this is a fault in the software"}
	}
	return s.replace(mapFile, b)
}

// loadNames reads where the names of coordinator and relays led. They are a help and no more: what cannot be read is nothing.
func (s *state) loadNames() (names map[string][]netip.Addr) {
	if b, err := s.read(namesFile); err != nil || json.Unmarshal(b, &names) != nil {
		return nil
	}
	return names
}

// saveNames replaces them.
func (s *state) saveNames(names map[string][]netip.Addr) error {
	b, err := json.MarshalIndent(names, "", "\t")
	if err != nil {
		return &StateError{Path: s.path(namesFile), Err: err, Reason: "this is a fault in the software"}
	}
	return s.replace(namesFile, append(b, '\n'))
}

// dropMap forgets the last Map, so that a restart has nothing to run from.
func (s *state) dropMap() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(mapFile)
}

// forget deletes everything but the lock, for good: what is still to be saved no longer is.
func (s *state) forget() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	return errors.Join(s.remove(mapFile), s.remove(namesFile), s.remove(identityFile))
}

func (s *state) remove(name string) error {
	if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &StateError{Path: s.path(name), Err: err, Reason: "delete it by hand"}
	}
	return s.sync()
}

// read reads a file of the state, which must be for this user's eyes only.
func (s *state) read(name string) ([]byte, error) {
	p := s.path(name)
	f, err := os.OpenFile(p, os.O_RDONLY|noFollow, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, &StateError{Path: p, Err: err, Reason: "it must be a plain file that this user may read"}
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() || fi.Size() > maxState {
		return nil, &StateError{Path: p, Err: err, Reason: "it must be a plain file, as this software wrote it"}
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, &StateError{Path: p, Reason: "other users can read it; run chmod 600 on it, and if they may have, join again as a new node"}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxState))
	if err != nil {
		return nil, &StateError{Path: p, Err: err, Reason: "check the disk"}
	}
	return b, nil
}

// replace writes a file of the state so that it is there as a whole, and durable, or as it was before.
func (s *state) replace(name string, b []byte) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return nil
	}
	p := s.path(name)
	defer func() {
		if err != nil {
			err = &StateError{Path: p, Err: err, Reason: "make room on the disk and let this user write in the directory"}
		}
	}()
	f, err := os.OpenFile(p+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|noFollow, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(p + ".new")
		}
	}()
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(p+".new", p)
	}
	if err == nil {
		err = s.sync()
	}
	return err
}

// sync makes renames and removals durable.
func (s *state) sync() error { return syncDir(s.dir) }
