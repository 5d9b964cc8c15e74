package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("STORE_TEST_WRITER"); path != "" {
		writeUntilKilled(path)
	}
	goleak.VerifyTestMain(m)
}

func openTemp(t *testing.T) (Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := OpenSQLite(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, path
}

// each runs a test over every kind of store.
func each(t *testing.T, f func(t *testing.T, s Store)) {
	t.Run("memory", func(t *testing.T) { f(t, NewMemory()) })
	t.Run("sqlite", func(t *testing.T) { s, _ := openTemp(t); f(t, s) })
}

func put(kind, id, value string) Record {
	return Record{Key: Key{kind, id}, Value: []byte(value)}
}

func commitOK(t *testing.T, s Store, txn Txn) uint64 {
	t.Helper()
	r, err := s.Commit(t.Context(), txn)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func dump(t *testing.T, s Store) string {
	t.Helper()
	snap, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, r := range snap.Records {
		fmt.Fprintf(&b, "%s/%s=%s@%d ", r.Kind, r.ID, r.Value, r.Revision)
	}
	return fmt.Sprintf("%d: %s", snap.Revision, strings.TrimSpace(b.String()))
}

func TestCommitAndLoad(t *testing.T) {
	each(t, func(t *testing.T, s Store) {
		if got := dump(t, s); got != "0: " {
			t.Errorf("a new store holds %q", got)
		}
		commitOK(t, s, Txn{Put: []Record{put("b", "1", "x"), put("a", "2", "y"), put("a", "1", "")}})
		commitOK(t, s, Txn{Put: []Record{put("a", "2", "z")}, Delete: []Key{{"b", "1"}, {"b", "none"}}})
		if got, want := dump(t, s), "2: a/1=@1 a/2=z@2"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestCompare(t *testing.T) {
	each(t, func(t *testing.T, s Store) {
		one := commitOK(t, s, Txn{Compare: []Cond{{Key{"a", "1"}, 0}}, Put: []Record{put("a", "1", "x")}})
		for name, c := range map[string]Cond{"absent, and it is there": {Key{"a", "1"}, 0}, "another revision": {Key{"a", "1"}, one + 1}, "there, and it is not": {Key{"a", "9"}, one}} {
			before := dump(t, s)
			if _, err := s.Commit(t.Context(), Txn{Compare: []Cond{c}, Put: []Record{put("a", "1", "y")}, Delete: []Key{{"a", "2"}}}); !errors.Is(err, ErrConflict) {
				t.Errorf("%s: %v", name, err)
			}
			if after := dump(t, s); after != before {
				t.Errorf("%s: a conflict changed %q to %q", name, before, after)
			}
		}
		commitOK(t, s, Txn{Compare: []Cond{{Key{"a", "1"}, one}}, Put: []Record{put("a", "1", "y")}})
	})
}

func TestBadTransactions(t *testing.T) {
	each(t, func(t *testing.T, s Store) {
		for name, txn := range map[string]Txn{
			"nothing":       {},
			"twice":         {Put: []Record{put("a", "1", "x")}, Delete: []Key{{"a", "1"}}},
			"no name":       {Put: []Record{put("", "1", "x")}},
			"a huge value":  {Put: []Record{put("a", "1", strings.Repeat("x", maxValue+1))}},
			"a huge number": {Delete: make([]Key, maxOps+1)},
		} {
			if _, err := s.Commit(t.Context(), txn); err == nil {
				t.Errorf("%s was committed", name)
			}
		}
		if got := dump(t, s); got != "0: " {
			t.Errorf("left %q", got)
		}
	})
}

// One of many that each want to be the first is.
func TestRace(t *testing.T) {
	each(t, func(t *testing.T, s Store) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []int
		for i := range 64 {
			wg.Go(func() {
				_, err := s.Commit(context.Background(), Txn{Compare: []Cond{{Key{"key", "1"}, 0}}, Put: []Record{put("key", "1", strconv.Itoa(i))}})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won = append(won, i)
				} else if !errors.Is(err, ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 || dump(t, s) != fmt.Sprintf("1: key/1=%d@1", won[0]) {
			t.Errorf("%v won, and the store holds %s", won, dump(t, s))
		}
	})
}

func TestWatch(t *testing.T) {
	each(t, func(t *testing.T, s Store) {
		commitOK(t, s, Txn{Put: []Record{put("a", "1", "x")}})
		ctx, cancel := context.WithCancel(t.Context())
		events := make(chan Event)
		done := make(chan error)
		go func() { done <- s.Watch(ctx, 0, func(e Event) { events <- e }) }()
		if e := <-events; e.Revision != 1 || string(e.Put[0].Value) != "x" {
			t.Errorf("the past: %+v", e)
		}
		commitOK(t, s, Txn{Delete: []Key{{"a", "1"}}})
		if e := <-events; e.Revision != 2 || e.Delete[0] != (Key{"a", "1"}) {
			t.Errorf("the present: %+v", e)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		go func() { done <- s.Watch(t.Context(), 2, func(Event) {}) }()
		s.Close()
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Errorf("ended with %v", err)
		}
		if _, err := s.Commit(t.Context(), Txn{Put: []Record{put("a", "1", "x")}}); !errors.Is(err, ErrClosed) {
			t.Errorf("commit after close: %v", err)
		}
	})
}

func TestWatchTooOld(t *testing.T) {
	m := NewMemory()
	for range 2*logKeep + 1 {
		commitOK(t, m, Txn{Put: []Record{put("a", "1", "x")}})
	}
	if err := m.Watch(t.Context(), 1, func(Event) {}); !errors.Is(err, ErrCompacted) {
		t.Errorf("memory: %v", err)
	}
	s, _ := openTemp(t)
	commitOK(t, s, Txn{Put: []Record{put("a", "1", "x")}})
	commitOK(t, s, Txn{Put: []Record{put("a", "1", "y")}})
	if _, err := s.(*sqliteStore).db.Exec("DELETE FROM log WHERE revision = 1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Watch(t.Context(), 0, func(Event) {}); !errors.Is(err, ErrCompacted) {
		t.Errorf("sqlite: %v", err)
	}
}

func TestReopen(t *testing.T) {
	s, path := openTemp(t)
	commitOK(t, s, Txn{Put: []Record{put("a", "1", "x")}})
	want := dump(t, s)
	if _, err := OpenSQLite(path); err == nil || !strings.Contains(err.Error(), "another coordinator") {
		t.Errorf("a second coordinator on the file: %v", err)
	}
	s.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", info.Mode(), err)
	}
	os.Chmod(path, 0o644)
	s, err := OpenSQLite(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := dump(t, s); got != want {
		t.Errorf("reopened as %q, want %q", got, want)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("reopened with mode %v", info.Mode())
	}
}

// A file that is not a whole store of ours is told from the other kinds, and left as it is.
func TestOpenRefuses(t *testing.T) {
	s, ours := openTemp(t)
	for i := range 200 {
		commitOK(t, s, Txn{Put: []Record{put("a", strconv.Itoa(i), strings.Repeat("x", 500))}})
	}
	s.Close()
	whole, err := os.ReadFile(ours)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(at int, with ...byte) []byte {
		b := slices.Clone(whole)
		copy(b[at:], with)
		return b
	}
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"empty":           {[]byte{}, "remove it to start a new mesh"},
		"text":            {[]byte("hello, this is a note to myself\n"), "not a database"},
		"another program": {edit(68, 0, 0, 0, 0), "another program"},
		"newer":           {edit(60, 0, 0, 0, 9), "newer release"},
		"cut":             {whole[:len(whole)/2], "damaged"},
		"overwritten":     {edit(8192, make([]byte, 20_000)...), "damaged"},
	} {
		path := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := OpenSQLite(path)
		if err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if after, _ := os.ReadFile(path); string(after) != string(c.content) {
			t.Errorf("%s: the file was changed", name)
		}
	}
	if _, err := OpenSQLite(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := OpenSQLite(filepath.Join(t.TempDir(), "none", "state.db")); err == nil || !strings.Contains(err.Error(), "make the directory") {
		t.Errorf("no directory: %v", err)
	}
	if os.Getuid() != 0 {
		os.Chmod(ours, 0o400)
		if _, err := OpenSQLite(ours); err == nil || !strings.Contains(err.Error(), "who owns the file") {
			t.Errorf("an unwritable file: %v", err)
		}
	}
}

// What was acknowledged survives the death of the process, at whatever moment.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	last := 0
	for round := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STORE_TEST_WRITER="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 5 + 7*round {
			if !lines.Scan() {
				t.Fatal("the writer stopped")
			}
			last, _ = strconv.Atoi(lines.Text())
		}
		cmd.Process.Kill()
		for lines.Scan() { // acknowledged before it died
			if n, err := strconv.Atoi(lines.Text()); err == nil {
				last = n
			}
		}
		cmd.Wait()
		s, err := OpenSQLite(path)
		if err != nil {
			t.Fatal(err)
		}
		snap, err := s.Load(t.Context())
		s.Close()
		if err != nil {
			t.Fatal(err)
		}
		if snap.Revision < uint64(last) || len(snap.Records) != int(snap.Revision) {
			t.Fatalf("round %d: %d were acknowledged; revision %d with %d records is left", round, last, snap.Revision, len(snap.Records))
		}
	}
}

func writeUntilKilled(path string) {
	s, err := OpenSQLite(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	snap, err := s.Load(context.Background())
	for n := snap.Revision + 1; err == nil; n++ {
		if n, err = s.Commit(context.Background(), Txn{Put: []Record{put("n", strconv.FormatUint(n, 10), "x")}}); err == nil {
			_, err = io.WriteString(os.Stdout, strconv.FormatUint(n, 10)+"\n")
		}
	}
	os.Exit(1)
}

func BenchmarkCommit(b *testing.B) {
	s, err := OpenSQLite(filepath.Join(b.TempDir(), "state.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	value := []byte(strings.Repeat("x", 800))
	for i := 0; b.Loop(); i++ {
		id := strconv.Itoa(i)
		_, err := s.Commit(context.Background(), Txn{
			Compare: []Cond{{Key{"node", id}, 0}, {Key{"addr", id}, 0}},
			Put:     []Record{{Key: Key{"node", id}, Value: value}, {Key: Key{"addr", id}}, {Key: Key{"key", id}}},
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
