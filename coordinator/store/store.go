// Package store keeps a coordinator's durable state: small records, changed by transactions that compare first.
//
//	Load ──▶ Snapshot{Revision, Records}
//	Commit(Txn{Compare, Put, Delete}) ──▶ the new revision, durable    or ErrConflict: Load again and decide anew
//	Watch(from) ──▶ Event, Event, …  gapless                            or ErrCompacted: Load again
//
// [OpenSQLite] keeps it in one file; [NewMemory] is the same without one. What the records mean is the coordinator's
// business: uniqueness is a record per unique thing, compared to be absent.
package store

import (
	"context"
	"errors"
)

// Store is where a coordinator keeps what must survive it. All methods may be called at once.
type Store interface {
	// Load returns everything, consistent as of Snapshot.Revision.
	Load(ctx context.Context) (Snapshot, error)
	// Commit makes all of the transaction or nothing of it, and returns its revision once it is durable.
	Commit(ctx context.Context, t Txn) (uint64, error)
	// Watch calls f with each transaction after revision from, in order and without gaps, until ctx ends.
	Watch(ctx context.Context, from uint64, f func(Event)) error
	Close() error
}

// Key names a record.
type Key struct{ Kind, ID string }

// Record is a value and the revision that wrote it.
type Record struct {
	Key
	Value    []byte
	Revision uint64 // ignored by Put
}

// Snapshot is all records at one revision, sorted by Key.
type Snapshot struct {
	Revision uint64
	Records  []Record
}

// Cond holds if the record's revision is this one; 0 means that there is no such record.
type Cond struct {
	Key
	Revision uint64
}

// Txn changes records if all of Compare hold.
type Txn struct {
	Compare []Cond
	Put     []Record
	Delete  []Key
}

// Event is one committed transaction.
type Event struct {
	Revision uint64
	Put      []Record
	Delete   []Key
}

// The errors that callers tell apart.
var (
	ErrConflict  = errors.New("store: the records have changed since they were read")
	ErrCompacted = errors.New("store: changes that old are no longer kept")
	ErrClosed    = errors.New("store: closed")
)
