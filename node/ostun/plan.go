package ostun

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Config is what an interface is to be.
type Config struct {
	// Addrs are this host's own. One of a family the host does not have is left out.
	Addrs []netip.Addr
	// Mesh are the prefixes that are reached through the interface and in no other way.
	Mesh []netip.Prefix
	// Routes are what else is reached through it, 0.0.0.0/0 and ::/0 for an exit. Networks this host is on, and all
	// it has routes to but for its default route, are reached as without.
	Routes []netip.Prefix
	// MTU in bytes of the interface, 1280 at least, the IPv6 minimum; 0 for [WideMTU] where its routes can have one of their
	// own, and else for 1280. Packets for Mesh and Routes are kept to 1280 bytes in any case, but for those to Paths.
	MTU int
	// Paths are sizes of packets, in bytes, that single addresses in Mesh are reached with. See [Device.SetPaths].
	Paths map[netip.Addr]int
}

// MinMTU is the IPv6 minimum (RFC 8200 section 5).
const MinMTU = 1280

// WideMTU is the longest packet that WireGuard's longest datagram carries: 65,507 bytes less 32, and whole blocks of 16.
const WideMTU = 65472

// Mark is what the sockets must have that carry the tunnel's own packets (SO_MARK).
const Mark = 0x680000

// state is what an interface is: as it should be, or as the system has it. Slices are sorted.
type state struct {
	up     bool
	mtu    int
	addrs  []netip.Addr
	routes []route
	rules  []rule
}

// route leads a prefix to the interface.
type route struct {
	dst   netip.Prefix
	src   netip.Addr // what packets come from unless a program says otherwise; none for the kernel's choice
	other bool       // in the table of its own
	mtu   int        // of packets to it, 0 for the interface's
}

// rule is one of the two of a family.
type rule struct {
	v6   bool
	main bool // lookup main, but for its default route; otherwise the table of its own
}

func (r route) String() string {
	s := r.dst.String()
	if r.src.IsValid() {
		s += " src " + r.src.String()
	}
	if r.mtu != 0 {
		s += fmt.Sprintf(" mtu %d", r.mtu)
	}
	if r.other {
		s += " in its own table"
	}
	return s
}

func (r rule) String() string {
	f := "IPv4"
	if r.v6 {
		f = "IPv6"
	}
	if r.main {
		return f + " to the main table"
	}
	return f + " to its own table"
}

// verb is what to do with the one thing that an op names.
type verb uint8

const (
	addRule verb = iota
	delRule
	addRoute
	delRoute
	addAddr
	delAddr
	setMTU
	setUp
)

// op is one step.
type op struct {
	verb  verb
	rule  rule
	route route
	addr  netip.Addr
	mtu   int
}

func (o op) String() string {
	switch o.verb {
	case addRule:
		return "add rule " + o.rule.String()
	case delRule:
		return "delete rule " + o.rule.String()
	case addRoute:
		return "add route " + o.route.String()
	case delRoute:
		return "delete route " + o.route.String()
	case addAddr:
		return "add address " + o.addr.String()
	case delAddr:
		return "delete address " + o.addr.String()
	case setMTU:
		return fmt.Sprintf("set MTU %d", o.mtu)
	case setUp:
		return "set up"
	}
	return "unknown step"
}

// want is the state that a Config asks for, on a host with or without IPv6.
func want(c Config, v6 bool) (state, error) {
	s := state{up: true, mtu: c.MTU}
	if s.mtu == 0 {
		s.mtu = MinMTU
	}
	if s.mtu < MinMTU || s.mtu > 65535 {
		return s, fmt.Errorf("ostun: MTU %d is not between %d and 65535", s.mtu, MinMTU)
	}
	usable := func(a netip.Addr) bool { return a.Is4() || v6 }
	var src [2]netip.Addr
	for _, a := range c.Addrs {
		if a = a.Unmap(); !usable(a) {
			continue
		}
		s.addrs = append(s.addrs, a)
		if f := family(a); !src[f].IsValid() {
			src[f] = a
		}
	}
	mtu := 0
	if s.mtu > MinMTU {
		mtu = MinMTU
	}
	for a, n := range c.Paths {
		if n = pathMTU(a, n); mtu != 0 && src[family(a)].IsValid() && n != mtu {
			s.routes = append(s.routes, route{dst: netip.PrefixFrom(a, a.BitLen()), src: src[family(a)], mtu: min(n, s.mtu)})
		}
	}
	for i, list := range [][]netip.Prefix{c.Mesh, c.Routes} {
		for _, p := range list {
			if !p.IsValid() || p != p.Masked() {
				return s, fmt.Errorf("ostun: %v is not the prefix of a network", p)
			}
			f := family(p.Addr())
			if !src[f].IsValid() {
				continue // nothing could be sent there
			}
			s.routes = append(s.routes, route{dst: p, src: src[f], other: i == 1, mtu: mtu})
			if i == 1 {
				s.rules = append(s.rules, rule{f == 1, true}, rule{f == 1, false})
			}
		}
	}
	s.sort()
	return s, nil
}

// pathMTU is a size that a path can be said to have: no less than what every path of a family carries (RFC 1122 section
// 3.3.2, RFC 8200 section 5).
func pathMTU(a netip.Addr, n int) int {
	if a.Is4() {
		return max(n, 576)
	}
	return max(n, MinMTU)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (s *state) sort() {
	slices.SortFunc(s.addrs, netip.Addr.Compare)
	slices.SortFunc(s.routes, func(a, b route) int {
		return cmp.Or(compareBool(a.other, b.other), a.dst.Compare(b.dst), a.src.Compare(b.src), a.mtu-b.mtu)
	})
	slices.SortFunc(s.rules, func(a, b rule) int {
		return cmp.Or(compareBool(a.v6, b.v6), compareBool(b.main, a.main))
	})
	s.addrs, s.routes, s.rules = slices.Compact(s.addrs), slices.Compact(s.routes), slices.Compact(s.rules)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// plan is what makes have into want. What takes packets away from where they went before comes last, and goes first.
func plan(have, want state) []op {
	var ops []op
	for _, r := range slices.Backward(have.rules) {
		if !slices.Contains(want.rules, r) {
			ops = append(ops, op{verb: delRule, rule: r})
		}
	}
	gone := missing(have.addrs, want.addrs)
	for _, r := range missing(have.routes, want.routes) {
		ops = append(ops, op{verb: delRoute, route: r})
	}
	for _, a := range gone {
		ops = append(ops, op{verb: delAddr, addr: a})
	}
	if want.mtu != have.mtu && want.mtu != 0 {
		ops = append(ops, op{verb: setMTU, mtu: want.mtu})
	}
	if want.up && !have.up {
		ops = append(ops, op{verb: setUp})
	}
	for _, a := range missing(want.addrs, have.addrs) {
		ops = append(ops, op{verb: addAddr, addr: a})
	}
	for _, r := range missing(want.routes, have.routes) {
		ops = append(ops, op{verb: addRoute, route: r})
	}
	for _, r := range missing(want.rules, have.rules) {
		ops = append(ops, op{verb: addRule, rule: r})
	}
	return ops
}

// missing are those of a that are not in b.
func missing[T comparable](a, b []T) (out []T) {
	in := make(map[T]struct{}, len(b))
	for _, x := range b {
		in[x] = struct{}{}
	}
	for _, x := range a {
		if _, ok := in[x]; !ok {
			out = append(out, x)
		}
	}
	return out
}
