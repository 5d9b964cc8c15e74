package coordinator

import (
	"testing"

	"github.com/hedge-mesh/hedge/coordinator/store"
)

// Whatever is in the store, it is loaded or refused, and what is loaded can be asked.
func FuzzRecord(f *testing.F) {
	kinds := []string{kindNode, kindUser, kindKey, kindGone, kindPolicy, kindCarrier, kindCounter, "other"}
	for i := range kinds {
		f.Add(uint8(i), "1", []byte{0xa0})
		f.Add(uint8(i), "x", []byte{0xf6}) // null
	}
	f.Fuzz(func(t *testing.T, kind uint8, id string, value []byte) {
		s, err := load(store.Snapshot{Records: []store.Record{{Key: store.Key{Kind: kinds[int(kind)%len(kinds)], ID: id}, Value: value}}})
		if err != nil {
			return
		}
		_, _ = s.find("x.y")
	})
}
