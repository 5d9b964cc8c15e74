package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
)

// dialTimeoutTCP is how long a peer has to answer; a mesh is not the whole Internet.
const dialTimeoutTCP = 15 * time.Second

// Addrs are this node's own addresses in the mesh, IPv4 first; none before the first Map.
func (n *Node) Addrs() []netip.Addr {
	m := n.enforce.cur.Load().m
	if m == nil {
		return nil
	}
	return v4First(m.Self.Addrs)
}

func v4First(addrs []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare) // IPv4 sorts before IPv6
}

// Resolve gives the addresses of a peer by its name ("web" or "web.hedge.internal", in any case), or of an address
// literal itself, IPv4 first. Only peers that the policy lets this node see have names here, and the node itself.
func (n *Node) Resolve(name string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil && a.Zone() == "" {
		return []netip.Addr{a.Unmap()}, nil
	}
	p, err := n.lookup(name)
	if err != nil {
		return nil, err
	}
	return v4First(p.Addrs), nil
}

// lookup finds a peer, or this node, by name or address.
func (n *Node) lookup(name string) (*wire.Peer, error) {
	cur := n.enforce.cur.Load()
	if cur.refused != nil {
		return nil, cur.refused
	}
	if cur.m == nil {
		return nil, &UnknownNameError{Name: name}
	}
	if a, err := netip.ParseAddr(name); err == nil {
		if slices.Contains(cur.m.Self.Addrs, a) {
			return &cur.m.Self.Peer, nil
		}
		for i := range cur.m.Peers {
			if slices.Contains(cur.m.Peers[i].Addrs, a) {
				return &cur.m.Peers[i], nil
			}
		}
		return nil, &UnknownNameError{Name: name}
	}
	label := strings.TrimSuffix(strings.ToLower(name), ".")
	label = strings.TrimSuffix(label, "."+strings.ToLower(cur.m.Self.Domain))
	if p := cur.peer(label); p != nil {
		return p, nil
	}
	return nil, &UnknownNameError{Name: name, Near: nearest(label, cur.names)}
}

// WhoIs is the node that an address in the mesh belongs to, for a service to know who called: the peer's own address,
// or the longest of the routes it carries. It reports false for an address that is no peer's.
func (n *Node) WhoIs(a netip.Addr) (acl.Node, bool) {
	m := n.enforce.cur.Load().m
	id, ok := n.filter.Peer(a.Unmap())
	if !ok || m == nil {
		return acl.Node{}, false
	}
	for i := range m.Peers {
		if m.Peers[i].ID == id {
			return m.Peers[i].Node, true
		}
	}
	return acl.Node{}, false
}

// DialContext connects to hostport ("web:80", "100.64.0.3:53") over the mesh; network is tcp, tcp4, tcp6, udp, udp4
// or udp6. Errors are told apart with errors.As: [*DeniedError], [*UnknownNameError], [*UnreachableError].
func (n *Node) DialContext(ctx context.Context, network, hostport string) (net.Conn, error) {
	base := strings.TrimRight(network, "46")
	family, err := familyOf(base, network)
	if err != nil {
		return nil, err
	}
	host, port, err := splitHostPort(base, hostport)
	if err != nil {
		return nil, err
	}
	addrs, err := n.Resolve(host)
	if err != nil {
		if addrs = n.outside(ctx, host); len(addrs) == 0 {
			return nil, err
		}
	}
	proto := uint8(protoTCP)
	if base == "udp" {
		proto = protoUDP
	}
	var denied error
	for _, a := range addrs {
		if !is(family, a) {
			continue
		}
		if err := n.allowed(hostport, netip.AddrPortFrom(a, port), proto); err != nil {
			if denied == nil {
				denied = err
			}
			continue
		}
		return n.dial(ctx, base, hostport, netip.AddrPortFrom(a, port))
	}
	if denied == nil {
		denied = &UnreachableError{Dst: hostport, Err: fmt.Errorf("it has no address for %s", network)}
	}
	return nil, denied
}

// outside gives the addresses of a name that is not the mesh's, if there is an exit to reach them by.
func (n *Node) outside(ctx context.Context, host string) []netip.Addr {
	cur := n.enforce.cur.Load()
	name := strings.TrimSuffix(strings.ToLower(host), ".")
	if cur.exit == "" || !strings.Contains(name, ".") || strings.HasSuffix(name, "."+strings.ToLower(cur.m.Self.Domain)) {
		return nil
	}
	addrs, err := n.resolver().LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return v4First(addrs)
}

// allowed asks the filter before any packet does, so that a refusal has its reason.
func (n *Node) allowed(dst string, to netip.AddrPort, proto uint8) error {
	cur := n.enforce.cur.Load()
	if cur.refused != nil {
		return cur.refused
	}
	if cur.m == nil {
		return &UnreachableError{Dst: dst, Err: errors.New("this node has no policy yet")}
	}
	if slices.Contains(cur.m.Self.Addrs, to.Addr()) {
		return nil // to itself: no packet leaves
	}
	from, ok := source(cur.m, to.Addr())
	if !ok {
		return &UnreachableError{Dst: dst, Err: fmt.Errorf("this node has no address of %v's family", to.Addr())}
	}
	w := n.why(netip.AddrPortFrom(from, 0), to, proto, time.Now())
	if !w.Allow {
		return &DeniedError{Dst: dst, Why: w}
	}
	return nil
}

// source is the address of this node that packets to dst come from.
func source(m *wire.Map, dst netip.Addr) (netip.Addr, bool) {
	for _, a := range m.Self.Addrs {
		if a.Is4() == dst.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (n *Node) dial(ctx context.Context, network, hostport string, to netip.AddrPort) (net.Conn, error) {
	dctx, cancel := context.WithTimeout(ctx, dialTimeoutTCP)
	defer cancel()
	var c net.Conn
	var err error
	if n.stack != nil {
		c, err = n.stack.DialContext(dctx, network, to)
	} else {
		var d net.Dialer
		c, err = d.DialContext(dctx, network, to.String())
	}
	if err == nil {
		return c, nil
	}
	if cause := ctx.Err(); errors.Is(cause, context.Canceled) {
		return nil, cause
	}
	e := &UnreachableError{Dst: hostport, Err: err, Refused: errors.Is(err, syscall.ECONNREFUSED)}
	var ne net.Error
	switch {
	case e.Refused:
		e.Err = fmt.Errorf("connection refused: nothing listens on port %d there", to.Port())
		if r, ok := routeTo(n.enforce.cur.Load().routes, to.Addr()); ok {
			e.Err = fmt.Errorf("connection refused: nothing listens on port %d there, or %s, which carries it, cannot reach it", to.Port(), r.Name)
		}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		e.Timeout = true
		e.Err = n.silent(to.Addr())
	}
	return nil, e
}

// silent says what is known of a peer that does not answer.
func (n *Node) silent(a netip.Addr) error {
	cur := n.enforce.cur.Load()
	m := cur.m
	p, err := n.lookup(a.String())
	if err != nil || m == nil {
		r, routed := routeTo(cur.routes, a)
		if !routed {
			return errors.New("no answer")
		}
		if p, err = n.lookup(r.Name); err != nil || m.Presence[p.ID].Online {
			return fmt.Errorf("no answer by way of %s", r.Name)
		}
	}
	w := m.Presence[p.ID]
	switch {
	case w.Online:
		return fmt.Errorf("no answer, although the coordinator sees %s online; see hedge ping %s", p.Name, p.Name)
	case w.LastSeen.IsZero():
		return fmt.Errorf("no answer; %s is not connected to the coordinator", p.Name)
	}
	return fmt.Errorf("no answer; %s was last connected to the coordinator at %s", p.Name, w.LastSeen.Format(time.DateTime))
}

// Ping measures the way to a peer: a path probe, and an ICMP echo in the tunnel if the peer answers no probe.
func (n *Node) Ping(ctx context.Context, name string) (PingResult, error) {
	p, err := n.lookup(name)
	if err != nil {
		if a, bad := netip.ParseAddr(name); bad == nil {
			if r, routed := routeTo(n.enforce.cur.Load().routes, a); routed {
				return n.pingRouted(ctx, a, r)
			}
		}
		return PingResult{}, err
	}
	r := PingResult{Peer: p.Name, Addr: v4First(p.Addrs)[0]}
	if p.Key == n.self {
		return PingResult{}, &UnreachableError{Dst: name, Err: errors.New("that is this node itself")}
	}
	probe := 3 * time.Second
	if d, ok := ctx.Deadline(); ok {
		probe = min(probe, time.Until(d)/2) // and the rest for the second way
	}
	pctx, cancel := context.WithTimeout(ctx, probe)
	rtt, path, err := n.bind.Probe(pctx, p.Key)
	cancel()
	if err == nil {
		r.How, r.RTT, r.Path = "path", Seconds(rtt), pathOf(path)
		return r, nil
	}
	if ctx.Err() != nil {
		return r, &UnreachableError{Dst: p.Name, Timeout: true, Err: n.silent(r.Addr)}
	}
	ictx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	rtt, ierr := n.ping(ictx, r.Addr)
	if ierr != nil {
		return r, &UnreachableError{Dst: p.Name, Timeout: true, Err: n.silent(r.Addr)}
	}
	r.How, r.RTT = "icmp", Seconds(rtt)
	if path, ok := n.bind.Path(p.Key); ok {
		r.Path = pathOf(path)
	}
	return r, nil
}

const (
	protoTCP = 6
	protoUDP = 17
)

// familyOf is 4, 6, or 0 for both, of a network such as "tcp4"; base is what it must be without.
func familyOf(base, network string) (int, error) {
	if base == "tcp" || base == "udp" {
		switch network {
		case base:
			return 0, nil
		case base + "4":
			return 4, nil
		case base + "6":
			return 6, nil
		}
	}
	return 0, net.UnknownNetworkError(network)
}

func is(family int, a netip.Addr) bool {
	return family == 0 || (family == 4) == a.Is4()
}

func splitHostPort(network, hostport string) (string, uint16, error) {
	host, service, err := net.SplitHostPort(hostport)
	if err != nil {
		return "", 0, err
	}
	if port, err := strconv.ParseUint(service, 10, 16); err == nil {
		return host, uint16(port), nil
	}
	port, err := net.LookupPort(network, service)
	if err != nil {
		return "", 0, err
	}
	return host, uint16(port), nil
}

// nearest is the known name that is at most two edits away from what was typed, if one is.
func nearest(typed string, names map[string]*wire.Peer) string {
	best, dist := "", 3
	for name := range names {
		if d := edits(typed, name); d < dist || d == dist && best != "" && name < best {
			best, dist = name, d
		}
	}
	if dist > len(typed)/2 {
		return ""
	}
	return best
}

// edits is the Levenshtein distance, for names of at most 63 bytes; longer ones are far apart.
func edits(a, b string) int {
	if len(a) > 63 || len(b) > 63 {
		return 64
	}
	var row [64]int
	for j := range len(b) + 1 {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, diag+1, row[j]+1)
		}
	}
	return row[len(b)]
}
