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

// Network is what is known of the network around us.
type Network struct {
	NAT    NAT
	Local  []netip.AddrPort // our own addresses, as peers are told them
	Relays []RelayInfo      // in the coordinator's order
}

// RelayInfo is one relay as we see it.
type RelayInfo struct {
	ID        uint16
	URL       string
	Home      bool
	Connected bool
	Latency   time.Duration // of its STUN answer over UDP; 0 if it has not answered, or does no more
}

// around is the loop's part of Network, never changed but replaced.
type around struct {
	local   []netip.AddrPort
	latency map[uint16]time.Duration
}

// Network is what is known of the network around us now.
func (b *Bind) Network() Network {
	n := Network{NAT: b.NAT()}
	var a around
	if p := b.around.Load(); p != nil {
		a = *p
	}
	n.Local = slices.Clone(a.local)
	conns := *b.relays.conns.Load()
	for _, r := range b.relays.list() {
		i := RelayInfo{ID: r.ID, Home: r.ID == b.Home(), Latency: a.latency[r.ID]}
		if len(r.URLs) > 0 {
			i.URL = r.URLs[0]
		}
		if c := conns[r.ID]; c != nil {
			i.Connected = c.up()
		}
		n.Relays = append(n.Relays, i)
	}
	return n
}

// lookAround keeps what Network tells.
func (l *loop) lookAround(now time.Time) {
	a := &around{latency: l.stun.far.known(false, now)}
	for _, ip := range l.net.addrs {
		a.local = append(a.local, netip.AddrPortFrom(ip, l.b.Port()))
	}
	l.b.around.Store(a)
}

// asked is one call of Account.
type asked struct {
	peer  key.NodePublic
	reply chan path.Account // room for one
}

// Account tells what is known of the ways to a peer.
func (b *Bind) Account(ctx context.Context, k key.NodePublic) (path.Account, error) {
	q := asked{k, make(chan path.Account, 1)}
	select {
	case b.accounts <- q:
	case <-b.done:
		return path.Account{}, errStopped
	case <-ctx.Done():
		return path.Account{}, fmt.Errorf("bind: account of node %s: %w", k.Short(), context.Cause(ctx))
	}
	select {
	case a := <-q.reply:
		return a, nil
	case <-b.done:
		return path.Account{}, errStopped
	}
}

func (l *loop) account(q asked) {
	l.takePeers()
	a, _ := l.paths.Account(time.Now(), q.peer)
	q.reply <- a
}
