package path

import (
	"fmt"
	"math"
	"time"
)

// Loss is seen without a packet more: WireGuard's counters have gaps where packets are missing, so the receiver knows,
// and tells the sender how much it was in which time; of times that it says nothing of, nothing was. What counts is the mean
// since that began, in which older reports fade:
//
//	lost   ──60──│──40──│──────│──50──│──│   per mille, in each report
//	mean     60     50     35     40         two reports at least, and worse than the relay: left
const (
	lossEvery  = 700 * time.Millisecond
	lossKeeps  = 3 * time.Second // what was lost so long ago counts a third (1/e); a report is news for so long
	lossLeast  = 20              // packets, to say anything about them
	lossTell   = 10              // per mille
	lossLearn  = 3 * lossEvery   // what is known of less is spread over that
	lossLong   = 20              // the same, to ask whether it is the long ones that are lost
	lossSoon   = 5               // packets missing, to tell of them sooner:
	lossSooner = silence - 10*time.Millisecond
	lossCost   = 40 * time.Millisecond // that a hundredth lost is worth
	lossyTwice = 2                     // reports running that decide
	lossAfter  = 2 * lossEvery         // a move: reports of before then may be of what it cost
	lossFlood  = 20000                 // packets a second; so many overrun a receiver, whatever path they take
	bulk       = 500                   // packets a second, which make a queue of their own and so the latency
)

// Counts is what arrived of a peer's packets, by any route.
type Counts struct {
	Session uint32 // which the counter is of
	Got     uint64 // packets
	Top     uint64 // the highest counter
}

// reports are what the peer says is lost of what we send by one way.
type reports struct {
	perMille float64   // it fades with lossKeeps
	last     time.Time // when there was any,
	since    time.Time // and since when
	worse    int       // reports running by which another way was better
}

// now is the loss, per mille, since there is any: what nobody complains of is clean.
func (r *reports) now(now time.Time) int {
	if r.perMille == 0 {
		return 0
	}
	return int(r.perMille * fade(now.Sub(r.last)) / (1 - fade(max(now.Sub(r.since), lossLearn))))
}

func (r *reports) take(now time.Time, m Loss) {
	if r.now(now) < lossTell/2 {
		*r = reports{last: r.last, since: now.Add(-m.Over)}
	}
	r.perMille = r.perMille*fade(now.Sub(r.last)) + float64(m.PerMille)*(1-fade(m.Over))
	r.last = now
}

// fade is what is left after a while of what was so long ago.
func fade(d time.Duration) float64 { return math.Exp(-float64(d) / float64(lossKeeps)) }

// hearing is what arrives of the peer's packets, and what it was told of those that do not.
type hearing struct {
	counts Counts    // of the past, and when that was;
	at     time.Time // zero to begin anew
	rate   int       // packets a second from the peer,
	rateAt time.Time // when that was last known
	said   time.Time // the last report of ours,
	told   int       // how many there were running,
	from   time.Time // and the first of these
}

// flowing reports whether so many packets a second came of the peer, up to a pause so long.
func (h *hearing) flowing(now time.Time, rate int, pause time.Duration) bool {
	return h.rate >= rate && recent(now, h.rateAt, pause+2*lossEvery)
}

// complains reports whether the peer has been told of loss more than once of late, the first time before then.
func (h *hearing) complains(now, then time.Time) bool {
	return h.told >= lossyTwice && recent(now, h.said, lossKeeps) && then.After(h.from)
}

// take returns what the peer is to be told when so much has arrived; false if nothing. The first of some that are missing is told
// of soon: it may be the long ones, for which the path is too narrow of late.
func (h *hearing) take(now time.Time, c Counts) (m Loss, soon, ok bool) {
	if c.Session != h.counts.Session || h.at.IsZero() {
		h.counts, h.at = c, now
		return m, false, false
	}
	span, got, took := c.Top-h.counts.Top, c.Got-h.counts.Got, now.Sub(h.at)
	news := !recent(now, h.said, lossKeeps)
	soon = took >= lossSooner && got+lossSoon <= span && news
	if took < lossEvery && !soon || span < lossLeast {
		return m, false, false
	}
	h.counts, h.at = c, now
	h.rate, h.rateAt = int(float64(span)/took.Seconds()), now
	if got >= span || h.rate >= lossFlood {
		return m, false, false
	}
	lost := (span - got) * 1000 / span
	if lost < lossTell {
		return m, false, false
	}
	if news {
		h.told, h.from = 0, now
	}
	h.said = now
	h.told++
	return Loss{uint16(lost), took}, soon, true
}

// hearLoss tells the peer how much of what it sends is missing, once a second while it is much.
func (pr *peer) hearLoss(now time.Time, c Counts) {
	m, soon, ok := pr.hearing.take(now, c)
	if !ok {
		return
	}
	pr.p.do(Send{Peer: pr.key, To: Relay, Msg: m})
	if soon && pr.best != nil && !pr.doubt {
		pr.doubtMTU(now, true) // then it is mostly too narrow for ours, too
	}
}

// gotLoss takes a report of the peer's, and weighs the direct path against the relay.
func (pr *peer) gotLoss(now time.Time, m Loss) {
	if m.PerMille > 1000 || pr.doubt || recent(now, pr.since, lossEvery) || recent(now, pr.stirred, lossAfter) {
		return // it is nonsense, or of the path before, or of both
	}
	c := pr.best
	if c == nil {
		pr.relay.lost.take(now, m)
		return
	}
	c.lost.take(now, m)
	asking := c.mtu.doubted(base(c.addr.Addr()))
	if m.PerMille >= lossLong {
		pr.doubtMTU(now, true)
	}
	if !pr.pings.asked(Relay) && !recent(now, pr.relay.pong, 2*time.Second) {
		pr.ping(now, Relay, 0, true) // it must be there to be better
	}
	// It must be much both of late and on the whole.
	alone := c.score(now) - time.Duration(max(c.lost.now(now)-int(m.PerMille), 0))*lossCost/10
	switch {
	case pr.relay.rtt > 0 && !clearly(pr.relayScore(now), alone):
		return // and what is not known yet will be when it comes to decide
	case asking:
		return // whether it is only the long ones that are lost, as will be known in a moment
	}
	if c.lost.worse == 0 && pr.compare.round == 0 {
		pr.compare.next = now // another address may do better than both
	}
	if c.lost.worse++; c.lost.worse >= lossyTwice && pr.relay.rtt > 0 && recent(now, pr.relay.pong, 10*time.Second) {
		pr.shun(now, shunStreak, fmt.Sprintf("%s loses %d of 1000 packets", c, m.PerMille))
	}
}

// stir says that one side moves: what is lost now says nothing of the path that will be.
func (pr *peer) stir(now time.Time) {
	pr.stirred, pr.hearing.at = now, time.Time{}
	if pr.best != nil {
		pr.best.lost = reports{}
	}
}
