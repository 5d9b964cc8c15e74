package filter_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	gtcp "gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/acl/filter"
)

// host is a real TCP stack behind a filter of its own.
//
//	stack a ─ filter a.Out ─ wire: loss, reordering ─ filter b.In ─ stack b       and back
type host struct {
	ip     netip.Addr
	stack  *stack.Stack
	link   *channel.Endpoint
	filter *filter.Filter
	loses  func(pkt []byte) bool // on the wire, beside what is lost by chance; may be nil
}

func newHost(t *testing.T, self, peer acl.Node, view acl.View) *host {
	h := &host{ip: self.Addrs[0], filter: filter.New(filter.Options{}), link: channel.New(1024, 1280, "")}
	h.filter.Set(&filter.Config{Self: self, Peers: []acl.Node{peer}, View: view}, time.Now())
	h.stack = stack.New(stack.Options{NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{gtcp.NewProtocol}})
	sack := tcpip.TCPSACKEnabled(true)
	h.stack.SetTransportProtocolOption(gtcp.ProtocolNumber, &sack)
	if err := h.stack.CreateNIC(1, h.link); err != nil {
		t.Fatal(err)
	}
	h.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddrFrom4(h.ip.As4()).WithPrefix()}, stack.AddressProperties{})
	h.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}})
	return h
}

// newHosts are a and b, of which a may reach port 80 of b.
func newHosts(t *testing.T) (ha, hb *host) {
	a := acl.Node{ID: 1, Name: "a", Addrs: []netip.Addr{netip.MustParseAddr("100.64.0.1")}}
	b := acl.Node{ID: 2, Name: "b", Addrs: []netip.Addr{netip.MustParseAddr("100.64.0.2")}}
	view := acl.View{Rules: []acl.Rule{{Path: "acls[0]", Action: acl.Accept, Src: []string{"a"}, Protos: []uint8{6},
		Dst: []acl.Target{{Set: "b", Ports: []acl.PortRange{{First: 80, Last: 80}}}}}},
		Sets: map[string]acl.Set{"a": {Nodes: []acl.NodeID{1}}, "b": {Nodes: []acl.NodeID{2}}}}
	return newHost(t, a, b, view), newHost(t, b, a, view)
}

func (h *host) inject(pkt []byte) {
	if h.filter.In(pkt, time.Now()).Allow {
		h.deliver(pkt)
	}
}

// deliver hands the stack a packet past the filter.
func (h *host) deliver(pkt []byte) {
	pb := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(pkt)})
	h.link.InjectInbound(ipv4.ProtocolNumber, pb)
	pb.DecRef()
}

// carry takes packets from h to the other until ctx ends; loss and reorder are out of 1,000.
func (h *host) carry(ctx context.Context, to *host, loss, reorder int) {
	var held []byte
	for {
		pb := h.link.ReadContext(ctx)
		if pb == nil {
			return
		}
		view := pb.ToView()
		pkt := bytes.Clone(view.AsSlice())
		view.Release()
		pb.DecRef()
		if !h.filter.Out(pkt, time.Now()).Allow {
			if answer := filter.Reject(pkt, nil); answer != nil {
				h.deliver(answer) // as a node does
			}
			continue
		}
		if rand.IntN(1000) < loss || h.loses != nil && h.loses(pkt) {
			continue
		}
		if held == nil && rand.IntN(1000) < reorder {
			held = pkt
			continue
		}
		to.inject(pkt)
		if held != nil {
			to.inject(held)
			held = nil
		}
	}
}

// exchange connects a to b and sends data both ways at once; it returns the hashes of what arrived.
func exchange(t *testing.T, ctx context.Context, wg *sync.WaitGroup, a, b *host, data []byte) (client, server net.Conn, sums [2][32]byte) {
	at := tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(b.ip.As4()), Port: 80}
	l, err := gonet.ListenTCP(b.stack, at, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pump := func(c net.Conn, sum *[32]byte) {
		wg.Go(func() { c.Write(data) })
		h := sha256.New()
		io.CopyN(h, c, int64(len(data)))
		h.Sum(sum[:0])
	}
	served := make(chan struct{})
	wg.Go(func() {
		defer close(served)
		if c, err := l.Accept(); err == nil {
			server = c
			pump(c, &sums[1])
		}
	})
	if client, err = gonet.DialContextTCP(ctx, a.stack, at, ipv4.ProtocolNumber); err != nil {
		t.Fatal(err)
	}
	pump(client, &sums[0])
	<-served
	return
}

// Two real stacks move megabytes both ways over a wire that loses and reorders, and neither filter finds a segment
// implausible. Then the rule goes: both ends learn of it at once.
func TestRealTCPThroughFilters(t *testing.T) {
	for _, wire := range []struct {
		name                string
		loss, reorder, size int
	}{{"clean", 0, 0, 16 << 20}, {"reordering", 0, 100, 4 << 20}, {"losing", 10, 20, 1 << 20}} {
		t.Run(wire.name, func(t *testing.T) {
			ha, hb := newHosts(t)
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			wg.Go(func() { ha.carry(ctx, hb, wire.loss, wire.reorder) })
			wg.Go(func() { hb.carry(ctx, ha, wire.loss, wire.reorder) })
			defer func() {
				cancel()
				ha.stack.Destroy()
				hb.stack.Destroy()
				wg.Wait()
			}()
			data := make([]byte, wire.size)
			for i := range data {
				data[i] = byte(rand.Uint32())
			}
			client, server, sums := exchange(t, ctx, &wg, ha, hb, data)
			want := sha256.Sum256(data)
			if sums[0] != want || sums[1] != want {
				t.Error("the data was changed")
			}
			for _, h := range []*host{ha, hb} {
				st := h.filter.Stats()
				for _, r := range filter.Reasons() {
					if n := st.In[r] + st.Out[r]; n != 0 && !r.Allows() {
						t.Errorf("%v: %d packets denied for %v", h.ip, n, r)
					}
				}
			}
			for _, h := range []*host{ha, hb} {
				cuts := h.filter.Set(nil, time.Now())
				if len(cuts) != 1 {
					t.Fatalf("%d cuts", len(cuts))
				}
				for _, b := range cuts[0].ToSelf {
					h.deliver(b)
				}
			}
			for _, c := range []net.Conn{client, server} {
				c.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || err.(net.Error).Timeout() {
					t.Errorf("after the cut: %v", err)
				}
			}
		})
	}
}
