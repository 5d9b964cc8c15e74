package coordinator

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
)

// gather is how long news of the soft plane are gathered before they are told, so that a node whose addresses come one
// by one, or that flaps, costs its peers one message.
const gather = 100 * time.Millisecond

// presences are where the nodes are. They are not stored: a node says where it is when it connects.
type presences struct {
	mu      sync.Mutex
	where   map[acl.NodeID]wire.Presence
	relays  map[acl.NodeID]bool     // those that want to be peer relays: whether the policy says so, too
	changed map[acl.NodeID]struct{} // since they were told
	news    chan struct{}           // of capacity 1
}

func (p *presences) init() {
	p.where, p.relays = map[acl.NodeID]wire.Presence{}, map[acl.NodeID]bool{}
	p.changed, p.news = map[acl.NodeID]struct{}{}, make(chan struct{}, 1)
}

func (p *presences) of(id acl.NodeID) (wire.Presence, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.where[id]
	w.PeerRelay = p.relays[id] // nobody is to use one that only calls itself a relay
	return w, ok
}

// lastSeen is when the node was last connected: now, if it is; never before since.
func (p *presences) lastSeen(id acl.NodeID, since time.Time) time.Time {
	w, ok := p.of(id)
	if !ok || w.LastSeen.Before(since) {
		return since
	}
	return w.LastSeen
}

func (p *presences) forget(id acl.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.where, id)
	delete(p.relays, id)
	delete(p.changed, id)
}

// here takes what a node says of where it is.
func (p *presences) here(id acl.NodeID, h *wire.Here, now time.Time) {
	disco := h.Disco
	if disco.IsZero() {
		was, _ := p.of(id)
		disco = was.Disco
	}
	p.set(id, wire.Presence{ID: id, Online: true, Disco: disco, Endpoints: usable(h.Endpoints), Relay: h.Relay, PeerRelay: h.PeerRelay,
		Lacks: h.Lacks[:min(len(h.Lacks), wire.MaxLacks)], LastSeen: now})
}

// away keeps where the node was: its peers' paths may still stand.
func (p *presences) away(id acl.NodeID, now time.Time) {
	p.mu.Lock()
	w, ok := p.where[id]
	p.mu.Unlock()
	if !ok {
		return // removed
	}
	w.Online, w.LastSeen = false, now
	p.set(id, w)
}

// vouch looks which of those that want to be peer relays a policy has be some. There are few.
func (p *presences) vouch(w *atomic.Pointer[world]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	policy := w.Load().program
	for id, was := range p.relays {
		if is := policy != nil && policy.Relays(id); is != was {
			p.relays[id] = is
			p.change(id)
		}
	}
}

func (p *presences) set(id acl.NodeID, w wire.Presence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if was, ok := p.where[id]; ok && was.Online == w.Online && was.Disco == w.Disco && was.Relay == w.Relay && was.PeerRelay == w.PeerRelay && slices.Equal(was.Endpoints, w.Endpoints) &&
		slices.Equal(was.Lacks, w.Lacks) {
		return
	}
	p.where[id] = w
	if _, known := p.relays[id]; !w.PeerRelay {
		delete(p.relays, id)
	} else if !known {
		p.relays[id] = false // until vouch
	}
	p.change(id)
}

// change has the news of a node told. The caller holds mu.
func (p *presences) change(id acl.NodeID) {
	p.changed[id] = struct{}{}
	select {
	case p.news <- struct{}{}:
	default:
	}
}

func (p *presences) take() []acl.NodeID {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ids []acl.NodeID
	for id := range p.changed {
		ids = append(ids, id)
	}
	clear(p.changed)
	return ids
}

// usable keeps the endpoints that a packet could be sent to, each once, and at most MaxEndpoints.
func usable(es []netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range es {
		a := e.Addr()
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) ||
			e.Port() == 0 || slices.Contains(out, e) {
			continue
		}
		if out = append(out, e); len(out) == wire.MaxEndpoints {
			break
		}
	}
	return out
}

// presenceLoop tells the news to those who see the node that they are of.
func (s *Server) presenceLoop() {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.presence.news:
		}
		t.Reset(gather)
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		s.tellPresence(s.presence.take())
	}
}

func (s *Server) tellPresence(ids []acl.NodeID) {
	w := s.world.Load()
	if w.program == nil {
		return
	}
	for _, id := range ids {
		for _, peer := range w.program.Peers(id) { // who sees whom is mutual
			if x := s.sessions.get(peer); x != nil {
				x.mu.Lock()
				x.pending[id] = struct{}{}
				x.mu.Unlock()
				x.nudge()
			}
		}
	}
}
