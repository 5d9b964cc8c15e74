package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
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
	shared map[string][]*provider // the providers of a kind, whose customers all sites of the kind are; the outermost last
	Sites  []*Site
}

// Half is what one wire takes; two are between any two edges.
const Half = 10 * time.Millisecond

// layers are the routers of a kind: the home's and those of its providers, where there are any; the outermost last.
func layers(kind string) (home string, providers []string) {
	switch kind {
	case "cgn":
		return "easy", []string{"provider"}
	case "cgn+hp":
		return "easy", []string{"provider+hp"}
	case "cgn3":
		return "easy", []string{"provider", "provider"}
	case "opencgn":
		return "easyopen", []string{"provider+open"}
	case "docker":
		return "easyopen", []string{"provider"}
	case "hardcgn":
		return "easy", []string{"provider+hard"}
	case "hardhard":
		return "hard", []string{"provider+hard"}
	}
	return kind, nil
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
	isp   *provider // the outermost; nil without
	n     int
	eths  int        // devices that the client has had
	dev   string     // the one that it is to use now
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
	w := &World{id: fmt.Sprintf("hedge%dw%d", os.Getpid(), worlds.Add(1)), shared: map[string][]*provider{}}
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
	if slices.Contains(PairKinds[:3], kind) && !apart && s.n > 1 {
		return s, s.beside(w.Sites[s.n-2])
	}
	if s.Router, err = w.space(fmt.Sprintf("router%d", s.n)); err != nil {
		return nil, err
	}
	net := netip.AddrFrom4([4]byte{192, 168, byte(s.n), 0})
	switch kind {
	case "none", "firewall":
		net = netip.AddrFrom4([4]byte{203, 0, byte(113 + s.n), 0})
	case "twin":
		net = netip.AddrFrom4([4]byte{192, 168, 178, 0})
	}
	if err := lan(s.Router, net); err != nil {
		return nil, err
	}
	s.via = host(net, 1)
	if err := s.join(host(net, 2)); err != nil {
		return nil, err
	}
	if err := s.uplink(apart); err != nil {
		return nil, err
	}
	switch kind {
	case "v6", "dual", "dualhard", "nat66", "sixudp", "blocked6":
		err = s.ipv6()
	case "short", "hardshort":
		err = s.Timeouts(5)
	case "brief":
		err = s.Timeouts(1)
	case "small":
		s.Wire.Set(func(l *Line) { l.UDP = 1000 })
	}
	return s, err
}

// host is the n-th address of an IPv4 /24.
func host(net netip.Addr, n byte) netip.Addr {
	b := net.As4()
	b[3] = n
	return netip.AddrFrom4(b)
}

// lan gives a router a LAN, a switch that any number of clients may be on, and its own address there: .1 of a network.
func lan(router Space, net netip.Addr) error {
	const filter = "/proc/sys/net/bridge/bridge-nf-call-iptables" // where the kernel has it, NAT would see what the switch forwards
	err := router.Do(func() error {
		if _, err := os.Stat(filter); err != nil {
			return nil
		}
		return os.WriteFile(filter, []byte("0"), 0)
	})
	return errors.Join(err, router.IP("link add lan type bridge", "addr add "+host(net, 1).String()+"/24 dev lan", "link set lan up"))
}

// plug joins the client to a router's switch by a new device, which is up and has no address.
//
//	client ─ eth0 ═ veth ═ port1 ─ bridge "lan" of the router
func (s *Site) plug(router Space) (dev string, err error) {
	dev = fmt.Sprintf("eth%d", s.eths)
	port := fmt.Sprintf("port%d-%d", s.n, s.eths)
	s.eths++
	if err := s.IP(fmt.Sprintf("link add %s type veth peer name %s netns %s", dev, port, router.ns)); err != nil {
		return dev, err
	}
	lines := []string{"link set " + port + " master lan up"}
	if strings.HasPrefix(s.Kind, "isol") {
		lines = append(lines, "link set "+port+" type bridge_slave isolated on")
	}
	return dev, errors.Join(router.IP(lines...), s.IP("link set "+dev+" up"))
}

// beside puts the client on the LAN of another.
func (s *Site) beside(o *Site) error {
	s.Router, s.Wire, s.wan, s.via = o.Router, o.Wire, o.wan, o.via
	return s.join(o.Addr.Next())
}

// join plugs the client in at its router, under that address.
func (s *Site) join(addr netip.Addr) error {
	s.Addr = addr
	dev, err := s.plug(s.Router)
	s.dev = dev
	if err != nil || s.six() {
		return err
	}
	return s.IP("addr add "+addr.String()+"/24 dev "+dev, "route add default via "+s.via.String())
}

// uplink joins the router to the internet, or to its provider.
func (s *Site) uplink(apart bool) (err error) {
	if home, isp := layers(s.Kind); isp != nil {
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
func (s *Site) customer(home string, isps []string, apart bool) (err error) {
	name := strings.Join(isps, "/")
	list := s.w.shared[name]
	if list == nil || apart || s.Kind == "docker" {
		if list, err = s.w.providers(isps, s.n); err != nil {
			return err
		}
		s.w.shared[name] = list
	}
	s.isp = list[len(list)-1]
	s.Wire = s.isp.wire
	s.wan = netip.AddrFrom4([4]byte{100, 64, byte(s.n), 2})
	return errors.Join(list[0].serve(s.Router, fmt.Sprintf("home%d", s.n), s.wan), s.Router.NFT(nat(home, s.wan.String())))
}

// serve joins a router to the provider's: its outside address is in a network of the two, whose .1 is the provider's.
func (p *provider) serve(r Space, dev string, wan netip.Addr) error {
	return errors.Join(
		r.IP(fmt.Sprintf("link add wan type veth peer name %s netns %s", dev, p.ns)),
		p.IP("addr add "+host(wan, 1).String()+"/24 dev "+dev, "link set "+dev+" up"),
		r.IP("addr add "+wan.String()+"/24 dev wan", "link set wan up", "route add default via "+host(wan, 1).String()))
}

// providers makes a row of them, the outermost last.
func (w *World) providers(kinds []string, n int) ([]*provider, error) {
	list := make([]*provider, len(kinds))
	for i := len(kinds) - 1; i >= 0; i-- {
		name := fmt.Sprintf("provider%d-%d", n, i)
		s, err := w.space(name)
		if err != nil {
			return nil, err
		}
		p := &provider{Space: s, w: w, kind: kinds[i], wan: netip.AddrFrom4([4]byte{203, 0, 113, byte(n)})}
		if list[i] = p; i == len(kinds)-1 {
			if p.wire, err = w.wire(s, "wan", name, p.wan.String()); err == nil {
				err = s.IP("addr add "+p.wan.String()+"/32 dev wan", "route add default dev wan")
			}
		} else {
			p.wan = netip.AddrFrom4([4]byte{100, byte(100 + i), byte(n), 2})
			err = list[i+1].serve(s, fmt.Sprintf("inner%d", n), p.wan)
		}
		if err := errors.Join(err, s.NFT(nat(p.kind, p.wan.String()))); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// six reports whether the site has IPv6 only.
func (s *Site) six() bool { return slices.Contains([]string{"v6", "nat66", "blocked6"}, s.Kind) }

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
