package path

import (
	"net/netip"
	"time"
)

// Kind is how a NAT chooses the outside port of a far end, which decides who can reach whom (RFC 4787 section 4).
type Kind uint8

const (
	Unknown    Kind = iota
	Easy            // one for all far ends, or there is no NAT at all: Low is Steady, Spoilt or 0
	Sequential      // another for each far end, the next one: Low is the last seen, High the step, 65535 for one downwards
	Block           // another for each far end, somewhere from Low to High
	Random          // another for each far end, anywhere
	Blocked         // no answer at all
)

// What packets that nobody has asked for do to a NAT that is Easy, in its Low; 0 if that is not known.
const (
	Steady uint16 = 1 + iota // nothing
	Spoilt                   // it never uses the port that they came to towards their sender (see early)
)

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown"
}

var kindNames = [...]string{"unknown", "easy", "sequential", "block", "random", "blocked"}

// NAT is what a node knows of its own.
type NAT struct {
	Kind      Kind
	Low, High uint16
}

// spoilt reports whether packets that nobody has asked for are known to spoil its ports.
func (n NAT) spoilt() bool { return n.Kind == Easy && n.Low == Spoilt }

// hard reports whether peers cannot know in advance the port by which a packet to them leaves.
func (n NAT) hard() bool { return n.Kind == Sequential || n.Kind == Block || n.Kind == Random }

// Budget bounds what is spent on guessing the ports of a hard NAT, per attempt; the zero value is the default.
// A probe is 138 bytes on the wire.
type Budget struct {
	Sockets int           // opened behind a NAT with random ports (the birthday method); 0 for 384, negative for no guessing
	Probes  int           // guesses by the side that has one port; 0 for 1024. docs/guessing.md says how often that is enough
	Pairs   int           // probes of each side where both NATs are hard, about; 0 for 2048
	Rate    int           // probes a second; 0 for 300, and up to ten thirds as many where both NATs are hard
	Every   time.Duration // between attempts that failed, but for a second one soon after the first; 0 for 10 min
}

func (b Budget) orDefault() Budget {
	set := func(p *int, d int) {
		if *p == 0 {
			*p = d
		}
	}
	set(&b.Sockets, 384)
	set(&b.Probes, usual)
	set(&b.Pairs, 2048)
	set(&b.Rate, 300)
	if b.Every == 0 {
		b.Every = 10 * time.Minute
	}
	return b
}

const (
	window    = 64   // ports that a sequential NAT may be at,
	wide      = 256  // and where others use it too
	passed    = 4    // ports after the last seen that the peer's usual socket has taken meanwhile to reach us
	inOrder   = 256  // of them opened for a peer whose NAT has a block
	someSocks = 64   // opened where that is enough: for a block of 1024 ports
	narrow    = 1280 // ports of a block at most, for two to meet that are both hard
	tryRound  = 4    // of the ordinary search, after which nothing more is to be hoped of it
	usual     = 1024 // probes that mostly do
	openRate  = 2560 // packets a second that only open our own NAT

	guessLater = 80 * time.Millisecond // who probes begins so much later than who opens
	tryStep    = 10 * time.Millisecond
	tryLinger  = 1500 * time.Millisecond // for the last answers

	// Where many sockets are opened, two in five of them do more than that after three in five of the usual probes of the
	// peer's, and the others after all of these.
	someEarly  = 2.0 / 5
	earlyAfter = 3.0 / 5
	spoiltPart = 4 // fifths of those probes, after which all sockets ping a NAT that is known to be spoilt by it
)

// try is an attempt to guess ports. The side with the hard NAT opens many sockets, so that its NAT has many ports open
// to the peer's one; the other side probes ports; any hit is a path (the birthday method). A NAT that gives ports in
// order or from a small block narrows the guess.
//
//	hard:  384 sockets ─ opener ─▶ 384 ports of its NAT            at once
//	easy:  1024 ports  ◀─ ping ─── one socket                      until one is hit: mostly in 0.4 s, at most in 3.4 s
//	hard:  154 sockets ─ ping ───▶ the peer's one address          after 2.1 s
//	hard:  230 sockets ─ ping ───▶ the peer's one address          after 3.4 s
//
// The openers die before the peer's NAT, which packets from ports that it was not yet sent from could spoil, and where
// they die too early, before a second NAT of ours, the pings do as well: the peer's NAT is open by then for hundreds of
// ports, of which they are to hit one. docs/guessing.md has the arithmetic.
type try struct {
	socks  int // extra sockets; 0 for the usual one
	most   int // probes, openers included
	rate   int
	target func(i int) netip.AddrPort
	short  int           // openers, to begin with
	near   int           // the packets before this one die behind one router,
	far    int           // and those before this one behind two; the others do not
	early  int           // probes that follow these, by the first sockets, so long since the start:
	mid    time.Duration //
	rest   time.Duration // since the start, until the other probes
	linger time.Duration // after all, for the last answers
	sent   int
	start  time.Time
	next   time.Time
}

// guessOn sends the probes that are due, and ends the attempt in its time.
func (pr *peer) guessOn(now time.Time) {
	t := pr.guesses.try
	if t == nil || t.next.After(now) {
		return
	}
	if pr.direct() || t.sent >= t.most {
		pr.endTry()
		return
	}
	due := t.due(now.Sub(t.start))
	for ; t.sent < due; t.sent++ {
		to, sock := t.target(t.sent), 0
		if t.socks > 0 {
			sock = 1 + t.sent%t.socks
		}
		ttl := 0
		switch {
		case !pr.p.usable(to):
			continue
		case t.sent < t.near:
			ttl = openTTL
		case t.sent < t.far:
			ttl = openTTL + 1
		}
		pr.p.do(Send{Peer: pr.key, To: to, Msg: Ping{Tx: pr.p.cfg.Tx()}, Socket: sock, TTL: ttl})
	}
	if t.next = now.Add(tryStep); t.sent >= t.most {
		t.next = now.Add(max(tryLinger, t.linger))
	}
}

// due is how many packets are to be sent by then.
func (t *try) due(since time.Duration) int {
	at := func(rate int, d time.Duration) int {
		if d < 0 {
			return 0
		}
		return int(d*time.Duration(rate)/time.Second) + 1
	}
	return min(t.most, min(t.short, at(openRate, since))+min(t.early, at(openRate, since-t.mid))+at(t.rate, since-t.rest))
}

// endTry ends what is at work, be it a guess or a fresh socket.
func (pr *peer) endTry() {
	t := pr.guesses.try
	if t != nil {
		pr.p.guessing--
	}
	if t != nil && t.socks > 0 || pr.afresh.dig != nil {
		pr.p.do(Sockets{Peer: pr.key})
	}
	if pr.guesses.try, pr.afresh.dig = nil, nil; pr.direct() {
		pr.guesses.met()
	}
}

// atWork reports whether ports are guessed, or a fresh socket is tried: never both.
func (pr *peer) atWork() bool { return pr.guesses.try != nil || pr.afresh.dig != nil }

// workDue is when that goes on, or may begin.
func (pr *peer) workDue(now time.Time) (time.Time, bool) {
	switch {
	case pr.guesses.try != nil:
		return pr.guesses.try.next, true
	case pr.afresh.dig != nil:
		return pr.afresh.dig.next, true
	}
	return pr.guessDue(now)
}
