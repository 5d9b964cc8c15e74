package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/hedge-mesh/hedge/node/proxy"
)

// accept decides about a connection that the policy has let in and that nobody Listens for.
//
//	peer ── wireguard ── filter.In ── stack ── accept ─┬▶ Config.Inbound ──▶ 127.0.0.1:port, a handler, or refused
//	                                                   └▶ carry: what is behind this node
func (n *Node) accept(ctx context.Context, network string, local, remote netip.AddrPort) (net.Conn, error) {
	if !slices.Contains(n.Addrs(), local.Addr()) {
		return n.carry(ctx, network, local)
	}
	if n.cfg.Inbound.accept == nil {
		return nil, errors.New("this node accepts no inbound connections")
	}
	if local.Port() == n.proxyAt.Port() && n.cfg.Inbound.mode == Loopback.mode && n.proxyAt.IsValid() {
		// A peer that got to our proxy would be us from there on.
		return nil, errors.New("the proxy is for this machine only")
	}
	return n.cfg.Inbound.accept(ctx, network, local, remote)
}

// dialLoopback connects to the port on this machine that the peer asked for on the mesh.
func dialLoopback(ctx context.Context, network string, local, _ netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", strconv.Itoa(int(local.Port()))))
}

// Listen accepts connections from the mesh on hostport; ":80" is port 80 of all of this node's addresses in the mesh.
// network is tcp, tcp4 or tcp6. The policy still decides who gets here.
func (n *Node) Listen(network, hostport string) (net.Listener, error) {
	at, err := n.listenAddr("tcp", network, hostport)
	if err != nil {
		return nil, err
	}
	if n.stack == nil {
		return n.listenHost(network, at)
	}
	return n.stack.ListenTCP(at)
}

// ListenPacket is Listen for udp, udp4 and udp6.
func (n *Node) ListenPacket(network, hostport string) (net.PacketConn, error) {
	at, err := n.listenAddr("udp", network, hostport)
	if err != nil {
		return nil, err
	}
	if n.stack == nil {
		if at.Addr().IsUnspecified() {
			return nil, fmt.Errorf("listen on %s: on the host's interface there is one socket for each address; use udp4 or udp6, or name an address", hostport)
		}
		return net.ListenPacket(network, at.String())
	}
	return n.stack.ListenUDP(at)
}

// listenAddr reads an address to listen on: one of this node's, or, unspecified, all of them.
func (n *Node) listenAddr(proto, network, hostport string) (netip.AddrPort, error) {
	family, err := familyOf(proto, network)
	if err != nil {
		return netip.AddrPort{}, err
	}
	host, port, err := splitHostPort(network, hostport)
	if err != nil {
		return netip.AddrPort{}, err
	}
	self := n.Addrs()
	if host == "" {
		switch family {
		case 4, 6:
			for _, a := range self {
				if is(family, a) {
					return netip.AddrPortFrom(a, port), nil
				}
			}
			return netip.AddrPort{}, fmt.Errorf("listen on %s: this node has no IPv%d address", hostport, family)
		}
		return netip.AddrPortFrom(netip.IPv6Unspecified(), port), nil
	}
	addrs, err := n.Resolve(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, a := range addrs {
		for _, s := range self {
			if a == s && is(family, a) {
				return netip.AddrPortFrom(a, port), nil
			}
		}
	}
	return netip.AddrPort{}, fmt.Errorf("listen on %s: that is not an address of this node", hostport)
}

// listenProxy takes the proxy's port, if there is to be one; it is served later.
func (n *Node) listenProxy() (net.Listener, error) {
	if n.cfg.Proxy == "" || n.cfg.Proxy == "off" {
		return nil, nil
	}
	host, _, err := net.SplitHostPort(n.cfg.Proxy)
	if err != nil {
		return nil, fmt.Errorf("proxy address %q: %w; give host:port, port 0 for any free one, or off", n.cfg.Proxy, err)
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("proxy address %q: %w", n.cfg.Proxy, proxy.ErrNotLoopback)
	}
	l, err := net.Listen("tcp", n.cfg.Proxy)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w; choose another address with --proxy, port 0 for any free one, or off", err)
	}
	if n.proxy, err = proxy.New(proxy.Options{Dialer: n}); err != nil {
		_ = l.Close()
		return nil, err
	}
	n.proxyAt = l.Addr().(*net.TCPAddr).AddrPort()
	return l, nil
}
