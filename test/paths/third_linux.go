package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/node"
	"github.com/hedge-mesh/hedge/test/lab"
)

// byThird is how a path by the third node begins.
const byThird = "via peer relay"

// peerCases are pairs without a direct path, and a third node in the open that the policy lets both use as a peer relay.
var peerCases = pairs(map[string][]string{
	"peer":      {"hard hard", "cgn cgn", "hard hardseq", "hard hardblk"},
	"peer-dead": {"hard hard"},
	"peer-wan":  {"hard hard"},
	"peer-move": {"hard hard"},
	"peer-loss": {"hard hard"},
})

// third is what happens where there is a peer relay. Both relays are 30 ms from the middle instead of 10, so that a ping by
// them takes 160 ms, and 80 by the peer relay: it is not taken where it is no better.
var third = []event{
	{name: "peer", text: "nothing", by: byThird, prepare: startThird, outage: announced, back: time.Second,
		do: func(context.Context, *run) error { return nil }},
	{name: "peer-dead", text: "the peer relay is killed", by: byThird, prepare: startThird, outage: silent, back: 3 * time.Second, after: "relay",
		do: func(_ context.Context, r *run) error { r.m.third.stop(os.Kill); return nil }},
	{name: "peer-wan", text: "a's NAT gets another address, unseen by a", by: byThird, prepare: startThird, outage: silent, back: 3 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.MoveWAN() }},
	{name: "peer-move", text: "a's LAN address changes", by: byThird, prepare: startThird, outage: announced, back: 3 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.MoveLAN() }},
	{name: "peer-loss", text: "the peer relay loses 10 %", by: byThird, prepare: startThird, back: 5 * time.Second, after: "any",
		do: func(_ context.Context, r *run) error {
			r.m.spot.Wire.Set(func(l *labLine) { l.Loss = 0.1 })
			return nil
		}},
}

// startThird starts the third node, and waits until both know that they may use it.
func startThird(ctx context.Context, r *run) (err error) {
	m := r.m
	for _, s := range []*lab.Server{m.hub, m.extra} {
		s.Wire.Set(func(l *labLine) { l.Delay = 3 * lab.Half })
	}
	if m.spot, err = m.world.Server(2); err != nil {
		return err
	}
	join, err := m.joinKey(ctx, "third")
	if err != nil {
		return err
	}
	if m.third, err = m.run(m.spot.Space, "third", []string{"HEDGE_JOIN=" + join}, nil, "up", "--foreground", "--name", "third", "--peer-relay"); err != nil {
		return err
	}
	for _, p := range []*peer{m.a, m.b} {
		if err := until(ctx, "node "+p.name+" knows of the peer relay", func() error { return p.knowsThird(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

func (p *peer) knowsThird(ctx context.Context) error {
	s, err := p.api.Status(ctx)
	if err != nil {
		return err
	}
	if !online(s, "third") {
		return errors.New("it is not online")
	}
	n, err := p.api.Netcheck(ctx)
	if err == nil && len(n.PeerRelays) == 0 {
		err = errors.New("none is listed")
	}
	return err
}

// online reports whether a node sees another, by its name.
func online(s node.Status, name string) bool {
	for _, p := range s.Peers {
		if p.Name == name {
			return p.Online
		}
	}
	return false
}

// byPeer is the section of the peer relay.
func byPeer(b *strings.Builder, results []result) {
	b.WriteString(`## By a peer relay

Pairs without a direct path, and a third node with a public address that the policy lets them use as a peer relay. Here the relays are
60 ms from the edges of the internet instead of 20, so a ping by relay takes 160 ms, and by the peer relay 80. The columns are the first echo,
the time until both nodes send by the peer relay, and those of the events above.

| event | pair | first echo | by the peer relay | outage | goal | lost | path again | stream stood |
|---|---|--:|--:|--:|--:|--:|--:|--:|
`)
	for _, r := range results {
		e, pair := r.event()
		if r.Err != "" {
			fmt.Fprintf(b, "| %s | %s | failed: %s | | | | | | |\n", e.text, pair, r.Err)
			continue
		}
		both := "never"
		if r.DirectA > 0 && r.DirectB > 0 {
			both = millis(max(r.DirectA, r.DirectB))
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s |\n", e.text, pair, millis(r.First), both, millis(r.Event.Gap), millis(e.outage), r.afterwards(e))
	}
}
