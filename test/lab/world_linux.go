package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"sync/atomic"
	"time"
)

// World is an internet of real kernels: servers, and sites behind NATs of the kinds in [Kinds], each a namespace. Two
// edges of it are 20 ms apart, as every wire takes Half of that.
//
//	server 198.51.100.1 ─ wire ─┐                        ┌─ wire ─ router (NAT) ─ veth ─ client 192.168.1.2
//	server 198.51.101.1 ─ wire ─┤ internet, a router     ├─ wire ─ provider (NAT) ─ veth ─ router (NAT) ─ veth ─ client
//	                            └────────────────────────┘
type World struct {
	id     string
	spaces []string
	wires  []*Wire
	net    Space
	shared map[string]*provider // the provider of a kind, whose customers all sites of the kind are
	Sites  []*Site
}

// Half is what one wire takes; two are between any two edges.
const Half = 10 * time.Millisecond

// layers are the routers of a kind: the home's and, where there is one, its provider's.
func layers(kind string) (home, provider string) {
	switch kind {
	case "cgn":
		return "easy", "provider"
	case "cgn+hp":
		return "easy", "provider+hp"
	case "opencgn":
		return "easyopen", "provider+open"
	case "hardcgn":
		return "easy", "provider+hard"
	case "hardhard":
		return "hard", "provider+hard"
	}
	return kind, ""
}

// Server is a host in the middle of the internet, without NAT.
type Server struct {
	Space
	Addr  netip.Addr
	Addr6 netip.Addr
	Wire  *Wire
	w     *World
}

// Site is a home: a router of some kind with a client behind it.
type Site struct {
	Space  // the client
	Kind   string
	Addr   netip.Addr // of the client, inside; of IPv6 for v6
	Router Space
	Wire   *Wire // to the internet; the provider's, where there is one

	w     *World
	isp   *provider // nil without
	n     int
	wan   netip.Addr // the router's outside
	via   netip.Addr // the client's gateway
	via2  netip.Addr // that of its second way out
	addr6 netip.Addr // the client's, of IPv6
	seq   int        // of uplinks and addresses made since
}

// provider is a router between homes and the internet.
type provider struct {
	Space
	w    *World
	kind string // of its NAT
	wire *Wire
	wan  netip.Addr
	seq  int // of addresses since
}

var worlds atomic.Int32

// NewWorld makes an empty internet. It needs root, iproute2, nftables and /dev/net/tun.
func NewWorld() (*World, error) {
	if err := CanWorld(); err != nil {
		return nil, err
	}
	w := &World{id: fmt.Sprintf("hedge%dw%d", os.Getpid(), worlds.Add(1)), shared: map[string]*provider{}}
	var err error
	if w.net, err = w.space("internet"); err == nil {
		err = w.net.IP("addr add 192.0.2.1/32 dev lo", "addr add 2001:db8:ffff::1/128 dev lo") // its ICMP errors come from there
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// CanWorld says what is missing for a World.
func CanWorld() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make network namespaces")
	}
	for _, tool := range [][2]string{{"ip", "iproute2"}, {"nft", "nftables"}} {
		if _, err := exec.LookPath(tool[0]); err != nil {
			return fmt.Errorf("needs the %s command (%s)", tool[0], tool[1])
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("needs TUN devices: %w", err)
	}
	return nil
}

// space makes a namespace that forwards.
func (w *World) space(name string) (Space, error) {
	s := Space{w.id + "-" + name}
	if out, err := exec.Command("ip", "netns", "add", s.ns).CombinedOutput(); err != nil {
		return s, fmt.Errorf("ip netns add %s: %w: %s", s.ns, err, out)
	}
	w.spaces = append(w.spaces, s.ns)
	return s, errors.Join(s.IP("link set lo up"), s.Sysctl(
		"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv6/conf/all/accept_dad=0", "ipv6/conf/default/accept_dad=0",
		"ipv4/conf/all/rp_filter=0", "ipv4/conf/default/rp_filter=0"))
}

// Close removes everything. What runs in the namespaces must have ended.
func (w *World) Close() error {
	var err error
	for _, l := range w.wires {
		err = errors.Join(err, l.close())
	}
	for _, ns := range w.spaces {
		if out, e := exec.Command("ip", "netns", "del", ns).CombinedOutput(); e != nil {
			err = errors.Join(err, fmt.Errorf("ip netns del %s: %w: %s", ns, e, out))
		}
	}
	return err
}

// Core is the internet's own namespace, where all packets between sites and servers pass.
func (w *World) Core() Space { return w.net }

// wire joins a namespace's device to the internet, which finds the given networks there.
func (w *World) wire(s Space, dev, far string, nets ...string) (*Wire, error) {
	l, err := newWire(s, dev, w.net, far, Line{Delay: Half})
	if err != nil {
		return nil, err
	}
	w.wires = append(w.wires, l)
	var routes []string
	for _, n := range nets {
		routes = append(routes, "route add "+n+" dev "+far)
	}
	return l, w.net.IP(routes...)
}

// Server adds the n-th server, n from 0: 198.51.(100+n).1 and 2001:db8:ff0n::1.
func (w *World) Server(n int) (*Server, error) {
	s := &Server{w: w, Addr: netip.AddrFrom4([4]byte{198, 51, byte(100 + n), 1}), Addr6: netip.MustParseAddr(fmt.Sprintf("2001:db8:ff0%d::1", n))}
	var err error
	if s.Space, err = w.space(fmt.Sprintf("server%d", n)); err != nil {
		return nil, err
	}
	if s.Wire, err = w.wire(s.Space, "eth0", fmt.Sprintf("server%d", n), s.Addr.String(), s.Addr6.String()); err != nil {
		return nil, err
	}
	return s, s.IP("addr add "+s.Addr.String()+"/32 dev eth0", "addr add "+s.Addr6.String()+"/128 dev eth0 nodad",
		"route add default dev eth0", "route add ::/0 dev eth0")
}

// Site adds a site of one of [Kinds] or [MoreKinds]. Sites of one of the provider's kinds are customers of the same provider, unless
// they are apart.
func (w *World) Site(kind string, apart bool) (*Site, error) {
	s := &Site{Kind: kind, w: w, n: len(w.Sites) + 1}
	w.Sites = append(w.Sites, s)
	var err error
	if s.Space, err = w.space(fmt.Sprintf("client%d", s.n)); err != nil {
		return nil, err
	}
	if s.Router, err = w.space(fmt.Sprintf("router%d", s.n)); err != nil {
		return nil, err
	}
	lan := netip.AddrFrom4([4]byte{192, 168, byte(s.n), 0})
	if kind == "none" || kind == "firewall" {
		lan = netip.AddrFrom4([4]byte{203, 0, byte(113 + s.n), 0})
	}
	if err := s.lan(s.Router, "eth0", lan); err != nil {
		return nil, err
	}
	s.Addr, s.via = host(lan, 2), host(lan, 1)
	if err := s.uplink(apart); err != nil {
		return nil, err
	}
	switch kind {
	case "v6", "dual", "dualhard", "nat66":
		err = s.ipv6()
	case "short", "hardshort":
		err = s.Timeouts(5)
	}
	return s, err
}

// host is the n-th address of an IPv4 /24.
func host(net netip.Addr, n byte) netip.Addr {
	b := net.As4()
	b[3] = n
	return netip.AddrFrom4(b)
}

// lan joins the client to a router: .2 and .1 of a network.
func (s *Site) lan(router Space, dev string, net netip.Addr) error {
	if err := s.IP(fmt.Sprintf("link add %s type veth peer name lan netns %s", dev, router.ns)); err != nil {
		return err
	}
	if err := router.IP("addr add "+host(net, 1).String()+"/24 dev lan", "link set lan up"); err != nil {
		return err
	}
	lines := []string{"link set " + dev + " up"}
	if dev == "eth0" && !s.six() {
		lines = append(lines, "addr add "+host(net, 2).String()+"/24 dev "+dev, "route add default via "+host(net, 1).String())
	}
	return s.IP(lines...)
}

// uplink joins the router to the internet, or to its provider.
func (s *Site) uplink(apart bool) (err error) {
	if home, isp := layers(s.Kind); isp != "" {
		return s.customer(home, isp, apart)
	}
	far := fmt.Sprintf("site%d", s.n)
	s.wan = netip.AddrFrom4([4]byte{203, 0, byte(113 + s.n), 2})
	if s.Wire, err = s.w.wire(s.Router, "wan", far, host(s.wan, 0).String()+"/24"); err != nil {
		return err
	}
	switch s.Kind {
	case "none":
		return s.Router.IP("route add default dev wan")
	case "firewall":
		return errors.Join(s.Router.IP("route add default dev wan"), s.Router.NFT(nat(s.Kind, s.wan.String())))
	}
	return errors.Join(s.Router.IP("addr add "+s.wan.String()+"/32 dev wan", "route add default dev wan"), s.Router.NFT(nat(s.Kind, s.wan.String())))
}

// customer joins the router to its provider's.
func (s *Site) customer(home, isp string, apart bool) (err error) {
	p := s.w.shared[isp]
	if p == nil || apart {
		if p, err = s.w.provider(isp, s.n); err != nil {
			return err
		}
		s.w.shared[isp] = p
	}
	s.isp, s.Wire = p, p.wire
	s.wan = netip.AddrFrom4([4]byte{100, 64, byte(s.n), 2})
	dev := fmt.Sprintf("home%d", s.n)
	if err := s.Router.IP(fmt.Sprintf("link add wan type veth peer name %s netns %s", dev, p.ns)); err != nil {
		return err
	}
	return errors.Join(
		p.IP("addr add "+host(s.wan, 1).String()+"/24 dev "+dev, "link set "+dev+" up"),
		s.Router.IP("addr add "+s.wan.String()+"/24 dev wan", "link set wan up", "route add default via "+host(s.wan, 1).String()),
		s.Router.NFT(nat(home, s.wan.String())))
}

func (w *World) provider(kind string, n int) (*provider, error) {
	name := fmt.Sprintf("provider%d", n)
	s, err := w.space(name)
	if err != nil {
		return nil, err
	}
	wan := netip.AddrFrom4([4]byte{203, 0, 113, byte(n)})
	l, err := w.wire(s, "wan", name, wan.String())
	if err != nil {
		return nil, err
	}
	return &provider{Space: s, w: w, kind: kind, wire: l, wan: wan}, errors.Join(s.IP("addr add "+wan.String()+"/32 dev wan", "route add default dev wan"),
		s.NFT(nat(kind, wan.String())))
}

// six reports whether the site has IPv6 only.
func (s *Site) six() bool { return s.Kind == "v6" || s.Kind == "nat66" }

// ipv6 gives the site a routed network, behind the same stateful firewall; or one of its own behind one address (NAT66).
func (s *Site) ipv6() error {
	net := fmt.Sprintf("2001:db8:%d::", s.n)
	if s.Kind == "nat66" {
		if err := s.Router.IP("addr add " + net + "1/128 dev wan nodad"); err != nil {
			return err
		}
	}
	return errors.Join(s.lan6(s.inside6()), s.w.net.IP(fmt.Sprintf("route add %s/64 dev site%d", net, s.n)), s.Router.IP("route add ::/0 dev wan"))
}

// inside6 is the IPv6 network inside.
func (s *Site) inside6() string {
	if s.Kind == "nat66" {
		return fmt.Sprintf("fd00:%d::", s.n)
	}
	return fmt.Sprintf("2001:db8:%d::", s.n)
}

// lan6 gives the client and the router addresses of a network, ::2 and ::1.
func (s *Site) lan6(net string) error {
	s.addr6 = netip.MustParseAddr(net + "2")
	if s.six() {
		s.Addr = s.addr6
	}
	return errors.Join(
		s.Router.IP("addr add "+net+"1/64 dev lan nodad"),
		s.IP("addr add "+net+"2/64 dev eth0 nodad", "route replace ::/0 via "+net+"1"))
}
