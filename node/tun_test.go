package node

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/acl/filter"
	"github.com/hedge-mesh/hedge/netstack"
	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/device"
)

// device is a tun.Device that reads what it is given, as often as asked, and keeps what is written.
type memDevice struct {
	give     [][]byte
	wrote    [][]byte
	injected [][]byte
	keep     bool
}

func (d *memDevice) Inject(pkts [][]byte) { d.injected = append(d.injected, pkts...) }

func (d *memDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i, p := range d.give {
		sizes[i] = copy(bufs[i][offset:], p)
	}
	return len(d.give), nil
}

func (d *memDevice) Write(bufs [][]byte, offset int) (int, error) {
	if d.keep {
		for _, b := range bufs {
			d.wrote = append(d.wrote, append([]byte(nil), b[offset:]...))
		}
	}
	return len(bufs), nil
}

func (d *memDevice) File() *os.File           { return nil }
func (d *memDevice) MTU() (int, error)        { return 1280, nil }
func (d *memDevice) Name() (string, error)    { return "mem", nil }
func (d *memDevice) Events() <-chan tun.Event { return nil }
func (d *memDevice) Close() error             { return nil }
func (d *memDevice) BatchSize() int           { return 8 }

const tcpSYN, tcpACK, tcpRST = 0x02, 0x10, 0x04

// tcp4 is an IPv4 TCP segment without payload; its checksums are right.
func tcp4(src, dst string, seq, ack uint32, flags byte) []byte {
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	b := make([]byte, 40)
	b[0], b[8], b[9] = 0x45, 64, protoTCP
	binary.BigEndian.PutUint16(b[2:], 40)
	copy(b[12:], from.Addr().AsSlice())
	copy(b[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20]))
	s := b[20:]
	binary.BigEndian.PutUint16(s, from.Port())
	binary.BigEndian.PutUint16(s[2:], to.Port())
	binary.BigEndian.PutUint32(s[4:], seq)
	binary.BigEndian.PutUint32(s[8:], ack)
	s[12], s[13] = 5<<4, flags
	binary.BigEndian.PutUint16(s[14:], 65535)
	pseudo := append(append(append([]byte(nil), b[12:20]...), 0, protoTCP, 0, 20), s...)
	binary.BigEndian.PutUint16(s[16:], checksum(pseudo))
	return b
}

func checksum(b []byte) uint16 { // RFC 1071
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// testFilter lets web (this node, 100.64.0.1) reach db (100.64.0.2) on port 5432, and db reach web on port 80.
func testFilter(t testing.TB) *filter.Filter {
	t.Helper()
	port := func(p uint16) []acl.PortRange { return []acl.PortRange{{First: p, Last: p}} }
	f := filter.New(filter.Options{})
	f.Set(&filter.Config{
		Self:  acl.Node{ID: 1, Name: "web", Addrs: []netip.Addr{netip.MustParseAddr("100.64.0.1")}},
		Peers: []acl.Node{{ID: 2, Name: "db", Addrs: []netip.Addr{netip.MustParseAddr("100.64.0.2")}}},
		View: acl.View{
			Rules: []acl.Rule{
				{Path: "acls[0]", Action: acl.Accept, Src: []string{"web"}, Dst: []acl.Target{{Set: "db", Ports: port(5432)}}},
				{Path: "acls[1]", Action: acl.Accept, Src: []string{"db"}, Dst: []acl.Target{{Set: "web", Ports: port(80)}}},
			},
			Sets:  map[string]acl.Set{"web": {Nodes: []acl.NodeID{1}}, "db": {Nodes: []acl.NodeID{2}}},
			Peers: []acl.NodeID{2},
		},
		Revision: 1,
	}, time.Now())
	return f
}

func readBufs(n, size int) ([][]byte, []int) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, size)
	}
	return bufs, make([]int, n)
}

func TestTunnelRead(t *testing.T) {
	const offset = 16
	good, bad := tcp4("100.64.0.1:1000", "100.64.0.2:5432", 1, 0, tcpSYN), tcp4("100.64.0.1:1000", "100.64.0.2:22", 7, 0, tcpSYN)
	dev := &memDevice{give: [][]byte{bad, good, bad}, keep: true}
	tn := newTunnel(dev, testFilter(t))
	bufs, sizes := readBufs(8, 2048)
	n, err := tn.Read(bufs, sizes, offset)
	if n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if sizes[0] != 0 || sizes[1] != len(good) || sizes[2] != 0 {
		t.Errorf("sizes %v, want only the second", sizes[:3])
	}
	if len(dev.wrote) != 2 {
		t.Fatalf("%d answers, want 2", len(dev.wrote))
	}
	rst := dev.wrote[0]
	if len(rst) != 40 || rst[33]&tcpRST == 0 || binary.BigEndian.Uint32(rst[28:]) != 8 || netip.AddrFrom4([4]byte(rst[12:])).String() != "100.64.0.2" {
		t.Errorf("the answer is not the RST that 100.64.0.2 would send: %x", rst)
	}
	if tn.tx.packets.Load() != 1 || tn.tx.bytes.Load() != 40 || tn.tx.denied.Load() != 2 {
		t.Errorf("counted %d packets, %d bytes, %d denied", tn.tx.packets.Load(), tn.tx.bytes.Load(), tn.tx.denied.Load())
	}
}

func TestTunnelWrite(t *testing.T) {
	const offset = 4
	pad := func(p []byte) []byte { return append(make([]byte, offset), p...) }
	good, bad := tcp4("100.64.0.2:1000", "100.64.0.1:80", 1, 0, tcpSYN), tcp4("100.64.0.2:1000", "100.64.0.1:22", 1, 0, tcpSYN)
	dev := &memDevice{keep: true}
	tn := newTunnel(dev, testFilter(t))
	if _, err := tn.Write([][]byte{pad(bad), pad(good), pad(nil), pad(bad)}, offset); err != nil {
		t.Fatal(err)
	}
	if len(dev.wrote) != 1 || string(dev.wrote[0]) != string(good) {
		t.Errorf("let in %d packets, want the second alone and no answers", len(dev.wrote))
	}
	if tn.rx.packets.Load() != 1 || tn.rx.denied.Load() != 3 {
		t.Errorf("counted %d packets, %d denied", tn.rx.packets.Load(), tn.rx.denied.Load())
	}
}

// A program that dials what the policy does not allow is told at once, by its own stack.
func TestTunnelRejectReachesTheStack(t *testing.T) {
	s, err := netstack.New(netstack.Options{Addrs: []netip.Addr{netip.MustParseAddr("100.64.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	tn := newTunnel(s, testFilter(t))
	done := make(chan struct{})
	go func() {
		defer close(done)
		bufs, sizes := readBufs(tn.BatchSize(), 2048)
		for {
			if _, err := tn.Read(bufs, sizes, 16); err != nil {
				return
			}
		}
	}()
	begin := time.Now()
	if _, err := s.DialContext(t.Context(), "tcp", netip.MustParseAddrPort("100.64.0.2:22")); err == nil {
		t.Error("a denied connection was made")
	}
	if took := time.Since(begin); took > 10*time.Second { // untold, a stack tries for minutes
		t.Errorf("the refusal took %v", took)
	}
	s.Close()
	<-done
}

func BenchmarkTunnelRead(b *testing.B) {
	dev := &memDevice{}
	for range 8 {
		dev.give = append(dev.give, tcp4("100.64.0.1:1000", "100.64.0.2:5432", 1, 0, tcpSYN))
	}
	tn := newTunnel(dev, testFilter(b))
	bufs, sizes := readBufs(8, 2048)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tn.Read(bufs, sizes, 16); err != nil {
			b.Fatal(err)
		}
	}
}

func TestTunnelAllocatesNothing(t *testing.T) {
	dev := &memDevice{}
	for range 4 {
		dev.give = append(dev.give, tcp4("100.64.0.1:1000", "100.64.0.2:5432", 1, 0, tcpSYN), tcp4("100.64.0.1:1000", "100.64.0.2:22", 1, 0, tcpSYN))
	}
	tn := newTunnel(dev, testFilter(t))
	bufs, sizes := readBufs(8, 2048)
	if n := testing.AllocsPerRun(100, func() { _, _ = tn.Read(bufs, sizes, 16) }); n > 0 {
		t.Errorf("Read of 8 packets, 4 denied: %v allocations, want none", n)
	}
	in := make([][]byte, 4)
	pkts := [][]byte{tcp4("100.64.0.2:1000", "100.64.0.1:80", 1, 0, tcpSYN), tcp4("100.64.0.2:1000", "100.64.0.1:22", 1, 0, tcpSYN)}
	if n := testing.AllocsPerRun(100, func() {
		copy(in, pkts)
		_, _ = tn.Write(in[:2], 0)
	}); n > 0 {
		t.Errorf("Write of 2 packets, 1 denied: %v allocations, want none", n)
	}
}

// A peer whose connection this node has lost, by a restart say, is told so; one that may not open it anew is not. And
// what the tunnel sends of its own passes its filter, once.
func TestTunnelLostConnection(t *testing.T) {
	const offset = 4
	pad := func(p []byte) []byte { return append(make([]byte, offset), p...) }
	dev := &memDevice{keep: true}
	tn := newTunnel(dev, testFilter(t))
	known, unknown := tcp4("100.64.0.2:1000", "100.64.0.1:80", 5, 9, tcpACK), tcp4("100.64.0.2:1000", "100.64.0.1:22", 5, 9, tcpACK)
	if _, err := tn.Write([][]byte{pad(unknown), pad(known)}, offset); err != nil {
		t.Fatal(err)
	}
	if len(dev.wrote) != 0 || len(dev.injected) != 1 {
		t.Fatalf("let in %d, answered %d; want 0 and 1", len(dev.wrote), len(dev.injected))
	}
	rst := dev.injected[0]
	if rst[33]&tcpRST == 0 || binary.BigEndian.Uint32(rst[24:]) != 9 || binary.BigEndian.Uint16(rst[20:]) != 80 {
		t.Fatalf("the answer is not the RST that port 80 would send: %x", rst)
	}
	dev.give = [][]byte{rst, rst}
	bufs, sizes := readBufs(8, 2048)
	if n, err := tn.Read(bufs, sizes, offset); n != 2 || err != nil || sizes[0] != len(rst) || sizes[1] != 0 {
		t.Errorf("%d packets of sizes %v, %v; want the first alone", n, sizes[:2], err)
	}
}

// lanedDevice is a device with two readers.
type lanedDevice struct {
	*memDevice
	few *memDevice
	is  func([]byte) bool
}

func (d *lanedDevice) Lanes(is func([]byte) bool) []readFunc {
	d.is = is
	return []readFunc{d.few.Read, d.Read}
}

// Of a device with two readers both are judged, the first one's packets are marked as of flows that send little, and no
// others; which these are the tunnel says.
func TestTunnelLanes(t *testing.T) {
	give := [][]byte{tcp4("100.64.0.1:1000", "100.64.0.2:5432", 1, 0, tcpSYN), tcp4("100.64.0.1:1000", "100.64.0.2:22", 1, 0, tcpSYN)}
	dev := &lanedDevice{memDevice: &memDevice{give: give}, few: &memDevice{give: give}}
	fns := newTunnel(dev, testFilter(t)).Lanes()
	if len(fns) != 2 {
		t.Fatalf("%d readers", len(fns))
	}
	for i, read := range fns {
		bufs, sizes := readBufs(2, device.MaxMessageSize)
		n, err := read(bufs, sizes, device.MessageTransportHeaderSize)
		if n != 2 || err != nil || sizes[0] != len(give[0]) || sizes[1] != 0 {
			t.Errorf("reader %d: %d packets of %v bytes, %v", i, n, sizes, err)
		}
		marked, unmarked := bytes.Clone(bufs[0]), bytes.Clone(bufs[0])
		bind.MarkSparse(marked, sizes[0], true)
		bind.MarkSparse(unmarked, sizes[0], false)
		if want := map[bool][]byte{true: marked, false: unmarked}[i == 0]; !bytes.Equal(bufs[0], want) {
			t.Errorf("reader %d has its packet marked as the other's", i)
		}
	}
	if !dev.is(give[0]) || dev.is(make([]byte, sparseBurst+1)) {
		t.Error("it takes a flow for what it is not")
	}
	if fns := newTunnel(&memDevice{}, testFilter(t)).Lanes(); fns != nil {
		t.Error("a device with one reader has more")
	}
}
