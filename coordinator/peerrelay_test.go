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

	// One that no rule makes a relay is not told to be one, whatever it says.
	web.mu.Lock()
	fake := web.conn
	web.mu.Unlock()
	fake.Send(&wire.Here{PeerRelay: true})
	conn.Send(&wire.Here{PeerRelay: true, Relay: 1})
	db.until("the hub is a relay again", func() bool { return db.m.Presence[hub.id()].PeerRelay })
	fake.Send(&wire.Here{PeerRelay: true, Relay: 7})
	db.until("web has spoken", func() bool { return db.m.Presence[web.id()].Relay == 7 })
	if db.now().Presence[web.id()].PeerRelay {
		t.Error("a node that the policy does not make a relay is told to be one")
	}

	if err := os.WriteFile(filepath.Join(r.dir, "acl.hujson"), []byte(testPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	web.sees("db")
	hub.sees()
	if uses(web, web, hub) || uses(hub, web, hub) {
		t.Error("the grant is gone, and not from the maps")
	}
}

// TestPeerRelayVouched: a node is told to be a peer relay while a rule makes it one, also to those that the rule is not
// about.
func TestPeerRelayVouched(t *testing.T) {
	open := `"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]`
	with := `{` + open + `, "grants": [{"src": ["carol@example.com"], "dst": ["alice@example.com"], "app": {"tailscale.com/cap/relay": []}}]}`
	r := newRig(t, `{`+open+`}`, nil)
	hub := r.node("hub", r.key(CreateKeyRequest{User: alice})).join()
	bob := r.node("bob", r.key(CreateKeyRequest{User: "bob@example.com"})).join()
	hub.mu.Lock()
	conn := hub.conn
	hub.mu.Unlock()
	conn.Send(&wire.Here{PeerRelay: true, Relay: 7})
	bob.until("the hub has spoken", func() bool { return bob.m.Presence[hub.id()].Relay == 7 })
	if bob.now().Presence[hub.id()].PeerRelay {
		t.Error("without a grant it is told to be a relay")
	}
	set := func(policy string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(r.dir, "acl.hujson"), []byte(policy), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set(with)
	bob.until("the hub is a relay", func() bool { return bob.m.Presence[hub.id()].PeerRelay })
	set(`{` + open + `}`)
	bob.until("the hub is none", func() bool { return !bob.m.Presence[hub.id()].PeerRelay })
}
