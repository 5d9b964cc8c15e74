package ostun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// DefaultName is the interface's name unless told otherwise.
const DefaultName = "hedge0"

const (
	protocol  = 104   // whose routes and rules these are (rtnetlink(7), RTPROT_*)
	tableBase = 26624 // and from there on 1,024 tables, by the index of the interface
	tables    = 1024
	prefMain  = 5200 // of the rules, ahead of the main table's 32766
	prefOwn   = prefMain + 1

	genModeNone = 1 // IN6_ADDR_GEN_MODE_NONE (linux/if_link.h)
)

func open(o Options) (*Device, error) {
	name := o.Name
	inner, err := drive(o, newDriver)
	if err != nil {
		return nil, err
	}
	sys, err := newLink(name)
	if err != nil {
		_ = inner.Close()
		return nil, err
	}
	return &Device{Device: inner, sys: sys, events: make(chan tun.Event, 1)}, nil
}

// drive makes the interface and what moves its packets: one packet at a time, by wireguard-go's driver, where the kernel
// has not what ours takes.
func drive(o Options, ours func(int, string, func(netip.Addr) (int, bool)) (*driver, error)) (tun.Device, error) {
	fd, err := openTUN(o.Name, unix.IFF_VNET_HDR)
	if err != nil {
		return nil, err
	}
	if d, err := ours(fd, o.Name, o.PathMTU); err == nil {
		return d, nil
	}
	unix.Close(fd)
	if fd, err = openTUN(o.Name, 0); err != nil {
		return nil, err
	}
	d, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("network interface %s: %w", o.Name, err)
	}
	return d, nil
}

// openTUN makes the interface, which is there as long as the descriptor is open.
func openTUN(name string, flags uint16) (fd int, err error) {
	fail := func(err error) (int, error) {
		return -1, fmt.Errorf("cannot make the network interface %s: %w", name, err)
	}
	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fail(errors.New("there is no /dev/net/tun; load the module tun, or give the container this device"))
	case err != nil:
		return fail(permission(err))
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return fail(fmt.Errorf("a name has 1 to 15 bytes: %w", err))
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) {
			return fail(fmt.Errorf("another program has it (%w); choose another name with --tun-name", err))
		}
		return fail(permission(err))
	}
	return fd, nil
}

func permission(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w; it takes root, or the capability CAP_NET_ADMIN", err)
	}
	return err
}

// link is an interface by netlink.
type link struct {
	nl    *netlink.Handle
	link  netlink.Link
	name  string
	index int
	table int
	six   bool
}

func newLink(name string) (*link, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	l, err := nl.LinkByName(name)
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("network interface %s: %w", name, err)
	}
	k := &link{nl: nl, link: l, name: name, index: l.Attrs().Index}
	k.table = tableBase + k.index%tables
	// No link-local address: nothing else is on this link to be talked to. A host without IPv6 refuses, rightly.
	_ = nl.LinkSetIP6AddrGenMode(l, genModeNone)
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
	k.six = err == nil && strings.TrimSpace(string(b)) == "0"
	if err := k.sweep(); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

func (k *link) close()     { k.nl.Close() }
func (k *link) ipv6() bool { return k.six }

// sweep removes the rules that processes left behind when they were killed: those to a table that is empty, as their
// interface is gone, and with the last of these also the one to the main table.
func (k *link) sweep() error {
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := k.nl.RuleList(f)
		if err != nil {
			continue // no such family here, and so no rules
		}
		alive := false
		var stale []netlink.Rule
		for _, r := range rules {
			if r.Protocol != protocol || r.Table < tableBase || r.Table >= tableBase+tables {
				continue
			}
			routes, err := k.nl.RouteListFiltered(f, &netlink.Route{Table: r.Table}, netlink.RT_FILTER_TABLE)
			if err == nil && len(routes) == 0 {
				stale = append(stale, r)
			} else {
				alive = true
			}
		}
		for _, r := range rules {
			if !alive && r.Protocol == protocol && r.Table == unix.RT_TABLE_MAIN {
				stale = append(stale, r)
			}
		}
		for _, r := range stale {
			r.Family = f
			if err := k.nl.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove the routing rule of an earlier run: %w", permission(err))
			}
		}
	}
	return nil
}

func (k *link) have() (s state, err error) {
	l, err := k.nl.LinkByIndex(k.index)
	if err != nil {
		return s, err
	}
	s.up, s.mtu = l.Attrs().Flags&net.FlagUp != 0, l.Attrs().MTU
	addrs, err := k.nl.AddrList(l, unix.AF_UNSPEC)
	if err != nil {
		return s, err
	}
	for _, a := range addrs {
		if p, ok := prefix(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
			s.addrs = append(s.addrs, p.Addr())
		}
	}
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		if f == unix.AF_INET6 && !k.six {
			continue
		}
		for _, table := range []int{unix.RT_TABLE_MAIN, k.table} {
			routes, err := k.nl.RouteListFiltered(f, &netlink.Route{Table: table, LinkIndex: k.index, Protocol: protocol},
				netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
			if err != nil {
				return s, err
			}
			for _, r := range routes {
				s.routes = append(s.routes, routeOf(r, f == unix.AF_INET6, table == k.table))
			}
		}
		rules, err := k.nl.RuleList(f)
		if err != nil {
			return s, err
		}
		own := false
		for _, r := range rules {
			own = own || r.Protocol == protocol && r.Table == k.table
		}
		for _, r := range rules { // that to main is shared: it is ours as long as we have one to our own
			if own && r.Protocol == protocol && (r.Table == k.table || r.Table == unix.RT_TABLE_MAIN) {
				s.rules = append(s.rules, rule{f == unix.AF_INET6, r.Table == unix.RT_TABLE_MAIN})
			}
		}
	}
	s.sort()
	return s, nil
}

// routeOf is a route as the plan knows it. The kernel says no destination for a default route.
func routeOf(r netlink.Route, v6, other bool) route {
	out := route{other: other, mtu: r.MTU}
	if p, ok := prefix(r.Dst); ok {
		out.dst = p
	} else if v6 {
		out.dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	} else {
		out.dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	if a, ok := netip.AddrFromSlice(r.Src); ok {
		out.src = a.Unmap()
	}
	return out
}

func (k *link) do(o op) error {
	var err error
	switch o.verb {
	case addRule, delRule:
		return k.doRule(o)
	case addRoute, delRoute:
		return k.doRoute(o)
	case addAddr:
		err = k.nl.AddrAdd(k.link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(o.addr, o.addr.BitLen())), Flags: unix.IFA_F_NODAD})
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
	case delAddr:
		err = k.nl.AddrDel(k.link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(o.addr, o.addr.BitLen()))})
	case setMTU:
		err = k.nl.LinkSetMTU(k.link, o.mtu)
	case setUp:
		err = k.nl.LinkSetUp(k.link)
	}
	return permission(err)
}

func (k *link) doRoute(o op) error {
	r := &netlink.Route{LinkIndex: k.index, Dst: ipNet(o.route.dst), Protocol: protocol, Table: unix.RT_TABLE_MAIN,
		Scope: netlink.SCOPE_LINK, Family: netlinkFamily(!o.route.dst.Addr().Is4())}
	if o.route.src.IsValid() {
		r.Src = o.route.src.AsSlice()
	}
	if o.route.other {
		r.Table = k.table
	}
	if r.MTU = o.route.mtu; r.MTU > MinMTU {
		// TCP is cut to the path all the same (split_linux.go). What it agrees on holds also on a way by relay, and for
		// hosts that are forwarded for.
		r.AdvMSS = MinMTU - tcpLen - ip6Len
		if o.route.dst.Addr().Is4() {
			r.AdvMSS = MinMTU - tcpLen - ip4Len
		}
	}
	if o.verb == delRoute {
		if err := k.nl.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			return permission(err)
		}
		return nil // none is gone already: the kernel takes routes away with the address they send from
	}
	err := k.nl.RouteAdd(r)
	if errors.Is(err, unix.EEXIST) && o.route.mtu != 0 && o.route.mtu != MinMTU {
		return nil // an admin's, which is no less good
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("this host routes it elsewhere already (ip route show %v); take that route away, or run with --tun=off: %w", o.route.dst, err)
	}
	return permission(err)
}

func (k *link) doRule(o op) error {
	r := netlink.NewRule()
	r.Family, r.Protocol = netlinkFamily(o.rule.v6), protocol
	if o.rule.main {
		r.Priority, r.Table, r.SuppressPrefixlen = prefMain, unix.RT_TABLE_MAIN, 0
	} else {
		r.Priority, r.Table, r.Mark, r.Invert = prefOwn, k.table, Mark, true
	}
	if o.verb == addRule {
		if err := k.nl.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return permission(err)
		}
		return nil
	}
	if err := k.nl.RuleDel(r); err != nil && !errors.Is(err, unix.ENOENT) {
		return permission(err)
	}
	return nil
}

func netlinkFamily(v6 bool) int {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}
