package node

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/netstack"
	"github.com/hedge-mesh/hedge/node/ostun"
)

// Values of [Config.TUN].
const (
	TUNOff  = "off"
	TUNAuto = "auto"
	TUNOn   = "on"
)

// host is an interface of the operating system; *ostun.Device is one.
type host interface {
	tun.Device
	injector
	Set(ostun.Config) error
	SetPaths(map[netip.Addr]int) error
	Wake(in time.Duration) bool
}

// openHost is replaced in tests.
var openHost = func(o ostun.Options) (host, error) { return ostun.Open(o) }

// makeDevice chooses what joins programs to the mesh, and says why it is that.
//
//	off          a stack inside the process: no rights needed; programs come by proxy, or by Dial and Listen
//	on, auto     an interface of the host: any program, by the kernel; auto falls back on the stack
func (n *Node) makeDevice() (tun.Device, error) {
	if n.cfg.Device != nil {
		n.about = Device{Kind: DeviceTUN, Why: "it was given by the program that this node is part of"}
		n.about.Name, _ = n.cfg.Device.Name()
		return n.cfg.Device, nil
	}
	why := "no interface of the host was asked for"
	switch n.cfg.TUN {
	case "", TUNOff:
	case TUNAuto, TUNOn:
		h, err := n.openHost()
		if err == nil {
			n.host, n.beside = h, newBeside(h, n.stackOptions())
			n.about = Device{Kind: DeviceTUN, Why: "it was asked for"}
			n.about.Name, _ = h.Name()
			if n.cfg.TUN == TUNAuto {
				n.about.Why = "it was asked for if possible, and is"
			}
			return n.beside, nil
		}
		if n.cfg.TUN == TUNOn {
			return nil, err
		}
		why = "there could be no interface of the host: " + err.Error()
	default:
		return nil, fmt.Errorf("TUN %q is none of auto, on and off", n.cfg.TUN)
	}
	var err error
	n.stack, err = netstack.New(n.stackOptions())
	n.about = Device{Kind: DeviceNetstack, Why: why}
	return n.stack, err
}

func (n *Node) stackOptions() netstack.Options {
	return netstack.Options{Accept: n.accept, Echo: n.echo, MaxConns: maxConns, MaxFlows: maxConns, PathMTU: n.pathMTU}
}

// pathMTU is what fits into a packet to a peer's own address.
func (n *Node) pathMTU(to netip.Addr) (mtu int, end bool) {
	e := n.enforce
	if e == nil {
		return 0, false
	}
	k, ok := e.cur.Load().owner[to]
	if !ok {
		return 0, false // what does not fit goes by relay
	}
	return n.bind.MTU(k), true
}

// openHost makes the host's interface, if what was asked for beside it can be had with one.
func (n *Node) openHost() (host, error) {
	if n.cfg.Inbound.mode != Loopback.mode {
		return nil, errors.New("with it the host itself takes in what the policy allows, and inbound is to be " + n.cfg.Inbound.String())
	}
	return openHost(ostun.Options{Name: n.cfg.TUNName, PathMTU: n.pathMTU})
}

// maxConns is how many connections a node takes from peers at once, and how many UDP flows: an exit has many, of which
// one peer may have a quarter.
const maxConns = 4096

// shape gives the device this node's addresses, what it carries for others, and what leads through it: routes are those
// in use. What becomes of mesh addresses that nobody has, the filter says.
func (n *Node) shape(m *wire.Map, routes []Route) error {
	n.bind.SetExclude(m.Self.Prefixes) // before an interface has such an address
	switch {
	case n.stack != nil:
		return errors.Join(n.stack.SetAddrs(m.Self.Addrs), n.stack.Carry(m.Self.Routes))
	case n.host != nil:
		c := ostun.Config{Addrs: v4First(m.Self.Addrs), Mesh: m.Self.Prefixes}
		for _, r := range routes {
			c.Routes = append(c.Routes, r.Prefix)
		}
		return errors.Join(n.host.Set(c), n.beside.set(m.Self.Addrs, m.Self.Routes))
	}
	return nil
}

// lostDevice ends a node whose device has ended first, as when somebody has deleted the host's interface.
func (n *Node) lostDevice(err error) {
	if n.ended() {
		return
	}
	n.log.Error().Err(err).Str("name", n.about.Name).Msg("the device is gone, and this node ends with it")
	n.end()
}
