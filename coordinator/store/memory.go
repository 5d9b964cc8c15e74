package store

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// logKeep is how many past revisions Watch can start from.
const logKeep = 10_000

// memory is the whole of a Store's meaning, without a disk. The conformance tests hold the others to it.
type memory struct {
	mu       sync.Mutex
	revision uint64
	records  map[Key]Record
	log      []Event // ascending; the last logKeep
	news     news
}

// NewMemory returns a Store that lives in memory.
func NewMemory() Store { return &memory{records: map[Key]Record{}, news: newNews()} }

func (m *memory) Load(ctx context.Context) (Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.news.usable(ctx); err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{Revision: m.revision, Records: make([]Record, 0, len(m.records))}
	for _, r := range m.records {
		r.Value = slices.Clone(r.Value)
		s.Records = append(s.Records, r)
	}
	slices.SortFunc(s.Records, func(a, b Record) int { return byKey(a.Key, b.Key) })
	return s, nil
}

func byKey(a, b Key) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID)) }

func (m *memory) Commit(ctx context.Context, t Txn) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.news.usable(ctx); err != nil {
		return 0, err
	}
	if err := t.valid(); err != nil {
		return 0, err
	}
	for _, c := range t.Compare {
		if m.records[c.Key].Revision != c.Revision {
			return 0, ErrConflict
		}
	}
	m.revision++
	e := t.event(m.revision)
	for _, k := range e.Delete {
		delete(m.records, k)
	}
	for _, r := range e.Put {
		m.records[r.Key] = r
	}
	m.log = append(m.log, e)
	if len(m.log) >= 2*logKeep {
		m.log = slices.Clone(m.log[len(m.log)-logKeep:])
	}
	m.news.tell()
	return m.revision, nil
}

func (m *memory) Watch(ctx context.Context, from uint64, f func(Event)) error {
	return m.news.watch(ctx, from, f, func(from uint64) ([]Event, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if from >= m.revision {
			return nil, nil
		}
		if from+1 < m.log[0].Revision {
			return nil, ErrCompacted
		}
		return m.log[from+1-m.log[0].Revision:], nil
	})
}

func (m *memory) Close() error {
	m.news.close()
	return nil
}
