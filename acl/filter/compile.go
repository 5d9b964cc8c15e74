package filter

import (
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"
	"github.com/hedge-mesh/hedge/acl"
)

// snapshot is a compiled Config. Nothing in it changes, except that programs are filled in as they are needed.
//
//	address ─┬─ exact: a node's own ──┐
//	         └─ routes: longest prefix ┴─ place{owner, class as source, class as destination}
//
//	(class of source, class of destination) ─ program ─ protocol ─ interval of ports ─ cell{accept, deny}
type snapshot struct {
	conf     *Config   // nil denies everything
	base     time.Time // where the clock of flows begins
	epoch    uint32    // of the Set that made it; flows remember it
	rules    []acl.Rule
	expires  []int64 // by rule, Unix ns
	windowed []int32 // rules with a window
	timed    bool    // there are rules with a window or an end
	believed belief
	floor    int64 // Config.NotBefore, Unix ns
	doubt    Doubt
	names    map[acl.NodeID]string
	exact    exactTable
	routes   *bart.Table[place]
	classes  [][]int32     // class → sorted sets
	srcRules [][]int32     // set → rules that name it as a source
	dstRules [][]targetRef // set → targets that name it
	programs programCache
	plain    *sync.Map // cell → the portTable of it alone
}

type targetRef struct{ rule, target int32 }

// revision is that of the Config, 0 for none.
func (s *snapshot) revision() uint64 {
	if s.conf == nil {
		return 0
	}
	return s.conf.Revision
}

// peer is what outlives a snapshot: how many flows a peer has.
type peer struct {
	id       acl.NodeID
	flows    atomic.Int32
	frags    int32        // under the lock of fragments
	answered atomic.Int64 // when its allowance of answers is whole again, on the clock of flows
}

// How an address belongs to its owner.
type kind uint8

const (
	nobody kind = iota
	own         // one of its addresses
	route       // in a prefix it carries
	exit        // only in a /0 it carries
)

// place is all that rules can know of an address: to whom it belongs by the longest prefix, and its classes. If a
// peer and this node carry the same prefix (two exits, two routers of one network) it may belong to either.
type place struct {
	owner      *peer // nil for no peer
	kind       kind  // of the peer's claim
	here       kind  // of this node's claim
	src, dst   int32 // classes, as the peer's
	hsrc, hdst int32 // classes, as ours
}

// internet is the set that alone, with Any, reaches through an exit route: a rule for 10.0.0.0/8 means the router of
// that network and not whoever is an exit.
const internet = "autogroup:internet"

// compiler holds what is needed only while compiling.
type compiler struct {
	*snapshot
	peers    []*peer // as in conf
	setIDs   map[string]int32
	anySets  []int32
	webSets  []int32 // named internet
	nodeSets map[acl.NodeID][]int32
	covers   bart.Table[cover]
	classIDs map[string]int32
	key      []byte
}

// cover is what a prefix inherits from the prefixes around it.
type cover struct {
	sets  []int32
	owner *peer
	kind  kind
	here  kind
}

func compile(c *Config, epoch uint32, peerOf func(acl.NodeID) *peer) *snapshot {
	s := &snapshot{conf: c, epoch: epoch, rules: c.View.Rules, routes: new(bart.Table[place]), plain: new(sync.Map),
		names: make(map[acl.NodeID]string, len(c.Peers)+1)}
	k := &compiler{snapshot: s, setIDs: make(map[string]int32), nodeSets: make(map[acl.NodeID][]int32, len(c.Peers)+1),
		classIDs: make(map[string]int32)}
	k.names[c.Self.ID] = c.Self.Name
	for i := range c.Peers {
		k.names[c.Peers[i].ID] = c.Peers[i].Name
		k.peers = append(k.peers, peerOf(c.Peers[i].ID))
	}
	if !c.NotBefore.IsZero() {
		k.floor = c.NotBefore.UnixNano()
	}
	k.indexRules()
	k.indexSets()
	k.indexPrefixes()
	k.indexAddrs()
	k.programs.init(len(k.classes))
	return s
}

func (k *compiler) setID(name string) int32 {
	id, ok := k.setIDs[name]
	if !ok {
		id = int32(len(k.setIDs))
		k.setIDs[name] = id
		k.srcRules = append(k.srcRules, nil)
		k.dstRules = append(k.dstRules, nil)
	}
	return id
}

func (k *compiler) indexRules() {
	k.expires = make([]int64, len(k.rules))
	for i := range k.rules {
		r := &k.rules[i]
		k.expires[i] = unixNano(r.Expires)
		if r.Window != "" {
			k.windowed = append(k.windowed, int32(i))
		}
		k.timed = k.timed || r.Window != "" || !r.Expires.IsZero()
		if r.Action != acl.Accept && r.Action != acl.Deny {
			continue
		}
		for _, name := range r.Src {
			id := k.setID(name)
			k.srcRules[id] = append(k.srcRules[id], int32(i))
		}
		for j := range r.Dst {
			id := k.setID(r.Dst[j].Set)
			k.dstRules[id] = append(k.dstRules[id], targetRef{int32(i), int32(j)})
		}
	}
}

// unixNano is t in Unix ns: the zero time is never, and so is what does not fit.
func unixNano(t time.Time) int64 {
	switch {
	case t.IsZero() || t.Year() > 2261:
		return math.MaxInt64
	case t.Year() < 1678:
		return math.MinInt64
	}
	return t.UnixNano()
}

// indexSets finds the members of the sets that rules name.
func (k *compiler) indexSets() {
	prefixes := make(map[netip.Prefix][]int32)
	names := make([]string, len(k.setIDs))
	for name, id := range k.setIDs {
		names[id] = name
	}
	for i, name := range names {
		id, set := int32(i), k.conf.View.Sets[name]
		if set.Any {
			k.anySets = append(k.anySets, id)
		}
		if strings.HasPrefix(name, internet) {
			k.webSets = append(k.webSets, id)
		}
		for _, n := range set.Nodes {
			if l := k.nodeSets[n]; len(l) == 0 || l[len(l)-1] != id {
				k.nodeSets[n] = append(l, id)
			}
		}
		for _, p := range set.Prefixes {
			if p = clean(p); p.IsValid() {
				prefixes[p] = append(prefixes[p], id)
			}
		}
	}
	k.inherit(prefixes, k.owners(prefixes))
}

// owners says whose the routes are, and names them among prefixes.
func (k *compiler) owners(prefixes map[netip.Prefix][]int32) map[netip.Prefix]cover {
	owners := make(map[netip.Prefix]cover)
	enter := func(p netip.Prefix, c cover) {
		owners[p] = c
		if _, named := prefixes[p]; !named {
			prefixes[p] = nil
		}
	}
	var mesh []netip.Prefix
	exits := false
	for _, p := range k.conf.Mesh {
		if p = clean(p); p.IsValid() {
			mesh = append(mesh, p)
			enter(p, cover{}) // whatever is routed around it
		}
	}
	claim := func(n *acl.Node, as func(c *cover, how kind)) {
		for _, p := range n.Routes {
			if p = clean(p); !p.IsValid() || slices.ContainsFunc(mesh, func(m netip.Prefix) bool { return within(p, m) }) {
				continue
			}
			c := owners[p]
			as(&c, kindOfRoute(p))
			enter(p, c)
			exits = exits || p.Bits() == 0
		}
	}
	for i := range k.conf.Peers {
		claim(&k.conf.Peers[i], func(c *cover, how kind) {
			if c.owner == nil {
				c.owner, c.kind = k.peers[i], how
			}
		})
	}
	claim(&k.conf.Self, func(c *cover, how kind) { c.here = how })
	for _, p := range private() {
		if _, named := prefixes[p]; exits && !named {
			prefixes[p] = nil
		}
	}
	return owners
}

// private is what no exit carries: only a router's own route leads there.
var private = sync.OnceValue(acl.NotInternet)

// online takes from c what an exit claims of p and may not have.
func (c *cover) online(p netip.Prefix) {
	if !slices.Contains(private(), p) {
		return
	}
	if c.kind == exit {
		c.owner, c.kind = nil, nobody
	}
	if c.here == exit {
		c.here = nobody
	}
}

// within reports whether all of p is in m.
func within(p, m netip.Prefix) bool { return m.Bits() <= p.Bits() && m.Contains(p.Addr()) }

func kindOfRoute(p netip.Prefix) kind {
	if p.Bits() == 0 {
		return exit
	}
	return route
}

// clean is p masked, with IPv4 in its own family.
func clean(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// inherit gives every prefix the sets and the owner of those around it, widest first.
func (k *compiler) inherit(prefixes map[netip.Prefix][]int32, owners map[netip.Prefix]cover) {
	all := make([]netip.Prefix, 0, len(prefixes))
	for p := range prefixes {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		if a.Bits() != b.Bits() {
			return a.Bits() - b.Bits()
		}
		return a.Addr().Compare(b.Addr())
	})
	for _, p := range all {
		around, _ := k.covers.LookupPrefix(p)
		c := around
		if o, ok := owners[p]; ok {
			c = o
		}
		c.online(p)
		c.sets = union(around.sets, prefixes[p])
		k.covers.Insert(p, c)
	}
}

// union merges two lists into a sorted one; it may return a.
func union(a, b []int32) []int32 {
	if len(b) == 0 {
		return a
	}
	u := append(slices.Clone(a), b...)
	slices.Sort(u)
	return slices.Compact(u)
}

// indexPrefixes turns covers into places.
func (k *compiler) indexPrefixes() {
	for p, c := range k.covers.All() {
		at := place{owner: c.owner, kind: c.kind, here: c.here}
		at.src, at.dst = k.classesOf(c.sets, c.kind)
		at.hsrc, at.hdst = k.classesOf(c.sets, c.here)
		k.routes.Insert(p, at)
	}
}

// classesOf are the classes, as a source and as a destination, of an address in a prefix. What is only behind an exit
// is no source of "*" (the replies to it are flows), and a destination of "*" and the internet alone.
func (k *compiler) classesOf(sets []int32, how kind) (src, dst int32) {
	switch how {
	case route:
		id := k.class(union(sets, k.anySets))
		return id, id
	case exit:
		web := slices.DeleteFunc(slices.Clone(sets), func(id int32) bool { return !slices.Contains(k.webSets, id) })
		return k.class(sets), k.class(union(web, k.anySets))
	}
	return k.class(nil), k.class(nil)
}

// indexAddrs gives the nodes' own addresses their places; they win over any prefix.
func (k *compiler) indexAddrs() {
	var n4, n6 int
	count := func(n *acl.Node) {
		for _, a := range n.Addrs {
			if a.Unmap().Is4() {
				n4++
			} else {
				n6++
			}
		}
	}
	count(&k.conf.Self)
	for i := range k.conf.Peers {
		count(&k.conf.Peers[i])
	}
	k.exact.init(n4, n6)
	add := func(n *acl.Node, owner *peer) {
		named := union(k.nodeSets[n.ID], k.anySets)
		for _, a := range n.Addrs {
			a = a.Unmap()
			if addrOf(a).martian() {
				continue
			}
			sets := named
			if c, ok := k.covers.Lookup(a); ok {
				sets = union(sets, c.sets)
			}
			k.exact.add(addrOf(a), owner, k.class(sets))
		}
	}
	add(&k.conf.Self, nil)
	for i := range k.conf.Peers {
		add(&k.conf.Peers[i], k.peers[i])
	}
}

// class is the number of a sorted list of sets.
func (k *compiler) class(sets []int32) int32 {
	k.key = k.key[:0]
	for _, id := range sets {
		k.key = binary.LittleEndian.AppendUint32(k.key, uint32(id))
	}
	id, ok := k.classIDs[string(k.key)]
	if !ok {
		id = int32(len(k.classes))
		k.classIDs[string(k.key)] = id
		k.classes = append(k.classes, sets)
	}
	return id
}
