package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/key"
)

// control keeps this node's session with its coordinator, for as long as the node lives:
//
//	dial ─▶ Hello{what we have} ─▶ Delta ─ apply, enforce, save, Ack ─┐
//	 ▲                             Where, Ticket ─ see                │
//	 └── wait, longer each time ◀── lost, or Refused ◀────────────────┘
//
// Losing the session changes nothing of what is enforced; being refused does.
type control struct {
	id      identity
	state   *state
	enforce *enforcer
	bind    *bind.Bind
	disco   key.DiscoPublic
	hello   wire.Hello // what does not change
	join    string     // the enrolment key; empty once it has been used, or if there was none
	whole   bool       // ask for all of the Map: what there is does not fit what was sent
	log     zerolog.Logger
	changed func()                // status has
	offers  func() []netip.Prefix // what this node would carry for others
	relay   func() bool           // whether it is a peer relay

	moved chan struct{} // capacity 1: Here has changed
	again chan struct{} // capacity 1: connect anew
	dirty chan struct{} // capacity 1: the soft plane has changed and is not on disk

	first chan error // capacity 1: how the first Map was come by
	told  bool       // first has been sent; of run's goroutine

	mu     sync.Mutex
	status Control
	dial   *wire.Conn // the session's; nil without one
	last   error      // why there is no session
	wrong  string     // what else is the matter
}

// Between attempts. The first wait is short: most losses are restarts.
const (
	backoffMin   = 250 * time.Millisecond
	backoffMax   = 30 * time.Second
	backoffFixed = 2 * time.Minute // after a refusal that only a person can change
	dialTimeout  = 20 * time.Second
	saveEvery    = 5 * time.Second
)

// run keeps the session until ctx is done.
func (c *control) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { c.saver(ctx) })
	defer wg.Wait()
	wait := backoffMin
	for ctx.Err() == nil {
		heard, err := c.connect(ctx)
		if ctx.Err() != nil {
			break
		}
		if heard {
			wait = backoffMin
		}
		var refused *wire.Refused
		isRefused := errors.As(err, &refused)
		if c.lost(err) && !isRefused {
			c.log.Warn().Err(err).Msg("no session with the coordinator; what is enforced stays in force")
		}
		pause := wait/2 + rand.N(wait/2+1)
		wait = min(wait*2, backoffMax)
		switch {
		case isRefused:
			switch c.refused(refused) {
			case again:
				continue
			case later:
				pause = backoffFixed + rand.N(backoffFixed)
			}
		case isHopeless(err):
			c.tell(err)
			pause = backoffMax/2 + rand.N(backoffMax/2)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// isHopeless reports whether err is one that trying again will not mend, only a person.
func isHopeless(err error) bool {
	if r, ok := errors.AsType[*wire.Refused](err); ok {
		return r.Code != wire.RefusedBusy
	}
	if p, ok := errors.AsType[*wire.ProxyError](err); ok {
		return p.Credentials()
	}
	_, ok := errors.AsType[*wire.PinError](err)
	return ok
}

// tell reports how the first Map was come by, once.
func (c *control) tell(err error) {
	if !c.told {
		c.told = true
		c.first <- err
	}
}

// What to do after a refusal.
const (
	soon  = iota // the usual wait
	again        // at once
	later
)

// refused acts on the coordinator's word that this node may not take part.
func (c *control) refused(r *wire.Refused) int {
	switch r.Code {
	case wire.RefusedBusy:
		return soon
	case wire.RefusedRemoved, wire.RefusedExpired, wire.RefusedUnknown:
		c.enforce.refuse(r, time.Now())
		c.whole = true // if it is ever let in again
		if err := c.state.dropMap(); err != nil {
			c.log.Error().Err(err).Msg("forget the map")
		}
		if c.join != "" && c.hello.Enrol == "" {
			c.hello.Enrol = c.join // the person who started us means to join anew
			return again
		}
		c.log.Error().Str("code", string(r.Code)).Msg("refused by the coordinator; all traffic is stopped: " + r.Message)
	default:
		c.log.Error().Str("code", string(r.Code)).Msg("refused by the coordinator: " + r.Message)
	}
	c.problem(r.Message)
	c.changed()
	c.tell(r)
	return later
}

// connect is one connection, from its dialling to its end. It reports whether the coordinator said anything, and why it ended.
func (c *control) connect(ctx context.Context) (heard bool, err error) {
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	conn, err := wire.Dial(dctx, wire.DialConfig{URLs: c.id.urls, Pin: c.id.pin, Machine: c.id.machine, NetDial: c.bind.Dial})
	cancel()
	if err != nil {
		return false, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel = context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		if stop() {
			_ = conn.Close()
		}
	}()

	m := c.enforce.cur.Load().m
	hello := c.hello
	hello.Routes = c.offers()
	if m != nil && !c.whole {
		hello.Revision = m.Revision
		if hello.Have, err = m.Hashes(); err != nil {
			return false, err
		}
	}
	if err := conn.Send(&hello); err != nil {
		return false, err
	}
	for {
		msg, err := conn.Recv()
		if err != nil {
			return heard, err
		}
		if r, ok := msg.(*wire.Refused); ok {
			return heard, r
		}
		if !heard {
			heard = true
			c.found(conn)
			defer c.drop()
			wg.Go(func() { c.here(ctx, conn, hello.Routes) })
		}
		if err := c.take(conn, msg); err != nil {
			return heard, err
		}
	}
}

// take acts on one message.
func (c *control) take(conn *wire.Conn, msg any) error {
	switch msg := msg.(type) {
	case *wire.Delta:
		return c.delta(conn, msg)
	case *wire.Where:
		c.seen(c.enforce.see(msg, nil))
	case *wire.Ticket:
		c.seen(c.enforce.see(nil, msg))
	default:
		return fmt.Errorf("the coordinator sent a %T, which is not for nodes", msg)
	}
	return nil
}

func (c *control) seen(m *wire.Map) {
	if m == nil {
		return
	}
	tidy(len(m.Peers))
	select {
	case c.dirty <- struct{}{}:
	default:
	}
	c.changed()
}

// delta enforces a change, saves it, and tells the coordinator: in this order, so that neither a slow disk nor a slow
// coordinator delays a cut, and nothing is acknowledged that a crash would undo.
func (c *control) delta(conn *wire.Conn, d *wire.Delta) error {
	old := c.enforce.cur.Load().m
	tidy(len(d.Peers))
	m, err := old.Apply(d)
	if err != nil {
		c.whole = true
		return fmt.Errorf("apply the change to revision %d: %w", d.Revision, err)
	}
	cur := c.enforce.cur.Load()
	if slices.ContainsFunc(m.Self.Routes, func(r netip.Prefix) bool { return r.Bits() > 0 }) {
		conn.Beat(wire.CarrierBeat) // a stand-by may wait for us to be gone
	} else {
		conn.Beat(0)
	}
	if cur.m != nil && cur.refused == nil && m.Revision == cur.m.Revision && d.Empty() {
		c.join = "" // a member has no use for it
		c.tell(nil)
		return conn.Send(&wire.Ack{Revision: m.Revision}) // connected again, and nothing was missed
	}
	begin := time.Now()
	if err := c.enforce.set(m, false, begin); err != nil {
		c.problem(err.Error())
		return err
	}
	took := time.Since(begin)
	c.whole = false
	tidy(len(m.Peers))
	c.save(m)
	tidy(len(m.Peers))
	c.join = ""
	if !c.id.joined || c.hello.Enrol != "" {
		c.hello.Enrol, c.id.joined = "", true
		if err := c.state.saveIdentity(c.id); err != nil {
			c.tell(err)
			return err
		}
	}
	c.tell(nil)
	c.changed()
	c.log.Info().Uint64("revision", m.Revision).Int("peers", len(m.Peers)).Int("rules", len(m.Rules)).
		Dur("took", took).Msg("policy enforced")
	return conn.Send(&wire.Ack{Revision: m.Revision})
}

// save writes the Map to the disk. A disk that is full stops nothing but is told.
func (c *control) save(m *wire.Map) {
	if err := c.state.saveMap(m); err != nil {
		c.problem(err.Error())
		c.log.Error().Err(err).Msg("save the map")
		select {
		case c.dirty <- struct{}{}: // try again
		default:
		}
		return
	}
	c.problem("")
}

// saver writes the soft plane's news to the disk now and then, that of a large mesh more seldom, and at the end.
func (c *control) saver(ctx context.Context) {
	save := func() {
		if cur := c.enforce.cur.Load(); cur.m != nil && cur.refused == nil {
			c.save(cur.m)
			tidy(len(cur.names))
		}
	}
	for {
		select {
		case <-c.dirty:
		case <-ctx.Done():
			select {
			case <-c.dirty:
				save()
			default:
			}
			return
		}
		select {
		case <-time.After(saveEvery * time.Duration(1+len(c.enforce.cur.Load().names)/restPeers)):
		case <-ctx.Done():
		}
		save()
	}
}

// here tells the coordinator where this node can be found and what it offers to carry, whenever that changes.
func (c *control) here(ctx context.Context, conn *wire.Conn, offered []netip.Prefix) {
	var last *wire.Here
	for {
		if now := c.offers(); !slices.Equal(now, offered) {
			if conn.Send(&wire.Advertise{Routes: now}) != nil {
				return
			}
			offered = now
		}
		h := &wire.Here{Endpoints: c.bind.Endpoints(), Relay: c.bind.Home(), Disco: c.disco, PeerRelay: c.relay(), Lacks: c.bind.Lacks()}
		h.Endpoints = h.Endpoints[:min(len(h.Endpoints), wire.MaxEndpoints)]
		if last == nil || !same(last, h) {
			if conn.Send(h) != nil {
				return // Recv fails too, and says why
			}
			last = h
		}
		select {
		case <-c.moved:
		case <-c.again:
			_ = conn.Close() // Recv sees
			return
		case <-ctx.Done():
			return
		}
	}
}

// ask has the coordinator say what time it is, which it does at the beginning of each session.
func (c *control) ask() {
	select {
	case c.again <- struct{}{}:
	default:
	}
}

func same(a, b *wire.Here) bool {
	if a.Relay != b.Relay || a.Disco != b.Disco || a.PeerRelay != b.PeerRelay || !slices.Equal(a.Lacks, b.Lacks) || len(a.Endpoints) != len(b.Endpoints) {
		return false
	}
	has := make(map[netip.AddrPort]bool, len(a.Endpoints))
	for _, e := range a.Endpoints {
		has[e] = true
	}
	for _, e := range b.Endpoints {
		if !has[e] {
			return false
		}
	}
	return true
}

// move is called when endpoints, the home relay or what is offered have changed.
func (c *control) move() {
	select {
	case c.moved <- struct{}{}:
	default:
	}
	c.changed()
}

func (c *control) found(conn *wire.Conn) {
	c.enforce.confirm()
	select {
	case <-c.again: // this is anew
	default:
	}
	c.mu.Lock()
	c.dial = conn
	c.status.Connected, c.status.Since, c.status.LastError, c.status.Stuck, c.status.Attempts = true, time.Now(), "", false, 0
	c.mu.Unlock()
	c.log.Info().Str("url", conn.URL()).Msg("connected to the coordinator")
	c.changed()
}

func (c *control) drop() {
	c.mu.Lock()
	c.dial = nil
	c.mu.Unlock()
	c.changed()
}

// lost notes why there is no session, and reports whether that is news.
func (c *control) lost(err error) bool {
	c.mu.Lock()
	if c.status.Connected || c.status.Since.IsZero() {
		c.status.Since = time.Now()
	}
	c.status.Connected = false
	c.last = err
	isNews := c.status.LastError != err.Error()
	c.status.LastError, c.status.Stuck = err.Error(), isHopeless(err)
	c.status.Attempts++
	c.mu.Unlock()
	c.changed()
	return isNews
}

// problem notes what is wrong for Status; empty for nothing.
func (c *control) problem(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = s
}

// why is the reason for there being no session.
func (c *control) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// now is the control part of Status.
func (c *control) now() (Control, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.URLs, s.Pin = c.id.urls, c.id.pin.String()
	return s, c.wrong
}

// session is the present connection; nil if there is none.
func (c *control) session() *wire.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dial
}

func newHello(id identity, name, version string, ephemeral bool, disco key.DiscoPublic) wire.Hello {
	return wire.Hello{
		Version: wire.Version, Node: key.ExchangePublic(id.node), Disco: disco, Name: name,
		OS: runtime.GOOS, Software: version, Ephemeral: ephemeral,
	}
}
