package path

import (
	"container/heap"
	"maps"
	mrand "math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// Route is where a packet goes: an address, one of Hops for a peer relay, or, as its zero value, the peer's relay.
type Route = netip.AddrPort

// Relay is the route by relay.
var Relay Route

// Limits and times. A path is judged only while we send: nothing here costs an idle peer anything.
const (
	MaxCandidates = 16 // addresses kept per peer
	maxPorts      = 4  // of one IP address among them
	maxFirst      = 3  // addresses a handshake is sent to when no path is proven
	maxPings      = 48 // pings in flight per peer

	probeBurst = 64 // pings per peer at once, and per second for ever
	probeRate  = 8
	pongBurst  = 100
	pongRate   = 60
	hereBurst  = 8 // Heres heeded
	hereRate   = 5

	bothFor     = 300 * time.Millisecond // packets go both ways around a switch
	bothCalled  = 600 * time.Millisecond // the same when the peer tells of trouble that we do not see
	silence     = 300 * time.Millisecond // sending and hearing nothing: ask
	silenceMost = 700 * time.Millisecond // the same, of a peer that answers but has nothing to say
	steady      = 150 * time.Millisecond // the same, of a peer that was answering all the time, and by relay too until it does again:
	steadyRate  = 40                     // so many packets a second
	hasty       = 100 * time.Millisecond // how long it may take at least to answer that: two round trips
	alarmEvery  = 5 * time.Second        // which is done that often in the long run, for it may be a machine that is busy, not the path
	alarmBurst  = 4
	hush        = 500 * time.Millisecond // a flow from the peer that ends for so long: ask once whether it ended, or the path did,
	hushEvery   = 5 * time.Second        // but not more often than that,
	hushRate    = 20                     // and of one of so many packets a second
	hushSteady  = 200 * time.Millisecond // the same as hush, of one of steadyRate
	pongLeast   = 200 * time.Millisecond // how long an answer may take: three round trips between these bounds
	pongMost    = time.Second
	lateMost    = 2 * time.Second
	knockEvery  = 200 * time.Millisecond // a path that stopped answering is asked that often as long as somebody sends,
	knockFor    = 10 * time.Second       // for so long
	trustLeast  = time.Second            // Trust of one that has not yet shown what silence it survives, or that just did not
	muteAfter   = 500 * time.Millisecond // a peer on the relay that brings nothing for so long, while we send, is asked by relay,
	muteEvery   = 3 * time.Second        // not more often than that if it answers,
	muteFor     = 12 * time.Second       // and for so long if it does not
	recheck     = 15 * time.Second       // a path is asked that often even if packets come in: their sources may be forged
	awake       = Awake
	callable    = 45 * time.Second // peers we sent to that recently are told when we move
	hereEvery   = 5 * time.Second  // between unprovoked Heres to one peer
	hereDoubt   = time.Second      // when the path to it is in doubt
	hereLeast   = 200 * time.Millisecond
	hereNews    = 40 * time.Millisecond // between two of which the second says more
	hereLost    = 10 * time.Second      // a Here that recent may not have passed a relay that was connected anew since
	pingLeast   = 20 * time.Millisecond // between pings to one address in answer to pings from it
	fresh       = 5 * time.Second       // an address proven that recently needs no ping back
	compare     = 3 * time.Minute       // between searches for a better path
	goodEnough  = 5 * time.Millisecond  // a round trip not worth bettering
	winsNeeded  = 3                     // samples by which a path must be better to be taken
)

// seekWaits are the times between rounds of pings to all candidates while there is no direct path; the last repeats.
var seekWaits = [...]time.Duration{
	50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, time.Second,
	2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second,
}

// What the caller has to know of these.
const (
	Awake      = 3 * time.Second  // a peer is busy for so long after a packet to it or a call from it
	Trust      = 10 * time.Second // a direct path heard from that recently may be used alone, if it has held that long before
	StrayEvery = hereLeast        // between two Seen of one peer
)

// Config is what Paths are made from.
type Config struct {
	// Usable reports whether an address may be probed at all; nil for all that make sense. Our own mesh's addresses
	// must not be: packets to them would go around in circles.
	Usable func(netip.Addr) bool
	// Plain says that packets cannot be sent with a short time to live.
	Plain bool
	// LinkMTU is the longest IP packet that our own link to an address carries; nil where that is not to be asked, for
	// packets cannot be kept from being fragmented.
	LinkMTU func(netip.AddrPort) int
	// Budget bounds the guessing of ports.
	Budget Budget
	// Rand returns a number below n; nil for a random one.
	Rand func(n int) int
	// Tx makes the IDs of pings; nil for random ones, which is what keeps others from answering for a peer.
	Tx func() TxID
}

// Event is something that happened: Peers, Self, Moved, Unblocked, Relinked, Got, Hopped, Seen, Outside, Tick or Probe.
type Event interface{ event() }

type (
	// Peers replaces the set of peers. Those that stay keep their paths.
	Peers struct{ Set []Peer }
	// Peer is a peer and the candidate addresses its coordinator tells.
	Peer struct {
		Key        key.NodePublic
		Candidates []netip.AddrPort // not to be changed afterwards
		Hops       []Hop            // nor these
	}
	// Self says where peers may reach us.
	Self struct{ Here Here }
	// Moved says that this machine's network changed: no path can be trusted.
	Moved struct{}
	// Unblocked says that our network lets UDP through again, which it did not.
	Unblocked struct{}
	// Relinked says that a relay is connected anew: what was told by it just before may be lost.
	Relinked struct{}
	// Got is an authentic message of a peer.
	Got struct {
		Peer key.NodePublic
		From Route
		Msg  Message
		At   Order
	}
	// Seen is the source of a WireGuard packet of a session of the peer, from an address not known to be the peer's.
	Seen struct {
		Peer key.NodePublic
		From netip.AddrPort
	}
	// Outside is how the fresh socket of a peer (Sockets with Ask) looks from outside.
	Outside struct {
		Peer key.NodePublic
		Addr netip.AddrPort
	}
	// Tick is due when Next says so, and when the first packet goes to a sleeping peer.
	Tick struct {
		Peer key.NodePublic
		Traffic
	}
	// Probe asks for a Probed by the current path.
	Probe struct {
		Peer key.NodePublic
		ID   uint64
	}
)

// Traffic is what passed between us and a peer; zero times mean never.
type Traffic struct {
	Sent    time.Time // last WireGuard packet sent, by any route
	Heard   time.Time // last WireGuard packet or Alive from the address of the direct path
	Waiting time.Time // first packet sent by the direct path after Heard; zero if none
	Relayed time.Time // last WireGuard packet from the peer by relay
	Any     time.Time // last packet of any kind that came of the peer, by any route
	Counts            // of WireGuard packets from the peer
}

func (Peers) event() {}
func (Self) event()  {}
func (Moved) event() {}

func (Unblocked) event() {}
func (Relinked) event()  {}
func (Got) event()       {}
func (Seen) event()      {}
func (Outside) event()   {}
func (Tick) event()      {}
func (Probe) event()     {}

// Action is something to do: Send, Home, Use, Sleep, Alive, Probed, Sockets, Look or AskHop.
type Action interface{ action() }

type (
	// Send seals and sends a message.
	Send struct {
		Peer   key.NodePublic
		To     Route
		Msg    Message
		TTL    int  // how many routers it may cross, plus one; 0 for as many as usual
		Socket int  // one of those opened for the peer, from 1 on; 0 for the usual one
		Wide   bool // by relay: by all at which the peer may be
	}
	// Sockets wants so many sockets opened for a peer, each with a port of its own, or all closed. The one by which the
	// first message of the peer comes from an address is the one for that address from then on, and stays.
	Sockets struct {
		Peer  key.NodePublic
		Count int
		Ask   bool // it is one, and STUN is to tell how it looks from outside
	}
	// Home says at which relay a peer is, by its own word; 0 if it has none.
	Home struct {
		Peer  key.NodePublic
		Relay uint16
	}
	// Look asks for a Self soon: that a path stopped answering, or that none is found, may be because our address from
	// outside changed, or UDP is blocked.
	Look struct{}
	// Use says which routes a peer's WireGuard packets take from now on.
	Use struct {
		Peer    key.NodePublic
		Primary Route
		Both    bool             // packets go by Other too,
		Other   Route            //
		Until   time.Time        // until then, or until the next Use if zero
		First   []netip.AddrPort // handshakes go to the relay, to Primary and to these
		Proven  []netip.AddrPort // addresses that are surely the peer's
		RTT     time.Duration    // of Primary; 0 if not known
		Trust   time.Duration    // packets go by relay too when nothing came by Primary for so long
		MTU     int              // the longest IP packet that Primary surely carries; 0 if not known, and by relay
		Since   time.Time        // when Primary was chosen
		Why     string           // for people
	}
	// Sleep says that the peer wants no Tick until the next packet is sent to it.
	Sleep struct {
		Peer key.NodePublic
		Sent time.Time // as the last Tick said: a later one means wake up
	}
	// Alive says that an address gave the answer it was asked for: Heard, for the direct path.
	Alive struct {
		Peer key.NodePublic
		From netip.AddrPort
	}
	// Probed answers a Probe.
	Probed struct {
		Peer key.NodePublic
		ID   uint64
		From Route
		RTT  time.Duration
	}
)

func (Send) action()    {}
func (Home) action()    {}
func (Use) action()     {}
func (Sleep) action()   {}
func (Alive) action()   {}
func (Probed) action()  {}
func (Sockets) action() {}
func (Look) action()    {}

// Paths is the state of all peers. It is not safe for concurrent use.
type Paths struct {
	cfg    Config
	peers  map[key.NodePublic]*peer
	known  map[key.NodePublic]*known // the others
	sets   uint64                    // of peers, so far
	due    queue
	self   Here
	budget Budget
	out    []Action

	guesses  bucket // of attempts to guess ports, of all peers
	guessing int    // at work
}

// New returns Paths without peers.
func New(cfg Config) *Paths {
	if cfg.Tx == nil {
		cfg.Tx = NewTx
	}
	if cfg.Rand == nil {
		cfg.Rand = mrand.IntN
	}
	return &Paths{cfg: cfg, budget: cfg.Budget.orDefault(), peers: map[key.NodePublic]*peer{}, known: map[key.NodePublic]*known{}, guesses: bucket{tokens: guessAll}}
}

// Step takes one event and returns what to do about it, valid until the next Step. Time must not run backwards.
func (p *Paths) Step(now time.Time, ev Event) []Action {
	clear(p.out)
	p.out = p.out[:0]
	switch ev := ev.(type) {
	case Peers:
		p.setPeers(now, ev.Set)
	case Self:
		old, hard := outsideOf(p.self.NAT, p.self.Endpoints), p.self.NAT.hard()
		p.self = ev.Here
		other := outsideOf(p.self.NAT, p.self.Endpoints) != old
		if p.self.NAT.hard() != hard { // who is early depends on it
			p.introduceAll(now)
		}
		p.each(now, func(pr *peer) {
			if other {
				pr.guesses.renew()
				pr.pardon(func(*candidate) bool { return true })
			}
			if pr.late(now) || recent(now, pr.called, hereEvery) { // who called was told of what we were before
				pr.news(now)
				pr.consider(now)
			}
		}, false)
	case Moved:
		p.each(now, func(pr *peer) { pr.moved(now) }, false)
	case Unblocked:
		p.each(now, func(pr *peer) { pr.unblocked(now) }, true)
	case Relinked:
		p.each(now, func(pr *peer) { pr.relinked(now) }, true)
	case Got:
		p.one(now, ev.Peer, func(pr *peer) { pr.got(now, ev.From, ev.Msg, ev.At) })
	case Hopped:
		p.one(now, ev.Peer, func(pr *peer) { pr.hopped(now, ev) })
	case Seen:
		p.one(now, ev.Peer, func(pr *peer) { pr.strayed(now, ev.From) })
	case Outside:
		p.one(now, ev.Peer, func(pr *peer) { pr.gotOutside(now, ev.Addr) })
	case Tick:
		p.one(now, ev.Peer, func(pr *peer) { pr.tick(now, ev.Traffic) })
	case Probe:
		p.one(now, ev.Peer, func(pr *peer) { pr.probe(now, ev.ID) })
	}
	return p.out
}

// Next is the peer that wants the next Tick, and when; false if none wants any.
func (p *Paths) Next() (key.NodePublic, time.Time, bool) {
	if len(p.due) == 0 {
		return key.NodePublic{}, time.Time{}, false
	}
	return p.due[0].key, p.due[0].wake, true
}

func (p *Paths) rand(n int) int { return p.cfg.Rand(n) }

func (p *Paths) do(a Action) { p.out = append(p.out, a) }

func (p *Paths) one(now time.Time, k key.NodePublic, f func(*peer)) {
	pr := p.peers[k]
	if kn := p.known[k]; kn != nil {
		pr = p.wake(kn, new(peer))
		pr.used, pr.first = pr.use(now), true // told by introduce
		p.peers[k] = pr
		delete(p.known, k)
	}
	if pr != nil {
		f(pr)
		pr.settle(now)
	}
}

// each visits every peer that is more than known, or of them those that we sent to, or the user asked for, of late. Map order
// shows in the order of actions only.
func (p *Paths) each(now time.Time, f func(*peer), late bool) {
	for _, pr := range p.peers {
		if !late || pr.late(now) {
			f(pr)
			pr.settle(now)
		}
	}
}

// late reports whether we sent to a peer, or the user asked for it, of late.
func (pr *peer) late(now time.Time) bool {
	return recent(now, latest(pr.traffic.Sent, pr.sought), callable)
}

func (p *Paths) setPeers(now time.Time, set []Peer) {
	p.sets++
	var spare peer
	for _, s := range set {
		pr := p.peers[s.Key]
		if pr == nil {
			p.know(now, s, &spare)
			continue
		}
		pr.kept = p.sets
		if slices.Equal(pr.told, s.Candidates) && slices.Equal(pr.hops, s.Hops) {
			continue
		}
		pr.take(now, s)
		pr.settle(now)
	}
	for k, pr := range p.peers {
		if pr.kept != p.sets {
			pr.endTry()
			if pr.at >= 0 {
				heap.Remove(&p.due, pr.at)
			}
			delete(p.peers, k)
		}
	}
	maps.DeleteFunc(p.known, func(_ key.NodePublic, k *known) bool { return k.kept != p.sets })
}

func (p *Paths) usable(a netip.AddrPort) bool {
	ip := a.Addr()
	return a.Port() != 0 && !ByHop(a) && !ip.IsUnspecified() && !ip.IsMulticast() && !ip.IsLinkLocalUnicast() && ip.Zone() == "" &&
		ip != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && (p.cfg.Usable == nil || p.cfg.Usable(ip))
}

// slot is a peer's place in the queue.
type slot struct {
	wake time.Time
	at   int // -1 if it is not in it
}

// queue is a heap of the peers that want a Tick, soonest first.
type queue []*peer

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].wake.Before(q[j].wake) }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i]; q[i].at, q[j].at = i, j }
func (q *queue) Push(x any)        { pr := x.(*peer); pr.at = len(*q); *q = append(*q, pr) }
func (q *queue) Pop() any {
	old := *q
	pr := old[len(old)-1]
	old[len(old)-1] = nil
	*q, pr.at = old[:len(old)-1], -1
	return pr
}

// recent reports whether t is known and at most d ago.
func recent(now, t time.Time, d time.Duration) bool { return !t.IsZero() && now.Sub(t) <= d }

// latest returns the later time.
func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
