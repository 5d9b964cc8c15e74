package coordinator

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/store"
	"github.com/hedge-mesh/hedge/node/key"
)

// The kinds of records. Those of the second group are there to be unique: each holds the number of the node that has
// the name, address or key.
const (
	kindNode    = "node"    // by number
	kindUser    = "user"    // by login
	kindKey     = "key"     // by its public part
	kindGone    = "gone"    // by machine key: an admin removed it
	kindCounter = "counter" // "node": the last number given
	kindPolicy  = "policy"  // "active"
	kindCarrier = "carrier" // by route: who of several carries it

	kindName    = "name"
	kindAddr    = "addr"
	kindMachine = "machine"
	kindNodeKey = "nodekey"
)

// node, user, joinKey and their kin are values of the store. They are never changed once they are in a state: a change
// makes a new one.
type node struct {
	ID        acl.NodeID        `json:"id"`
	Name      string            `json:"name"`
	User      string            `json:"user,omitempty"`
	Tags      []string          `json:"tags,omitempty"`
	Addrs     []netip.Addr      `json:"addrs"`
	Machine   key.MachinePublic `json:"machine"`
	Key       key.NodePublic    `json:"key"`
	Created   time.Time         `json:"created"`
	Expires   time.Time         `json:"expires"`
	Ephemeral bool              `json:"ephemeral,omitempty"`
	OS        string            `json:"os,omitempty"`
	Software  string            `json:"software,omitempty"`
	JoinKey   string            `json:"joinKey,omitempty"` // the ID of the one that let it in last

	Advertised []netip.Prefix `json:"advertised,omitempty"` // it offers to carry; sorted
	Approved   []netip.Prefix `json:"approved,omitempty"`   // by an admin; sorted
	Revoked    []netip.Prefix `json:"revoked,omitempty"`    // by an admin, whatever the policy says; sorted
}

func (n *node) expired(now time.Time) bool { return !n.Expires.IsZero() && !now.Before(n.Expires) }

// acl is what the policy may know of the node, but for its routes, of which the policy has a say.
func (n *node) acl() acl.Node {
	return acl.Node{ID: n.ID, Name: n.Name, User: n.User, Tags: n.Tags, Addrs: n.Addrs,
		Attrs: map[string]string{"node:os": n.OS}}
}

func (n *node) owner() string {
	if len(n.Tags) > 0 {
		return fmt.Sprint(n.Tags)
	}
	return n.User
}

type user struct {
	Login   string    `json:"login"`
	Roles   []string  `json:"roles,omitempty"`
	Created time.Time `json:"created"`
}

type joinKey struct {
	ID        string    `json:"id"`
	Hash      []byte    `json:"hash"` // SHA-256 of the secret, which has 160 bits
	User      string    `json:"user,omitempty"`
	Tags      []string  `json:"tags,omitempty"`
	Reusable  bool      `json:"reusable,omitempty"`
	Ephemeral bool      `json:"ephemeral,omitempty"`
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires"`
	Uses      int       `json:"uses"`
	Revoked   bool      `json:"revoked,omitempty"`
}

func (k *joinKey) owner() string { return (&node{User: k.User, Tags: k.Tags}).owner() }

// tombstone remembers that an admin removed a machine's node, so that the machine can be told.
type tombstone struct {
	Name string    `json:"name"`
	When time.Time `json:"when"`
}

// policyRecord is the last policy that was put in force.
type policyRecord struct {
	Source []byte    `json:"source"`
	Since  time.Time `json:"since"`

	hash   string
	parsed *acl.Policy
}

// state is everything durable, with its indices. It does not change: apply makes the next one.
type state struct {
	revision uint64 // of the store
	nodes    table[acl.NodeID, *node]
	users    map[string]*user
	keys     map[string]*joinKey
	gone     map[key.MachinePublic]*tombstone
	carriers map[netip.Prefix]*carriers // of routes that several nodes carry
	lastID   acl.NodeID
	policy   *policyRecord

	byMachine table[key.MachinePublic, *node]
	byKey     table[key.NodePublic, *node]
	byName    table[string, *node]
	byAddr    table[netip.Addr, *node]
	due       table[due, *node]        // those whose key expires, by when
	offering  table[acl.NodeID, *node] // those that offer routes

	revs table[store.Key, uint64] // of node, key and counter records: what a change compares
}

func newState() *state {
	return &state{
		nodes: newTable[acl.NodeID, *node](cmp.Compare[acl.NodeID]), users: map[string]*user{}, keys: map[string]*joinKey{},
		gone: map[key.MachinePublic]*tombstone{}, carriers: map[netip.Prefix]*carriers{},
		byMachine: newTable[key.MachinePublic, *node](compareKeys), byKey: newTable[key.NodePublic, *node](compareKeys),
		byName: newTable[string, *node](strings.Compare), byAddr: newTable[netip.Addr, *node](netip.Addr.Compare),
		due: newTable[due, *node](compareDue), offering: newTable[acl.NodeID, *node](cmp.Compare[acl.NodeID]),
		revs: newTable[store.Key, uint64](compareRecords),
	}
}

// due is when the key of a node expires.
type due struct {
	when time.Time
	id   acl.NodeID
}

func compareDue(a, b due) int { return cmp.Or(a.when.Compare(b.when), cmp.Compare(a.id, b.id)) }

func compareRecords(a, b store.Key) int {
	return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.ID, b.ID))
}

func compareKeys[K interface{ Raw() [key.Size]byte }](a, b K) int {
	x, y := a.Raw(), b.Raw()
	return bytes.Compare(x[:], y[:])
}

// change is what a transition asks for. A nil value in a map deletes.
type change struct {
	nodes    map[acl.NodeID]*node
	users    map[string]*user
	keys     map[string]*joinKey
	gone     map[key.MachinePublic]*tombstone
	carriers map[netip.Prefix]*carriers
	lastID   acl.NodeID
	policy   *policyRecord
}

func idOf(n acl.NodeID) string { return strconv.FormatUint(uint64(n), 10) }

// unique lists the records that make a node's name, addresses and keys its own.
func (n *node) unique() []store.Key {
	if n == nil {
		return nil
	}
	ks := []store.Key{{Kind: kindName, ID: n.Name}, {Kind: kindMachine, ID: n.Machine.String()}, {Kind: kindNodeKey, ID: n.Key.String()}}
	for _, a := range n.Addrs {
		ks = append(ks, store.Key{Kind: kindAddr, ID: a.String()})
	}
	return ks
}

// txn is the change as the store makes it: all or nothing, and only if what it was decided upon still stands and
// every name, address and key it takes is free.
func (s *state) txn(c change) (store.Txn, error) {
	var t store.Txn
	var failed error
	put := func(k store.Key, v any) {
		b, err := cbor.Marshal(v)
		if err != nil {
			failed = err
		}
		t.Put = append(t.Put, store.Record{Key: k, Value: b})
	}
	compare := func(k store.Key) { t.Compare = append(t.Compare, store.Cond{Key: k, Revision: s.revs.get(k)}) }
	for id, n := range c.nodes {
		k := store.Key{Kind: kindNode, ID: idOf(id)}
		compare(k)
		had, has := s.nodes.get(id).unique(), n.unique()
		for _, u := range had {
			if !slices.Contains(has, u) {
				t.Delete = append(t.Delete, u)
			}
		}
		for _, u := range has {
			if !slices.Contains(had, u) {
				t.Compare = append(t.Compare, store.Cond{Key: u})
				put(u, id)
			}
		}
		if n == nil {
			t.Delete = append(t.Delete, k)
		} else {
			put(k, n)
		}
	}
	for login, u := range c.users {
		k := store.Key{Kind: kindUser, ID: login}
		compare(k)
		put(k, u)
	}
	for id, j := range c.keys {
		k := store.Key{Kind: kindKey, ID: id}
		compare(k)
		put(k, j)
	}
	for m, g := range c.gone {
		k := store.Key{Kind: kindGone, ID: m.String()}
		if g == nil {
			t.Delete = append(t.Delete, k)
		} else {
			put(k, g)
		}
	}
	for r, o := range c.carriers {
		k := store.Key{Kind: kindCarrier, ID: r.String()}
		compare(k)
		if o == nil {
			t.Delete = append(t.Delete, k)
		} else {
			put(k, o)
		}
	}
	if c.lastID != 0 {
		k := store.Key{Kind: kindCounter, ID: "node"}
		compare(k)
		put(k, c.lastID)
	}
	if c.policy != nil {
		put(store.Key{Kind: kindPolicy, ID: "active"}, c.policy)
	}
	return t, failed
}

// apply returns the state after a change that the store has committed at revision.
func (s *state) apply(c change, t store.Txn, revision uint64) *state {
	n := *s
	n.revision = revision
	n.revs = s.revs.copy()
	for _, r := range t.Put {
		n.revs.put(r.Key, revision)
	}
	for _, k := range t.Delete {
		n.revs.remove(k)
	}
	if len(c.nodes) > 0 {
		n.nodes, n.byMachine, n.byKey = s.nodes.copy(), s.byMachine.copy(), s.byKey.copy()
		n.byName, n.byAddr, n.due, n.offering = s.byName.copy(), s.byAddr.copy(), s.due.copy(), s.offering.copy()
		for id, is := range c.nodes {
			n.setNode(id, is)
		}
	}
	n.users = merged(s.users, c.users)
	n.keys = merged(s.keys, c.keys)
	n.gone = merged(s.gone, c.gone)
	n.carriers = merged(s.carriers, c.carriers)
	if c.lastID != 0 {
		n.lastID = c.lastID
	}
	if c.policy != nil {
		n.policy = c.policy
	}
	return &n
}

func merged[K comparable, V any](old, changed map[K]*V) map[K]*V {
	if len(changed) == 0 {
		return old
	}
	out := maps.Clone(old)
	for k, v := range changed {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = v
		}
	}
	return out
}

// setNode keeps the indices in step. It is for a state that is being made.
func (s *state) setNode(id acl.NodeID, is *node) {
	if was := s.nodes.get(id); was != nil {
		s.byMachine.remove(was.Machine)
		s.byKey.remove(was.Key)
		s.byName.remove(was.Name)
		for _, a := range was.Addrs {
			s.byAddr.remove(a)
		}
		s.due.remove(due{was.Expires, id})
		s.offering.remove(id)
		s.nodes.remove(id)
	}
	if is == nil {
		return
	}
	s.nodes.put(id, is)
	s.byMachine.put(is.Machine, is)
	s.byKey.put(is.Key, is)
	s.byName.put(is.Name, is)
	if !is.Expires.IsZero() {
		s.due.put(due{is.Expires, id}, is)
	}
	if len(is.Advertised) > 0 {
		s.offering.put(id, is)
	}
	for _, a := range is.Addrs {
		s.byAddr.put(a, is)
	}
}

// load makes the state of what the store holds.
func load(snap store.Snapshot) (*state, error) {
	s := newState()
	s.revision = snap.Revision
	for _, r := range snap.Records {
		if err := s.loadRecord(r); err != nil {
			return nil, fmt.Errorf("coordinator: the store's record %s/%s does not read: %w; restore a backup", r.Kind, r.ID, err)
		}
		s.revs.put(r.Key, r.Revision)
	}
	return s, nil
}

func (s *state) loadRecord(r store.Record) error {
	switch r.Kind {
	case kindNode:
		n := new(node)
		if err := cbor.Unmarshal(r.Value, n); err != nil {
			return err
		}
		s.setNode(n.ID, n)
	case kindUser:
		u := new(user)
		s.users[r.ID] = u
		return cbor.Unmarshal(r.Value, u)
	case kindKey:
		k := new(joinKey)
		s.keys[r.ID] = k
		return cbor.Unmarshal(r.Value, k)
	case kindGone:
		var m key.MachinePublic
		if err := m.UnmarshalText([]byte(r.ID)); err != nil {
			return err
		}
		g := new(tombstone)
		s.gone[m] = g
		return cbor.Unmarshal(r.Value, g)
	case kindCarrier:
		var p netip.Prefix
		if err := p.UnmarshalText([]byte(r.ID)); err != nil {
			return err
		}
		o := new(carriers)
		s.carriers[p] = o
		return cbor.Unmarshal(r.Value, o)
	case kindCounter:
		return cbor.Unmarshal(r.Value, &s.lastID)
	case kindPolicy:
		s.policy = new(policyRecord)
		return cbor.Unmarshal(r.Value, s.policy)
	}
	return nil
}

func nodeKeyOf(id acl.NodeID) store.Key { return store.Key{Kind: kindNode, ID: idOf(id)} }
