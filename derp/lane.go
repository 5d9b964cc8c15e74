package derp

import "time"

// The patience of a lane.
const (
	laneSleep  = 30 * time.Second       // without a packet: what is not used costs nothing
	laneQuiet  = 500 * time.Millisecond // after a datagram was sent, without hearing any: ask
	laneBusy   = time.Second            // the same while some are heard: they may come and ours not arrive
	laneLeast  = 200 * time.Millisecond // the least time an answer has
	laneMost   = time.Second            // and the most
	laneKeep   = 4 * time.Second        // without sending any, the relay is told that we are here: see twinTrust
	laneFull   = 15 * time.Second       // the whole size is asked again after that
	laneMisses = 2                      // unanswered pings in a row
	laneSettle = 10 * time.Second       // a lane that was good for so long may fail as if for the first time
	laneRetry  = time.Second            // the first wait after a failure; it doubles
	laneRest   = 5 * time.Minute        // the longest
)

// laneTries are the pings of an attempt: their sizes, and the waits after them. The lesser size is WireGuard's packet
// for an MTU of 1280 inside, with room for PPPoE, IPv6 in IPv4 and the like around it.
var laneTries = [...]struct {
	size int
	wait time.Duration
}{{maxDatagram, laneLeast}, {maxDatagram, 2 * laneLeast}, {1392, laneLeast}, {1392, 3 * laneLeast}}

const leastProbe = datagramOverhead + probeHead

// lane decides whether packets go by UDP to the relay: only while pings are answered. All times are since the same
// moment; zero is never.
//
//	asleep ──packet──▶ asking ──pong──▶ good ──misses──▶ asking, after a rest
//	   ▲                  ▲               │
//	   └──── laneSleep ───┴───────────────┘
type lane struct {
	traffic time.Duration // the last packet either way, by UDP or not
	heard   time.Duration // the last datagram
	data    time.Duration // the last with a packet: what has stopped coming may be on its way no more
	sent    time.Duration // the first one since an answered ping
	out     time.Duration // the last one sent
	long    int           // the longest of them either way, since then; and before
	before  int

	size    int // of the longest datagram that was answered in full; 0 while asking
	tell    bool
	try     int
	next    time.Duration // while asking: when to go on
	fails   int           // attempts in a row
	since   time.Duration // when it became good
	pinged  time.Duration // the first ping not answered
	again   time.Duration // when it is missed
	asked   int           // its size
	last    time.Duration // the last ping, answered or not
	missed  int
	rtt     time.Duration
	checked time.Duration // when the whole size was last asked
}

// laneAct is what to do: send a ping of that size, or tell the relay by WebSocket to send nothing by UDP.
type laneAct struct {
	ping  int
	stop  bool
	other bool // the next ping goes to another address of the relay, if there is one
}

func (a laneAct) none() bool { return a == laneAct{} }

// usable is the size of the longest datagram to send packets in; 0 for none.
func (l *lane) usable() int {
	if l.missed > 0 {
		return 0
	}
	return l.size
}

// act says what to do now, and if that is nothing, when to ask again; never is zero.
func (l *lane) act(now time.Duration) (laneAct, time.Duration) {
	if wake := l.traffic + laneSleep; l.traffic == 0 || now > wake {
		l.size, l.try, l.missed, l.pinged = 0, 0, 0, 0
		return laneAct{}, 0
	}
	if l.size == 0 {
		return l.ask(now)
	}
	return l.keep(now)
}

func (l *lane) ask(now time.Duration) (laneAct, time.Duration) {
	if now < l.next {
		return laneAct{}, l.next
	}
	if l.try == len(laneTries) {
		l.fail(now)
		return laneAct{other: true}, 0
	}
	t := laneTries[l.try]
	l.next = now + t.wait
	l.try++
	return laneAct{ping: t.size}, 0
}

func (l *lane) keep(now time.Duration) (laneAct, time.Duration) {
	if now-l.since > laneSettle {
		l.fails = 0
	}
	quiet := laneQuiet
	if l.heard >= l.sent {
		quiet = laneBusy
	}
	switch {
	case l.tell:
		l.tell = false
		return l.ping(now, leastProbe), 0
	case l.pinged != 0 && now < l.again:
		return laneAct{}, l.again
	case l.pinged != 0:
		if l.missed++; l.missed == laneMisses {
			l.size, l.pinged, l.missed = 0, 0, 0
			l.fail(now)
			return laneAct{stop: true}, 0
		}
		return l.ping(now, l.asked), 0
	case now >= l.checked+laneFull:
		l.checked = now
		return l.ping(now, l.size), 0
	case l.sent != 0 && now >= l.sent+quiet, now >= l.out+laneKeep, l.data > l.last && now >= l.data+laneQuiet:
		return l.ping(now, min(max(leastProbe, l.long, l.before), l.size)), 0
	}
	due := now + laneQuiet // to look whether something was sent
	if l.sent != 0 {
		due = l.sent + quiet
	}
	if l.data > l.last {
		due = min(due, l.data+laneQuiet)
	}
	return laneAct{}, min(due, l.out+laneKeep, l.checked+laneFull)
}

// ping asks whether datagrams as long as those in use arrive.
func (l *lane) ping(now time.Duration, size int) laneAct {
	if l.pinged == 0 {
		l.pinged = now
	}
	l.last = now
	l.asked, l.again = size, now+min(max(laneLeast, 4*l.rtt), laneMost)
	return laneAct{ping: size}
}

func (l *lane) fail(now time.Duration) {
	l.try = 0
	l.next = now + min(laneRetry<<min(l.fails, 16), laneRest)
	l.fails++
}

// pong takes an answer: to a ping of that size, sent then. It reports whether it answers the ping that is waited for.
func (l *lane) pong(now, sent time.Duration, size int) bool {
	if sent > now || now-sent > 3*time.Second {
		return false
	}
	l.rtt = now - sent
	answers := l.size != 0 && l.pinged != 0 && sent >= l.pinged && size >= l.asked
	if answers {
		l.pinged, l.missed, l.before = 0, 0, l.long
	}
	if size > l.size && size > leastProbe {
		if l.size == 0 {
			l.since, l.long, l.before = now, 0, 0
		}
		l.size, l.tell, l.checked = size, true, now
	}
	return answers
}

// moved begins anew on another network: the relay learns at once where we are.
func (l *lane) moved(now time.Duration) {
	l.fails, l.missed = 0, 0
	if l.size != 0 {
		l.pinged, l.checked = 0, now-laneFull
		return
	}
	l.try, l.next = 0, now
}

// renewed begins anew with another session.
func (l *lane) renewed(now time.Duration) {
	l.size, l.try, l.missed, l.pinged, l.next = 0, 0, 0, 0, now
	l.heard, l.data, l.sent, l.out, l.long, l.before = 0, 0, 0, 0, 0, 0
}
