package coordinator

import (
	"iter"

	"github.com/google/btree"
)

// table is a sorted map whose copies share all that they do not change: a mesh's state is copied at each change of it.
type table[K comparable, V any] struct{ tree *btree.BTreeG[row[K, V]] }

type row[K comparable, V any] struct {
	key K
	val V
}

func newTable[K comparable, V any](compare func(a, b K) int) table[K, V] {
	return table[K, V]{btree.NewG(16, func(a, b row[K, V]) bool { return compare(a.key, b.key) < 0 })}
}

// copy is not for two at a time; others may read meanwhile.
func (t table[K, V]) copy() table[K, V] { return table[K, V]{t.tree.Clone()} }

// get returns the zero value for what is not there.
func (t table[K, V]) get(k K) V {
	r, _ := t.tree.Get(row[K, V]{key: k})
	return r.val
}

func (t table[K, V]) len() int { return t.tree.Len() }

// put and remove are for a table that is being made.
func (t table[K, V]) put(k K, v V) { t.tree.ReplaceOrInsert(row[K, V]{k, v}) }
func (t table[K, V]) remove(k K)   { t.tree.Delete(row[K, V]{key: k}) }

// from yields what is at k and after it, in order.
func (t table[K, V]) from(k K) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		t.tree.AscendGreaterOrEqual(row[K, V]{key: k}, func(r row[K, V]) bool { return yield(r.key, r.val) })
	}
}

// all yields what is in the table, in order.
func (t table[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		t.tree.Ascend(func(r row[K, V]) bool { return yield(r.key, r.val) })
	}
}
