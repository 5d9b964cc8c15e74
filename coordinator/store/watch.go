package store

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Limits on what one transaction may hold; more is a mistake of the caller's.
const (
	maxOps   = 1024
	maxValue = 2 << 20
)

func (t *Txn) valid() error {
	if len(t.Put)+len(t.Delete) == 0 || len(t.Put)+len(t.Delete)+len(t.Compare) > maxOps {
		return fmt.Errorf("store: a transaction of %d changes and %d conditions", len(t.Put)+len(t.Delete), len(t.Compare))
	}
	seen := make(map[Key]bool, len(t.Put)+len(t.Delete))
	twice := func(k Key) error {
		if k.Kind == "" || k.ID == "" || seen[k] {
			return fmt.Errorf("store: a transaction that changes %s/%s twice, or what has no name", k.Kind, k.ID)
		}
		seen[k] = true
		return nil
	}
	for _, r := range t.Put {
		if err := twice(r.Key); err != nil {
			return err
		}
		if len(r.Value) > maxValue {
			return fmt.Errorf("store: %s/%s has %d bytes, more than %d", r.Kind, r.ID, len(r.Value), maxValue)
		}
	}
	for _, k := range t.Delete {
		if err := twice(k); err != nil {
			return err
		}
	}
	return nil
}

// event is the transaction as committed: a copy of the caller's values.
func (t *Txn) event(revision uint64) Event {
	e := Event{Revision: revision, Delete: slices.Clone(t.Delete)}
	for _, r := range t.Put {
		e.Put = append(e.Put, Record{Key: r.Key, Value: slices.Clone(r.Value), Revision: revision})
	}
	return e
}

// news wakes watchers, and knows whether the store is open.
type news struct {
	mu     *sync.Mutex
	next   *chan struct{} // closed upon the next commit
	closed chan struct{}
}

func newNews() news {
	next := make(chan struct{})
	return news{mu: new(sync.Mutex), next: &next, closed: make(chan struct{})}
}

func (n news) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return *n.next
}

func (n news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(*n.next)
	*n.next = make(chan struct{})
}

func (n news) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.closed:
	default:
		close(n.closed)
	}
}

func (n news) usable(ctx context.Context) error {
	select {
	case <-n.closed:
		return ErrClosed
	default:
		return ctx.Err()
	}
}

// watch calls f with what since returns, over and over.
func (n news) watch(ctx context.Context, from uint64, f func(Event), since func(uint64) ([]Event, error)) error {
	for {
		next := n.wait() // before looking, so that nothing falls between
		if err := n.usable(ctx); err != nil {
			return err
		}
		events, err := since(from)
		if err != nil {
			return err
		}
		for _, e := range events {
			f(e)
			from = e.Revision
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-next:
		case <-n.closed:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
