package node

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/device"
	"github.com/hedge-mesh/hedge/node/key"
)

// BenchmarkKnownPeers is what a whole node takes that knows 10,000 peers, after sessions have been made with 100 of them
// at their wish, and what it would take if all were in the WireGuard device.
func BenchmarkKnownPeers(b *testing.B) {
	const known, active = 10_000, 100
	id := newIdentity()
	self := key.ExchangePublic(id.node)
	m := &wire.Map{
		Revision: 1, Presence: map[acl.NodeID]wire.Presence{},
		Self: wire.Self{
			Peer:     wire.Peer{Node: acl.Node{ID: 1, Name: "self", Addrs: []netip.Addr{netip.MustParseAddr("100.64.0.1")}}, Key: self},
			Domain:   "hedge.internal",
			Prefixes: prefixes("100.64.0.0/10 fd68:6564:6765::/48"),
		},
		Rules: []acl.Rule{{
			Pos: acl.Pos{File: "acl.hujson", Line: 1, Col: 1}, Path: "acls[0]", Action: acl.Accept, Src: []string{"all"},
			Dst: []acl.Target{{Set: "self", Ports: []acl.PortRange{{First: 80, Last: 80}}}},
		}},
	}
	c, err := net.ListenPacket("udp4", "127.0.0.1:0") // where the active ones are
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	var all []acl.NodeID
	var pkts [][]byte
	for i := range known {
		private := key.NewNode()
		n := acl.NodeID(i + 2)
		a := [16]byte{0xfd, 0x68, 0x65, 0x64, 0x67, 0x65, 14: byte(n >> 8), 15: byte(n)}
		m.Peers = append(m.Peers, wire.Peer{Node: acl.Node{
			ID: n, Name: fmt.Sprintf("n%d", n), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, byte(n >> 8), byte(n)}), netip.AddrFrom16(a)},
		}, Key: key.ExchangePublic(private)})
		m.Presence[n] = wire.Presence{
			Online: true, Disco: key.ExchangePublic(key.NewDisco()),
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), uint16(n)), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 41641)},
		}
		all = append(all, n)
		if i >= known-active {
			w := m.Presence[n]
			w.Endpoints = []netip.AddrPort{c.LocalAddr().(*net.UDPAddr).AddrPort()}
			m.Presence[n] = w
			d := newWG(b, private)
			pkts = append(pkts, initiations(b, d, self)())
			d.Close()
		}
	}
	m.Sets = map[string]acl.Set{"all": {Nodes: all}, "self": {Nodes: []acl.NodeID{1}}}
	dir := b.TempDir()
	st, err := openState(dir)
	if err != nil {
		b.Fatal(err)
	}
	id.urls, id.pin, id.joined = []string{"http://127.0.0.1:1"}, key.PublicOf(key.NewControl()), true
	if err := st.saveIdentity(id); err != nil {
		b.Fatal(err)
	}
	if err := st.saveMap(m); err != nil {
		b.Fatal(err)
	}
	st.close()
	m, all = nil, nil
	giveBack()
	before, threads := resident(b), runtime.NumGoroutine()

	n, err := Start(context.Background(), Config{StateDir: dir, LoopbackOnly: true, NoPortMapping: true})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	shake(b, c, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(n.bind.Port())}, pkts)
	seated := func() (k int) {
		for _, s := range n.roster.seats {
			if s.in.Load() {
				k++
			}
		}
		return k
	}
	b.Logf("before: %.0f MB, %d goroutines; %d peers in the device", before, threads, seated())
	b.ReportMetric(resident(b), "MB-at-first")
	giveBack()
	b.ReportMetric(resident(b), "MB")
	b.ReportMetric(float64(runtime.NumGoroutine()-threads), "goroutines")
	n.roster.mu.Lock()
	for _, s := range n.roster.seats {
		n.roster.take(s)
	}
	n.roster.mu.Unlock()
	giveBack()
	b.ReportMetric(resident(b), "MB-with-all-in")
	b.ReportMetric(float64(runtime.NumGoroutine()-threads), "goroutines-with-all-in")
	b.ReportMetric(0, "ns/op")
}

// shake sends initiations and waits for the response to each.
func shake(b *testing.B, c net.PacketConn, to net.Addr, pkts [][]byte) {
	b.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	answer := make([]byte, 2048)
	for i, p := range pkts {
		if _, err := c.WriteTo(p, to); err != nil {
			b.Fatal(err)
		}
		for {
			l, _, err := c.ReadFrom(answer)
			if err != nil {
				b.Fatalf("initiation %d: %v", i, err)
			}
			if l == device.MessageResponseSize && answer[0] == device.MessageResponseType && bytes.Equal(answer[8:12], p[4:8]) {
				break
			}
		}
	}
}

// resident is what this process takes, in MB.
func resident(b *testing.B) float64 {
	b.Helper()
	s, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(string(bytes.Fields(s)[1]))
	if err != nil {
		b.Fatal(err)
	}
	return float64(pages*os.Getpagesize()) / 1e6
}
