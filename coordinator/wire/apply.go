package wire

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/node/key"
)

// Apply returns the Map that the Delta makes of m, and leaves m as it is; the two share what did not change. A nil
// m is a Map that has nothing. Any inconsistency is an error, upon which the node asks for the whole (Hello without
// revision and hashes).
//
// Without Reset the revision does not go back. With it, it may: a coordinator may have been restored from a backup.
func (m *Map) Apply(d *Delta) (*Map, error) {
	if m == nil {
		m = &Map{}
	}
	n := *m
	if d.Reset {
		n.Peers, n.Sets = nil, nil
	} else {
		if d.From != m.Revision {
			return nil, fmt.Errorf("wire: a change from revision %d does not fit a map of revision %d", d.From, m.Revision)
		}
		if d.Revision < m.Revision {
			return nil, fmt.Errorf("wire: a change to revision %d would undo revision %d", d.Revision, m.Revision)
		}
	}
	n.Revision = d.Revision
	if d.Self != nil {
		n.Self = *d.Self
	}
	if d.Rules != nil {
		n.Rules = *d.Rules
	}
	if d.Relays != nil {
		n.Relays = *d.Relays
	}
	var err error
	if n.Peers, err = applyPeers(n.Peers, d.Peers, d.PeersGone); err != nil {
		return nil, err
	}
	if n.Sets, err = applySets(n.Sets, d); err != nil {
		return nil, err
	}
	if err := n.check(); err != nil {
		return nil, err
	}
	n.Presence = maps.Clone(m.Presence)
	maps.DeleteFunc(n.Presence, func(id acl.NodeID, _ Presence) bool { return !n.sees(id) })
	return &n, nil
}

func byID(a, b Peer) int { return cmp.Compare(a.ID, b.ID) }

func findPeer(ps []Peer, id acl.NodeID) (int, bool) {
	return slices.BinarySearchFunc(ps, id, func(p Peer, id acl.NodeID) int { return cmp.Compare(p.ID, id) })
}

func (m *Map) sees(id acl.NodeID) bool {
	_, ok := findPeer(m.Peers, id)
	return ok
}

// Peer returns the record of a peer.
func (m *Map) Peer(id acl.NodeID) (*Peer, bool) {
	if i, ok := findPeer(m.Peers, id); ok {
		return &m.Peers[i], true
	}
	return nil, false
}

// ascending reports whether the values are strictly so: sorted, and each once.
func ascending[T any](s []T, by func(a, b T) int) bool {
	for i := 1; i < len(s); i++ {
		if by(s[i-1], s[i]) >= 0 {
			return false
		}
	}
	return true
}

func applyPeers(old, changed []Peer, gone []acl.NodeID) ([]Peer, error) {
	if len(changed) == 0 && len(gone) == 0 {
		return old, nil
	}
	if !ascending(changed, byID) || !ascending(gone, cmp.Compare[acl.NodeID]) {
		return nil, errors.New("wire: the changed peers are out of order")
	}
	for _, id := range gone {
		if _, ok := findPeer(old, id); !ok {
			return nil, fmt.Errorf("wire: peer %d is to go, and is not there", id)
		}
		if _, ok := findPeer(changed, id); ok {
			return nil, fmt.Errorf("wire: peer %d is both to go and to change", id)
		}
	}
	out := make([]Peer, 0, len(old)+len(changed)-len(gone))
	for len(old) > 0 || len(changed) > 0 {
		switch {
		case len(old) == 0 || len(changed) > 0 && changed[0].ID <= old[0].ID:
			if len(old) > 0 && old[0].ID == changed[0].ID {
				old = old[1:]
			}
			out, changed = append(out, changed[0]), changed[1:]
		case len(gone) > 0 && gone[0] == old[0].ID:
			old, gone = old[1:], gone[1:]
		default:
			out, old = append(out, old[0]), old[1:]
		}
	}
	return out, nil
}

func applySets(old map[string]acl.Set, d *Delta) (map[string]acl.Set, error) {
	if len(d.Sets) == 0 && len(d.SetsGone) == 0 && len(d.Members) == 0 {
		return old, nil
	}
	if !ascending(d.SetsGone, cmp.Compare[string]) ||
		!ascending(d.Members, func(a, b Membership) int { return cmp.Compare(a.Set, b.Set) }) {
		return nil, errors.New("wire: the changed sets are out of order")
	}
	out := maps.Clone(old)
	if out == nil {
		out = map[string]acl.Set{}
	}
	for _, name := range d.SetsGone {
		if _, ok := out[name]; !ok {
			return nil, fmt.Errorf("wire: set %q is to go, and is not there", name)
		}
		if _, ok := d.Sets[name]; ok {
			return nil, fmt.Errorf("wire: set %q is both to go and to change", name)
		}
		delete(out, name)
	}
	for _, c := range d.Members {
		s, ok := out[c.Set]
		if _, whole := d.Sets[c.Set]; !ok || whole {
			return nil, fmt.Errorf("wire: members of set %q change, which is not there or changes whole", c.Set)
		}
		var err error
		if s.Nodes, err = applyMembers(s.Nodes, c); err != nil {
			return nil, err
		}
		out[c.Set] = s
	}
	maps.Copy(out, d.Sets)
	return out, nil
}

func applyMembers(old []acl.NodeID, c Membership) ([]acl.NodeID, error) {
	if !ascending(c.Add, cmp.Compare[acl.NodeID]) || !ascending(c.Remove, cmp.Compare[acl.NodeID]) {
		return nil, fmt.Errorf("wire: the changed members of set %q are out of order", c.Set)
	}
	out := make([]acl.NodeID, 0, len(old)+len(c.Add))
	for _, id := range old {
		if _, ok := slices.BinarySearch(c.Remove, id); !ok {
			out = append(out, id)
		}
	}
	if len(out) != len(old)-len(c.Remove) {
		return nil, fmt.Errorf("wire: a node is to leave set %q, and is not in it", c.Set)
	}
	out = append(out, c.Add...)
	slices.Sort(out)
	if len(slices.Compact(slices.Clone(out))) != len(out) {
		return nil, fmt.Errorf("wire: a node is to join set %q, and is in it", c.Set)
	}
	return out, nil
}

// check reports what no honest coordinator would say: it is what keeps a Map from giving one node another's address.
func (m *Map) check() error {
	if m.Self.ID == 0 {
		return errors.New("wire: a map without this node's own record")
	}
	if !ascending(m.Peers, byID) {
		return errors.New("wire: the peers are out of order")
	}
	if !ascending(m.Relays, func(a, b Relay) int { return cmp.Compare(a.ID, b.ID) }) {
		return errors.New("wire: the relays are out of order")
	}
	names := make(map[string]acl.NodeID, len(m.Peers)+1)
	keys := make(map[key.NodePublic]acl.NodeID, len(m.Peers)+1)
	addrs := make(map[netip.Addr]acl.NodeID, 2*len(m.Peers)+2)
	if err := m.checkPeer(&m.Self.Peer, names, keys, addrs); err != nil {
		return err
	}
	for i := range m.Peers {
		if m.Peers[i].ID == m.Self.ID {
			return errors.New("wire: a node is its own peer")
		}
		if err := m.checkPeer(&m.Peers[i], names, keys, addrs); err != nil {
			return err
		}
	}
	return m.checkRules()
}

func (m *Map) checkPeer(p *Peer, names map[string]acl.NodeID, keys map[key.NodePublic]acl.NodeID, addrs map[netip.Addr]acl.NodeID) error {
	if p.ID == 0 || p.Name == "" || p.Key.IsZero() || len(p.Addrs) == 0 {
		return fmt.Errorf("wire: node %d lacks a number, a name, a key or an address", p.ID)
	}
	if !isLabel(p.Name) {
		return fmt.Errorf("wire: node %d has a name that is no DNS label, %.80q", p.ID, p.Name)
	}
	if other, ok := names[p.Name]; ok {
		return fmt.Errorf("wire: nodes %d and %d have the same name, %q", other, p.ID, p.Name)
	}
	if other, ok := keys[p.Key]; ok {
		return fmt.Errorf("wire: nodes %d and %d have the same key", other, p.ID)
	}
	names[p.Name], keys[p.Key] = p.ID, p.ID
	for _, a := range p.Addrs {
		if other, ok := addrs[a]; ok {
			return fmt.Errorf("wire: nodes %d and %d have the same address, %v", other, p.ID, a)
		}
		addrs[a] = p.ID
		if !slices.ContainsFunc(m.Self.Prefixes, func(x netip.Prefix) bool { return x.Contains(a) }) {
			return fmt.Errorf("wire: node %d has address %v, which is not of this mesh", p.ID, a)
		}
	}
	for _, r := range p.Routes {
		if err := CheckRoute(r, m.Self.Prefixes); err != nil {
			return fmt.Errorf("wire: node %d has a route that cannot be: %w", p.ID, err)
		}
	}
	return nil
}

// isLabel reports whether a name is one DNS label in lower case (RFC 1123 section 2.1): what else it could be, people and
// their terminals are spared.
func isLabel(s string) bool {
	return len(s) <= 63 && !strings.HasPrefix(s, "-") && !strings.HasSuffix(s, "-") &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func (m *Map) checkRules() error {
	for _, r := range m.Rules {
		for _, name := range r.Src {
			if _, ok := m.Sets[name]; !ok {
				return fmt.Errorf("wire: %s names set %q, which is not there", r.Path, name)
			}
		}
		for _, t := range r.Dst {
			if _, ok := m.Sets[t.Set]; !ok {
				return fmt.Errorf("wire: %s names set %q, which is not there", r.Path, t.Set)
			}
		}
	}
	for name, s := range m.Sets {
		if !ascending(s.Nodes, cmp.Compare[acl.NodeID]) {
			return fmt.Errorf("wire: the members of set %q are out of order", name)
		}
	}
	return nil
}

// See returns the Map with the soft plane's news. News of nodes that are not peers is skipped, and so are what
// is beyond MaxEndpoints and MaxLacks.
func (m *Map) See(w *Where) *Map {
	n := *m
	n.Presence = maps.Clone(m.Presence)
	if n.Presence == nil {
		n.Presence = map[acl.NodeID]Presence{}
	}
	for _, p := range w.Peers {
		if !n.sees(p.ID) {
			continue
		}
		p.Endpoints = p.Endpoints[:min(len(p.Endpoints), MaxEndpoints)]
		p.Lacks = p.Lacks[:min(len(p.Lacks), MaxLacks)]
		n.Presence[p.ID] = p
	}
	return &n
}
