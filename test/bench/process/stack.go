package process

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/hedge-mesh/hedge/netstack"
)

var addrA, addrB = netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("100.64.0.2")

// stacks is two stacks without a tunnel: what one Reads the other Writes.
type stacks struct {
	a, b *netstack.Stack
	wg   sync.WaitGroup
}

func openStacks() (nodes, error) {
	w := new(stacks)
	var err error
	if w.a, err = netstack.New(netstack.Options{Addrs: []netip.Addr{addrA}, MTU: mtu}); err != nil {
		return nil, err
	}
	if w.b, err = netstack.New(netstack.Options{Addrs: []netip.Addr{addrB}, MTU: mtu}); err != nil {
		w.a.Close()
		return nil, err
	}
	w.wg.Go(func() { join(w.a, w.b) })
	w.wg.Go(func() { join(w.b, w.a) })
	return w, nil
}

// join moves packets in batches, as the device would.
func join(from, to tun.Device) {
	const offset = 16
	n := from.BatchSize()
	bufs, out, sizes := make([][]byte, n), make([][]byte, n), make([]int, n)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	for {
		n, err := from.Read(bufs, sizes, offset)
		if err != nil {
			return
		}
		for i := range n {
			out[i] = bufs[i][:offset+sizes[i]]
		}
		if _, err := to.Write(out[:n], offset); err != nil {
			return
		}
	}
}

func (w *stacks) Dial(ctx context.Context, network string, port uint16) (net.Conn, error) {
	return w.a.DialContext(ctx, network, netip.AddrPortFrom(addrB, port))
}

func (w *stacks) Listen(port uint16) (net.Listener, error) {
	return w.b.ListenTCP(netip.AddrPortFrom(addrB, port))
}

func (w *stacks) ListenPacket(port uint16) (net.PacketConn, error) {
	return w.b.ListenUDP(netip.AddrPortFrom(addrB, port))
}

func (w *stacks) Close() {
	w.a.Close()
	w.b.Close()
	w.wg.Wait()
}
