package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"github.com/fxamacker/cbor/v2"
	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"
)

// The file says whose it is (PRAGMA application_id, "Hedg") and of which schema (PRAGMA user_version).
const (
	applicationID = 0x48656467
	schemaVersion = 1
	schema        = `
CREATE TABLE meta   (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE record (kind TEXT NOT NULL, id TEXT NOT NULL, value BLOB NOT NULL, revision INTEGER NOT NULL,
                     PRIMARY KEY (kind, id)) STRICT, WITHOUT ROWID;
CREATE TABLE log    (revision INTEGER PRIMARY KEY, event BLOB NOT NULL) STRICT;
INSERT INTO meta VALUES ('revision', 0);`
)

// pragmas: WAL, so that a commit is one append; FULL, because what a node was told (an address, that a key is used up)
// must not be untold by a power cut, and enrolments are rare enough to pay for it; EXCLUSIVE, because the coordinator
// decides from memory, and a second one on the same file would decide from something else.
const pragmas = `PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;`

type sqliteStore struct {
	path string
	news news

	mu sync.Mutex // one writer; guards db against Close
	db *sql.DB
}

// OpenSQLite opens the store in the file at path, and creates it (mode 0600) if it is not there. A file that is not a
// whole store of ours is left as it is, and the error says what to do about it.
func OpenSQLite(path string) (Store, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(path); err != nil {
			return nil, err
		}
		info, err = os.Lstat(path)
	}
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := looksLikeOurs(path, info); err != nil {
		return nil, err
	}
	db, err := open(path)
	if err != nil {
		return nil, err
	}
	s := &sqliteStore{path: path, news: newNews(), db: db}
	if err := s.inspect(); err != nil {
		db.Close()
		return nil, err
	}
	return s, nil
}

func open(path string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	u := url.URL{Scheme: "file", Path: abs, RawQuery: url.Values{
		"mode": {"rw"}, "_txlock": {"immediate"},
		"_pragma": {"busy_timeout(2000)", "locking_mode(EXCLUSIVE)"},
	}.Encode()}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// create makes the file whole before it has its name, so that one that is cut short is never ours.
func create(path string) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("store: cannot create %s: %w; make the directory, and let this user write to it", path, err)
	}
	tmp := f.Name()
	f.Close()
	defer func() {
		for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
			os.Remove(tmp + suffix)
		}
	}()
	db, err := open(tmp)
	if err != nil {
		return err
	}
	_, err = db.Exec(fmt.Sprintf("BEGIN; %s PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT; PRAGMA journal_mode = WAL;",
		schema, applicationID, schemaVersion))
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("store: cannot create %s: %w", path, err)
	}
	if err := os.Link(tmp, path); err != nil { // not Rename: it must not replace what another has made meanwhile
		return fmt.Errorf("store: cannot create %s: %w", path, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	defer d.Close()
	return d.Sync()
}

func looksLikeOurs(path string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("store: %s is not a regular file; name another place for the coordinator's state", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("store: cannot write to the coordinator's state: %w; run as the user who owns the file, or give it to this one", err)
	}
	defer f.Close()
	if info.Size() == 0 {
		return fmt.Errorf("store: %s is empty: it was cut short, and the mesh it held is not in it; "+
			"put a backup in its place, or remove it to start a new mesh", path)
	}
	head := make([]byte, 16)
	if _, err := io.ReadFull(f, head); err != nil || !bytes.Equal(head, []byte("SQLite format 3\x00")) {
		return fmt.Errorf("store: %s is not a database; it was left as it is: name another file, "+
			"or put a backup in its place", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		if err := f.Chmod(0o600); err != nil {
			return fmt.Errorf("store: others may read %s: %w", path, err)
		}
	}
	return nil
}

// inspect reads before anything writes.
func (s *sqliteStore) inspect() error {
	var id, version int
	if err := s.db.QueryRow("PRAGMA application_id").Scan(&id); err != nil {
		return s.explain(err)
	}
	if err := s.db.QueryRow("PRAGMA user_version").Scan(&version); err != nil {
		return s.explain(err)
	}
	if id != applicationID {
		return fmt.Errorf("store: %s is a database of another program; it was left as it is: name another file", s.path)
	}
	if version > schemaVersion {
		return fmt.Errorf("store: %s was written by a newer release of Hedge (schema %d, this one knows %d); use that release",
			s.path, version, schemaVersion)
	}
	var found string
	if err := s.db.QueryRow("PRAGMA quick_check(1)").Scan(&found); err != nil {
		return s.explain(err)
	}
	if found != "ok" {
		return s.damaged(found)
	}
	if _, err := s.db.Exec(pragmas); err != nil {
		return s.explain(err)
	}
	return nil
}

func (s *sqliteStore) damaged(why string) error {
	return fmt.Errorf("store: %s is damaged (%s); it was left as it is: copy it and its -wal file away, then put a backup in its place", s.path, why)
}

// explain says what an error of SQLite's means to an operator.
func (s *sqliteStore) explain(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("store: %w", err)
	}
	switch e.Code() & 0xff {
	case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB:
		return s.damaged(e.Error())
	case lib.SQLITE_BUSY, lib.SQLITE_LOCKED:
		return fmt.Errorf("store: %s is in use: is another coordinator running? (%w)", s.path, e)
	case lib.SQLITE_READONLY, lib.SQLITE_CANTOPEN, lib.SQLITE_PERM:
		return fmt.Errorf("store: cannot write to %s or beside it: let this user write to its directory (%w)", s.path, e)
	case lib.SQLITE_FULL:
		return fmt.Errorf("store: no space left for %s: nothing was changed; make room (%w)", s.path, e)
	}
	return fmt.Errorf("store: %s: %w", s.path, e)
}

func (s *sqliteStore) Load(ctx context.Context) (Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.news.usable(ctx); err != nil {
		return Snapshot{}, err
	}
	var out Snapshot
	tx, err := s.db.Begin()
	if err != nil {
		return Snapshot{}, s.explain(err)
	}
	defer tx.Rollback()
	if err := tx.QueryRow("SELECT value FROM meta WHERE name = 'revision'").Scan(&out.Revision); err != nil {
		return Snapshot{}, s.explain(err)
	}
	rows, err := tx.Query("SELECT kind, id, value, revision FROM record ORDER BY kind, id")
	if err != nil {
		return Snapshot{}, s.explain(err)
	}
	defer rows.Close()
	for rows.Next() {
		var r Record
		if err := rows.Scan(&r.Kind, &r.ID, &r.Value, &r.Revision); err != nil {
			return Snapshot{}, s.explain(err)
		}
		out.Records = append(out.Records, r)
	}
	if err := rows.Err(); err != nil {
		return Snapshot{}, s.explain(err)
	}
	return out, nil
}

// Commit does not stop in the middle when ctx ends: the caller always learns whether it happened.
func (s *sqliteStore) Commit(ctx context.Context, t Txn) (uint64, error) {
	if err := t.valid(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.news.usable(ctx); err != nil {
		return 0, err
	}
	tx, err := s.db.Begin()
	if err != nil {
		return 0, s.explain(err)
	}
	defer tx.Rollback()
	revision, err := commit(tx, &t)
	if err == nil {
		err = tx.Commit()
	}
	if errors.Is(err, ErrConflict) {
		return 0, err
	}
	if err != nil {
		return 0, s.explain(err)
	}
	s.news.tell()
	return revision, nil
}

func commit(tx *sql.Tx, t *Txn) (revision uint64, err error) {
	for _, c := range t.Compare {
		var have uint64
		err := tx.QueryRow("SELECT revision FROM record WHERE kind = ? AND id = ?", c.Kind, c.ID).Scan(&have)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return 0, err
		}
		if have != c.Revision {
			return 0, ErrConflict
		}
	}
	if err := tx.QueryRow("UPDATE meta SET value = value + 1 WHERE name = 'revision' RETURNING value").Scan(&revision); err != nil {
		return 0, err
	}
	for _, k := range t.Delete {
		if _, err := tx.Exec("DELETE FROM record WHERE kind = ? AND id = ?", k.Kind, k.ID); err != nil {
			return 0, err
		}
	}
	for _, r := range t.Put {
		value := r.Value
		if value == nil {
			value = []byte{}
		}
		if _, err := tx.Exec("INSERT INTO record VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value, revision = excluded.revision",
			r.Kind, r.ID, value, revision); err != nil {
			return 0, err
		}
	}
	event, err := cbor.Marshal(t.event(revision))
	if err != nil {
		return 0, err
	}
	if _, err := tx.Exec("INSERT INTO log VALUES (?, ?)", revision, event); err != nil {
		return 0, err
	}
	if revision > logKeep {
		if _, err := tx.Exec("DELETE FROM log WHERE revision <= ?", revision-logKeep); err != nil {
			return 0, err
		}
	}
	return revision, nil
}

func (s *sqliteStore) Watch(ctx context.Context, from uint64, f func(Event)) error {
	return s.news.watch(ctx, from, f, func(from uint64) ([]Event, error) { return s.since(ctx, from) })
}

// since reads the log in pages, so that a watcher that is far behind holds neither the store nor its memory for long.
func (s *sqliteStore) since(ctx context.Context, from uint64) ([]Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.news.usable(ctx); err != nil {
		return nil, err
	}
	rows, err := s.db.Query("SELECT revision, event FROM log WHERE revision > ? ORDER BY revision LIMIT 256", from)
	if err != nil {
		return nil, s.explain(err)
	}
	defer rows.Close()
	var out []Event
	for rows.Next() {
		var revision uint64
		var b []byte
		if err := rows.Scan(&revision, &b); err != nil {
			return nil, s.explain(err)
		}
		if revision != from+uint64(len(out))+1 {
			return nil, ErrCompacted
		}
		var e Event
		if err := cbor.Unmarshal(b, &e); err != nil {
			return nil, s.damaged("log: " + err.Error())
		}
		out = append(out, e)
	}
	return out, rows.Err()
}

func (s *sqliteStore) Close() error {
	s.news.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db.Close()
}
