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
		at := path.Order(0)
		loss := func() []byte {
			at = at.Next(time.Now())
			return box.Seal(nil, path.Loss{PerMille: 200, Over: 700 * time.Millisecond}, at)
		}
		report := loss()
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
			m.a.fromRelay(1, m.b.cfg.Node, [][]byte{loss()})
		}
		synctest.Wait()
		if i := m.path(m.a, m.b); i.Direct {
			t.Error("two more did not")
		}
	})
}

// A node's word on where it is, recorded by a relay and said again much later, changes nothing; what it says next does.
func TestOldHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := meet(t, 1, "easy", "easy")
		defer m.end()
		m.shake()
		m.talk(3*time.Second, nil)
		box, err := path.NewBox(m.b.cfg.Disco, m.a.peer(1).Disco)
		if err != nil {
			t.Fatal(err)
		}
		start := path.Order(time.Now().UnixNano())
		here := func(relay uint16, at path.Order) []byte {
			return box.Seal(nil, path.Here{Relay: relay, Endpoints: m.b.Endpoints()}, at)
		}
		hear := func(pkt []byte) (relay uint32) {
			m.a.fromRelay(1, m.b.cfg.Node, [][]byte{slices.Clone(pkt)})
			synctest.Wait()
			return m.a.table.Load().byNode[m.b.cfg.Node].relay.Load()
		}
		old, overtaken, late := here(7, start+1), here(8, start+2), here(9, start+3)
		if at := hear(old); at != 7 {
			t.Fatalf("at relay %d, want 7", at)
		}
		if at := hear(late); at != 9 {
			t.Fatalf("after a move at relay %d, want 9", at)
		}
		for range 2 {
			for _, pkt := range [][]byte{old, overtaken, late} {
				if at := hear(pkt); at != 9 {
					t.Errorf("an old word took it to relay %d", at)
				}
			}
			m.talk(20*time.Second, nil)
		}
		if i := m.path(m.a, m.b); !i.Direct {
			t.Errorf("old words made it leave the path: %s", i.Why)
		}
	})
}
