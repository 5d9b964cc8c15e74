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

// MoveWAN gives the router another address outside, and no memory of connections, as a provider does at night. The
// client sees nothing of it.
func (s *Site) MoveWAN() error {
	if s.Kind == "cgn" || s.Kind == "cgn+hp" || s.Kind == "none" {
		return fmt.Errorf("lab: a router of kind %s has no address of its own outside", s.Kind)
	}
	old := s.wan
	s.seq++
	s.wan = host(old, byte(70+s.seq))
	return errors.Join(
		s.Router.IP("addr add "+s.wan.String()+"/32 dev wan", "addr del "+old.String()+"/32 dev wan"),
		s.Router.NFT("flush ruleset\n"+nat(s.Kind, s.wan.String())),
		s.Router.FlushConntrack())
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

// NewUplink gives the client a second way out, by a router of its own with a NAT of the kind: eth1. prefer says
// whether it takes over at once, while eth0 still is there; else it is only a route of last resort.
func (s *Site) NewUplink(kind string, prefer bool) error {
	s.seq++
	n := s.n*10 + s.seq
	r, err := s.w.space(fmt.Sprintf("router%d", n))
	if err != nil {
		return err
	}
	net, wan := netip.AddrFrom4([4]byte{192, 168, byte(n), 0}), netip.AddrFrom4([4]byte{203, 0, byte(150 + n), 2})
	if err := s.lan(r, "eth1", net); err != nil {
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
	}
	s.Wire = wire
	return errors.Join(
		r.IP("addr add "+wan.String()+"/32 dev wan", "route add default dev wan"), r.NFT(nat(kind, wan.String())),
		s.IP("addr add "+host(net, 2).String()+"/24 dev eth1", "route add default via "+host(net, 1).String()+" metric "+metric))
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
	script := "table inet between { chain f { type filter hook forward priority filter; }; }\nflush table inet between\n"
	for _, s := range statements {
		for _, dirs := range [][2]*Site{{a, b}, {b, a}} {
			script += fmt.Sprintf("add rule inet between f iifname %q oifname %q %s\n", dirs[0].Wire.far, dirs[1].Wire.far, s)
		}
	}
	return w.net.NFT(script)
}
