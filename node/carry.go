package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// carry connects to an address behind this node for a peer that the filter has let through, with a socket of the host.
//
//	peer ── wireguard ── filter.In ── stack ── carriable? ── carry ── the host ── LAN, internet
func (n *Node) carry(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if err := n.carriable(to.Addr()); err != nil {
		n.log.Info().Stringer("to", to).Err(err).Msg("does not carry")
		return nil, err
	}
	if r, _ := longest(n.enforce.cur.Load().m.Self.Routes, to.Addr()); to == exitNames && r.Bits() == 0 {
		return n.carryNames(network)
	}
	d := net.Dialer{Control: n.bind.Mark} // with an interface here, what it leads to a peer is not for us to carry
	return d.DialContext(ctx, network, to.String())
}

func (n *Node) carriable(to netip.Addr) error {
	cur := n.enforce.cur.Load()
	if cur.m == nil || cur.refused != nil {
		return errors.New("this node has no policy")
	}
	return carriable(cur.m.Self.Routes, cur.m.Self.Prefixes, to, hostAddrs)
}

// hostAddrs are the addresses of this machine's interfaces.
func hostAddrs() (out []netip.Addr) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if p, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(p.IP); ok {
				out = append(out, ip.Unmap())
			}
		}
	}
	return out
}

// echo pings an address behind this node for a peer, and returns once it has answered.
func (n *Node) echo(ctx context.Context, dst netip.Addr, data []byte) error {
	if err := n.carriable(dst); err != nil {
		return err
	}
	return ping(ctx, dst, data, n.bind.Mark)
}

// ping sends an echo request with a socket of the host, and returns once it is answered.
func ping(ctx context.Context, dst netip.Addr, data []byte, control func(network, address string, c syscall.RawConn) error) error {
	c, raw, err := pingSocket(dst.Is4())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := controlPing(c, control); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var token [4]byte // by which the reply is known: of a ping socket the system chooses the identifier
	rand.Read(token[:])
	id, seq := int(token[0])<<8|int(token[1]), int(token[2])<<8|int(token[3])
	req, to := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: seq, Data: data}}, net.Addr(&net.UDPAddr{IP: dst.AsSlice()})
	proto, reply := 1, icmp.Type(ipv4.ICMPTypeEchoReply)
	if dst.Is6() {
		req.Type, proto, reply = ipv6.ICMPTypeEchoRequest, 58, ipv6.ICMPTypeEchoReply
	}
	if raw {
		to = &net.IPAddr{IP: dst.AsSlice()}
	}
	b, err := req.Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(b, to); err != nil {
		return err
	}
	for buf := make([]byte, 65535); ; {
		size, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		m, err := icmp.ParseMessage(proto, buf[:size])
		if err != nil || m.Type != reply || addrOf(from) != dst {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.Seq == seq && (!raw || e.ID == id) {
			return nil
		}
	}
}

// controlPing does with a socket for pings what a net.Dialer does with its own.
func controlPing(c *icmp.PacketConn, control func(network, address string, c syscall.RawConn) error) error {
	if control == nil {
		return nil
	}
	var inner net.PacketConn
	if p := c.IPv4PacketConn(); p != nil {
		inner = p.PacketConn
	} else if p := c.IPv6PacketConn(); p != nil {
		inner = p.PacketConn
	}
	sys, ok := inner.(syscall.Conn)
	if !ok {
		return fmt.Errorf("a socket for pings (%T) cannot be kept out of the tunnel", inner)
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return err
	}
	return control("", "", raw)
}

func addrOf(a net.Addr) netip.Addr {
	var ip net.IP
	switch a := a.(type) {
	case *net.UDPAddr:
		ip = a.IP
	case *net.IPAddr:
		ip = a.IP
	}
	out, _ := netip.AddrFromSlice(ip)
	return out.Unmap()
}

// pingSocket opens a socket for pings: one that any user may have, if the system allows it, or else a raw one.
func pingSocket(four bool) (c *icmp.PacketConn, raw bool, err error) {
	networks, any := []string{"udp4", "ip4:icmp"}, "0.0.0.0"
	if !four {
		networks, any = []string{"udp6", "ip6:ipv6-icmp"}, "::"
	}
	if c, err = icmp.ListenPacket(networks[0], any); err == nil {
		return c, false, nil
	}
	c, err = icmp.ListenPacket(networks[1], any)
	return c, true, err
}

// carriesPings says why pings are not carried, if they are not.
func carriesPings() error {
	c, _, err := pingSocket(true)
	if err != nil {
		return fmt.Errorf("pings are not carried: this system lets this user send none (%w; on Linux, sysctl net.ipv4.ping_group_range allows it)", err)
	}
	return c.Close()
}

// pingRouted measures the way to an address behind a peer, by an ICMP echo in the tunnel.
func (n *Node) pingRouted(ctx context.Context, a netip.Addr, r Route) (PingResult, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	rtt, err := n.ping(ctx, a)
	if err != nil {
		return PingResult{}, &UnreachableError{Dst: a.String(), Timeout: true, Err: fmt.Errorf("no answer by way of %s: nobody is there, or it carries no pings", r.Name)}
	}
	return PingResult{Peer: fmt.Sprintf("%v behind %s", a, r.Name), Addr: a, How: "icmp", RTT: Seconds(rtt), Path: Path{Kind: "none"}}, nil
}
