package bind

import (
	"maps"
	"slices"
	"time"
)

// A node is at its home relay, and whoever sends to it connects to that. Where that cannot be, both meet at a relay that both reach:
// each says by the coordinator which relays it lacks, having tried, and both choose alike.
//
//	a ─── b's home ✗, for lackAfter ── lacks {2} ──▶ coordinator ──▶ b: stands by at 3, as long as a says so
//	a ─── relay 3 ──────────────────────────────────────────────────▶ b
//
// What is lacked is forgotten with the connection that was tried, which a node keeps while it sends to that peer.
const (
	lackAfter = 2 * time.Second // without a connection to a relay, while there is one to our own
	lackKeeps = 15 * time.Second
	maxLacks  = 8 // told
	maxStand  = 2 // relays stood by at, for peers
)

// lacking are the relays that were tried in vain, in order.
func (r *relays) lacking(now int64) (ids []uint16) {
	conns := *r.conns.Load()
	if home := conns[r.b.Home()]; home == nil || !home.up() {
		return nil // it is our network
	}
	for id, c := range conns {
		if at := c.lost.Load(); at != 0 && now-at > int64(lackAfter) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids[:min(len(ids), maxLacks)]
}

// Lacks are the relays that this node cannot reach, as far as it has tried of late.
func (b *Bind) Lacks() []uint16 {
	if p := b.lacks.Load(); p != nil {
		return slices.Clone(*p)
	}
	return nil
}

// lack tells the owner of relays that we lack, if they are others than before.
func (b *Bind) lack(ids []uint16) {
	if slices.Equal(ids, b.Lacks()) {
		return
	}
	b.lacks.Store(&ids)
	if b.cfg.Lacks != nil {
		b.cfg.Lacks()
	}
}

// common is where two nodes meet of which the first cannot reach the home of the second: at its own home, or else at the first
// relay in the list that neither lacks; 0 for nowhere.
func common(order []uint16, home, other uint16, lacks ...[]uint16) uint16 {
	for _, id := range append([]uint16{home}, order...) {
		if id != 0 && id != other && !slices.ContainsFunc(lacks, func(l []uint16) bool { return slices.Contains(l, id) }) {
			return id
		}
	}
	return 0
}

// common is the connection to the relay where we meet a peer whose home we lack; nil if we do not, or there is none.
func (r *relays) common(p *peer, at uint16) *relayConn {
	if lacks := r.b.Lacks(); slices.Contains(lacks, at) {
		return r.get(common(r.ids(), r.b.Home(), at, lacks, *p.lacks.Load()))
	}
	return nil
}

// stand keeps us at the relays where peers meet us that lack our home. What we lack is remembered for longer than it is told: two
// that stop talking forget at once, and would else try all again before they have heard that of each other.
func (r *relays) stand(now int64) {
	maps.DeleteFunc(r.lacked, func(_ uint16, at int64) bool { return now-at > int64(lackKeeps) })
	for _, id := range r.b.Lacks() {
		r.lacked[id] = now
	}
	all := r.b.table.Load().lacking
	if len(all) == 0 {
		return
	}
	home, order, ours, ids := r.b.Home(), r.ids(), slices.Collect(maps.Keys(r.lacked)), []uint16{}
	for _, p := range all {
		lacks := *p.lacks.Load()
		if !slices.Contains(lacks, home) {
			continue
		}
		id := common(order, uint16(p.relay.Load()), home, lacks, ours)
		if id != 0 && !slices.Contains(ids, id) && len(ids) < maxStand {
			ids = append(ids, id)
		}
	}
	for _, id := range ids {
		if c := r.get(id); c != nil {
			c.used.Store(now)
		}
	}
}
