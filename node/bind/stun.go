package bind

import (
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/pion/stun/v3"

	"github.com/hedge-mesh/hedge/node/path"
)

const (
	maxSTUN        = 548                    // bytes of an answer (RFC 8489 section 6.1)
	stunServers    = 12                     // addresses asked
	stunTries      = 4                      // of each: at 0, 200, 600 and 1400 ms
	stunWait       = 200 * time.Millisecond // the first, doubling
	stunGiveUp     = 3 * time.Second
	stunAgain      = 3 * time.Second        // between rounds out of turn in the long run,
	stunBurst      = 3                      // and so many at once
	stunSettle     = 500 * time.Millisecond // a home relay is chosen by then
	reflexiveKeeps = 80 * time.Second       // three rounds
	namesKeep      = 5 * time.Minute
	nameAgain      = time.Second
	muteEvery      = time.Second     // one server is asked that often if somebody waits for a direct path, while UDP is blocked,
	watchEvery     = 2 * time.Second // and while it is not, for our address from outside may change
	gapEvery       = 20 * time.Second
)

// stunClient learns from the relays, on the sockets peers use, how we look from outside, and which relay is near
// (RFC 8489, binding requests only).
type stunClient struct {
	l       *loop
	started time.Time // this round
	paid    time.Time // until then rounds out of turn are paid for (a token bucket as one time, "GCRA"),
	put     time.Time // and one was put off to then
	vain    bool      // the rounds before this one were
	knocked time.Time // next question between rounds;
	waiting bool      // the last has no answer yet,
	gap     bool      // nor had one before it
	gapped  time.Time // the last gap that was told of
	turn    int       // whom that goes to
	rounds  int
	next    time.Time
	nextNew time.Time // the next round
	servers []stunServer
	asked   map[[stun.TransactionIDSize]byte]question
	far     distances // of the relays
	seen    map[netip.AddrPort]reflexive
	names   map[string]named
	relays  []Relay
	samples sampler
	nature  behaviour
	spoil   spoiling
}

type stunServer struct {
	relay    uint16
	addr     netip.AddrPort
	tries    int
	answered bool
	second   bool // another port of one that is there too
	again    time.Time
}

type question struct {
	server int
	sent   time.Time
}

// reflexive is how one server saw us.
type reflexive struct {
	addr netip.AddrPort
	at   time.Time
}

type named struct {
	addrs []netip.AddrPort
	at    time.Time
}

// resolved is a name's addresses, from the goroutine that asked for them.
type resolved struct {
	name   string
	failed bool
	named
}

func (s *stunClient) init(l *loop) {
	s.l = l
	s.seen = make(map[netip.AddrPort]reflexive)
	s.names = make(map[string]named)
	s.asked = make(map[[stun.TransactionIDSize]byte]question)
	s.next = time.Now().Add(time.Hour) // until there are relays
	s.nextNew = s.next
}

// relaysChanged begins anew if they did.
func (s *stunClient) relaysChanged(now time.Time) {
	list := s.l.b.relays.list()
	if slices.EqualFunc(list, s.relays, Relay.equal) {
		return
	}
	s.relays = list
	s.far.forget(func(id uint16) bool { return slices.ContainsFunc(list, func(r Relay) bool { return r.ID == id }) })
	s.rounds = 0
	s.start(now)
}

// again begins a round out of turn, for our outside address may have changed: at once, or as soon as there may be one.
func (s *stunClient) again(now time.Time) {
	if len(s.servers) == 0 || s.due(now) {
		return
	}
	at := latest(now, s.paid.Add(-(stunBurst-1)*stunAgain))
	s.paid = latest(now, s.paid).Add(stunAgain)
	if at.After(now) {
		s.put = at
		s.nextNew, s.next = earlier(s.nextNew, at), earlier(s.next, at)
		return
	}
	s.start(now)
}

// due reports whether a round out of turn is put off.
func (s *stunClient) due(now time.Time) bool { return s.put.After(now) }

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// start begins a round.
func (s *stunClient) start(now time.Time) {
	s.vain = s.mute(now)
	s.started = now
	s.far.begin(now)
	s.rounds++
	clear(s.asked)
	s.servers = s.servers[:0]
	for _, r := range s.relays {
		for _, name := range r.STUN {
			var v4, v6 bool
			for _, a := range s.resolve(now, name) {
				if is4 := a.Addr().Is4(); is4 && !v4 || !is4 && !v6 {
					v4, v6 = v4 || is4, v6 || !is4
					s.add(r.ID, a)
				}
			}
		}
	}
	s.nextNew = now.Add(20*time.Second + rand.N(6*time.Second)) // NATs forget after 30 s
	s.tick(now)
}

func (s *stunClient) add(relay uint16, a netip.AddrPort) {
	if len(s.servers) < stunServers && !slices.ContainsFunc(s.servers, func(v stunServer) bool { return v.addr == a }) {
		s.servers = append(s.servers, stunServer{relay: relay, addr: a, again: s.started})
	}
}

// tick asks who is due, and sets the time of the next.
func (s *stunClient) tick(now time.Time) {
	if !s.nextNew.After(now) {
		s.start(now)
		return
	}
	s.next = s.nextNew
	for i := range s.servers {
		v := &s.servers[i]
		if v.answered || v.tries >= stunTries {
			continue
		}
		if !v.again.After(now) {
			_ = s.ask(now, i) // again if it is lost
			v.again = now.Add(stunWait << v.tries)
			v.tries++
		}
		if v.again.Before(s.next) {
			s.next = v.again
		}
	}
	for _, d := range [...]time.Duration{stunSettle, stunGiveUp} {
		if t := s.started.Add(d); t.After(now) && t.Before(s.next) {
			s.next = t
		}
	}
	s.knock(now)
	s.test(now)
	s.l.announce(now) // what was seen long ago is no more
}

// mute reports whether no UDP gets through: nobody has answered for a whole round, and since.
func (s *stunClient) mute(now time.Time) bool {
	return len(s.servers) > 0 && (s.vain || now.Sub(s.started) >= stunGiveUp) &&
		!slices.ContainsFunc(s.servers, func(v stunServer) bool { return v.answered })
}

// knock asks one server after the other, between rounds, while somebody waits for a direct path: whether UDP gets through
// again, or whether we look different from outside. They are our own relays; to ask peers as often would be to ask
// strangers, if what we were told of them is not true.
func (s *stunClient) knock(now time.Time) {
	every := watchEvery
	switch {
	case s.mute(now):
		every = muteEvery
	case now.Sub(s.started) < stunGiveUp:
		return
	}
	if !s.l.b.anySeeks() {
		return // until watch
	}
	if !s.knocked.After(now) {
		s.knocked, s.gap, s.waiting = now.Add(every), s.waiting, true
		for range s.servers {
			if s.turn++; s.ask(now, s.turn%len(s.servers)) == nil {
				break // the others may be of a family that we do not have
			}
		}
	}
	s.next = earlier(s.next, s.knocked)
}

// watch says that somebody may have begun to wait for a direct path.
func (s *stunClient) watch(now time.Time) { s.next = earlier(s.next, latest(now, s.knocked)) }

// test goes on with the tests of the NAT.
func (s *stunClient) test(now time.Time) {
	for _, v := range s.servers {
		if r, ok := s.seen[v.addr]; ok && v.answered && v.addr.Addr().Is4() {
			s.nature.about(v.addr, r.addr, *s.l.b.mapped.Load(), now)
			break
		}
	}
	next := s.nature.tick(now, func(pkt []byte, to netip.AddrPort) { _ = s.l.b.sendUDP([][]byte{pkt}, to) })
	if !next.IsZero() && next.Before(s.next) {
		s.next = next
	}
}

func (s *stunClient) ask(now time.Time, server int) error {
	m := newRequest()
	if s.only(s.servers[server].addr) {
		m.Add(stun.AttrChangeRequest, make([]byte, 4))
		m.WriteLength()
	}
	s.asked[m.TransactionID] = question{server, now}
	return s.l.b.sendUDP([][]byte{m.Raw}, s.servers[server].addr)
}

// only reports whether a server is the only one of IPv4. Then it is asked what other port of it may be asked too
// (RFC 5780's OTHER-ADDRESS), or else a NAT with a port for each far end would look as one with a port for all.
func (s *stunClient) only(a netip.AddrPort) bool {
	return a.Addr().Is4() && !slices.ContainsFunc(s.servers, func(v stunServer) bool { return v.addr != a && v.addr.Addr().Is4() })
}

// secondPort is the port of an answer's OTHER-ADDRESS, 0 if there is none.
func secondPort(pkt []byte) uint16 {
	var other stun.OtherAddress
	m := stun.New()
	if stun.Decode(pkt, m) != nil || other.GetFrom(m) != nil || other.Port <= 0 || other.Port > 0xffff {
		return 0
	}
	return uint16(other.Port)
}

// answer takes a packet that looks like STUN. Nothing is ever sent because of it.
func (s *stunClient) answer(p message) {
	now := time.Now()
	if p.extra != nil {
		s.l.outside(p)
		return
	}
	if s.nature.take(p.pkt, p.from) {
		s.l.announce(now)
		return
	}
	mapped, id, ok := readAnswer(p.pkt)
	if !ok {
		return
	}
	q, ok := s.asked[id]
	if !ok || now.Sub(q.sent) > stunGiveUp || s.servers[q.server].addr != p.from {
		return
	}
	delete(s.asked, id)
	mute := s.mute(now)
	v := &s.servers[q.server]
	s.far.answer(v.relay, max(now.Sub(q.sent), time.Microsecond), v.tries == 1, now)
	v.answered = true
	old, ok := s.seen[v.addr]
	since, between := s.started, now.Sub(s.started) >= stunGiveUp // a question between rounds
	if between {
		since = q.sent
	}
	moved := ok && s.moved(old.addr, mapped)
	if ok && old.addr != mapped && (moved || !between) { // nor is what other servers saw true any more
		maps.DeleteFunc(s.seen, func(_ netip.AddrPort, r reflexive) bool {
			return r.at.Before(since) && r.addr.Addr() == old.addr.Addr()
		})
	}
	s.seen[v.addr] = reflexive{mapped, now}
	if moved && between {
		s.again(now) // and how do the others see us?
	}
	if port := secondPort(p.pkt); port != 0 && s.only(v.addr) {
		s.servers = append(s.servers, stunServer{relay: v.relay, addr: netip.AddrPortFrom(v.addr.Addr(), port), again: now, second: true})
		s.next = now
	}
	s.test(now)
	s.l.tend(now)
	s.l.announce(now)
	gap := s.gap && now.Sub(s.gapped) > gapEvery
	if s.waiting, s.gap = false, false; gap {
		s.gapped = now // what was asked in it was asked in vain
	}
	if mute || gap {
		s.l.step(path.Unblocked{})
	}
	if mute {
		s.start(now) // and what do the others say?
	}
}

// moved reports whether two views of one server mean that our network is another; ports of a hard NAT say nothing.
func (s *stunClient) moved(old, mapped netip.AddrPort) bool {
	return old.Addr() != mapped.Addr() || old.Port() != mapped.Port() && s.l.b.NAT().Kind == path.Easy
}

func newRequest() *stun.Message {
	return stun.MustBuild(stun.TransactionID, stun.BindingRequest) // fails for want of randomness only, which there is
}

// readAnswer decodes an answer to a binding request.
func readAnswer(pkt []byte) (mapped netip.AddrPort, id [stun.TransactionIDSize]byte, ok bool) {
	m := stun.New()
	if err := stun.Decode(pkt, m); err != nil || m.Type != stun.BindingSuccess {
		return mapped, id, false
	}
	var x stun.XORMappedAddress
	if err := x.GetFrom(m); err != nil {
		return mapped, id, false
	}
	ip, ok := netip.AddrFromSlice(x.IP)
	if !ok || x.Port <= 0 || x.Port > 0xffff {
		return mapped, id, false
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(x.Port)), m.TransactionID, true
}

// sure reports whether a relay is surely as far as it seems, or asks it again.
func (s *stunClient) sure(relay uint16, now time.Time) bool {
	sure, ask, again := s.far.sure(relay, now)
	for i, v := range s.servers {
		if ask && v.relay == relay && v.answered {
			_ = s.ask(now, i)
		}
	}
	if !sure && again.Before(s.next) {
		s.next = again
	}
	return sure
}

// settled reports whether the first round has told enough to choose a home relay by.
func (s *stunClient) settled(now time.Time) bool {
	return s.rounds > 1 || now.Sub(s.started) >= stunSettle ||
		!slices.ContainsFunc(s.servers, func(v stunServer) bool { return !v.answered && !v.second })
}

// reflexive are the addresses others see us at.
func (s *stunClient) reflexive(now time.Time) []netip.AddrPort {
	var out []netip.AddrPort
	for server, r := range s.seen {
		switch {
		case now.Sub(r.at) > reflexiveKeeps:
			delete(s.seen, server)
		case !slices.Contains(out, r.addr) && s.l.net.usable(r.addr.Addr()):
			out = append(out, r.addr)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	if n := s.l.b.NAT(); n.Kind > path.Easy { // ports that nobody else gets in by: one will do, to tell the address
		out = slices.CompactFunc(out, func(a, b netip.AddrPort) bool { return a.Addr() == b.Addr() })
		for i, a := range out { // and it is no news that it is another
			if j := slices.IndexFunc(s.l.here.Endpoints, func(e netip.AddrPort) bool { return e.Addr() == a.Addr() }); j >= 0 {
				out[i] = s.l.here.Endpoints[j]
			}
		}
	}
	return out[:min(len(out), 8)]
}

// resolve returns the addresses of host:port, those known if it is a name, which it looks up in the background.
func (s *stunClient) resolve(now time.Time, name string) []netip.AddrPort {
	if a, err := netip.ParseAddrPort(name); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a.Addr().Unmap(), a.Port())}
	}
	n, ok := s.names[name]
	if ok && now.Sub(n.at) < namesKeep {
		return n.addrs
	}
	host, port, err := net.SplitHostPort(name)
	num, err2 := strconv.ParseUint(port, 10, 16)
	if err != nil || err2 != nil {
		s.l.b.cfg.Log("STUN server %q is not host:port", name)
		return nil
	}
	n.at = now // asked, not to be asked again at once
	s.names[name] = n
	b := s.l.b
	b.wg.Go(func() {
		ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
		defer cancel()
		ips, err := b.directory.lookup(ctx, host)
		if err != nil {
			b.cfg.Log("STUN server: %v", err)
		}
		r := resolved{name: name, failed: err != nil}
		for _, ip := range ips {
			r.addrs = append(r.addrs, netip.AddrPortFrom(ip.Unmap(), uint16(num)))
		}
		select {
		case b.names <- r:
		case <-b.done:
		}
	})
	return n.addrs
}

// named takes a name's addresses, and asks them at once if they are new.
func (s *stunClient) named(r resolved) {
	now := time.Now()
	old := s.names[r.name].addrs
	if r.failed { // it is asked for again in the next round, and that is soon if there is nobody to ask meanwhile
		s.names[r.name] = named{addrs: old}
		if at := now.Add(nameAgain); len(s.servers) == 0 && at.Before(s.nextNew) {
			s.nextNew, s.next = at, at
		}
		return
	}
	s.names[r.name] = named{r.addrs, now}
	if !slices.Equal(old, r.addrs) {
		s.start(now)
	}
}
