package bind

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/path"
)

// maxOwn is how many addresses of ours peers are told. They keep a few more of each of us: where our packets come from, and
// what we say next, must find room beside what the coordinator told them before.
const maxOwn = path.MaxCandidates * 3 / 4

// loop is the one goroutine that owns the paths: it takes what receivers and callers bring, asks path.Paths, and does
// what it says.
type loop struct {
	b     *Bind
	paths *path.Paths
	timer *time.Timer
	buf   []byte
	order path.Order // of the last message

	shakes  map[*peer]*handshake // not answered yet
	probes  map[uint64]*probe
	probeID uint64

	net   netmon
	clock clock
	stun  stunClient
	here  path.Here // as last told

	extras extras
}

func newLoop(b *Bind) *loop {
	l := &loop{b: b, clock: newClock(b), timer: time.NewTimer(0), shakes: make(map[*peer]*handshake), probes: make(map[uint64]*probe)}
	l.stun.init(l)
	l.net.watch(b, b.watch)
	l.net.poll(l)
	l.extras = extras{b: b, open: make(map[key.NodePublic][]*extra)}
	l.paths = path.New(path.Config{Usable: l.net.usable, Plain: !b.canTTL(), Budget: b.cfg.Budget, LinkMTU: b.hops.linkMTU(b.linkMTU())})
	return l
}

func (l *loop) run() {
	defer l.timer.Stop()
	defer l.extras.close()
	if l.net.stop != nil {
		defer l.net.stop()
	}
	l.announce(time.Now())
	for {
		due := l.next()
		l.timer.Reset(time.Until(due))
		select {
		case <-l.b.done:
			return
		case <-l.b.news:
			l.sync()
		case <-l.b.moves:
			l.net.hint(time.Now())
		case p := <-l.b.wakes:
			l.takePeers() // it may be in the table, and not yet in the paths
			l.step(path.Tick{Peer: p.key, Traffic: l.traffic(p)})
			l.stun.watch(time.Now())
		case h := <-l.b.shakes:
			l.shake(h)
		case m := <-l.b.discoIn:
			l.disco(m)
		case m := <-l.b.stunIn:
			l.stun.answer(m)
		case r := <-l.b.names:
			l.stun.named(r)
		case ports := <-l.b.samples:
			l.stun.sampled(ports)
		case f := <-l.b.spoils:
			l.stun.spoil.busy, l.stun.spoil.found = false, f
			l.announce(time.Now())
		case p := <-l.b.heards:
			l.b.nudge(p)
		case s := <-l.b.strays:
			l.step(path.Seen{Peer: s.peer.key, From: s.from})
		case p := <-l.b.probes:
			l.probe(p)
		case q := <-l.b.accounts:
			l.account(q)
		case <-l.timer.C:
			l.clock.late(time.Since(due))
			l.tick()
		}
		if l.clock.slept(l.b) {
			l.b.cfg.Log("this machine has slept")
			l.changed(time.Now())
		}
	}
}

// next is when time alone gives the loop something to do.
func (l *loop) next() time.Time {
	at := l.net.next
	if t := l.clock.next; t.Before(at) {
		at = t
	}
	if t := l.stun.next; t.Before(at) {
		at = t
	}
	if _, t, ok := l.paths.Next(); ok && t.Before(at) {
		at = t
	}
	if n := l.b.relays.next(l.b.now()); n != 0 && l.b.time(n).Before(at) {
		at = l.b.time(n)
	}
	for _, h := range l.shakes {
		if t := l.b.time(h.next); t.Before(at) {
			at = t
		}
	}
	return at
}

func (l *loop) tick() {
	now := time.Now()
	if !l.net.next.After(now) && l.net.poll(l) {
		l.b.cfg.Log("this machine's addresses changed: %v", l.net.addrs)
		l.changed(now)
	}
	if !l.stun.next.After(now) {
		l.stun.tick(now)
	}
	l.repeat(now)
	for range 1000 { // then see to other things
		k, at, ok := l.paths.Next()
		if !ok || at.After(time.Now()) {
			break
		}
		var t path.Traffic
		if p := l.b.table.Load().byNode[k]; p != nil {
			t = l.traffic(p)
		}
		l.step(path.Tick{Peer: k, Traffic: t})
	}
	l.tend(now)
}

// changed begins everything anew: nothing that was known of the network need be true any more.
func (l *loop) changed(now time.Time) {
	if l.b.cfg.Moved != nil {
		l.b.cfg.Moved()
	}
	l.stun.start(now)
	for _, c := range *l.b.relays.conns.Load() {
		c.client.Redial()
	}
	l.announce(now)
	l.step(path.Moved{})
}

// takePeers takes over the set of peers.
func (l *loop) takePeers() {
	b := l.b
	b.mu.Lock()
	set, reset := b.peers, b.reset
	b.peers, b.reset = nil, nil
	b.mu.Unlock()
	if set == nil {
		return
	}
	if again := slices.DeleteFunc(slices.Clone(set), func(p path.Peer) bool { return slices.Contains(reset, p.Key) }); len(again) < len(set) {
		l.step(path.Peers{Set: again})
	}
	l.step(path.Peers{Set: set})
	t := b.table.Load()
	for _, k := range reset {
		if p := t.byNode[k]; p != nil && b.now()-p.sent.Load() < int64(path.Awake) && p.up.CompareAndSwap(false, true) {
			l.step(path.Tick{Peer: k, Traffic: l.traffic(p)}) // somebody waits for it
		}
	}
	for p, h := range l.shakes { // one under way goes on, now that there may be a way
		if q := t.byNode[p.key]; q != p {
			delete(l.shakes, p)
			if q != nil && l.shakes[q] == nil {
				h.peer, h.n = q, 0
				h.hurry(b.now())
				l.shakes[q] = h
			}
		}
	}
}

// sync takes over what callers set.
func (l *loop) sync() {
	l.takePeers()
	l.tellEnded()
	now := time.Now()
	relinked := l.b.relays.relinked.Swap(false)
	if relinked {
		l.step(path.Relinked{})
		l.b.nudgeAll()
	}
	if (l.b.relays.outside.Swap(false) || relinked) && now.Sub(l.stun.started) > stunWait { // else a round under way will tell
		l.stun.again(now)
	}
	l.stun.relaysChanged(now)
	l.stun.test(now)
	l.tend(now)
	l.announce(now)
}

func (l *loop) tend(now time.Time) {
	l.b.relays.tend(l.b.nanos(now), l.stun.far.known(true, now), l.stun.settled(now), func(id uint16) bool { return l.stun.sure(id, now) })
}

// announce tells the owner and the peers where we are, if that changed.
func (l *loop) announce(now time.Time) {
	nat := l.stun.judge(now)
	l.lookAround(now)
	eps := slices.Clone(l.b.cfg.Static)
	for _, a := range append([]netip.AddrPort{*l.b.mapped.Load()}, l.stun.reflexive(now)...) {
		if a.IsValid() && !slices.Contains(eps, a) {
			eps = append(eps, a)
		}
	}
	for _, a := range l.net.likely() {
		if e := netip.AddrPortFrom(a, l.b.Port()); !slices.Contains(eps, e) {
			eps = append(eps, e)
		}
	}
	eps = eps[:min(len(eps), maxOwn)]
	h := path.Here{Relay: l.b.Home(), NAT: nat, Endpoints: eps}
	same := slices.Equal(eps, l.here.Endpoints)
	if same && h.Relay == l.here.Relay && h.NAT == l.here.NAT {
		return
	}
	l.here = h
	if !same {
		l.b.endpoints.Store(&eps)
		if l.b.cfg.Endpoints != nil {
			l.b.cfg.Endpoints(slices.Clone(eps))
		}
	}
	l.step(path.Self{Here: h})
}

func (l *loop) traffic(p *peer) path.Traffic {
	b := l.b
	waiting := b.time(p.waiting.Load())
	return path.Traffic{Sent: b.time(p.sent.Load()), Heard: b.time(p.heard.Load()), Waiting: waiting,
		Any: b.time(p.any.Load()), Relayed: b.time(p.relayed.Load()), Counts: p.counts()}
}

// disco opens a message and lets the paths know.
func (l *loop) disco(m message) {
	if m.peer.gone.Load() {
		return
	}
	box := l.box(m.peer)
	if box == nil {
		return
	}
	msg, at, err := box.Open(m.pkt)
	if err != nil {
		return // forged, or sealed for another
	}
	if m.extra != nil && (m.extra.peer != m.peer.key || !l.extras.pin(m.extra, m.from)) {
		return // another socket of ours was hit before
	}
	l.b.hear(m.peer, l.b.now())
	if l.hopMessage(m.peer, m.from, msg) {
		return
	}
	l.step(path.Got{Peer: m.peer.key, From: m.from, Msg: msg, At: at})
}

func (l *loop) box(p *peer) *path.Box {
	if p.box == nil && !p.disco.IsZero() {
		box, err := path.NewBox(l.b.cfg.Disco, p.disco)
		if err != nil {
			l.b.cfg.Log("peer %s: %v", p.key.Short(), err)
			return nil
		}
		p.box = box
	}
	return p.box
}

func (l *loop) step(ev path.Event) {
	t := l.b.table.Load()
	for _, a := range l.paths.Step(time.Now(), ev) {
		switch a := a.(type) {
		case path.Send:
			if p := t.byNode[a.Peer]; p != nil {
				l.send(p, a)
			}
		case path.Home:
			if p := t.byNode[a.Peer]; p != nil && a.Relay != 0 {
				p.relay.Store(uint32(a.Relay))
			}
		case path.Look:
			l.stun.again(time.Now())
		case path.Sockets:
			l.extras.set(a.Peer, a.Count)
			if a.Ask {
				l.askOutside(a.Peer)
			}
		case path.AskHop:
			l.askHop(a.Route)
		case path.Use:
			if p := t.byNode[a.Peer]; p != nil {
				l.use(p, a)
			}
		case path.Sleep:
			if p := t.byNode[a.Peer]; p != nil {
				p.up.Store(false)
				if p.sent.Load() > l.b.nanos(a.Sent) {
					l.b.wake(p)
				}
			}
		case path.Alive:
			if p := t.byNode[a.Peer]; p != nil && p.routes.Load().primary == a.From {
				p.heard.Store(l.b.now())
				p.waiting.Store(0)
			}
		case path.Probed:
			if pr := l.probes[a.ID]; pr != nil {
				delete(l.probes, a.ID)
				pr.reply <- a
			}
		}
	}
}

// send seals a message and sends it; a failure is a message lost, which the paths expect.
func (l *loop) send(p *peer, a path.Send) {
	box := l.box(p)
	if box == nil {
		return
	}
	l.order = l.order.Next(time.Now())
	l.buf = box.Seal(l.buf[:0], a.Msg, l.order)
	switch {
	case a.Socket > 0:
		l.extras.send(a, l.buf)
		return
	case a.TTL > 0:
		_ = l.b.sendTTL(l.buf, a.To, a.TTL)
		return
	case a.To.IsValid():
		_ = l.b.sendUDP([][]byte{l.buf}, a.To)
		return
	case a.Wide:
		p.wide.Store(l.b.now())
		l.b.relays.everywhere([][]byte{l.buf}, p.key, uint16(p.relay.Load()), l.b.now())
		return
	}
	l.b.sendRelay([][]byte{l.buf}, p, true)
}

func (l *loop) use(p *peer, u path.Use) {
	b := l.b
	old := p.routes.Load()
	p.routes.Store(&routes{
		primary: u.Primary, both: u.Both, other: u.Other, until: b.nanos(u.Until),
		first: u.First, rtt: u.RTT, trust: u.Trust, mtu: u.MTU, since: u.Since, why: u.Why,
	})
	if p.routes.Load().inside() != old.inside() {
		b.sized(p.key)
	}
	b.book.setAddrs(p, u.Proven)
	l.hurry(p, old, u)
	if old.primary == u.Primary {
		return
	}
	l.extras.tidy(func(e *extra) bool {
		return e.peer == p.key && e.pinned != u.Primary && time.Since(e.since) > pinKeeps
	})
	p.waiting.Store(0)
	p.heard.Store(0)
	l.stun.watch(time.Now())
	if u.Primary.IsValid() {
		p.heard.Store(b.now()) // it has just answered
		if !path.ByHop(u.Primary) {
			l.reached(p.key)
		}
	}
	if b.cfg.Changed != nil {
		b.cfg.Changed(PathChange{p.key, b.info(p)})
	}
}

// probe is one call of Probe.
type probe struct {
	peer  *peer
	id    uint64
	over  bool
	reply chan path.Probed // room for one
}

func (l *loop) probe(p *probe) {
	if p.over {
		delete(l.probes, p.id)
		return
	}
	if p.id == 0 {
		l.probeID++
		p.id = l.probeID
	}
	l.probes[p.id] = p
	l.step(path.Probe{Peer: p.peer.key, ID: p.id})
}

// Probe asks a peer for one answer by its current path, again every second, and tells how long it took and by which
// path it came. It fails when ctx ends.
func (b *Bind) Probe(ctx context.Context, k key.NodePublic) (time.Duration, PathInfo, error) {
	p := b.table.Load().byNode[k]
	if p == nil {
		return 0, PathInfo{}, fmt.Errorf("bind: node %s is not a peer", k.Short())
	}
	pr := &probe{peer: p, reply: make(chan path.Probed, 1)}
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		select {
		case b.probes <- pr:
		case <-b.done:
			return 0, PathInfo{}, errStopped
		}
		select {
		case a := <-pr.reply:
			i := b.info(p)
			hop := b.hops.relayOf(a.From)
			i.Hop, i.HopName = hop.Relay, hop.Name
			i.Direct, i.Addr, i.RTT = a.From.IsValid() && !path.ByHop(a.From), a.From, a.RTT
			return a.RTT, i, nil
		case <-again.C:
		case <-b.done:
			return 0, PathInfo{}, errStopped
		case <-ctx.Done():
			select {
			case b.probes <- &probe{id: pr.id, over: true}:
			case <-b.done:
			}
			return 0, PathInfo{}, fmt.Errorf("bind: no answer from node %s: %w", k.Short(), context.Cause(ctx))
		}
	}
}
