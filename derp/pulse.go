package derp

import "time"

// times are a client's patience.
type times struct {
	quiet  time.Duration // after a packet was sent, without hearing anything: ask
	answer time.Duration // the least time an answer to a ping has
	idle   time.Duration // without hearing anything: ask
	dial   time.Duration // for a connection to come about
	retry  time.Duration // the first wait after all URLs have failed; it doubles
	hurry  time.Duration // the longest wait while packets wait for a link that was there a moment ago,
	most   time.Duration // and else
}

var defaultTimes = times{
	quiet: 500 * time.Millisecond, answer: 400 * time.Millisecond, idle: 15 * time.Second,
	dial: 8 * time.Second, retry: 250 * time.Millisecond, hurry: time.Second, most: 10 * time.Second,
}

// misses is how many pings in a row go unanswered before a link is taken for dead. One is enough to start
// making another link.
const misses = 6

// pulse decides, from when a link was used, whether it is alive. All times are since the same moment; zero is never.
//
//	data ──quiet──▶ ping     what came, and has stopped coming, may be on its way no more
//	sent ──quiet──▶ ping ──answer──▶ suspect, ping ──answer──▶ … misses: dead
//	heard ───────idle──────▶ ping
type pulse struct {
	heard  time.Duration // last
	sent   time.Duration // the first since then
	data   time.Duration // of what was heard, the last packet of a node
	asked  time.Duration // the last ping
	pinged time.Duration // the last, if nothing was heard since
	rtt    time.Duration // of the last ping that was answered
	missed int
}

type beat int

const (
	beatNone    beat = iota
	beatPing         // send a ping
	beatSuspect      // send a ping, and make another link
	beatDead         // give the link up
)

// next says what to do now, and when to ask again.
func (p *pulse) next(now time.Duration, t times) (beat, time.Duration) {
	if p.pinged != 0 && p.heard >= p.pinged {
		p.rtt, p.pinged, p.missed = p.heard-p.pinged, 0, 0
	}
	// Another link, made in vain, costs less than a dead one: a path under load, and so slow for a while, has twice its
	// time only if that is not long.
	patience := min(max(t.answer, min(2*p.rtt, t.answer*8/5), p.rtt*5/4), 10*t.answer)
	due, what := p.heard+t.idle, beatPing
	switch {
	case p.pinged != 0:
		due, what = p.pinged+patience, beatSuspect
		if p.missed+1 >= misses {
			what = beatDead
		}
	case p.sent != 0 && p.sent >= p.heard:
		due = min(due, p.sent+t.quiet)
	case p.data > p.asked:
		due = min(due, p.data+t.quiet)
	}
	if now < due {
		return beatNone, due
	}
	if p.pinged != 0 {
		p.missed++
	}
	p.pinged, p.asked = now, now
	return what, now + patience
}
