package coordinator

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
)

const relayPolicy = `{
	"tagOwners": {"tag:web": ["alice@example.com"], "tag:db": ["alice@example.com"]},
	"acls": [{"action": "accept", "src": ["tag:web"], "proto": "tcp", "dst": ["tag:db:5432"]}],
	"grants": [{"src": ["tag:web", "tag:db"], "dst": ["alice@example.com"], "app": {"tailscale.com/cap/relay": []}}],
}`

// TestPeerRelay: who may use a relay, the relay, and nobody else are told of it, that it is one, and when the grant is gone.
func TestPeerRelay(t *testing.T) {
	r := newRig(t, relayPolicy, nil)
	hub := r.node("hub", r.key(CreateKeyRequest{User: alice})).join()
	web := r.node("web", r.key(CreateKeyRequest{Tags: []string{"tag:web"}})).join()
	db := r.node("db", r.key(CreateKeyRequest{Tags: []string{"tag:db"}})).join()
	other := r.node("other", r.key(CreateKeyRequest{User: "bob@example.com"})).join()
	web.sees("db", "hub")
	db.sees("hub", "web")
	hub.sees("db", "web")
	other.sees()

	uses := func(at, src, dst *testNode) bool {
		m := at.now()
		find := func(n *testNode) *acl.Node {
			if n.id() == m.Self.ID {
				return &m.Self.Node
			}
			i := slices.IndexFunc(m.Peers, func(p wire.Peer) bool { return p.ID == n.id() })
			if i < 0 {
				return nil
			}
			return &m.Peers[i].Node
		}
		s, d := find(src), find(dst)
		return s != nil && d != nil && acl.MayRelay(m.Rules, m.Sets, s, d, time.Now()) != nil
	}
	for _, at := range []*testNode{web, db, hub} {
		if !uses(at, web, hub) || !uses(at, db, hub) || uses(at, hub, web) {
			t.Errorf("by the map of %s: web %v, db %v, hub %v", at.name(), uses(at, web, hub), uses(at, db, hub), uses(at, hub, web))
		}
	}
	hub.mu.Lock()
	conn := hub.conn
	hub.mu.Unlock()
	if err := conn.Send(&wire.Here{PeerRelay: true}); err != nil {
		t.Fatal(err)
	}
	web.until("the hub is a relay", func() bool { return web.m.Presence[hub.id()].PeerRelay })
	db.until("the hub is a relay", func() bool { return db.m.Presence[hub.id()].PeerRelay })
	conn.Send(&wire.Here{})
	web.until("the hub is none", func() bool { return !web.m.Presence[hub.id()].PeerRelay })

	if err := os.WriteFile(filepath.Join(r.dir, "acl.hujson"), []byte(testPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	web.sees("db")
	hub.sees()
	if uses(web, web, hub) || uses(hub, web, hub) {
		t.Error("the grant is gone, and not from the maps")
	}
}
