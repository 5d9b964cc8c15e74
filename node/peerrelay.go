package node

import (
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/key"
)

// Peer relays: who may be whose is in the rules of action acl.Relay, and who is one, its presence says.
//
//	rules, presences ─▶ hopsOf   which peers may be relays between each peer and us        bind.SetPeers
//	rules, --peer-relay ─▶ usersOf   which peers may use this node as one                  bind.SetPeerRelay

// relayRules are those in force. With the clock in doubt those that ask for the time are not: they allow.
func relayRules(m *wire.Map, now time.Time, doubted bool) (out []acl.Rule) {
	for i := range m.Rules {
		r := &m.Rules[i]
		if r.Action == acl.Relay && r.InForce(now) && (!doubted || r.Window == "" && r.Expires.IsZero()) {
			out = append(out, *r)
		}
	}
	return out
}

// usersOf are the peers that may use this node as their relay.
func usersOf(m *wire.Map, now time.Time, doubted bool) (out []key.NodePublic) {
	rules := relayRules(m, now, doubted)
	for i := range m.Peers {
		if p := &m.Peers[i]; len(rules) > 0 && !expired(p, now) && acl.MayRelay(rules, m.Sets, &p.Node, &m.Self.Node, now) != nil {
			out = append(out, p.Key)
		}
	}
	return out
}

// relaysFor are the peers that are relays, and that this node may use, those first that are there: both ends of a pair see
// them in the same order.
func relaysFor(m *wire.Map, rules []acl.Rule, now time.Time) []*wire.Peer {
	granted, _ := relaysOfPeers(m, rules, now)
	return granted
}

// relaysOfPeers are the peers that are relays: those that this node may use, and the rest, by which peers that may use them
// may reach this node. Which peers these are it is not told, and can only ask the relay; that the policy has it be one, the
// coordinator vouches for.
func relaysOfPeers(m *wire.Map, rules []acl.Rule, now time.Time) (granted, rest []*wire.Peer) {
	for _, there := range []bool{true, false} {
		for i := range m.Peers {
			p := &m.Peers[i]
			w := m.Presence[p.ID]
			switch {
			case !w.PeerRelay || w.Online != there || expired(p, now):
			case acl.MayRelay(rules, m.Sets, &m.Self.Node, &p.Node, now) != nil:
				granted = append(granted, p)
			default:
				rest = append(rest, p)
			}
		}
	}
	return granted, rest
}

// hopsOf are the relays by which a peer and this node may be able to reach each other: one of the two is granted its use,
// and both know it. First those that both are granted, then those that this node is, or may be the peer.
func hopsOf(m *wire.Map, now time.Time, doubted bool) func(*wire.Peer) []bind.Hop {
	rules := relayRules(m, now, doubted)
	granted, rest := relaysOfPeers(m, rules, now)
	return func(p *wire.Peer) (out []bind.Hop) {
		for _, both := range []bool{true, false} {
			for _, r := range granted {
				if r.ID != p.ID && (acl.MayRelay(rules, m.Sets, &p.Node, &r.Node, now) != nil) == both {
					out = append(out, bind.Hop{Relay: r.Key, Name: r.Name})
				}
			}
		}
		for _, r := range rest {
			if r.ID != p.ID {
				out = append(out, bind.Hop{Relay: r.Key, Name: r.Name})
			}
		}
		return out
	}
}

func expired(p *wire.Peer, now time.Time) bool {
	return !p.Expires.IsZero() && !now.Before(p.Expires)
}

// PeerRelay is what this node does as a relay for its peers.
type PeerRelay struct {
	Users   int         `json:"users"` // peers that the policy lets use it
	Pairs   []RelayPair `json:"pairs"` // of them, that do
	Packets uint64      `json:"packets"`
	Bytes   uint64      `json:"bytes"`
	Refused uint64      `json:"refused"`         // asks for a way
	Limited uint64      `json:"limited_packets"` // held back by the rate of a pair
	Forged  uint64      `json:"forged_packets"`  // not genuine, or copies
	Unmet   uint64      `json:"unmet_packets"`   // dropped, for the other end had not come, or is not known to be where it says
}

// RelayPair is two peers that reach each other by this node.
type RelayPair struct {
	A       string    `json:"a"`
	B       string    `json:"b"`
	Open    bool      `json:"open"` // both have come
	Since   time.Time `json:"since"`
	Packets uint64    `json:"packets"`
	Bytes   uint64    `json:"bytes"`
}

// peerRelay is the part of Status; nil if this node is no relay.
func (n *Node) peerRelay(m *wire.Map, now time.Time) *PeerRelay {
	if !n.Routing().PeerRelay {
		return nil
	}
	s := n.bind.PeerRelayStats()
	out := &PeerRelay{Users: len(usersOf(m, now, n.enforce.doubted())), Pairs: []RelayPair{}, Packets: s.Packets, Bytes: s.Bytes,
		Refused: s.Refused, Limited: s.Limited, Forged: s.Forged, Unmet: s.Unmet}
	name := func(k key.NodePublic) string {
		if i := slices.IndexFunc(m.Peers, func(p wire.Peer) bool { return p.Key == k }); i >= 0 {
			return m.Peers[i].Name
		}
		return k.Short()
	}
	for _, p := range s.Pairs {
		out.Pairs = append(out.Pairs, RelayPair{name(p.A), name(p.B), p.Open, p.Since, p.Packets, p.Bytes})
	}
	return out
}

// PeerRelayCheck is a peer relay as this node sees it.
type PeerRelayCheck struct {
	Name   string `json:"name"`
	Online bool   `json:"online"`
	Path   Path   `json:"path"`  // to it: it serves only if that is direct
	Peers  int    `json:"peers"` // that may use it, too
}

// peerRelays are those that this node may use.
func (n *Node) peerRelays(m *wire.Map, now time.Time) []PeerRelayCheck {
	out := []PeerRelayCheck{}
	if m == nil {
		return out
	}
	rules := relayRules(m, now, n.enforce.doubted())
	for _, r := range relaysFor(m, rules, now) {
		c := PeerRelayCheck{Name: r.Name, Online: m.Presence[r.ID].Online, Path: Path{Kind: "none"}}
		if p, ok := n.bind.Path(r.Key); ok {
			c.Path = pathOf(p)
		}
		for i := range m.Peers {
			if p := &m.Peers[i]; p.ID != r.ID && acl.MayRelay(rules, m.Sets, &p.Node, &r.Node, now) != nil {
				c.Peers++
			}
		}
		out = append(out, c)
	}
	return out
}
