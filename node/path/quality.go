package path

import (
	"slices"
	"time"
)

// A path is judged by its latency, its jitter and its loss, the relay's as well; [quality.score] makes one number of them.
// Latency and jitter come from pings, of which a path gets few while it is good; loss from what the peer says (see reports).

// quality is what is known of one way to a peer.
type quality struct {
	pong   time.Time     // last answer; zero if it stopped answering
	rtt    time.Duration // smoothed (RFC 6298: 7/8); 0 if not known
	rttvar time.Duration // (RFC 6298: 3/4)
	missed int           // pings unanswered since the last answer
	lost   reports
	wins   int // samples running by which it was clearly better than the path in use
}

// answered takes a round trip.
func (q *quality) answered(now time.Time, rtt time.Duration) {
	if q.rtt > 0 {
		q.rttvar = (3*q.rttvar + (rtt - q.rtt).Abs()) / 4
	}
	q.rtt = smooth(q.rtt, rtt)
	q.pong, q.missed = now, 0
}

func smooth(old, sample time.Duration) time.Duration {
	if old == 0 {
		return sample
	}
	return (7*old + sample) / 8
}

// score is what a path is worth, the less the better.
func (q *quality) score(now time.Time) time.Duration {
	return q.rtt + 4*q.rttvar + time.Duration(q.lost.now(now))*lossCost/10
}

// relayScore puts the relay behind a direct path that is as good: others use it too.
func (pr *peer) relayScore(now time.Time) time.Duration {
	if pr.relay.rtt == 0 {
		return time.Hour // not known to work
	}
	return pr.relay.score(now)*5/4 + 2*goodEnough
}

// clearly reports whether one score is better than another by enough to switch.
func clearly(better, worse time.Duration) bool { return better+max(goodEnough, worse/10) < worse }

// medians are those of some round trips and of how far they are from it.
func medians(trips []time.Duration) (rtt, off time.Duration) {
	list := slices.Clone(trips)
	rtt = median(list)
	for i, d := range list {
		list[i] = (d - rtt).Abs()
	}
	return rtt, median(list)
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

// short rounds for people.
func short(d time.Duration) time.Duration { return d.Round(time.Millisecond / 10) }
