package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// What happens to a site while its client talks. Each takes some milliseconds.

// MoveLAN gives the client another address of the same LAN, as a new lease does.
func (s *Site) MoveLAN() error {
	old := s.Addr
	s.seq++
	s.Addr = host(old, byte(70+s.seq))
	return s.IP("addr del "+old.String()+"/24 dev eth0", "addr add "+s.Addr.String()+"/24 dev eth0",
		"route replace default via "+s.via.String()) // the last address of a network takes its routes with it
}

// LoseLAN takes the client's address away, and with it its routes, as a lease that has run out does; RegainLAN gives it back.
func (s *Site) LoseLAN() error { return s.IP("addr del " + s.Addr.String() + "/24 dev eth0") }

// RegainLAN gives the client the address back.
func (s *Site) RegainLAN() error {
	return s.IP("addr add "+s.Addr.String()+"/24 dev eth0", "route replace default via "+s.via.String())
}

// MoreAddresses gives the client n addresses more in its LAN, which it does not send from.
func (s *Site) MoreAddresses(n int) error {
	var do []string
	for i := range n {
		do = append(do, "addr add "+host(s.Addr, byte(100+i)).String()+"/24 dev eth0")
	}
	return s.IP(do...)
}

// RefuseUDP has the client's own firewall refuse to send UDP to anybody else: its programs get EPERM.
func (s *Site) RefuseUDP(on bool) error {
	if !on {
		return s.NFT("delete table inet refusal")
	}
	return s.NFT(`table inet refusal {
	chain out {
		type filter hook output priority 0
		meta l4proto udp oifname != "lo" drop
	}
}`)
}

// MoveWAN gives the router another address outside, and no memory of connections, as a provider does at night; where
// there is a provider's NAT, it is that which gets it. The client sees nothing of it.
func (s *Site) MoveWAN() error { return s.ChangeNAT(s.Kind) }

// ChangeNAT is MoveWAN to a NAT of another kind, one without a provider's.
func (s *Site) ChangeNAT(kind string) error {
	switch {
	case s.isp != nil:
		return s.isp.move()
	case s.Kind == "none" || s.Kind == "firewall":
		return fmt.Errorf("lab: a router of kind %s has no address of its own outside", s.Kind)
	}
	s.seq++
	return s.settle(kind, host(s.wan, byte(70+s.seq)))
}

// settle gives the router another address outside, and a NAT of the kind.
func (s *Site) settle(kind string, wan netip.Addr) error {
	old := s.wan
	s.wan = wan
	return errors.Join(
		s.Router.IP("addr add "+s.wan.String()+"/32 dev wan", "addr del "+old.String()+"/32 dev wan"),
		s.Router.NFT("flush ruleset\n"+nat(kind, s.wan.String())),
		s.Router.FlushConntrack())
}

func (p *provider) move() error {
	old := p.wan
	p.seq++
	p.wan = host(old, byte(70+p.seq)+old.As4()[3])
	return errors.Join(
		p.w.net.IP("route add "+p.wan.String()+" dev "+p.wire.far),
		p.IP("addr add "+p.wan.String()+"/32 dev wan", "addr del "+old.String()+"/32 dev wan"),
		p.NFT("flush ruleset\n"+nat(p.kind, p.wan.String())),
		p.FlushConntrack())
}

// Swap lets two sites' routers have each other's outside address, as a provider with few of them may.
func Swap(a, b *Site) error {
	wanA, wanB := a.wan, b.wan
	return errors.Join(
		a.w.net.IP("route replace "+wanA.String()+" dev "+b.Wire.far, "route replace "+wanB.String()+" dev "+a.Wire.far),
		a.settle(a.Kind, wanB), b.settle(b.Kind, wanA))
}

// Forget makes the router forget all mappings, as one does that is restarted or full. Connections get new ones.
func (s *Site) Forget() error {
	if s.Kind == "none" {
		return nil
	}
	return errors.Join(s.Router.NFT("flush map ip nat ours\nflush set ip nat met"), s.Router.FlushConntrack())
}

// KillTCP makes the router forget all mappings, and drop without a word what then belongs to no connection: TCP that
// was open dies in silence.
func (s *Site) KillTCP() error {
	return errors.Join(s.Router.Sysctl("netfilter/nf_conntrack_tcp_loose=0"),
		s.Router.NFT("insert rule inet filter forward ct state invalid drop"), s.Forget())
}

// NewUplink gives the client a second way out, by a router of its own with a NAT of the kind. prefer says
// whether it takes over at once, while eth0 still is there; else it is only a route of last resort.
func (s *Site) NewUplink(kind string, prefer bool) error {
	s.seq++
	n := s.n*10 + s.seq
	r, err := s.w.space(fmt.Sprintf("router%d", n))
	if err != nil {
		return err
	}
	net, wan := netip.AddrFrom4([4]byte{192, 168, byte(n), 0}), netip.AddrFrom4([4]byte{203, 0, byte(150 + n), 2})
	if err := lan(r, net); err != nil {
		return err
	}
	dev, err := s.plug(r)
	if err != nil {
		return err
	}
	wire, err := s.w.wire(r, "wan", fmt.Sprintf("site%d", n), host(wan, 0).String()+"/24")
	if err != nil {
		return err
	}
	metric := "100"
	if prefer {
		if err := s.IP("route del default", "route add default via "+s.via.String()+" metric 50"); err != nil {
			return err
		}
		metric = "10"
		s.dev = dev
	}
	s.Wire, s.via2 = wire, host(net, 1)
	return errors.Join(
		r.IP("addr add "+wan.String()+"/32 dev wan", "route add default dev wan"), r.NFT(nat(kind, wan.String())),
		s.IP("addr add "+host(net, 2).String()+"/24 dev "+dev, "route add default via "+host(net, 1).String()+" metric "+metric))
}

// DropUplink takes the first way out away.
func (s *Site) DropUplink() error { return s.IP("link set eth0 down") }

// Bounce takes the client's link down, and up again after a while.
func (s *Site) Bounce(d time.Duration) error {
	if err := s.IP("link set eth0 down"); err != nil {
		return err
	}
	time.Sleep(d)
	return s.IP("link set eth0 up", "route replace default via "+s.via.String())
}

// PreferUplink sends everything by the second way out, or by the first again; both stay up.
func (s *Site) PreferUplink(second bool) error {
	metric := "200"
	if !second {
		metric = "5"
	}
	return s.IP("route del default via "+s.via.String(), "route add default via "+s.via.String()+" metric "+metric)
}

// Tunnel lets everything go by the second way out, as a VPN does that comes up: two routes that are more specific than
// the default one, which stays as it is. No address changes.
func (s *Site) Tunnel(up bool) error {
	verb := "del"
	if up {
		verb = "add"
	}
	return s.IP("route "+verb+" 0.0.0.0/1 dev eth1 via "+s.via2.String(), "route "+verb+" 128.0.0.0/1 dev eth1 via "+s.via2.String())
}

// MovePrefix gives the site another prefix of IPv6, and takes the old one away.
func (s *Site) MovePrefix() error {
	old := s.addr6
	s.seq++
	net := fmt.Sprintf("2001:db8:%d:%d::", s.n, s.seq)
	return errors.Join(
		s.w.net.IP(fmt.Sprintf("route add %s/64 dev site%d", net, s.n)),
		s.lan6(net),
		s.IP("addr del "+old.String()+"/64 dev eth0"),
		s.w.net.IP(fmt.Sprintf("route del %s/64 dev site%d", netip.PrefixFrom(old, 64).Masked().Addr(), s.n)))
}

// DropIPv6 takes IPv6 away from the client, or with dead set only lets none of it through the router any more.
func (s *Site) DropIPv6(dead bool) error {
	if dead {
		return s.Router.NFT("table ip6 dead { chain f { type filter hook forward priority -10; drop; }; }")
	}
	return s.IP("addr del " + s.addr6.String() + "/64 dev eth0")
}

// Captive lets through nothing of what the client sends, as a portal does until one has agreed to its terms: TCP is
// refused, all else vanishes.
func (s *Site) Captive(on bool) error {
	if !on {
		return s.Router.NFT("delete table inet captive")
	}
	return s.Router.NFT("table inet captive { chain f { type filter hook forward priority -10; meta l4proto tcp reject with tcp reset; drop; }; }")
}

// Portal is Captive as most are: HTTP is answered, by somebody else than was asked.
func (s *Site) Portal(on bool) error {
	if !on {
		return s.Router.NFT("delete table inet captive\ndelete table ip portal")
	}
	return s.Router.NFT(`table inet captive { chain f { type filter hook forward priority -10; meta l4proto tcp reject with tcp reset; drop; }; }
table ip portal { chain pre { type nat hook prerouting priority dstnat; iifname "lan" tcp dport 80 redirect to :80; }; }`)
}

// Police drops UDP of the client's, or for it, above so many packets a second.
func (s *Site) Police(rate int) error {
	return s.Router.NFT(fmt.Sprintf(`table inet police { chain f { type filter hook forward priority -10;
  iifname "lan" meta l4proto udp limit rate over %d/second burst 20 packets drop
  iifname "wan" meta l4proto udp limit rate over %d/second burst 20 packets drop
 }; }`, rate, rate))
}

// BlockUDP lets no UDP through the router any more, or again.
func (s *Site) BlockUDP(block bool) error {
	if !block {
		return s.Router.NFT("delete table inet blocked")
	}
	return s.Router.NFT("table inet blocked { chain f { type filter hook forward priority -10; meta l4proto udp drop; }; }")
}

// Timeouts makes the router forget a UDP mapping that was not used for so long, in seconds.
func (s *Site) Timeouts(udp int) error {
	return s.Router.Sysctl(fmt.Sprintf("netfilter/nf_conntrack_udp_timeout=%d", udp), fmt.Sprintf("netfilter/nf_conntrack_udp_timeout_stream=%d", udp))
}

// MTU sets the largest packet that the router's uplink carries. It answers larger ones as it should (RFC 1191);
// a black hole is [Line.MTU].
func (s *Site) MTU(n int) error { return s.Router.IP(fmt.Sprintf("link set wan mtu %d", n)) }

// Forward sends what comes to a UDP port outside to a port of the client, as a port mapping does (RFC 6886).
func (s *Site) Forward(outside, inside uint16) error {
	return s.Router.NFT(fmt.Sprintf("add element ip nat forwarded { %d : %s . %d }", outside, s.Addr, inside))
}

// Between lets the internet do something to packets between two sites, both ways, and to no others: statements of
// nftables, such as "numgen random mod 100 < 10 drop" or "meta length > 1280 drop"; none ends it.
func (w *World) Between(a, b *Site, statements ...string) error {
	return w.interfere([][2]*Site{{a, b}, {b, a}}, statements)
}

// To is Between, but one way: to packets from a to b only.
func (w *World) To(a, b *Site, statements ...string) error {
	return w.interfere([][2]*Site{{a, b}}, statements)
}

func (w *World) interfere(pairs [][2]*Site, statements []string) error {
	script := "table inet between { chain f { type filter hook forward priority filter; }; }\nflush table inet between\n"
	for _, s := range statements {
		for _, p := range pairs {
			script += fmt.Sprintf("add rule inet between f iifname %q oifname %q %s\n", p[0].Wire.far, p[1].Wire.far, s)
		}
	}
	return w.net.NFT(script)
}

// Move gives the server other addresses.
func (s *Server) Move() error {
	old, old6 := s.Addr, s.Addr6
	s.Addr, s.Addr6 = host(old, old.As4()[3]+1), old6.Next()
	return errors.Join(
		s.w.net.IP("route add "+s.Addr.String()+" dev "+s.Wire.far, "route add "+s.Addr6.String()+" dev "+s.Wire.far),
		s.IP("addr add "+s.Addr.String()+"/32 dev eth0", "addr add "+s.Addr6.String()+"/128 dev eth0 nodad",
			"addr del "+old.String()+"/32 dev eth0", "addr del "+old6.String()+"/128 dev eth0"))
}
