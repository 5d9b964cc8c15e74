package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/path"
)

// Netcheck is the network around a node, as its STUN servers and relays see it.
type Netcheck struct {
	NAT        NAT          `json:"nat"`
	UDPBlocked bool         `json:"udp_blocked"` // no server answers: everything goes by relay
	IPv6       bool         `json:"ipv6"`        // a server saw an IPv6 address of this node
	Asked      int          `json:"servers_asked"`
	Answered   int          `json:"servers_answered"`
	Mapped     []string     `json:"mapped"` // this node's addresses from outside
	Local      []string     `json:"local"`  // and its own
	Relays     []RelayCheck `json:"relays"`

	PeerRelays []PeerRelayCheck `json:"peer_relays"` // that this node may use

	PortMapping PortMapping  `json:"port_mapping"`
	AnyPort     bind.Finding `json:"filter_any_port"` // packets get in from a port of a server's that nothing was sent to
	Hairpin     bind.Finding `json:"hairpin"`         // the NAT sends back what goes to our own outside address
	Spoilt      bind.Finding `json:"unasked_spoils"`  // it never uses a port again towards who sent there unasked
	// Captive is the relay in whose place somebody else answers: a captive portal, perhaps. Empty for none.
	Captive string `json:"captive_portal,omitempty"`
}

// NAT is how a network treats a node's UDP over IPv4.
type NAT struct {
	Kind string `json:"kind"` // "unknown", "none", "easy", "sequential", "block", "random" or "blocked"
	Text string `json:"text"`
}

// RelayCheck is one relay as a node sees it.
type RelayCheck struct {
	ID        uint16  `json:"id"`
	URL       string  `json:"url,omitempty"`
	Home      bool    `json:"home"`                     // where peers find this node
	Connected bool    `json:"connected"`                // others than the home relay are when they are needed
	Latency   Seconds `json:"latency_seconds,omitzero"` // by UDP; none if it has not answered
}

// PathReport is how a peer is reached, and why so.
type PathReport struct {
	Peer       string          `json:"peer"`
	Addr       netip.Addr      `json:"addr"`
	Path       Path            `json:"path"` // Since is the last switch
	Why        string          `json:"why"`  // its cause
	Doubt      bool            `json:"in_doubt"`
	Guessing   bool            `json:"guessing_ports"`
	Guessed    time.Time       `json:"guessed_ports,omitzero"`     // when ports of a NAT were last guessed, in vain
	GuessAgain time.Time       `json:"guess_ports_again,omitzero"` // when they may be again, if packets are sent
	NoGuess    string          `json:"no_guess,omitempty"`         // without a direct path: why no ports are guessed, if that might help
	NoFresh    string          `json:"no_fresh_socket,omitempty"`  // the same of a socket with a port that no NAT has seen
	NAT        NAT             `json:"nat"`                        // this node's
	PeerNAT    NAT             `json:"peer_nat"`                   // as the peer last said
	RelayRTT   Seconds         `json:"relay_rtt_seconds,omitzero"`
	RelayJit   Seconds         `json:"relay_jitter_seconds,omitzero"`
	RelayLoss  int             `json:"relay_loss_per_mille,omitempty"`
	RelayScore Seconds         `json:"relay_score_seconds,omitzero"` // comparable with the candidates'
	Candidates []PathCandidate `json:"candidates"`                   // the one in use first, then those that answer
}

// PathCandidate is an address at which a peer may be.
type PathCandidate struct {
	Addr   string    `json:"addr,omitempty"`
	Via    string    `json:"via,omitempty"`    // the name of the peer relay that it is by, in the place of an address
	From   []string  `json:"from"`             // how it is known: "coordinator", "peer", "packet", "policy"
	Result string    `json:"result"`           // "in use", "answered", "stopped", "worse", "silent", "opened", "asked", "refused" or "untried"
	Refuse string    `json:"refuse,omitempty"` // why the peer relay refused
	RTT    Seconds   `json:"rtt_seconds,omitzero"`
	Jitter Seconds   `json:"jitter_seconds,omitzero"` // mean deviation of the round trips
	Score  Seconds   `json:"score_seconds,omitzero"`  // of latency, jitter and loss; the least is used, but for small differences
	MTU    int       `json:"mtu,omitempty"`           // longest IP packet known to pass; while unknown, long ones go by relay too
	Missed int       `json:"missed,omitempty"`        // pings in a row without an answer
	Loss   int       `json:"loss_per_mille,omitempty"`
	Pinged time.Time `json:"pinged,omitzero"`
	Pong   time.Time `json:"answered,omitzero"`
}

// netcheckWait bounds waiting for the first answers, and netcheckTick is how often they are looked for.
const (
	netcheckWait = 4 * time.Second
	netcheckTick = 20 * time.Millisecond
)

// Netcheck says what is known of the network around this node. A node that has just started waits for an answer of the
// STUN servers, or until it is clear that there will be none.
func (n *Node) Netcheck(ctx context.Context) (Netcheck, error) {
	ctx, cancel := context.WithTimeout(ctx, netcheckWait)
	defer cancel()
	tick := time.NewTicker(netcheckTick)
	defer tick.Stop()
	for {
		w := n.bind.Network()
		if len(w.Relays) == 0 || w.NAT.Answered > 0 || w.NAT.Kind == path.Blocked {
			return n.netcheckOf(ctx, w), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done(): // what there is
			return n.netcheckOf(context.WithoutCancel(ctx), w), nil
		case <-n.done:
			return Netcheck{}, net.ErrClosed
		}
	}
}

func (n *Node) netcheckOf(ctx context.Context, w bind.Network) Netcheck {
	out := Netcheck{
		NAT: natOf(w.NAT), UDPBlocked: w.NAT.Kind == path.Blocked, IPv6: w.NAT.IPv6, Asked: w.NAT.Asked, Answered: w.NAT.Answered,
		Mapped: distinct(w.NAT.Mapped), Local: distinct(w.Local), Relays: []RelayCheck{},
	}
	for _, r := range w.Relays {
		out.Relays = append(out.Relays, RelayCheck{r.ID, r.URL, r.Home, r.Connected, Seconds(r.Latency)})
	}
	out.PortMapping, out.AnyPort, out.Hairpin, out.Spoilt = n.portMapping(w.NAT), w.NAT.AnyPort, w.NAT.Hairpin, w.NAT.Spoilt
	out.PeerRelays = n.peerRelays(n.enforce.cur.Load().m, time.Now())
	out.Captive = captive(ctx, out.Relays)
	return out
}

// natOf is what a program is told of a NAT. To peers none is as good as an easy one, and path makes no difference.
func natOf(n bind.NAT) NAT {
	kind := n.Kind.String()
	if n.Kind == path.Easy && n.None {
		kind = "none"
	}
	return NAT{kind, n.String()}
}

// distinct is a list without what is in it twice, sorted.
func distinct(addrs []netip.AddrPort) []string {
	out := []string{}
	for _, a := range slices.SortedFunc(slices.Values(addrs), netip.AddrPort.Compare) {
		if s := a.String(); len(out) == 0 || out[len(out)-1] != s {
			out = append(out, s)
		}
	}
	return out
}

// PathTo says how a peer is reached, and why so.
func (n *Node) PathTo(ctx context.Context, name string) (PathReport, error) {
	p, err := n.lookup(name)
	if err != nil {
		return PathReport{}, err
	}
	if p.Key == n.self {
		return PathReport{}, fmt.Errorf("%s is this node itself; no packet would leave it", p.Name)
	}
	a, err := n.bind.Account(ctx, p.Key)
	if err != nil {
		return PathReport{}, err
	}
	i, ok := n.bind.Path(p.Key)
	if !ok {
		return PathReport{}, fmt.Errorf("%s is not a peer any more", p.Name)
	}
	out := PathReport{
		Peer: p.Name, Addr: v4First(p.Addrs)[0], Path: pathOf(i), Why: i.Why, Doubt: a.Doubt, Guessing: a.Guessing, Guessed: a.Guessed, GuessAgain: a.GuessAgain,
		NoGuess: a.NoGuess, NoFresh: a.NoFresh,
		NAT: natOf(n.bind.NAT()), PeerNAT: natOf(bind.NAT{Kind: a.NAT.Kind, Ports: [2]uint16{a.NAT.Low, a.NAT.High}}),
		RelayRTT: Seconds(a.RelayRTT), RelayJit: Seconds(a.RelayJit), RelayLoss: a.RelayLoss, RelayScore: Seconds(a.RelayScore),
		Candidates: []PathCandidate{},
	}
	for _, c := range a.Candidates {
		x := PathCandidate{
			Addr: c.Addr.String(), Via: c.Hop, Refuse: c.Refuse, From: c.From, Result: resultOf(c), RTT: Seconds(c.RTT), Missed: c.Missed, Loss: c.Loss,
			Jitter: Seconds(c.Jitter), Score: Seconds(c.Score), MTU: c.MTU,
			Pinged: c.Pinged, Pong: c.Pong,
		}
		if x.Via != "" {
			x.Addr, x.Pinged = "", latest(c.Pinged, c.Asked)
		}
		out.Candidates = append(out.Candidates, x)
	}
	return out, nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// resultOf is what became of an address, in a word.
func resultOf(c path.Candidate) string {
	switch {
	case c.InUse:
		return "in use"
	case c.Shun:
		return "worse"
	case !c.Pong.IsZero() && c.Missed == 0:
		return "answered"
	case c.Proven:
		return "stopped"
	case c.Refuse != "":
		return "refused"
	case !c.Pinged.IsZero():
		return "silent"
	case !c.Asked.IsZero():
		return "asked"
	case !c.Opened.IsZero():
		return "opened"
	}
	return "untried"
}
