package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
)

// Routing is what a node does for others, and which exit it uses itself. It may change while a node runs.
type Routing struct {
	// Routes are the networks behind this node that it offers to carry connections to. Nothing is carried until the
	// coordinator has approved it.
	Routes []netip.Prefix `json:"advertise_routes"`
	// Exit offers all of the internet besides.
	Exit bool `json:"advertise_exit"`
	// ExitNode is the name of the peer by which this node reaches the internet; empty for none.
	ExitNode string `json:"exit_node"`
	// PeerRelay lets peers reach each other by this node, those that the policy lets use it so (acl.CapRelay).
	PeerRelay bool `json:"peer_relay"`
}

// RoutingChange changes what of a Routing is not nil.
type RoutingChange struct {
	Routes   *[]netip.Prefix `json:"advertise_routes,omitempty"`
	Exit     *bool           `json:"advertise_exit,omitempty"`
	ExitNode *string         `json:"exit_node,omitempty"`

	PeerRelay *bool `json:"peer_relay,omitempty"`
}

// Route is a prefix that this node reaches through a peer.
type Route struct {
	Prefix netip.Prefix `json:"prefix"`
	Via    acl.NodeID   `json:"via_id"`
	Name   string       `json:"via"`
	Exit   bool         `json:"exit,omitempty"` // a part of the internet, by the exit
}

var (
	all4     = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	all6     = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	internet = acl.Internet()
)

// offers are the prefixes as the coordinator is told of them, sorted.
func (r Routing) offers() []netip.Prefix {
	out := slices.Clone(r.Routes)
	if r.Exit {
		out = append(out, all4, all6)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// with is the Routing after a change.
func (r Routing) with(c RoutingChange) Routing {
	if c.Routes != nil {
		r.Routes = slices.Clone(*c.Routes)
	}
	if c.Exit != nil {
		r.Exit = *c.Exit
	}
	if c.ExitNode != nil {
		r.ExitNode = *c.ExitNode
	}
	if c.PeerRelay != nil {
		r.PeerRelay = *c.PeerRelay
	}
	return r
}

// check refuses what could not be meant. A Map, if there is one, tells which addresses are the mesh's own.
func (r Routing) check(m *wire.Map) error {
	var mesh []netip.Prefix
	if m != nil {
		mesh = m.Self.Prefixes
	}
	for _, p := range r.Routes {
		if p.IsValid() && p.Bits() == 0 {
			return fmt.Errorf("%v is all of the internet: to carry that, be an exit (--advertise-exit)", p)
		}
	}
	return wire.CheckRoutes(r.offers(), mesh)
}

// exits are the names of the peers that this node may use as its exit, sorted.
func exits(m *wire.Map) (out []string) {
	for i := range m.Peers {
		if isExit(&m.Peers[i]) {
			out = append(out, m.Peers[i].Name)
		}
	}
	slices.Sort(out)
	return out
}

func isExit(p *wire.Peer) bool {
	return slices.ContainsFunc(p.Routes, func(r netip.Prefix) bool { return r.Bits() == 0 })
}

// exitOf finds the exit that was chosen by name or address, or says why it is none.
func exitOf(m *wire.Map, chosen string) (*wire.Peer, error) {
	if chosen == "" {
		return nil, nil
	}
	others := "; there are none that it may use"
	if names := exits(m); len(names) > 0 {
		others = "; there are: " + strings.Join(names, ", ")
	}
	name := strings.TrimSuffix(strings.ToLower(chosen), ".")
	name = strings.TrimSuffix(name, "."+strings.ToLower(m.Self.Domain))
	addr, _ := netip.ParseAddr(chosen)
	i := slices.IndexFunc(m.Peers, func(p wire.Peer) bool { return p.Name == name || slices.Contains(p.Addrs, addr) })
	switch {
	case i < 0:
		return nil, fmt.Errorf("this node knows of no peer %s to be its exit%s", chosen, others)
	case !isExit(&m.Peers[i]):
		return nil, fmt.Errorf("%s is no exit that this node may use: it offers none, or that is not approved, or no rule lets this node use it%s", chosen, others)
	}
	return &m.Peers[i], nil
}

// used are the routes of a peer that this node uses: an exit's /0 only of the exit that was chosen.
func used(p *wire.Peer, exit *wire.Peer) []netip.Prefix {
	if p == exit || !isExit(p) {
		return p.Routes
	}
	return slices.DeleteFunc(slices.Clone(p.Routes), func(r netip.Prefix) bool { return r.Bits() == 0 })
}

// routesInUse are the prefixes that this node reaches through peers, the longest first: what WireGuard lets peers have
// besides their own addresses, and what a host's device needs routes for. An exit is all of the internet, and never a
// private network, in pieces; what a router carries of it is the router's. expired peers have none.
func routesInUse(m *wire.Map, exit *wire.Peer, expired func(*wire.Peer) bool) []Route {
	var out []Route
	taken := map[netip.Prefix]bool{}
	for i := range m.Peers {
		p := &m.Peers[i]
		if expired(p) {
			continue
		}
		for _, r := range p.Routes {
			if r.Bits() > 0 && !taken[r] { // of two that carry the same the first has it, as the filter sees it
				taken[r] = true
				out = append(out, Route{r, p.ID, p.Name, false})
			}
		}
	}
	if exit != nil && !expired(exit) {
		routers := out
		for _, r := range internet {
			whole := all6
			if r.Addr().Is4() {
				whole = all4
			}
			routed := slices.ContainsFunc(routers, func(x Route) bool { return x.Prefix.Bits() <= r.Bits() && x.Prefix.Contains(r.Addr()) })
			if slices.Contains(exit.Routes, whole) && !routed {
				out = append(out, Route{r, exit.ID, exit.Name, true})
			}
		}
	}
	slices.SortFunc(out, func(a, b Route) int {
		if a.Prefix.Bits() != b.Prefix.Bits() {
			return b.Prefix.Bits() - a.Prefix.Bits()
		}
		return a.Prefix.Compare(b.Prefix)
	})
	return out
}

// routeTo is the route to an address; routes are the longest first.
func routeTo(routes []Route, a netip.Addr) (Route, bool) {
	if i := slices.IndexFunc(routes, func(r Route) bool { return r.Prefix.Contains(a) }); i >= 0 {
		return routes[i], true
	}
	return Route{}, false
}

// carriable reports why a node may not carry a connection to an address, or nil. own are its approved routes, local the
// addresses of the host that it runs on.
//
//	the mesh's own, loopback, link-local, multicast    never
//	in an approved network                             yes: a rule has named it, this host's addresses in it included
//	else of the internet, and this node an exit        yes, but for this host's addresses: its firewall is outside of them
func carriable(own, mesh []netip.Prefix, to netip.Addr, local func() []netip.Addr) error {
	if err := wire.CheckRoute(netip.PrefixFrom(to, to.BitLen()), mesh); err != nil {
		return err
	}
	if slices.ContainsFunc(own, func(r netip.Prefix) bool { return r.Bits() > 0 && r.Contains(to) }) {
		return nil
	}
	switch {
	case !slices.ContainsFunc(own, func(r netip.Prefix) bool { return r.Bits() == 0 && r.Contains(to) }):
		return fmt.Errorf("this node carries no route to %v", to)
	case !within(internet, to):
		return fmt.Errorf("%v is not of the internet, and an exit carries nothing else", to)
	case slices.Contains(local(), to):
		return fmt.Errorf("%v is this machine itself, and not the internet behind it", to)
	}
	return nil
}

// Routes are the prefixes that this node reaches through peers now, the longest first: those behind routers, and the
// internet by the exit, if one was chosen.
func (n *Node) Routes() []Route { return slices.Clone(n.enforce.cur.Load().routes) }

// Routing is what this node offers to carry, and the exit it uses.
func (n *Node) Routing() Routing { return *n.routing.Load() }

// SetRouting changes what this node offers to carry and which exit it uses, at once. Connections by the exit before
// are ended. A name that is no exit is an error.
func (n *Node) SetRouting(c RoutingChange) error {
	n.routingMu.Lock()
	defer n.routingMu.Unlock()
	m := n.enforce.cur.Load().m
	r := n.Routing().with(c)
	if err := r.check(m); err != nil {
		return err
	}
	if c.ExitNode != nil && m != nil {
		if _, err := exitOf(m, *c.ExitNode); err != nil {
			return err
		}
	}
	if n.stack == nil && len(r.offers()) > 0 && len(n.Routing().offers()) == 0 {
		if err := n.beside.can(); err != nil {
			return err
		}
	}
	n.routing.Store(&r)
	n.control.move()
	err := n.enforce.again()
	n.news.tell()
	return err
}

// noRoute says why nothing leads to an address that is not the mesh's own.
func noRoute(cur *enforced, chosen string, a netip.Addr) string {
	m := cur.m
	switch {
	case cur.exitErr != nil && within(internet, a):
		return fmt.Sprintf("denied: nothing leads to %v: %v", a, cur.exitErr)
	case chosen == "" && within(internet, a) && len(exits(m)) > 0:
		return fmt.Sprintf("denied: nothing leads to %v: no exit is chosen; hedge set --exit-node NAME uses one of %s", a, strings.Join(exits(m), ", "))
	}
	if r, ok := longest(m.Self.Routes, a); ok {
		return fmt.Sprintf("denied: %v lies behind this node itself, by its route %v: programs here reach it without the mesh", a, r)
	}
	return fmt.Sprintf("denied: no peer has a route to %v that is approved and that a rule lets this node use "+
		"(hedge admin node routes NAME, on the coordinator's machine, shows what waits for approval)", a)
}

// longest is the narrowest of the prefixes around an address.
func longest(ps []netip.Prefix, a netip.Addr) (best netip.Prefix, ok bool) {
	for _, p := range ps {
		if p.Contains(a) && (!ok || p.Bits() > best.Bits()) {
			best, ok = p, true
		}
	}
	return best, ok
}

// statusOfRoutes says what is offered, carried and used.
func (n *Node) statusOfRoutes(s *Status, cur *enforced) {
	for _, r := range n.offers() {
		c := Carried{Route: r, Approved: slices.Contains(cur.m.Self.Routes, r)}
		if err := wire.CheckRoute(r, cur.m.Self.Prefixes); err != nil {
			c.Problem = err.Error()
		} else if !c.Approved {
			c.Problem = "waits for approval"
		}
		s.Carries = append(s.Carries, c)
	}
	if len(cur.m.Self.Routes) > 0 && n.noPings != nil {
		s.NoPings = n.noPings.Error()
	}
	if name := n.Routing().ExitNode; name != "" {
		s.ExitNode = &ExitNode{Name: name, InUse: cur.exit != ""}
		if s.ExitNode.InUse {
			s.ExitNode.Names = map[bool]string{true: "exit", false: "local"}[n.asksExit()]
		}
		if cur.exitErr != nil {
			s.ExitNode.Problem = cur.exitErr.Error()
		}
	}
}
