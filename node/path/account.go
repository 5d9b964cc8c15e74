package path

import (
	"net/netip"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// Account is what is known of the ways to a peer, for people: why the path is what it is.
type Account struct {
	NAT        NAT // the peer's, as it says
	Doubt      bool
	RelayRTT   time.Duration // 0 if no ping by relay was answered
	RelayJit   time.Duration // mean deviation of RelayRTT
	RelayLoss  int           // per mille, as the peer last said
	RelayScore time.Duration // of latency, jitter and loss; 0 if not known
	RelayPong  time.Time
	Guessing   bool      // ports of a NAT
	Guessed    time.Time // when that last began, in vain; zero if it did not, or there is a direct path
	GuessAgain time.Time // when it may next
	NoGuess    string    // why no ports are guessed, where that might help; empty if it may be, or there is a direct path
	NoFresh    string    // the same of a fresh socket
	Candidates []Candidate
}

// Candidate is one address of a peer, perhaps.
type Candidate struct {
	Addr   netip.AddrPort
	From   []string // how it is known: "coordinator", "peer", "packet", "policy"
	Hop    string   // the name of the peer relay; empty for an address
	Asked  time.Time
	Refuse string // why that one gives no way; empty if it did not refuse
	Pinged time.Time
	Opened time.Time // when our NAT was opened for it by a packet that goes no further
	Pong   time.Time // last answer; zero if it never answered, or stopped
	RTT    time.Duration
	Jitter time.Duration // mean deviation of RTT
	Score  time.Duration // of latency, jitter and loss, the less the better; 0 if not known
	MTU    int           // the longest IP packet known to pass; 0 if not known
	Missed int           // pings unanswered since the last answer
	Loss   int           // per mille, when it was last said to lose packets
	Shun   bool          // left for that
	Proven bool          // it has answered once
	InUse  bool
}

// Account gives account of one peer; false if there is none.
func (p *Paths) Account(now time.Time, k key.NodePublic) (Account, bool) {
	pr := p.look(k)
	if pr == nil {
		return Account{}, false
	}
	a := Account{NAT: pr.word.nat, Doubt: pr.doubt, RelayRTT: pr.relay.rtt, RelayPong: pr.relay.pong, Guessing: pr.guesses.try != nil,
		RelayJit: pr.relay.rttvar, RelayLoss: pr.relay.lost.now(now)}
	if pr.relay.rtt > 0 {
		a.RelayScore = pr.relayScore(now)
	}
	if g := &pr.guesses; !pr.atWork() && !pr.direct() && !g.last.IsZero() {
		a.Guessed, a.GuessAgain = g.last, g.again()
	}
	switch {
	case pr.direct(), pr.atWork():
	case pr.guessable():
		a.NoGuess = pr.noGuess(now)
	default:
		a.NoFresh = pr.noFresh()
	}
	for _, c := range pr.candidates {
		x := Candidate{
			Addr: c.addr, From: c.by.names(), Pinged: c.pinged, Opened: c.opened, Pong: c.pong, RTT: c.rtt, Missed: c.missed,
			Jitter: c.rttvar, MTU: c.mtu.ok, Score: c.score(now), Loss: c.lost.now(now), Shun: c.shunned.on(), Proven: c.proven, InUse: c == pr.best,
		}
		if c.hop != nil {
			x.Hop, x.Asked, x.Refuse = c.hop.Name, c.hop.asked, c.hop.refuse
		}
		a.Candidates = append(a.Candidates, x)
	}
	slices.SortStableFunc(a.Candidates, func(x, y Candidate) int { return rank(x) - rank(y) })
	return a, true
}

// rank puts the address in use first, then those that answer.
func rank(c Candidate) int {
	switch {
	case c.InUse:
		return 0
	case !c.Pong.IsZero():
		return 1
	}
	return 2
}

func (s source) names() (out []string) {
	for i, name := range [...]string{"coordinator", "peer", "packet", "policy"} {
		if s&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}
