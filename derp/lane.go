package derp

import "time"

// The patience of a lane.
const (
	laneSleep  = 30 * time.Second       // without a packet: what is not used costs nothing
	laneQuiet  = 250 * time.Millisecond // after a datagram was sent, without hearing any: ask
	laneBusy   = time.Second            // the same while some are heard: they may come and ours not arrive
	laneFresh  = time.Second            // a datagram heard that recently is proof enough: else packets go both ways
	laneHasty  = 100 * time.Millisecond // the least time an answer has when nothing is heard
	laneLeast  = 200 * time.Millisecond // and else
	laneMost   = time.Second            // and the most
	laneKeep   = 4 * time.Second        // without sending any, the relay is told that we are here: see twinTrust
	laneFull   = 15 * time.Second       // the whole size is asked again after that
	laneMisses = 3                      // unanswered pings in a row
	laneSettle = 10 * time.Second       // a lane that was good for so long may fail as if for the first time
	laneRetry  = time.Second            // the first wait after a failure; it doubles
	laneRest   = 5 * time.Minute        // the longest
)

// laneFloor is the longest datagram that passes wherever IPv6 does: in a packet of 1280 bytes.
const laneFloor = 1280 - 40 - 8

// laneTries are the pings of an attempt: their sizes, and the waits after them. The second size is WireGuard's packet
// for an MTU of 1280 inside, with room for PPPoE, IPv6 in IPv4 and the like around it; by the last go short packets only.
var laneTries = [...]struct {
	size int
	wait time.Duration
}{{maxDatagram, laneLeast}, {maxDatagram, 2 * laneLeast}, {1392, laneLeast}, {1392, laneLeast}, {laneFloor, laneLeast}, {laneFloor, 3 * laneLeast}}

const leastProbe = datagramOverhead + probeHead

// lane decides whether packets go by UDP to the relay: only while pings are answered. All times are since the same
// moment; zero is never.
//
//	asleep ──packet──▶ asking ──pong──▶ good ──miss──▶ in doubt ──misses──▶ asking, after a rest
//	   ▲                                ▲ │             │   │ short pongs only
//	   └──── laneSleep, from any ──     │ └──── pong ───┘   │
//	                                    └── with laneFloor ─┘
//
// In doubt packets go by UDP and by WebSocket, and the relay is told to send by WebSocket.
type lane struct {
	traffic time.Duration // the last packet either way, by UDP or not
	heard   time.Duration // the last datagram
	data    time.Duration // the last with a packet: what has stopped coming may be on its way no more
	sent    time.Duration // the first one since an answered ping
	mute    time.Duration // the first one since any was heard
	stale   bool          // packets go both ways until one is heard
	out     time.Duration // the last one sent
	long    int           // the longest of them either way, since then; and before
	before  int

	size    int // of the longest datagram that was answered in full; 0 while asking
	tell    bool
	also    int // one more ping, of that size, that nobody waits for
	lesser  int // the size of an answer while longer pings have none
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

// laneAct is what to do: send a ping of that size, and tell the relay by WebSocket to send nothing by UDP.
type laneAct struct {
	ping  int
	stop  bool
	other bool // the next ping goes to another address of the relay, if there is one
}

func (a laneAct) none() bool { return a == laneAct{} }

// usable is the size of the longest datagram to send packets in, 0 for none, and whether they are to go by WebSocket too.
func (l *lane) usable() (size int, both bool) { return l.size, l.missed > 0 }

// use is what the relay is told to send: in doubt nothing.
func (l *lane) use() int {
	if l.missed > 0 {
		return 0
	}
	return l.size
}

// act says what to do now, and if that is nothing, when to ask again; never is zero.
func (l *lane) act(now time.Duration) (laneAct, time.Duration) {
	if wake := l.traffic + laneSleep; l.traffic == 0 || now > wake {
		l.size, l.try, l.missed, l.pinged, l.also = 0, 0, 0, 0, 0
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
	switch {
	case l.tell:
		l.tell = false
		return l.ping(now, leastProbe), 0
	case l.also > 0:
		a := laneAct{ping: l.also}
		l.also = 0
		return a, 0
	case l.pinged != 0 && now < l.again:
		return laneAct{}, l.again
	case l.pinged != 0:
		return l.miss(now), 0
	case now >= l.checked+laneFull:
		l.checked = now
		if l.size < maxDatagram {
			l.also = maxDatagram
		}
		return l.ping(now, l.size), 0
	}
	due := min(l.out+laneKeep, l.checked+laneFull, now+laneQuiet) // the last to look whether something was sent
	if l.stale {
		due = now
	}
	if l.mute != 0 {
		due = min(due, l.mute+laneQuiet)
	}
	if l.sent != 0 {
		due = min(due, l.sent+laneBusy)
	}
	if l.data > l.last {
		due = min(due, l.data+laneQuiet, l.last+laneBusy)
	}
	if now >= due {
		return l.ping(now, min(max(leastProbe, l.long, l.before), l.size)), 0
	}
	return laneAct{}, due
}

// miss asks again, and in doubt whether shorter ones pass.
func (l *lane) miss(now time.Duration) laneAct {
	l.missed++
	if l.missed < laneMisses {
		if l.asked > laneFloor {
			l.also = laneFloor
		}
		a := l.ping(now, l.asked)
		a.stop = l.missed == 1
		return a
	}
	l.size, l.pinged, l.missed, l.also = l.lesser, 0, 0, 0
	if l.lesser == 0 {
		l.fail(now)
		return laneAct{stop: true}
	}
	l.tell, l.lesser, l.long, l.before, l.checked = true, 0, 0, 0, now
	return laneAct{stop: true}
}

// ping asks whether datagrams as long as those in use arrive.
func (l *lane) ping(now time.Duration, size int) laneAct {
	if l.pinged == 0 {
		l.pinged = now
	}
	wait := max(laneLeast, 4*l.rtt)
	if now-l.heard >= laneQuiet {
		wait = max(laneHasty, 3*l.rtt)
	}
	l.last = now
	l.asked, l.again = size, now+min(wait, laneMost)
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
	waited := l.size != 0 && l.pinged != 0 && sent >= l.pinged
	answers := waited && size >= l.asked
	switch {
	case answers:
		l.tell = l.tell || l.missed > 0
		l.pinged, l.missed, l.lesser, l.before = 0, 0, 0, l.long
	case waited && l.missed > 0 && size > leastProbe:
		l.lesser = max(l.lesser, size)
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
	l.fails, l.missed, l.lesser = 0, 0, 0
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
	l.mute, l.stale, l.tell, l.also, l.lesser = 0, false, false, 0, 0
}
