package bind

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// drawn is what a seed makes: two places, and what happens in them while two nodes talk.
type drawn struct {
	seed   uint64
	at     [2]ground
	shared bool             // both are behind one outermost router
	same   bool             // and behind one router at all
	relays [2]time.Duration // from the core, one way
	every  time.Duration    // between two packets of one side
	oneWay bool             // only one talks
	long   bool             // by packets as long as what WireGuard makes of 1280 bytes
	events []happening      // in order
}

// ground is a place: routers, from the internet inwards, and the machine's own link, which relays are reached by too.
type ground struct {
	routers  []lab.RouterConfig
	up, down lab.Link
	six      bool
	lan      bool // of 192.168.1.0/24, as others are
}

// happening is an event: at that time, to the end or to both, and for how long where it ends by itself.
type happening struct {
	at   time.Duration
	what string
	end  int // 2 for both
	last time.Duration
	part float64
	pick int // which router, or relay
	to   ground
}

func (h happening) String() string {
	s := fmt.Sprintf("%v: %s", h.at, h.what)
	if !strings.Contains(h.what, "relay") {
		s += " of " + [...]string{"a", "b", "both"}[h.end]
	}
	if h.last > 0 {
		s += fmt.Sprintf(" for %v", h.last)
	}
	switch h.what {
	case "other place":
		s += ": " + h.to.String()
	case "loss":
		s += fmt.Sprintf(", %.0f %%", h.part*100)
	case "other NAT":
		s += fmt.Sprintf(" (router %d): %s", h.pick, natString(h.to.routers[0]))
	case "forgets":
		s += fmt.Sprintf(" (router %d)", h.pick)
	case "relay down":
		s += fmt.Sprintf(" (%d)", 1+h.pick%2)
	}
	return s
}

func (d drawn) String() string {
	s := fmt.Sprintf("a: %v\nb: %v\nshared outermost router %v, same router %v; relays %v and %v away; a packet every %v, one way %v, long %v",
		d.at[0], d.at[1], d.shared, d.same, d.relays[0], d.relays[1], d.every, d.oneWay, d.long)
	for _, h := range d.events {
		s += "\n" + h.String()
	}
	return s
}

func (g ground) String() string {
	var s []string
	for _, r := range g.routers {
		s = append(s, natString(r))
	}
	if g.six {
		s = append(s, "IPv6")
	}
	return strings.Join(append(s, fmt.Sprintf("link %s / %s", linkString(g.up), linkString(g.down))), "; ")
}

func linkString(l lab.Link) string {
	return fmt.Sprintf("%v±%v loss %.3f late %.2f twice %.2f mtu %d", l.Latency, l.Jitter, l.Loss, l.Reorder, l.Twice, l.MTU)
}

func natString(r lab.RouterConfig) string {
	if r.Routed {
		return "firewall"
	}
	n := r.NAT
	s := fmt.Sprintf("NAT %s to %s, ports %s", short[n.Mapping], short[n.Filtering], n.Ports)
	for _, x := range []struct {
		on bool
		as string
	}{
		{n.Parity, "parity"}, {n.Step > 1, fmt.Sprint("step ", n.Step)}, {n.Size > 0, fmt.Sprint("of ", n.Size)}, {n.Shift > 0, fmt.Sprint("for ", n.Shift)},
		{n.Timeout > 0, fmt.Sprint("keeps ", n.Timeout, " ", [...]string{"out keeps", "out only", "both ways"}[n.Refresh])},
		{n.Quota > 0, fmt.Sprint("quota ", n.Quota)}, {n.Hairpin, "hairpin"}, {n.Inside, "inside"}, {n.Trap, "trap"}, {n.Pool > 0, fmt.Sprint("pool ", n.Pool)},
		{r.BlockUDP, "no UDP"}, {r.Rate > 0, fmt.Sprint("rate ", r.Rate)}, {r.CGN, "CGN"}, {r.NoIPv4, "no IPv4"},
	} {
		if x.on {
			s += ", " + x.as
		}
	}
	return s
}

var short = [...]string{"EI", "AD", "APD"}

// lot draws.
type lot struct{ *rand.Rand }

func (l lot) in(part float64) bool { return l.Float64() < part }

func (l lot) time(least, most time.Duration) time.Duration {
	return least + time.Duration(l.Int64N(int64(most-least)+1)).Round(time.Millisecond)
}

// draw makes a network and its events from a seed.
func draw(seed uint64) drawn {
	l := lot{rand.New(rand.NewPCG(seed, 4711))}
	d := drawn{seed: seed, relays: [2]time.Duration{l.time(0, 40*time.Millisecond), l.time(0, 120*time.Millisecond)}}
	for i := range d.at {
		d.at[i] = l.ground()
	}
	if n := len(d.at[0].routers); n > 0 && len(d.at[1].routers) > 0 && l.in(0.15) {
		d.shared, d.at[1].routers[0] = true, d.at[0].routers[0]
		d.same = l.in(0.3)
		if d.same {
			d.at[1].routers = d.at[0].routers
		}
		d.at[1].six = d.at[0].six
		d.at[1].level()
	}
	d.every = []time.Duration{10, 10, 20, 20, 50, 200, 1000}[l.IntN(7)] * time.Millisecond
	d.oneWay, d.long = l.in(0.15), l.in(0.25)
	at := l.time(500*time.Millisecond, 8*time.Second)
	for range l.IntN(5) {
		d.events = append(d.events, l.happening(at))
		if !l.in(0.2) { // or two at once
			at += l.time(0, 6*time.Second)
		}
	}
	return d
}

// level lets all routers have IPv6, or none.
func (g *ground) level() {
	g.routers = slices.Clone(g.routers)
	for i := range g.routers {
		g.routers[i].IPv6 = g.six
		g.routers[i].CGN = i < len(g.routers)-1 && !g.routers[i].Routed
	}
}

func (l lot) ground() (g ground) {
	g.six = l.in(0.2)
	for range []int{0, 1, 1, 1, 1, 1, 2, 2, 3}[l.IntN(9)] {
		g.routers = append(g.routers, l.router())
	}
	if len(g.routers) == 1 && l.in(0.06) {
		g.routers[0] = lab.RouterConfig{Routed: true}
	}
	if len(g.routers) > 0 && l.in(0.06) {
		g.routers[0].BlockUDP = true
	}
	if g.six && len(g.routers) > 0 && l.in(0.1) {
		g.routers[0].NoIPv4 = true
	}
	g.lan = l.in(0.2)
	g.level()
	g.up = lab.Link{Latency: l.time(time.Millisecond, []time.Duration{10, 10, 50, 190}[l.IntN(4)]*time.Millisecond)}
	if g.down = g.up; l.in(0.2) {
		g.down.Latency = l.time(time.Millisecond, 100*time.Millisecond)
	}
	for _, k := range []*lab.Link{&g.up, &g.down} {
		if l.in(0.15) {
			k.Jitter = l.time(0, 30*time.Millisecond)
		}
		if l.in(0.1) {
			k.Reorder = 0.2 * l.Float64()
		}
		if l.in(0.1) {
			k.Twice = 0.2 * l.Float64()
		}
		if l.in(0.05) {
			k.Loss = 0.1 * l.Float64() * l.Float64()
		}
	}
	return g
}

func (l lot) router() lab.RouterConfig {
	n := lab.NAT{Filtering: lab.Dependence([]int{0, 1, 2, 2, 2}[l.IntN(5)]), Timeout: l.time(3*time.Second, []time.Duration{10, 60, 300}[l.IntN(3)]*time.Second)}
	if l.in(0.35) {
		n.Mapping = lab.Dependence(1 + l.IntN(2))
	}
	n.Ports = lab.Ports([]int{0, 0, 0, 1, 2, 2, 3}[l.IntN(7)])
	switch n.Ports {
	case lab.Sequential:
		n.Step = []uint16{1, 1, 2, 3, 7, 64, 1<<16 - 1}[l.IntN(7)]
	case lab.Block:
		n.Size = []int{16, 64, 200, 512, 1024, 4096}[l.IntN(6)]
		if l.in(0.3) {
			n.Shift = l.time(5*time.Second, 2*time.Minute)
		}
	}
	n.Parity = l.in(0.1)
	n.Refresh = lab.Refresh(l.IntN(3))
	n.Hairpin = l.in(0.4)
	n.Inside = n.Hairpin && l.in(0.3)
	if n.Mapping == lab.EndpointIndependent {
		n.Trap = n.Filtering == lab.AddressAndPortDependent && l.in(0.25)
		if l.in(0.05) {
			n.Pool = 2 + l.IntN(3)
		}
	}
	if l.in(0.06) {
		n.Quota = 16 + l.IntN(200)
	}
	r := lab.RouterConfig{NAT: n}
	if l.in(0.04) {
		r.Rate = 100 + l.IntN(400)
	}
	return r
}

var lan = netip.MustParsePrefix("192.168.1.0/24")

// happenings are drawn with these chances.
var happenings = []struct {
	what string
	part int
}{
	{"new address", 4}, {"other place", 5}, {"NAT moves", 4}, {"forgets", 4}, {"other NAT", 3}, {"dark", 3}, {"nothing goes out", 2}, {"nothing comes in", 2},
	{"loss", 2}, {"no UDP", 4}, {"relay down", 3}, {"latency", 2}, {"narrow", 1}, {"sleep", 2}, {"restart", 2}, {"IPv6 comes or goes", 2}, {"wall clock", 1}, {"pause", 4},
}

func (l lot) happening(at time.Duration) happening {
	n := 0
	for _, h := range happenings {
		n += h.part
	}
	n = l.IntN(n)
	h := happening{at: at, end: []int{0, 0, 1, 1, 2}[l.IntN(5)], pick: l.IntN(100), part: 0.01 + 0.3*l.Float64()*l.Float64()}
	for _, x := range happenings {
		if n -= x.part; n < 0 {
			h.what = x.what
			break
		}
	}
	h.to = l.ground()
	switch h.what {
	case "dark", "nothing goes out", "nothing comes in":
		h.last = l.time(50*time.Millisecond, 6*time.Second)
	case "sleep", "pause":
		h.last = l.time(2*time.Second, 90*time.Second)
	case "loss", "no UDP", "relay down":
		if h.last = l.time(50*time.Millisecond, 20*time.Second); h.what != "relay down" && l.in(0.3) {
			h.last = 0 // for good
		}
	case "other NAT":
		h.to.routers = []lab.RouterConfig{l.router()}
	case "latency":
		h.part = float64(l.time(time.Millisecond, 150*time.Millisecond))
	}
	return h
}
