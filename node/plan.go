package node

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/acl/filter"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/key"
)

// plan is what a Map means to this node at one moment: a pure function of the two.
//
//	Map, now ── planFor ──▶ filter  who may do what            filter.Set
//	                        paths   where peers can be found   bind.SetPeers
//	                        users   who may be relayed         bind.SetPeerRelay
//	                        wg      keys and their addresses   roster.set
//	                        routes  what is behind peers       dialling
//	                        next    when to ask again          a timer
type plan struct {
	filter  *filter.Config
	paths   []bind.Peer
	users   []key.NodePublic                  // who may use this node as a peer relay
	wg      map[key.NodePublic][]netip.Prefix // allowed addresses, sorted
	next    time.Time                         // the first expiry to come; zero for none
	owner   map[netip.Addr]key.NodePublic     // of addresses that are a peer's own
	routes  []Route                           // the longest first
	routers map[key.NodePublic]bool           // who carries one of them
}

// planFor fails if the Map is another node's. exit is the peer of the Map by which the node reaches the internet, or
// nil: the routes of other exits are left out, from the filter as well. doubted is whether the clock is in doubt. That no two
// peers of a Map share an address, which is what ties a packet to an identity, is what [wire.Map.Apply] and [wire.DecodeMap]
// have made sure of.
func planFor(m *wire.Map, self key.NodePublic, exit *wire.Peer, now time.Time, doubted bool) (*plan, error) {
	p := &plan{wg: make(map[key.NodePublic][]netip.Prefix, len(m.Peers))}
	if m.Self.Key != self {
		return nil, fmt.Errorf("map %d is for the node key %s, this node's is %s", m.Revision, m.Self.Key.Short(), self.Short())
	}
	p.expires(m.Self.Expires, now)
	keys := make(map[acl.NodeID]key.NodePublic, len(m.Peers))
	peers := make([]acl.Node, 0, len(m.Peers))
	for i := range m.Peers {
		peer := &m.Peers[i]
		if p.expires(peer.Expires, now) {
			continue // whatever the coordinator says or does not say: the record itself ends the key
		}
		n := peer.Node
		n.Routes = used(peer, exit)
		peers = append(peers, n)
		p.wg[peer.Key], keys[peer.ID] = hosts(peer.Addrs), peer.Key
	}
	p.owner = make(map[netip.Addr]key.NodePublic, 2*len(p.wg))
	for k, list := range p.wg {
		for _, a := range list {
			p.owner[a.Addr()] = k
		}
	}
	p.routes = routesInUse(m, exit, func(x *wire.Peer) bool { _, there := keys[x.ID]; return !there })
	p.routers = make(map[key.NodePublic]bool)
	for _, r := range p.routes {
		p.wg[keys[r.Via]] = append(p.wg[keys[r.Via]], r.Prefix)
		p.routers[keys[r.Via]] = true
	}
	for k := range p.wg {
		slices.SortFunc(p.wg[k], netip.Prefix.Compare)
	}
	p.paths, p.users = pathsOf(m, now, doubted), usersOf(m, now, doubted)
	for i := range m.Rules {
		if r := &m.Rules[i]; r.Action == acl.Relay { // of the others the filter knows
			p.expires(r.Next(now), now)
		}
	}
	p.filter = &filter.Config{
		Self: m.Self.Node, Peers: peers, Mesh: m.Self.Prefixes, Revision: m.Revision,
		View: acl.View{Rules: m.Rules, Sets: m.Sets, Peers: ids(peers)},
	}
	return p, nil
}

// pathsOf is where the peers of a Map can be found, and by which peer relays.
func pathsOf(m *wire.Map, now time.Time, doubted bool) []bind.Peer {
	hops := hopsOf(m, now, doubted)
	out := make([]bind.Peer, 0, len(m.Peers))
	for i := range m.Peers {
		p := &m.Peers[i]
		if expired(p, now) {
			continue
		}
		w := m.Presence[p.ID]
		out = append(out, bind.Peer{Key: p.Key, Disco: w.Disco, Endpoints: w.Endpoints, Relay: w.Relay, Lacks: w.Lacks, Hops: hops(p)})
	}
	return out
}

// expires reports whether a key has ended, and else notes when it will.
func (p *plan) expires(t, now time.Time) bool {
	if t.IsZero() {
		return false
	}
	if !now.Before(t) {
		return true
	}
	if p.next.IsZero() || t.Before(p.next) {
		p.next = t
	}
	return false
}

// hosts are the prefixes of single addresses.
func hosts(addrs []netip.Addr) []netip.Prefix {
	out := make([]netip.Prefix, len(addrs))
	for i, a := range addrs {
		out[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return out
}

func ids(nodes []acl.Node) []acl.NodeID {
	out := make([]acl.NodeID, len(nodes))
	for i := range nodes {
		out[i] = nodes[i].ID
	}
	return out
}

// wgDiff is what turns a device that has the peers old into one that has new, in WireGuard's configuration protocol
// (https://www.wireguard.com/xplatform/#configuration-protocol); empty if there is nothing to do. Peers that stay as
// they are keep their sessions. New ones come first: an address that moves is then never nobody's.
func wgDiff(old, new map[key.NodePublic][]netip.Prefix) string {
	var b strings.Builder
	digits := func(k key.NodePublic) string { r := k.Raw(); return hex.EncodeToString(r[:]) }
	for _, k := range sorted(new) {
		had, known := old[k]
		if known && slices.Equal(had, new[k]) {
			continue
		}
		fmt.Fprintf(&b, "public_key=%s\n", digits(k))
		if known {
			b.WriteString("replace_allowed_ips=true\n")
		} else {
			fmt.Fprintf(&b, "endpoint=%s\n", digits(k)) // of our bind: the peer itself, by whatever path
		}
		for _, a := range new[k] {
			fmt.Fprintf(&b, "allowed_ip=%s\n", a)
		}
	}
	for _, k := range sorted(old) {
		if _, stays := new[k]; !stays {
			fmt.Fprintf(&b, "public_key=%s\nremove=true\n", digits(k))
		}
	}
	return b.String()
}

// sorted makes the order of a configuration the same each time.
func sorted(m map[key.NodePublic][]netip.Prefix) []key.NodePublic {
	ks := make([]key.NodePublic, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	slices.SortFunc(ks, func(a, b key.NodePublic) int {
		x, y := a.Raw(), b.Raw()
		return slices.Compare(x[:], y[:])
	})
	return ks
}
