package node

import (
	"slices"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/bind"
)

// relayMap is web's, with a rule that lets web and db use gw as a peer relay, which gw wants to be.
func relayMap() *wire.Map {
	m := testMap(someKey)
	m.Rules = []acl.Rule{{Path: "grants[0]", Action: acl.Relay, Src: []string{"users"}, Dst: []acl.Target{{Set: "tag:gw"}}}}
	m.Sets = map[string]acl.Set{"users": {Nodes: []acl.NodeID{1, 2}}, "tag:gw": {Nodes: []acl.NodeID{3}}}
	m.Presence = map[acl.NodeID]wire.Presence{2: {ID: 2, Online: true}, 3: {ID: 3, Online: true, PeerRelay: true}}
	return m
}

// TestHops: which relays are asked. One that the policy lets neither end use refuses.
func TestHops(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*wire.Map)
		want   bool
	}{
		{name: "granted to both", want: true},
		{name: "only this node may", change: func(m *wire.Map) { m.Sets["users"] = acl.Set{Nodes: []acl.NodeID{1}} }, want: true},
		{name: "only the other may", change: func(m *wire.Map) { m.Sets["users"] = acl.Set{Nodes: []acl.NodeID{2}} }, want: true},
		{name: "only the other may, of which nobody else is told", change: func(m *wire.Map) { m.Rules, m.Sets = nil, nil }, want: true},
		{name: "it does not want to be one, or the policy does not", change: func(m *wire.Map) { m.Presence[3] = wire.Presence{ID: 3, Online: true} }},
		{name: "nobody knows where it is", change: func(m *wire.Map) { delete(m.Presence, 3) }},
		{name: "its key has expired", change: func(m *wire.Map) { m.Peers[1].Expires = someDay }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := relayMap()
			if tt.change != nil {
				tt.change(m)
			}
			for _, p := range pathsOf(m, someDay, false) {
				var want []bind.Hop
				if p.Key == m.Peers[0].Key && tt.want {
					want = []bind.Hop{{Relay: m.Peers[1].Key, Name: "gw"}}
				}
				if !slices.Equal(p.Hops, want) {
					t.Errorf("to %s by %v, want %v", p.Key.Short(), p.Hops, want)
				}
			}
		})
	}
}

// TestRelaysGranted: which this node may use itself.
func TestRelaysGranted(t *testing.T) {
	end := someDay.Add(time.Hour)
	for _, tt := range []struct {
		name    string
		change  func(*wire.Map)
		now     time.Time
		doubted bool
		want    bool
	}{
		{name: "granted", want: true},
		{name: "granted to all", change: func(m *wire.Map) { m.Sets["users"] = acl.Set{Any: true} }, want: true},
		{name: "no rule", change: func(m *wire.Map) { m.Rules = nil }},
		{name: "a rule about packets", change: func(m *wire.Map) { m.Rules[0].Action = acl.Accept }},
		{name: "only the other may", change: func(m *wire.Map) { m.Sets["users"] = acl.Set{Nodes: []acl.NodeID{2}} }},
		{name: "the rule will end", change: func(m *wire.Map) { m.Rules[0].Expires = end }, want: true},
		{name: "the rule has ended", change: func(m *wire.Map) { m.Rules[0].Expires = end }, now: end},
		{name: "the rule may have ended", change: func(m *wire.Map) { m.Rules[0].Expires = end }, doubted: true},
		{name: "the clock is in doubt, and nobody asks it", doubted: true, want: true},
		{name: "out of its window", change: func(m *wire.Map) { m.Rules[0].Window = "Mon-Fri 08:00-18:00 UTC" }},
		{name: "addresses behind the router are not the router", change: func(m *wire.Map) { m.Sets["tag:gw"] = acl.Set{Prefixes: m.Peers[1].Routes[:1]} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := relayMap()
			if tt.change != nil {
				tt.change(m)
			}
			now := someDay
			if !tt.now.IsZero() {
				now = tt.now
			}
			if got := len(relaysFor(m, relayRules(m, now, tt.doubted), now)) == 1; got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

// TestRelayUsers is the relay's own view of the same.
func TestRelayUsers(t *testing.T) {
	m := relayMap()
	m.Sets = map[string]acl.Set{"users": {Nodes: []acl.NodeID{2, 3}}, "tag:gw": {Nodes: []acl.NodeID{1}}}
	m.Rules[0].Expires = someDay.Add(time.Hour)
	p, err := planFor(m, someKey, nil, someDay, false)
	if err != nil || len(p.users) != 2 || !p.next.Equal(m.Rules[0].Expires) {
		t.Errorf("users %v, next %v, %v", p.users, p.next, err)
	}
	if p, _ := planFor(m, someKey, nil, someDay, true); len(p.users) != 0 {
		t.Errorf("with the clock in doubt: %v", p.users)
	}
	if p, _ := planFor(m, someKey, nil, p.next, false); len(p.users) != 0 {
		t.Errorf("after its end: %v", p.users)
	}
	ends := someDay.Add(time.Minute)
	m.Peers[0].Expires = ends // its pairs end with its key, also while the coordinator is down
	if p, _ := planFor(m, someKey, nil, someDay, false); len(p.users) != 2 || !p.next.Equal(ends) {
		t.Errorf("before a user's key expires: %v, next %v", p.users, p.next)
	}
	if p, _ := planFor(m, someKey, nil, ends, false); len(p.users) != 1 || p.users[0] != m.Peers[1].Key {
		t.Errorf("after a user's key has expired: %v", p.users)
	}
}

// TestHopsOrder: relays that both are granted come first, then those that one is or may be.
func TestHopsOrder(t *testing.T) {
	m := relayMap()
	for id, name := range []string{4: "mine", 5: "theirs"} {
		if name != "" {
			p := m.Peers[1]
			p.ID, p.Name = acl.NodeID(id), name
			m.Peers = append(m.Peers, p)
			m.Presence[p.ID] = wire.Presence{ID: p.ID, Online: true, PeerRelay: true}
		}
	}
	m.Rules = append(m.Rules, acl.Rule{Action: acl.Relay, Src: []string{"me"}, Dst: []acl.Target{{Set: "mine"}}})
	m.Sets["me"], m.Sets["mine"] = acl.Set{Nodes: []acl.NodeID{1}}, acl.Set{Nodes: []acl.NodeID{4}}
	slices.Reverse(m.Peers)
	var names []string
	i := slices.IndexFunc(m.Peers, func(p wire.Peer) bool { return p.ID == 2 })
	for _, h := range hopsOf(m, someDay, false)(&m.Peers[i]) {
		names = append(names, h.Name)
	}
	if !slices.Equal(names, []string{"gw", "mine", "theirs"}) {
		t.Error(names)
	}
}

// TestRelayOrder: relays that are there come first, in the same order at both ends.
func TestRelayOrder(t *testing.T) {
	m := relayMap()
	m.Presence[2] = wire.Presence{ID: 2, Online: false, PeerRelay: true}
	m.Sets["tag:gw"] = acl.Set{Nodes: []acl.NodeID{2, 3}}
	m.Sets["users"] = acl.Set{Any: true}
	var names []string
	for _, p := range relaysFor(m, relayRules(m, someDay, false), someDay) {
		names = append(names, p.Name)
	}
	if !slices.Equal(names, []string{"gw", "db"}) {
		t.Errorf("%v: one that is away comes last", names)
	}
}
