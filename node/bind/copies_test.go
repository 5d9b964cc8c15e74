package bind

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/node/path"
)

// A relay passes messages on by UDP and by WebSocket where it is in doubt: a report of loss that comes twice is one.
func TestCopiedMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := meet(t, 1, "easy", "easy")
		defer m.end()
		m.shake()
		m.talk(3*time.Second, nil)
		box, err := path.NewBox(m.b.cfg.Disco, m.a.peer(1).Disco)
		if err != nil {
			t.Fatal(err)
		}
		report := box.Seal(nil, path.Loss{PerMille: 200})
		copied := func() { m.a.fromRelay(1, m.b.cfg.Node, [][]byte{slices.Clone(report)}) }
		copied()
		m.talk(time.Second, nil) // in which it is seen that long packets still pass
		for range 5 {
			copied()
		}
		synctest.Wait()
		if i := m.path(m.a, m.b); !i.Direct {
			t.Errorf("one report, six times, made it leave the path: %s", i.Why)
		}
		for range 2 {
			m.a.fromRelay(1, m.b.cfg.Node, [][]byte{box.Seal(nil, path.Loss{PerMille: 200})})
		}
		synctest.Wait()
		if i := m.path(m.a, m.b); i.Direct {
			t.Error("two more did not")
		}
	})
}
