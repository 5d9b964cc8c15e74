package wire

import (
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// Diff is the smallest Delta with which old.Apply gives the durable plane of new. A nil old gives a Reset.
func Diff(old, new *Map) *Delta {
	if old == nil {
		return &Delta{Revision: new.Revision, Reset: true, Self: &new.Self, Peers: new.Peers, Rules: &new.Rules,
			Sets: new.Sets, Relays: &new.Relays}
	}
	d := &Delta{From: old.Revision, Revision: new.Revision}
	if !sameSelf(&old.Self, &new.Self) {
		d.Self = &new.Self
	}
	if !slices.EqualFunc(old.Rules, new.Rules, sameRule) {
		d.Rules = &new.Rules
	}
	if !slices.EqualFunc(old.Relays, new.Relays, sameRelay) {
		d.Relays = &new.Relays
	}
	diffPeers(d, old.Peers, new.Peers)
	diffSets(d, old.Sets, new.Sets)
	return d
}

func diffPeers(d *Delta, old, new []Peer) {
	for len(old) > 0 || len(new) > 0 {
		switch {
		case len(new) == 0 || len(old) > 0 && old[0].ID < new[0].ID:
			d.PeersGone, old = append(d.PeersGone, old[0].ID), old[1:]
		case len(old) == 0 || new[0].ID < old[0].ID:
			d.Peers, new = append(d.Peers, new[0]), new[1:]
		default:
			if !SamePeer(&old[0], &new[0]) {
				d.Peers = append(d.Peers, new[0])
			}
			old, new = old[1:], new[1:]
		}
	}
}

func diffSets(d *Delta, old, new map[string]acl.Set) {
	for _, name := range slices.Sorted(maps.Keys(new)) {
		was, is := old[name], new[name]
		_, known := old[name]
		switch {
		case known && sameSet(was, is):
		case known && was.Any == is.Any && slices.Equal(was.Prefixes, is.Prefixes):
			c := Membership{Set: name}
			c.Add, c.Remove = diffIDs(was.Nodes, is.Nodes)
			if len(c.Add)+len(c.Remove) <= len(is.Nodes) {
				d.Members = append(d.Members, c)
				continue
			}
			fallthrough // most of it is new
		default:
			if d.Sets == nil {
				d.Sets = map[string]acl.Set{}
			}
			d.Sets[name] = is
		}
	}
	for _, name := range slices.Sorted(maps.Keys(old)) {
		if _, ok := new[name]; !ok {
			d.SetsGone = append(d.SetsGone, name)
		}
	}
}

func diffIDs(old, new []acl.NodeID) (add, remove []acl.NodeID) {
	for len(old) > 0 || len(new) > 0 {
		switch {
		case len(new) == 0 || len(old) > 0 && old[0] < new[0]:
			remove, old = append(remove, old[0]), old[1:]
		case len(old) == 0 || new[0] < old[0]:
			add, new = append(add, new[0]), new[1:]
		default:
			old, new = old[1:], new[1:]
		}
	}
	return add, remove
}

// Empty reports whether the Delta changes nothing but the revision.
func (d *Delta) Empty() bool {
	return !d.Reset && d.Self == nil && len(d.Peers) == 0 && len(d.PeersGone) == 0 && d.Rules == nil &&
		len(d.Sets) == 0 && len(d.SetsGone) == 0 && len(d.Members) == 0 && d.Relays == nil
}

// The comparisons below look at each field; a test holds them to all fields of their types. Times count in seconds,
// as on the wire.

func sameTime(a, b time.Time) bool {
	return a.IsZero() == b.IsZero() && (a.IsZero() || a.Unix() == b.Unix())
}

func sameSelf(a, b *Self) bool {
	return SamePeer(&a.Peer, &b.Peer) && a.Domain == b.Domain && slices.Equal(a.Prefixes, b.Prefixes)
}

// SamePeer reports whether two records say the same.
func SamePeer(a, b *Peer) bool {
	return a.ID == b.ID && a.Name == b.Name && a.User == b.User && slices.Equal(a.Tags, b.Tags) &&
		slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Routes, b.Routes) && a.Key == b.Key && sameTime(a.Expires, b.Expires)
}

func sameRelay(a, b Relay) bool {
	return a.ID == b.ID && a.Key == b.Key && slices.Equal(a.URLs, b.URLs) && slices.Equal(a.STUN, b.STUN)
}

func sameSet(a, b acl.Set) bool {
	return a.Any == b.Any && slices.Equal(a.Nodes, b.Nodes) && slices.Equal(a.Prefixes, b.Prefixes)
}

func sameRule(a, b acl.Rule) bool {
	return a.Pos == b.Pos && a.Path == b.Path && a.Action == b.Action && slices.Equal(a.Src, b.Src) &&
		slices.EqualFunc(a.Dst, b.Dst, func(x, y acl.Target) bool { return x.Set == y.Set && slices.Equal(x.Ports, y.Ports) }) &&
		slices.Equal(a.Protos, b.Protos) && sameTime(a.Expires, b.Expires) && a.Window == b.Window
}

// The durable sections of a Map.
const (
	sectionSelf   = "self"
	sectionPeers  = "peers"
	sectionRules  = "rules"
	sectionSets   = "sets"
	sectionRelays = "relays"
)

// Hashes are those of the durable sections: of their deterministic CBOR. Nothing and an empty section are the same.
func (m *Map) Hashes() (Hashes, error) {
	h := make(Hashes, 5)
	for name, section := range map[string]any{
		sectionSelf:   m.Self,
		sectionPeers:  m.Peers,
		sectionRules:  m.Rules,
		sectionSets:   m.Sets,
		sectionRelays: m.Relays,
	} {
		b, err := encoder.Marshal(section)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(b)
		h[name] = sum[:]
	}
	return h, nil
}

// Missing is the Delta for a node that says it has revision and hashes: it holds the sections of new that differ, whole.
func Missing(revision uint64, have Hashes, new *Map) (*Delta, error) {
	if revision == 0 || len(have) == 0 || revision > new.Revision {
		return Diff(nil, new), nil
	}
	want, err := new.Hashes()
	if err != nil {
		return nil, err
	}
	differs := func(section string) bool { return string(have[section]) != string(want[section]) }
	d := &Delta{From: revision, Revision: new.Revision}
	if differs(sectionSelf) {
		d.Self = &new.Self
	}
	if differs(sectionRules) {
		d.Rules = &new.Rules
	}
	if differs(sectionRelays) {
		d.Relays = &new.Relays
	}
	if differs(sectionPeers) || differs(sectionSets) {
		d.Reset, d.Peers, d.Sets = true, new.Peers, new.Sets
	}
	return d, nil
}
