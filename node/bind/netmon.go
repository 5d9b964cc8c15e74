package bind

import (
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// netmon knows this machine's addresses. The system tells when to ask for them again, or they are asked for every few
// seconds.
type netmon struct {
	b        *Bind
	next     time.Time
	last     time.Time
	every    time.Duration
	gap      time.Duration // at least, to the next
	stop     func()        // of the watch; nil without one
	addrs    []netip.Addr  // those to offer, sorted
	all      []netip.Addr
	exclude  *[]netip.Prefix // as of the last poll
	sources  [2]netip.Addr   // of packets to the internet
	loopback bool
}

const (
	pollEvery   = 3 * time.Second
	pollWatched = time.Minute
	pollLeast   = 20 * time.Millisecond // between two: changes come in bursts
	pollFirst   = 2 * time.Millisecond  // between the first two of a burst, then twice that: an address comes with its routes
	pollBurst   = 10 * pollLeast        // without a poll: what comes then is another
)

// watch begins. The addresses of a test's making are polled.
func (n *netmon) watch(b *Bind, watch func(func()) (func(), error)) {
	n.every = pollEvery
	if watch == nil {
		return
	}
	stop, err := watch(func() {
		select {
		case b.moves <- struct{}{}:
		default:
		}
	})
	if err != nil {
		b.cfg.Log("addresses are polled: %v", err)
		return
	}
	n.every, n.stop = pollWatched, stop
}

// hint says that something may have changed.
func (n *netmon) hint(now time.Time) {
	if now.Sub(n.last) > pollBurst {
		n.gap = 0
	}
	if at := latest(now, n.last.Add(n.gap)); at.Before(n.next) {
		n.next = at
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// poll asks, and reports whether something changed since the last time. What cannot be asked did not change.
func (n *netmon) poll(l *loop) (changed bool) {
	first := n.b == nil
	n.b = l.b
	n.gap = min(max(2*n.gap, pollFirst), pollLeast)
	n.last = time.Now()
	n.next = n.last.Add(n.every)
	all, err := n.b.cfg.Interfaces()
	if err != nil {
		n.b.cfg.Log("cannot list this machine's addresses: %v", err)
		return false
	}
	slices.SortFunc(all, netip.Addr.Compare)
	if n.b.sources != nil {
		now := n.b.sources(n.b.markConn)
		changed = !first && now != n.sources
		n.sources = now
	}
	exclude := n.b.exclude.Load()
	if slices.Equal(all, n.all) && exclude == n.exclude {
		return changed
	}
	n.exclude = exclude
	var addrs, own []netip.Addr
	for _, a := range all {
		a = a.Unmap()
		switch {
		case a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || n.excluded(a) || slices.Contains(addrs, a):
		case a.IsLoopback():
			own = append(own, a)
		default:
			addrs = append(addrs, a)
		}
	}
	n.loopback = n.b.cfg.Loopback || len(addrs) == 0
	if n.loopback {
		addrs = append(addrs, own...)
	}
	changed = changed || !first && !slices.Equal(addrs, n.addrs)
	n.all, n.addrs = all, addrs
	return changed
}

// likely are the addresses, those first that packets to the internet leave by: peers are told of some only.
func (n *netmon) likely() []netip.Addr {
	list := slices.Clone(n.addrs)
	slices.SortStableFunc(list, func(a, b netip.Addr) int {
		return slices.Index(n.sources[:], b) - slices.Index(n.sources[:], a) // -1 for the others
	})
	return list
}

func (n *netmon) excluded(a netip.Addr) bool {
	return slices.ContainsFunc(*n.b.exclude.Load(), func(p netip.Prefix) bool { return p.Contains(a) })
}

// usable reports whether an address that a peer or the coordinator named may be probed.
func (n *netmon) usable(a netip.Addr) bool { return !n.excluded(a) && (!a.IsLoopback() || n.loopback) }

// systemAddrs are the addresses of all interfaces that are up.
func systemAddrs() ([]netip.Addr, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, i := range ifs {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		as, err := i.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		for _, a := range as {
			if p, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(p.IP); ok {
					out = append(out, ip.Unmap())
				}
			}
		}
	}
	return out, nil
}

// control does what a net.Dialer's Control does with a new socket.
type control = func(network, address string, c syscall.RawConn) error

// systemSources are the addresses by which packets to the internet would leave, one of each family, zero without a route:
// another means another uplink. Nothing is sent.
func systemSources(mark control) (out [2]netip.Addr) {
	d := net.Dialer{Control: mark}
	for i, to := range [...]string{"192.0.2.1:9", "[2001:db8::1]:9"} { // for documentation, RFC 5737 and RFC 3849
		c, err := d.Dial("udp", to)
		if err != nil {
			continue
		}
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
			out[i] = a.AddrPort().Addr().Unmap()
		}
		c.Close()
	}
	return out
}
