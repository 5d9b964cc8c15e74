package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	wgstack "golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/hedge-mesh/hedge/node/key"
)

// wireGuardWorld is two wireguard-go devices, each with the netstack and the bind that come with it.
type wireGuardWorld struct {
	a, b *wireGuard
}

type wireGuard struct {
	dev *device.Device
	net *wgstack.Net
	key key.NodePrivate
}

func openWireGuard() (nodes, error) {
	a, err := newWireGuard(addrA)
	if err != nil {
		return nil, err
	}
	b, err := newWireGuard(addrB)
	if err == nil {
		err = errors.Join(a.meet(b, addrB), b.meet(a, addrA))
	}
	if err != nil {
		return nil, err
	}
	return &wireGuardWorld{a, b}, nil
}

func newWireGuard(addr netip.Addr) (*wireGuard, error) {
	t, n, err := wgstack.CreateNetTUN([]netip.Addr{addr}, nil, mtu)
	if err != nil {
		return nil, err
	}
	w := &wireGuard{net: n, key: key.NewNode()}
	w.dev = device.NewDevice(t, conn.NewDefaultBind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
	if err := w.dev.IpcSet("private_key=" + key.WireGuardHex(w.key) + "\n"); err != nil {
		return nil, err
	}
	return w, w.dev.Up()
}

// meet makes other a peer.
func (w *wireGuard) meet(other *wireGuard, addr netip.Addr) error {
	conf, err := other.dev.IpcGet()
	if err != nil {
		return err
	}
	for s := bufio.NewScanner(strings.NewReader(conf)); s.Scan(); {
		if port, ok := strings.CutPrefix(s.Text(), "listen_port="); ok {
			return w.dev.IpcSet(fmt.Sprintf("public_key=%s\nendpoint=127.0.0.1:%s\nallowed_ip=%s/32\n",
				strings.TrimPrefix(key.ExchangePublic(other.key).String(), "node:"), port, addr))
		}
	}
	return errors.New("the device does not say its port")
}

func (w *wireGuardWorld) Dial(ctx context.Context, network string, port uint16) (net.Conn, error) {
	if network == "udp" {
		return w.a.net.DialUDPAddrPort(netip.AddrPort{}, netip.AddrPortFrom(addrB, port))
	}
	return w.a.net.DialContextTCPAddrPort(ctx, netip.AddrPortFrom(addrB, port))
}

func (w *wireGuardWorld) Listen(port uint16) (net.Listener, error) {
	return w.b.net.ListenTCPAddrPort(netip.AddrPortFrom(addrB, port))
}

func (w *wireGuardWorld) ListenPacket(port uint16) (net.PacketConn, error) {
	return w.b.net.ListenUDPAddrPort(netip.AddrPortFrom(addrB, port))
}

// Close does nothing: closing that netstack while it sends panics, and the process ends anyway.
func (w *wireGuardWorld) Close() {}
