package node

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

func testJoin(t *testing.T) wire.Join {
	t.Helper()
	return wire.Join{URLs: []string{"http://127.0.0.1:7443"}, Pin: key.PublicOf(key.NewControl()), Key: "not a real key"}
}

func mustOpen(t *testing.T, dir string) *state {
	t.Helper()
	s, err := openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

func TestStateKeepsIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "state")
	s := mustOpen(t, dir)
	if _, err := s.member(wire.Join{}); !errors.Is(err, ErrNotJoined) {
		t.Fatalf("fresh state without a join string: %v, want ErrNotJoined", err)
	}
	if _, err := os.Stat(s.path(identityFile)); err == nil {
		t.Fatal("an identity was made without a join string")
	}
	join := testJoin(t)
	id, err := s.member(join)
	if err != nil {
		t.Fatal(err)
	}
	id.joined = true
	if err := s.saveIdentity(id); err != nil {
		t.Fatal(err)
	}
	again, err := s.member(wire.Join{})
	if err != nil {
		t.Fatal(err)
	}
	if again.machine.Secret() != id.machine.Secret() || again.node.Secret() != id.node.Secret() ||
		again.pin != id.pin || !reflect.DeepEqual(again.urls, id.urls) || !again.joined {
		t.Error("the identity read is not the one written")
	}

	var je *JoinError
	if _, err := s.member(testJoin(t)); !errors.As(err, &je) {
		t.Errorf("join string of another mesh: %v, want a JoinError", err)
	}
	moved := join
	moved.URLs = []string{"https://elsewhere.example:7443"}
	if id, err := s.member(moved); err != nil || !reflect.DeepEqual(id.urls, moved.URLs) || id.machine.Secret() != again.machine.Secret() {
		t.Errorf("the coordinator has moved: %v, %v", id.urls, err)
	}
	for name, want := range map[string]os.FileMode{".": 0o700, identityFile: 0o600, lockFile: 0o600} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: mode %v, want %v (%v)", name, fi.Mode().Perm(), want, err)
		}
	}
}

// A mesh that a node never became a member of leaves nothing behind, its keys included.
func TestStateForgetsFailedJoin(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	a, err := s.member(testJoin(t))
	if err != nil {
		t.Fatal(err)
	}
	join := testJoin(t)
	b, err := s.member(join)
	if err != nil {
		t.Fatal(err)
	}
	if b.pin != join.Pin || a.machine.Secret() == b.machine.Secret() {
		t.Error("the second mesh was given the first one's identity")
	}
}

func testMap(self key.NodePublic) *wire.Map {
	addr := netip.MustParseAddr
	return &wire.Map{
		Revision: 7,
		Self: wire.Self{
			Peer:     wire.Peer{Node: acl.Node{ID: 1, Name: "web", Addrs: []netip.Addr{addr("100.64.0.1"), addr("fd68:6564:6765::1")}}, Key: self},
			Domain:   "hedge.internal",
			Prefixes: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd68:6564:6765::/48")},
		},
		Peers: []wire.Peer{
			{Node: acl.Node{ID: 2, Name: "db", Addrs: []netip.Addr{addr("100.64.0.2")}}, Key: key.ExchangePublic(key.NewNode())},
			{Node: acl.Node{ID: 3, Name: "gw", Addrs: []netip.Addr{addr("100.64.0.3")},
				Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("0.0.0.0/0")}},
				Key: key.ExchangePublic(key.NewNode())},
		},
		Rules:    []acl.Rule{},
		Sets:     map[string]acl.Set{},
		Relays:   []wire.Relay{},
		Presence: map[acl.NodeID]wire.Presence{2: {ID: 2, Relay: 1}},
	}
}

func TestStateKeepsMap(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	if m, err := s.loadMap(); m != nil || err != nil {
		t.Fatalf("fresh state: %v, %v", m, err)
	}
	want := testMap(key.ExchangePublic(key.NewNode()))
	for range 2 {
		if err := s.saveMap(want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.loadMap()
	if err != nil {
		t.Fatal(err)
	}
	if got.Revision != want.Revision || !reflect.DeepEqual(got.Peers, want.Peers) || got.Self.Key != want.Self.Key {
		t.Errorf("read %+v\nwant %+v", got, want)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, "*.new")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := s.forget(); err != nil {
		t.Fatal(err)
	}
	if err := s.saveMap(want); err != nil {
		t.Fatal(err)
	}
	if m, err := s.loadMap(); m != nil || err != nil {
		t.Errorf("a forgotten state was written again: %v, %v", m, err)
	}
}

// What cannot be read is an error that says what to do, and is still there afterwards.
func TestStateDamaged(t *testing.T) {
	secret := key.NewMachine().Secret()
	for _, c := range []struct {
		name, file, content string
		mode                os.FileMode
		want                string
	}{
		{"empty identity", identityFile, "", 0o600, "empty"},
		{"blank identity", identityFile, " \n", 0o600, "empty"},
		{"half an identity", identityFile, `{"version":1,"machine":"` + secret, 0o600, "damaged"},
		{"identity of zeros", identityFile, strings.Repeat("\x00", 400), 0o600, "damaged"},
		{"wrong key", identityFile, `{"version":1,"machine":"` + secret[:40] + `"}`, 0o600, "machine key is damaged"},
		{"newer identity", identityFile, `{"version":9}`, 0o600, "version 9"},
		{"identity others can read", identityFile, "{}", 0o644, "chmod 600"},
		{"identity missing", mapFile, "something", 0o600, "missing"},
		{"empty map", mapFile, "", 0o600, "empty"},
		{"map of zeros", mapFile, strings.Repeat("\x00", 400), 0o600, "delete the file"},
		{"no map", mapFile, "hello", 0o600, "delete the file"},
		{"half a map", mapFile, "half", 0o600, "delete the file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := mustOpen(t, t.TempDir())
			if c.file == mapFile && c.name != "identity missing" {
				if _, err := s.member(testJoin(t)); err != nil {
					t.Fatal(err)
				}
			}
			content := []byte(c.content)
			if c.content == "half" {
				b, err := wire.EncodeMap(testMap(someKey))
				if err != nil {
					t.Fatal(err)
				}
				content = b[:len(b)/2]
			}
			if err := os.WriteFile(s.path(c.file), content, c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := s.member(testJoin(t))
			if err == nil {
				_, err = s.loadMap()
			}
			var se *StateError
			if !errors.As(err, &se) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want a StateError with %q", err, c.want)
			}
			if strings.Contains(err.Error(), secret[20:40]) {
				t.Errorf("the error shows a key: %v", err)
			}
			if now, _ := os.ReadFile(s.path(c.file)); string(now) != string(content) {
				t.Error("the file was changed")
			}
		})
	}
}

func TestStateOneProcess(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	var le *LockedError
	if _, err := openState(dir); !errors.As(err, &le) || le.PID != os.Getpid() {
		t.Fatalf("second open: %v, want a LockedError with process %d", err, os.Getpid())
	}
	s.close()
	mustOpen(t, dir)
}

func TestStateUnusableDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", file, filepath.Join(file, "below"), "/proc/nowhere"} {
		var se *StateError
		if _, err := openState(dir); !errors.As(err, &se) {
			t.Errorf("openState(%q): %v, want a StateError", dir, err)
		}
	}
	link := t.TempDir()
	s := mustOpen(t, link)
	if err := os.Symlink(file, s.path(identityFile)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.identity(); err == nil {
		t.Error("an identity that is a symbolic link was read")
	}
}

// Whatever is in an identity file, it is read or refused, and its secrets are in no error.
func FuzzIdentity(f *testing.F) {
	s, err := openState(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	defer s.close()
	id := newIdentity()
	id.urls, id.pin = []string{"https://127.0.0.1:1"}, key.PublicOf(key.NewControl())
	if err := s.saveIdentity(id); err != nil {
		f.Fatal(err)
	}
	good, err := s.read(identityFile)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("null"))
	f.Add(good[:len(good)/2])
	secrets := regexp.MustCompile(`[0-9a-f]{16,}`)
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(s.path(identityFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		id, ok, err := s.identity()
		if err != nil {
			for _, x := range secrets.FindAllString(string(b), -1) {
				if strings.Contains(err.Error(), x) {
					t.Fatalf("an error tells a secret: %v", err)
				}
			}
			return
		}
		if !ok || id.machine.IsZero() || id.node.IsZero() || id.disco.IsZero() || id.pin.IsZero() || len(id.urls) == 0 {
			t.Fatalf("half an identity of %q", b)
		}
		if err := s.saveIdentity(id); err != nil {
			t.Fatal(err)
		}
		if again, ok, err := s.identity(); err != nil || !ok || again.node.Secret() != id.node.Secret() || !slices.Equal(again.urls, id.urls) {
			t.Fatalf("what was read and written reads as another: %v", err)
		}
	})
}
