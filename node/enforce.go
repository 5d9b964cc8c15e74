package node

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/hedge-mesh/hedge/acl/filter"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/key"
)

// enforcer makes the data path that of one Map at a time.
//
//	Map ── plan ─┬─ 1 filter.Set    narrower from this packet on, and wider for peers that exist
//	             ├─ 2 bind, roster  peers come and go
//	             └─ 3 tunnel.end    flows that lost their rule are told so
//
// The filter goes first: no packet is ever judged by rules wider than those of the Map its peers are from.
type enforcer struct {
	self   key.NodePublic
	pin    key.ControlPublic // whose tickets say what time it is
	filter *filter.Filter
	bind   *bind.Bind
	roster *roster // WireGuard's peers
	tun    *tunnel
	shape  func(*wire.Map, []Route) error // of the device: addresses and routes
	exit   func() string                  // the exit that was chosen, by name
	relay  func() bool                    // whether this node is to be a peer relay
	log    zerolog.Logger
	news   func() // what is enforced has changed; called with mu held
	ask    func() // the clock has jumped: the coordinator should say what time it is; may be nil

	cur  atomic.Pointer[enforced] // never nil
	wake chan struct{}            // capacity 1: when to look at the clock has changed

	mu   sync.Mutex // held while anything below, or the data path, changes
	next time.Time
	// ticket is the newest of this run; a Map may come without, and keeps the one it had.
	ticket wire.Ticket
	doubt  filter.Doubt // that has been told
}

// enforced is the Map in force, and what is read from it often. It is never changed, only replaced.
type enforced struct {
	m        *wire.Map // nil before the first
	since    time.Time
	fromDisk bool
	refused  *wire.Refused // set: no traffic at all
	names    map[string]*wire.Peer
	owner    map[netip.Addr]key.NodePublic
	addrs    map[key.NodePublic][]netip.Prefix // and what routers carry
	routes   []Route                           // in use, the longest first
	exit     string                            // the name of the exit in use
	exitErr  error                             // why the one that was chosen is not
}

// peer finds a peer by its name, which is in lower case.
func (e *enforced) peer(name string) *wire.Peer { return e.names[name] }

// revision is that of the Map, 0 for none.
func (e *enforced) revision() uint64 {
	if e.m == nil {
		return 0
	}
	return e.m.Revision
}

// set enforces a Map, all of it, before it returns.
func (e *enforcer) set(m *wire.Map, fromDisk bool, now time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.apply(m, fromDisk, now)
}

func (e *enforcer) apply(m *wire.Map, fromDisk bool, now time.Time) error {
	if !m.Self.Expires.IsZero() && !now.Before(m.Self.Expires) {
		e.stop(&wire.Refused{Code: wire.RefusedExpired, Message: fmt.Sprintf(
			"this node's key expired on %s; ask an admin for a join string and run hedge up with it",
			m.Self.Expires.Format(time.DateTime))}, now)
		return e.cur.Load().refused
	}
	exit, exitErr := exitOf(m, e.exit())
	p, err := planFor(m, e.self, exit, now, e.doubted())
	if err != nil {
		return err
	}
	if err := e.shape(m, p.routes); err != nil {
		return fmt.Errorf("set own addresses and routes: %w", err)
	}
	m = e.ticketed(m)
	p.filter.NotBefore = e.issued(m.Ticket, now)
	cuts := e.filter.Set(p.filter, now)
	tidy(len(m.Peers))
	if len(m.Ticket.Signed) > 0 {
		e.bind.SetTicket(m.Ticket.Signed)
	}
	e.bind.SetRelays(relaysOf(m))
	if err := e.connect(p, m.Self.Prefixes); err != nil {
		// Not all peers could be set, so nobody knows which there are: have none.
		e.disconnect(now)
		return err
	}
	e.end(cuts)
	e.tellDoubt()
	tidy(len(m.Peers))

	prev := e.cur.Load()
	names := make(map[string]*wire.Peer, len(m.Peers)+1)
	for i := range m.Peers {
		names[m.Peers[i].Name] = &m.Peers[i]
	}
	names[m.Self.Name] = &m.Self.Peer
	next := &enforced{m: m, since: prev.since, fromDisk: fromDisk, names: names, owner: p.owner, addrs: p.wg, routes: p.routes, exitErr: exitErr}
	if exit != nil {
		next.exit = exit.Name
	}
	if prev.revision() != m.Revision || prev.refused != nil {
		next.since = now
	}
	e.cur.Store(next)
	e.next = p.next
	e.kick()
	e.news()
	return nil
}

// again enforces the Map in force once more: what this node chooses itself has changed.
func (e *enforcer) again() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	cur := e.cur.Load()
	if cur.m == nil || cur.refused != nil {
		return nil
	}
	return e.apply(cur.m, cur.fromDisk, time.Now())
}

func relaysOf(m *wire.Map) []bind.Relay {
	out := make([]bind.Relay, len(m.Relays))
	for i, r := range m.Relays {
		out[i] = bind.Relay{ID: r.ID, Key: r.Key, URLs: r.URLs, STUN: r.STUN}
	}
	return out
}

// see puts news of where peers are in force; who may do what stays.
func (e *enforcer) see(w *wire.Where, ticket *wire.Ticket) *wire.Map {
	e.mu.Lock()
	defer e.mu.Unlock()
	prev := e.cur.Load()
	if ticket != nil { // it may be the first thing we hear
		e.ticket = *ticket
		e.bind.SetTicket(ticket.Signed)
		if now := time.Now(); !e.issued(*ticket, now).IsZero() {
			e.end(e.filter.Confirm(e.issued(*ticket, now), now))
			e.tellDoubt()
		}
	}
	if prev.m == nil || prev.refused != nil {
		return nil
	}
	m := prev.m
	if w != nil {
		m = m.See(w)
		e.bind.SetPeers(pathsOf(m, time.Now(), e.doubted()))
	}
	m = e.ticketed(m)
	next := *prev
	next.m = m
	e.cur.Store(&next)
	return m
}

// issued is when the coordinator made a ticket, which it does as it sends it: so a new ticket says what time it is, and
// one from the disk what time it has been. It is zero if nobody we believe made it.
func (e *enforcer) issued(t wire.Ticket, now time.Time) time.Time {
	ticket, _ := derp.OpenTicket(t.Signed, []key.ControlPublic{e.pin}, now) // whether it has expired is a relay's to ask
	return ticket.Issued
}

// tellDoubt tells that the clock has become doubtful, or is no more. The caller holds mu.
func (e *enforcer) tellDoubt() {
	d := e.filter.Doubt()
	if d == e.doubt {
		return
	}
	if e.doubt = d; d == filter.Believed {
		e.log.Info().Msg("the clock of this node is right again; rules with a window are in force as they say")
		return
	}
	e.log.Warn().Msgf("the clock of this node %v; rules with a window are shut until it is right", d)
	if d == filter.ClockJumped && e.ask != nil {
		e.ask()
	}
}

// doubted reports whether the clock is in doubt.
func (e *enforcer) doubted() bool { return e.filter.Doubt() != filter.Believed }

// ticketed is m with the newest ticket there is.
func (e *enforcer) ticketed(m *wire.Map) *wire.Map {
	if len(e.ticket.Signed) == 0 {
		return m
	}
	c := *m
	c.Ticket = e.ticket
	return &c
}

// confirm notes that the coordinator has nothing newer than the Map from the disk.
func (e *enforcer) confirm() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if prev := e.cur.Load(); prev.fromDisk {
		next := *prev
		next.fromDisk = false
		e.cur.Store(&next)
	}
}

// connect sets where peers are, and who may be WireGuard's. The caller holds mu.
func (e *enforcer) connect(p *plan, mesh []netip.Prefix) error {
	e.bind.SetPeerRelay(e.relay(), p.users)
	e.bind.SetPeers(p.paths)
	return e.roster.set(p.wg, p.routers, mesh)
}

// refuse ends all traffic, because the coordinator has ended this node's membership.
func (e *enforcer) refuse(r *wire.Refused, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stop(r, now)
}

func (e *enforcer) stop(r *wire.Refused, now time.Time) {
	e.disconnect(now)
	prev := e.cur.Load()
	next := *prev
	next.refused, next.routes, next.exit = r, nil, ""
	if prev.refused == nil {
		next.since = now
	}
	e.cur.Store(&next)
	e.news()
}

// disconnect denies everything and has no peers. The caller holds mu.
func (e *enforcer) disconnect(now time.Time) {
	cuts := e.filter.Set(nil, now)
	e.roster.clear()
	e.bind.SetPeerRelay(false, nil)
	e.bind.SetPeers(nil)
	e.next = time.Time{}
	e.end(cuts)
}

// end tells the ends of cut flows, and the log.
func (e *enforcer) end(cuts []filter.Cut) {
	e.tun.end(cuts)
	for i := range cuts {
		c := &cuts[i]
		ev := e.log.Info().Uint64("peer", uint64(c.Peer)).Stringer("src", c.Src).Stringer("dst", c.Dst).
			Uint8("proto", c.Proto).Stringer("why", c.Why)
		if c.Rule != nil {
			ev = ev.Stringer("was_allowed_by", c.Rule.Pos)
		}
		ev.Msg("flow ended: no rule allows it any more")
	}
}

// tick does what only time asks for: keys and rules expire, idle flows are forgotten.
func (e *enforcer) tick(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.end(e.filter.Tick(now))
	was := e.doubt
	e.tellDoubt()
	cur := e.cur.Load()
	due := e.doubt != was || !e.next.IsZero() && !now.Before(e.next)
	if cur.m == nil || cur.refused != nil || !due {
		return
	}
	if err := e.apply(cur.m, cur.fromDisk, now); err != nil {
		e.log.Error().Err(err).Msg("enforce expiry")
	}
}

// deadline is when tick should next be called.
func (e *enforcer) deadline(now time.Time) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	at := now.Add(tickEvery - time.Duration(now.UnixNano())%tickEvery) // when the bind looks at the clock: one wake-up for both
	for _, t := range []time.Time{e.next, e.filter.Deadline(now)} {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	return at
}

// tickEvery is short also because timers stand still while a machine sleeps, and keys expire all the same.
const tickEvery = 5 * time.Second

func (e *enforcer) kick() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// clock calls tick when it is time, until done is closed.
func (e *enforcer) clock(done <-chan struct{}) {
	var r rest
	var l litter
	var made *enforced // when memory was last given back
	t := time.NewTimer(tickEvery)
	defer t.Stop()
	for {
		now := time.Now()
		t.Reset(max(e.deadline(now).Sub(now), time.Millisecond))
		select {
		case <-t.C:
			e.tick(time.Now())
			e.roster.sweep(time.Now())
			cur := e.cur.Load()
			if r.tick(e.tun.rx.packets.Load()+e.tun.tx.packets.Load(), time.Now()) || cur != made && r.made(len(cur.names), time.Now()) {
				e.bind.Rest()
				giveBack()
				made = cur
			}
		case <-e.tun.busy:
			if inUse, now := heap(); l.due(inUse, now, time.Now()) {
				runtime.GC()
			}
		case <-e.wake:
		case <-done:
			return
		}
	}
}
