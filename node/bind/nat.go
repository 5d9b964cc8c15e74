package bind

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/node/path"
)

// NAT is how the network between us and the internet treats our UDP, as the STUN servers see it.
type NAT struct {
	Kind      path.Kind        // of the mapping of IPv4, by what it means for peers
	Ports     [2]uint16        // the last port and the step of a sequential one, the bounds of a block
	None      bool             // the outside address of IPv4 is our own, or we have none
	Preserved bool             // the outside port is our own
	Mapped    []netip.AddrPort // how each server that answered sees us, both families; in no order
	Asked     int              // servers asked in this round
	Answered  int              // and those that answered
	IPv6      bool             // one of them saw an IPv6 address of ours

	// As RFC 4787 calls them, over IPv4.
	AnyPort   Finding        // packets get in from a port of a server's that we sent nothing to: the filter is not by port
	Hairpin   Finding        // packets that we send to our own outside address come back
	Spoilt    Finding        // a packet that nobody asked for spoils the port it came to for its sender, as with Linux without a firewall of its own
	Forwarded netip.AddrPort // the port that the gateway forwards to us
	Forwards  Finding        // and whether it does, as far as a server can tell
}

// String says it in words.
func (n NAT) String() string {
	switch n.Kind {
	case path.Easy:
		if n.None {
			return "no NAT"
		}
		return "easy: one port for all peers"
	case path.Sequential:
		return fmt.Sprintf("hard: a port for each peer, in order (the last is %d)", n.Ports[0])
	case path.Block:
		return fmt.Sprintf("hard: a port for each peer, about %d to %d", n.Ports[0], n.Ports[1])
	case path.Random:
		return "hard: a port for each peer, anywhere"
	case path.Blocked:
		return "UDP is blocked: no server answers"
	}
	return "not known"
}

// NAT is what is known of our own.
func (b *Bind) NAT() NAT {
	if n := b.nat.Load(); n != nil {
		c := *n
		c.Mapped = slices.Clone(n.Mapped)
		return c
	}
	return NAT{}
}

const (
	manySamples = 16 // to know a NAT's way with ports
	fewSamples  = 8  // enough to be sure
	maxGap      = 64 // between ports of a sequential NAT: others use it too
	blockSpan   = 1024
	rangeSpan   = 1 << 15 // of a block so large that only the peer's one port can be sought in it
	blockLeast  = 4       // ports beyond those that were seen
)

// classify says what the servers' answers mean; ports are those of the samples, in order.
func classify(mapped map[netip.AddrPort]netip.AddrPort, own []netip.Addr, port uint16, ports []uint16) (n NAT) {
	var distinct []netip.AddrPort
	servers := 0
	for _, a := range mapped {
		n.Mapped = append(n.Mapped, a)
		if a.Addr().Is6() {
			n.IPv6 = true
			continue
		}
		servers++
		n.None = n.None || slices.Contains(own, a.Addr())
		n.Preserved = n.Preserved || a.Port() == port
		if !slices.Contains(distinct, a) {
			distinct = append(distinct, a)
		}
	}
	n.Answered = len(mapped)
	n.None = n.None || servers == 0 && n.IPv6
	switch {
	case samePort(distinct) && len(distinct) > 1: // of several addresses, one for each of them, which are all offered
		n.Kind = path.Easy
	case len(distinct) == 0 && n.IPv6, len(distinct) == 1 && (servers > 1 || n.None || n.Preserved):
		n.Kind = path.Easy
	case len(distinct) > 1:
		n.Kind, n.Ports = classifyPorts(ports)
	}
	return n
}

// samePort reports whether these have one port, and so differ by their addresses: some NATs have several, and take any of
// them for a new far end ("arbitrary" pooling, RFC 4787 section 4.1).
func samePort(list []netip.AddrPort) bool {
	return !slices.ContainsFunc(list, func(a netip.AddrPort) bool { return a.Port() != list[0].Port() })
}

func classifyPorts(ports []uint16) (path.Kind, [2]uint16) {
	if len(ports) < fewSamples {
		return path.Random, [2]uint16{}
	}
	if step := sequence(ports); step != 0 {
		return path.Sequential, [2]uint16{ports[len(ports)-1], step}
	}
	low, high := int(slices.Min(ports)), int(slices.Max(ports))
	seen, most := high-low+1, rangeSpan
	if seen > rangeSpan {
		return path.Random, [2]uint16{}
	} else if seen <= blockSpan {
		most = blockSpan
	}
	// What was not seen is as much on either side, and three times what is mostly between two samples: 99 in 100 ports of
	// any block are within that.
	rest := min(2*max(3*seen/len(ports), blockLeast), most-seen)
	from := max(low-rest/2, 1)
	return path.Block, [2]uint16{uint16(from), uint16(min(from+seen+rest-1, 65535))}
}

// sequence is the step of ports that were given in order, upwards or downwards (65535 is down by one); 0 if they were not.
// Those between are others', who take as many steps.
func sequence(ports []uint16) uint16 {
	var step int16
	for i := range ports[1:] {
		d := int16(ports[i+1] - ports[i])
		if d == 0 || d > maxGap || d < -maxGap || step != 0 && step > 0 != (d > 0) {
			return 0
		}
		for step != 0 {
			d, step = step, d%step
		}
		step = d
	}
	return uint16(step)
}

// sampler keeps the samples of a NAT with a port for each far end.
type sampler struct {
	ports []uint16
	at    time.Time
	busy  bool
}

// judge takes stock after a STUN answer, and asks for samples if the NAT is of a kind that wants them.
func (s *stunClient) judge(now time.Time) path.NAT {
	mapped := map[netip.AddrPort]netip.AddrPort{}
	for server, r := range s.seen {
		if now.Sub(r.at) <= reflexiveKeeps {
			mapped[server] = r.addr
		}
	}
	n := classify(mapped, s.l.net.all, s.l.b.Port(), s.samples.ports)
	n.Asked = len(s.servers)
	if old := s.l.b.NAT(); n.Kind == path.Unknown && n.Answered > 0 && n.Answered < n.Asked && (now.Sub(s.started) < stunGiveUp || s.due(now)) {
		n.Kind, n.Ports = old.Kind, old.Ports // until others have answered too
	}
	if n.Asked > 0 && n.Answered == 0 && now.Sub(s.started) >= stunGiveUp {
		n.Kind = path.Blocked
	}
	n.AnyPort, n.Hairpin = s.nature.trials[byOtherPort].found, s.nature.trials[toOurselves].found
	if n.Forwarded = *s.l.b.mapped.Load(); n.Forwarded == s.nature.fwd {
		n.Forwards = s.nature.trials[toMapped].found
	}
	if n.Forwards == No && s.l.b.cfg.Deaf != nil {
		s.l.b.cfg.Deaf(n.Forwarded)
	}
	p := path.NAT{Kind: n.Kind, Low: n.Ports[0], High: n.Ports[1]}
	if n.Kind == path.Easy && s.nature.mapped.IsValid() {
		s.spoil.try(s.l.b, s.nature.server, s.nature.mapped, now)
		p.Low = s.spoil.kind()
		n.Spoilt = s.spoil.found
	}
	s.l.b.nat.Store(&n)
	if n.Kind != path.Sequential && n.Kind != path.Block && n.Kind != path.Random || s.samples.busy {
		return p
	}
	count := 0
	switch {
	case s.samples.at.IsZero() || now.Sub(s.samples.at) > 5*time.Minute:
		count = manySamples
	case n.Kind != path.Random && s.samples.at.Before(s.started):
		count = 1
	}
	if count == 0 {
		return p
	}
	for _, v := range s.servers {
		if v.answered && v.addr.Addr().Is4() {
			s.samples.busy = true
			s.l.b.wg.Go(func() { s.l.b.sample(v.addr, count) })
			break
		}
	}
	return p
}

// sampled takes samples. One more of a sequence only moves it on, and of a block tells whether that is another by now.
func (s *stunClient) sampled(ports []uint16) {
	s.samples.busy, s.samples.at = false, time.Now()
	if len(ports) >= fewSamples || len(s.samples.ports) < fewSamples {
		s.samples.ports = ports
	} else if kind, r := classifyPorts(s.samples.ports); len(ports) == 1 && kind == path.Sequential {
		moved := ports[0] - s.samples.ports[len(s.samples.ports)-1]
		for i := range s.samples.ports {
			s.samples.ports[i] += moved
		}
	} else if len(ports) == 1 && (ports[0] < r[0] || ports[0] > r[1]) {
		s.samples.at = time.Time{}
	}
	s.l.announce(time.Now())
}
