package hosts

import (
	"time"
)

// The worlds.
const (
	HedgeTUN      = "hedge-tun"
	HedgeNarrow   = "hedge-1280"
	HedgeUser     = "hedge-user"
	AgainstTUN    = "against-tun"
	AgainstUser   = "against-user"
	WireGuard     = "wireguard-go"
	WireGuardWide = "wireguard-wide"
	Veth          = "veth"
	RelayTLS      = "relay-tls"
	RelayUDP      = "relay-udp"
)

// Options say what to measure.
type Options struct {
	Name    string     // of the section
	Worlds  []string   // the first is compared with the others
	Others  []Baseline // that may be among the worlds
	Hedge   string     // the binary
	Against string     // another one
	Rules   int        // of Hedge's policy, that concern both nodes
	Peers   int        // that each of Hedge's nodes knows
	Wire    int        // MTU of the wire
	Rounds  int
	Each    time.Duration // one measurement; rounded up to whole seconds, for iperf3 knows no others
	Warm    bool          // leave out the first second of a stream
	Few     bool          // streams and requests only: for worlds that are measured in another section too
	Settle  time.Duration // before memory is looked at for the last time
	Say     func(format string, args ...any)
}

// seconds is how long iperf3 measures.
func (o Options) seconds() int { return max(1, int((o.Each+time.Second-1)/time.Second)) }

// Cost is how long a run takes, about.
func (o Options) Cost() time.Duration {
	var each time.Duration
	for _, t := range o.tasks() {
		each += t.cost(o) + 400*time.Millisecond
	}
	return time.Duration(o.Rounds*len(o.Worlds))*each + o.Settle + time.Duration(4*len(o.Worlds))*time.Second
}

// kind is what a task does.
type kind int

const (
	stream kind = iota
	flood
	request
)

// task is one measurement.
type task struct {
	name    string
	kind    kind
	args    []string // of iperf3
	size    int      // of a datagram's payload
	beside  bool     // a stream runs beside the requests
	chiefly bool     // it is among the few
}

var tasks = []task{
	{name: "tcp, 1 stream", args: []string{"-P", "1"}, chiefly: true},
	{name: "tcp, 1 stream, back", args: []string{"-P", "1", "-R"}, chiefly: true},
	{name: "tcp, 8 streams", args: []string{"-P", "8"}},
	{name: "tcp, 8 streams, back", args: []string{"-P", "8", "-R"}},
	{name: "udp, 64 bytes", kind: flood, size: 64},
	{name: "udp, packets of 1280 bytes", kind: flood, size: tunnelMTU - udpHeaders},
	{name: "request, idle", kind: request, chiefly: true},
	{name: "request, beside a stream", kind: request, beside: true},
}

const (
	tunnelMTU  = 1280 // of wireguard-go's interface, and the least that Hedge's carries
	overhead   = 80   // of a tunnel's packets, with IPv6: IP 40, UDP 8, WireGuard 32
	udpHeaders = 28   // IPv4 and UDP
)

func (o Options) tasks() (list []task) {
	for _, t := range tasks {
		if t.chiefly || !o.Few {
			list = append(list, t)
		}
	}
	return list
}

func (t task) cost(o Options) time.Duration {
	d := time.Duration(o.seconds()) * time.Second
	switch {
	case t.kind == stream && o.Warm:
		return d + time.Second
	case t.kind == request && t.beside:
		return o.Each + 2*time.Second
	case t.kind == request:
		return o.Each
	}
	return d
}
