package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Where a site's client is, and how it gets somewhere else.

// Roam takes the client to another network, with a router of its own and a NAT of the kind: the way out that it had is
// gone, and where it was is where the lab still does things to ([Site.Wire] is the new one).
func (s *Site) Roam(kind string) error {
	old := s.dev
	if err := s.NewUplink(kind, true); err != nil {
		return err
	}
	s.via = s.via2
	return s.IP("link set " + old + " down")
}

// Visit takes the client to the LAN of another, as the address .50 there, and away from where it was; Return takes it back.
func (s *Site) Visit(o *Site) error {
	dev, err := s.plug(o.Router)
	if err != nil {
		return err
	}
	away := s.dev
	s.dev = dev
	return s.IP("link set "+away+" down", "addr add "+host(o.via, 50).String()+"/24 dev "+dev, "route replace default via "+o.via.String())
}

// Return takes the client back to its own network, under a new address.
func (s *Site) Return() error {
	away := s.dev
	s.dev = "eth0"
	old := s.Addr
	s.seq++
	s.Addr = host(old, byte(70+s.seq))
	return s.IP("link set "+away+" down", "addr del "+old.String()+"/24 dev eth0", "addr add "+s.Addr.String()+"/24 dev eth0",
		"link set eth0 up", "route replace default via "+s.via.String())
}

// Rejoin takes the client's link down, and up again after a while with another address of the same network.
func (s *Site) Rejoin(d time.Duration) error {
	old := s.Addr
	if err := s.IP("link set eth0 down", "addr del "+old.String()+"/24 dev eth0"); err != nil {
		return err
	}
	time.Sleep(d)
	s.seq++
	s.Addr = host(old, byte(70+s.seq))
	return s.IP("addr add "+s.Addr.String()+"/24 dev eth0", "link set eth0 up", "route replace default via "+s.via.String())
}

// Reboot restarts the router: nothing passes for a while, it has forgotten all, and gets another address outside.
func (s *Site) Reboot(dark time.Duration) error {
	s.Wire.Set(func(l *Line) { l.Down = true })
	time.Sleep(dark)
	err := s.MoveWAN()
	s.Wire.Set(func(l *Line) { l.Down = false })
	return err
}

// Renumber gives the site another prefix of IPv6 as a router does that says so (RFC 4862 section 5.5.4): the old one still
// works, and is not to be used for what is new; gone says whether it is taken away instead.
func (s *Site) Renumber() (gone func() error, err error) {
	old := s.addr6
	s.seq++
	net := fmt.Sprintf("2001:db8:%d:%d::", s.n, s.seq)
	err = errors.Join(
		s.w.net.IP(fmt.Sprintf("route add %s/64 dev site%d", net, s.n)),
		s.IP("addr change "+old.String()+"/64 dev eth0 preferred_lft 0"),
		s.lan6(net))
	return func() error {
		return errors.Join(s.IP("addr del "+old.String()+"/64 dev eth0"),
			s.w.net.IP(fmt.Sprintf("route del %s/64 dev site%d", netip.PrefixFrom(old, 64).Masked().Addr(), s.n)))
	}, err
}

// OnlyFamily leaves the client one family of addresses, 4 or 6, or both with 0.
func (s *Site) OnlyFamily(f int) error {
	four, six := "addr replace "+s.Addr.String()+"/24 dev eth0", "addr replace "+s.addr6.String()+"/64 dev eth0 nodad"
	if f == 6 {
		four = "addr del " + s.Addr.String() + "/24 dev eth0"
	}
	if f == 4 {
		six = "addr del " + s.addr6.String() + "/64 dev eth0"
	}
	if err := s.IP(four, six); err != nil {
		return err
	}
	if f == 6 {
		return s.IP("route replace ::/0 via " + s.gate6())
	}
	if f == 4 {
		return s.IP("route replace default via " + s.via.String())
	}
	return s.IP("route replace default via "+s.via.String(), "route replace ::/0 via "+s.gate6())
}

// gate6 is the router's address of IPv6.
func (s *Site) gate6() string { return netip.PrefixFrom(s.addr6, 64).Masked().Addr().Next().String() }

// Detour sends what two sites send each other directly a long way round, one that takes so much longer, each way; 0 ends it.
//
//	site a ─ internet ─ wire ─ detour ─ veth ─ internet ─ site b
func (w *World) Detour(a, b *Site, longer time.Duration) error {
	rules := func(verb string) error {
		return w.net.IP(
			fmt.Sprintf("rule %s iif %s to %s/24 lookup 77", verb, a.Wire.far, host(b.wan, 0)),
			fmt.Sprintf("rule %s iif %s to %s/24 lookup 77", verb, b.Wire.far, host(a.wan, 0)))
	}
	if longer == 0 {
		return rules("del")
	}
	s, err := w.space("detour")
	if err != nil {
		return err
	}
	wire, err := w.wire(s, "in", "detour")
	if err != nil {
		return err
	}
	wire.Set(func(l *Line) { l.Delay = longer })
	return errors.Join(
		s.IP("link add out type veth peer name back netns "+w.net.ns, "link set out up", "addr add 192.0.2.9/31 dev out", "route add default via 192.0.2.8"),
		w.net.IP("link set back up", "addr add 192.0.2.8/31 dev back", "route add default dev detour table 77"),
		rules("add"))
}

// BlockUDP4 lets no UDP of IPv4 through the router any more.
func (s *Site) BlockUDP4() error {
	return s.Router.NFT("table ip blocked4 { chain f { type filter hook forward priority -10; meta l4proto udp drop; }; }")
}
