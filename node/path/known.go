package path

import (
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// known is a peer with which nothing has happened yet: most of a large mesh. It becomes a peer, which takes twenty times
// as much memory, with the first event that is its own.
type known struct {
	Peer
	since time.Time // when it came
	at    time.Time // when it was as it is
	kept  uint64    // the last set of peers it was in
}

// know takes what the coordinator says of a peer that is no more than known. spare is one that it may use.
func (p *Paths) know(now time.Time, s Peer, spare *peer) {
	k := p.known[s.Key]
	switch {
	case k == nil:
		k = &known{Peer: s, since: now, at: now}
		p.known[s.Key] = k
	case slices.Equal(k.Candidates, s.Candidates) && slices.Equal(k.Hops, s.Hops):
		k.kept = p.sets
		return
	default:
		k.Peer, k.at = s, now
	}
	k.kept = p.sets
	p.introduce(now, k, spare)
}

// introduce tells where the first handshake with a peer goes.
func (p *Paths) introduce(now time.Time, k *known, spare *peer) {
	p.wake(k, spare)
	spare.tell(now)
}

func (p *Paths) introduceAll(now time.Time) {
	var spare peer
	for _, k := range p.known {
		p.introduce(now, k, &spare)
	}
}

// wake makes pr the peer that a known one would be had it been a peer all the time.
func (p *Paths) wake(k *known, pr *peer) *peer {
	*pr = peer{p: p, key: k.Key, slot: slot{at: -1}, since: k.since, why: "no direct path yet", kept: k.kept, candidates: pr.candidates[:0]}
	for _, b := range []struct {
		*bucket
		burst float64
	}{{&pr.pings.rate, probeBurst}, {&pr.answers.rate, pongBurst}, {&pr.calls.heeded, hereBurst}, {&pr.shuns.moods, fickleBurst}, {&pr.shuns.stops, stopBurst},
		{&pr.asks.alarms, alarmBurst}, {&pr.afresh.asked, freshBurst}, {&pr.guesses.rate, guessBurst}} {
		b.fill(k.at, b.burst)
	}
	pr.take(k.at, k.Peer)
	return pr
}

// take is what the coordinator says of a peer.
func (pr *peer) take(now time.Time, s Peer) {
	pr.told = s.Candidates
	if pr.setCandidates(now, s.Candidates, told) {
		pr.search.restart(now)
	}
	if !slices.Equal(pr.hops, s.Hops) {
		pr.setHops(now, s.Hops)
	}
}

// look is a peer as it is now, to read; nil if there is none.
func (p *Paths) look(k key.NodePublic) *peer {
	if kn := p.known[k]; kn != nil {
		return p.wake(kn, new(peer))
	}
	return p.peers[k]
}
