// Package portmap has the gateway forward a UDP port to us, so that peers behind any NAT reach us directly.
//
//	         ┌─ PCP (RFC 6887) ─────┐
//	us ──────┼─ NAT-PMP (RFC 6886) ─┼── the gateway ── [external address:port] ── peers
//	         └─ UPnP IGD ───────────┘
//
// All three are asked at once; of the answers that come the first in this order is kept and the others are given
// back. Nobody but our own gateway is asked or believed. A mapping is a lease: it is renewed at half its time, and
// given back at the end. Whether packets come through it is the caller's to find out, and to say with Distrust.
package portmap

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"
)

// Protocol is a way to ask for a mapping.
type Protocol uint8

// The protocols, the preferred one first.
const (
	PCP Protocol = iota + 1
	NATPMP
	UPnP
)

// String is the protocol's name.
func (p Protocol) String() string {
	switch p {
	case PCP:
		return "PCP"
	case NATPMP:
		return "NAT-PMP"
	case UPnP:
		return "UPnP"
	}
	return "none"
}

// Mapping is a port that the gateway forwards to us. The zero Mapping is none.
type Mapping struct {
	External netip.AddrPort
	Protocol Protocol
	Expires  time.Time
}

// Valid reports whether there is a mapping.
func (m Mapping) Valid() bool { return m.External.IsValid() }

// Gateway is the router of our default route, and our address towards it.
type Gateway struct{ Router, Self netip.Addr }

// Report is what is known of the gateway, for people.
type Report struct {
	Gateway netip.Addr // not valid if there is none
	Mapping Mapping
	// Errors say why a protocol did not give a mapping the last time; a protocol that was not asked has none.
	Errors map[Protocol]error
	Asked  time.Time
	// Distrusted says that the last mapping let no packet through, and is not asked for again before the network
	// changes.
	Distrusted bool
}

// Config says what to map and whom to tell.
type Config struct {
	// Port is our own UDP port.
	Port uint16
	// Changed is told of each new mapping, and of its end by a zero one. It must not block, nor call the Client.
	Changed func(Mapping)
	// Gateway finds the gateway; nil for the system's.
	Gateway func() (Gateway, error)

	protocols []protocol // nil for the real ones
}

// protocol asks a gateway to forward a port of ours.
type protocol interface {
	kind() Protocol
	// mapPort asks for a mapping of our port for a lifetime, at the external port if that is not 0 and is free. A
	// lifetime of 0 gives back the mapping.
	mapPort(ctx context.Context, gw Gateway, port, external uint16, lifetime time.Duration) (netip.AddrPort, time.Duration, error)
}

// Times. A lease is an hour, as RFC 6886 section 3.3 and RFC 6887 section 11.2.1 leave to us: what a crash leaves behind
// is gone after that.
const (
	leaseTime  = time.Hour
	leaseLeast = 2 * time.Minute // a shorter one is taken as such, and renewed at half of this at most so often
	askFor     = 3 * time.Second // all protocols together
	preferWait = 250 * time.Millisecond
	retryWait  = 10 * time.Minute // services are turned on now and then
	giveBack   = time.Second
)

// Client keeps a mapping. Its methods may be called from any goroutine.
type Client struct {
	cfg    Config
	cancel context.CancelFunc
	kick   chan bool // look again; true if the mapping forwards nothing
	wg     sync.WaitGroup

	mu     sync.Mutex
	report Report
}

// Start begins to ask; Close ends it.
func Start(cfg Config) *Client {
	if cfg.Gateway == nil {
		cfg.Gateway = systemGateway
	}
	if cfg.Changed == nil {
		cfg.Changed = func(Mapping) {}
	}
	if cfg.protocols == nil {
		cfg.protocols = []protocol{&pcp{port: 5351}, natpmp{port: 5351}, &upnp{}}
	}
	c := &Client{cfg: cfg, kick: make(chan bool, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.wg.Go(func() { c.run(ctx) })
	return c
}

// Close gives the mapping back, waiting a second for the gateway at most.
func (c *Client) Close() {
	c.cancel()
	c.wg.Wait()
}

// Refresh asks anew: the network has changed.
func (c *Client) Refresh() { c.push(false) }

// Distrust gives up a mapping that lets no packet through, until the network changes.
func (c *Client) Distrust() { c.push(true) }

func (c *Client) push(bad bool) {
	select {
	case c.kick <- bad:
	default: // it is about to look anyway
	}
}

// Report says what is known.
func (c *Client) Report() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.report
}

func (c *Client) set(f func(*Report)) {
	c.mu.Lock()
	before := c.report.Mapping.External
	f(&c.report)
	m := c.report.Mapping
	c.mu.Unlock()
	if m.External != before {
		c.cfg.Changed(m)
	}
}

// held is the mapping that we have, and from whom.
type held struct {
	Mapping
	by   protocol
	gw   Gateway
	next time.Time // when to ask again
}

func (c *Client) run(ctx context.Context) {
	var h held
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			c.release(h)
			return
		case bad := <-c.kick:
			if bad {
				c.release(h)
				h = held{}
				c.set(func(r *Report) { r.Mapping, r.Distrusted = Mapping{}, true })
				timer.Stop()
				continue
			}
			h.next = time.Time{}
		case <-timer.C:
		}
		h = c.renew(ctx, h)
		timer.Reset(max(time.Until(h.next), 0))
	}
}

// renew asks for the mapping that we have, or for one if there is none, and says when to ask again.
func (c *Client) renew(ctx context.Context, h held) held {
	now := time.Now()
	gw, err := c.cfg.Gateway()
	switch {
	case err != nil:
		c.set(func(r *Report) { *r = Report{Asked: now} })
		return held{next: now.Add(retryWait)} // or when the network changes
	case h.by != nil && gw != h.gw:
		h = held{} // the old gateway is out of reach, and its lease ends by itself
	}
	errs := map[Protocol]error{}
	got, ok := held{}, false
	if h.by != nil { // from whom we have it, at the same port
		got, err = c.ask(ctx, h.by, gw, h.External.Port())
		if ok = err == nil; !ok {
			errs[h.by.kind()] = err
		}
	}
	if !ok {
		got, ok = c.askAll(ctx, gw, errs)
	}
	switch {
	case ok:
		h = got
		h.next = now.Add(max(h.Expires.Sub(now)/2, leaseLeast/2))
	case h.by != nil && now.Before(h.Expires): // it may stand yet; ask ever more often (RFC 6887 section 11.2.1)
		h.next = now.Add(max(h.Expires.Sub(now)/2, 4*time.Second))
	default:
		h = held{next: now.Add(retryWait)}
	}
	if ctx.Err() == nil {
		c.set(func(r *Report) { *r = Report{Gateway: gw.Router, Mapping: h.Mapping, Errors: errs, Asked: now} })
	}
	return h
}

var errUnusable = errors.New("the gateway gave an address that is none")

// ask asks by one protocol.
func (c *Client) ask(ctx context.Context, p protocol, gw Gateway, external uint16) (held, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	at, lease, err := p.mapPort(ctx, gw, c.cfg.Port, external, leaseTime)
	if err != nil {
		return held{}, err
	}
	if a := at.Addr(); !at.IsValid() || at.Port() == 0 || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return held{}, errUnusable
	}
	m := Mapping{External: at, Protocol: p.kind(), Expires: time.Now().Add(min(max(lease, time.Second), 24*time.Hour))}
	return held{Mapping: m, by: p, gw: gw}, nil
}

// askAll asks by all protocols at once, and keeps the answer of the one that is liked best.
func (c *Client) askAll(ctx context.Context, gw Gateway, errs map[Protocol]error) (best held, ok bool) {
	type answer struct {
		held
		kind Protocol
		err  error
	}
	answers := make(chan answer, len(c.cfg.protocols))
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	for _, p := range c.cfg.protocols {
		c.wg.Go(func() {
			h, err := c.ask(ctx, p, gw, 0)
			answers <- answer{h, p.kind(), err}
		})
	}
	var wait <-chan time.Time // for one that is liked better
	for n := 0; n < len(c.cfg.protocols); n++ {
		select {
		case a := <-answers:
			switch {
			case a.err != nil:
				errs[a.kind] = a.err
				continue
			case !ok || a.kind < best.Protocol:
				a.held, best = best, a.held
			}
			if ok {
				c.release(a.held)
			}
			if ok = true; wait == nil {
				wait = time.After(preferWait)
			}
		case <-wait:
			// What comes later is given back by whoever asked: the rest are drained here.
			left := len(c.cfg.protocols) - n
			keep := best
			c.wg.Go(func() {
				for range left {
					if a := <-answers; a.err == nil && a.External != keep.External {
						c.release(a.held)
					}
				}
			})
			return best, true
		}
	}
	return best, ok
}

// release gives a mapping back, as far as the gateway listens.
func (c *Client) release(h held) {
	if h.by == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), giveBack)
	defer cancel()
	_, _, _ = h.by.mapPort(ctx, h.gw, c.cfg.Port, h.External.Port(), 0) // it ends by itself else
}
