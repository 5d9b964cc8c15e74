package device

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"
	upstream "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A pair is two devices in memory, each this package's or WireGuard's own:
//
//	ports[0] ──▶ devs[0] ──▶ ends[0] ── tap ──▶ ends[1] ──▶ devs[1] ──▶ ports[1]      and back
type pair struct {
	t     testing.TB
	devs  [2]wireguard
	ports [2]*port
	ends  [2]*end
	keys  [2]NoisePrivateKey

	mu  sync.Mutex
	tap func(from int, msg []byte) bool // sees every message, and says whether it arrives; nil for all
}

// wireguard is what this package's device and WireGuard's have in common.
type wireguard interface {
	IpcSet(string) error
	Up() error
	Down() error
	BindUpdate() error
	Close()
}

// kinds are the pairs that tests are repeated with: who makes the first handshake is the first.
var kinds = []struct {
	name string
	ours [2]bool
}{
	{"ours and ours", [2]bool{true, true}},
	{"ours and theirs", [2]bool{true, false}},
	{"theirs and ours", [2]bool{false, true}},
}

// pinned keeps WireGuard's own devices: they have finalizers that look into channels, which those of a bubble of
// testing/synctest must not be looked into from outside.
var pinned []any

func newPair(t testing.TB, ours [2]bool) *pair {
	p := &pair{t: t}
	for i := range p.devs {
		k, err := newPrivateKey()
		if err != nil {
			t.Fatal(err)
		}
		p.keys[i], p.ports[i] = k, newPort()
		p.ends[i] = &end{pair: p, id: i, in: make(chan []byte, 1<<14), runs: make(chan [][]byte, 64)}
	}
	for i := range p.devs {
		if ours[i] {
			p.devs[i] = NewDevice(p.ports[i], p.ends[i], NewLogger(LogLevelSilent, ""))
		} else {
			d := upstream.NewDevice(p.ports[i], p.ends[i], upstream.NewLogger(upstream.LogLevelSilent, ""))
			pinned = append(pinned, d)
			p.devs[i] = d
		}
		t.Cleanup(p.devs[i].Close)
		p.set(i, fmt.Sprintf("private_key=%s\n%s", hex.EncodeToString(p.keys[i][:]), p.peerConf(1-i)))
		if err := p.devs[i].Up(); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *pair) set(i int, conf string) {
	p.t.Helper()
	if err := p.devs[i].IpcSet(conf); err != nil {
		p.t.Fatal(err)
	}
}

// peerConf makes the device at i a peer of the other.
func (p *pair) peerConf(i int) string {
	pub := p.keys[i].publicKey()
	return fmt.Sprintf("public_key=%s\nendpoint=10.0.0.%d:1\nallowed_ip=10.1.0.%d/32\n", hex.EncodeToString(pub[:]), i, i)
}

// peer is the other's place in our device at i.
func (p *pair) peer(i int) *Peer { return p.devs[i].(*Device).LookupPeer(p.keys[1-i].publicKey()) }

func (p *pair) setTap(f func(from int, msg []byte) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tap = f
}

// send sends packets from the port at i to the other, one batch.
func (p *pair) send(i int, seqs ...int) { p.ports[i].out <- numbered(i, seqs) }

// numbered are packets from the port at i to the other.
func numbered(i int, seqs []int) [][]byte {
	var batch [][]byte
	for _, s := range seqs {
		batch = append(batch, packet(i, 1-i, s, 64))
	}
	return batch
}

// packet is of IPv4, from 10.1.0.from to 10.1.0.to, with a number in it.
//
//	0 IPv4 header 20 │ 20 seq 4 │ 24 zeros
func packet(from, to, seq, size int) []byte {
	b := make([]byte, size)
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	copy(b[12:], []byte{10, 1, 0, byte(from), 10, 1, byte(to >> 8), byte(to)})
	binary.BigEndian.PutUint32(b[20:], uint32(seq))
	return b
}

func seqOf(pkt []byte) int { return int(binary.BigEndian.Uint32(pkt[20:])) }

// port is a tun.Device for tests, which our device reads by two lanes.
type port struct {
	out    chan [][]byte // batches for the device to read
	beside chan [][]byte // the same, by the other lane
	closed chan struct{}
	events chan tun.Event
	once   sync.Once

	mu    sync.Mutex
	got   []int         // the numbers of the packets written
	block chan struct{} // if there is, Write waits for it, or for Close
	sink  func(n int)   // if there is, Write only tells it how many came
}

func newPort() *port {
	return &port{out: make(chan [][]byte, 1024), beside: make(chan [][]byte, 1024), closed: make(chan struct{}), events: make(chan tun.Event)}
}

func (p *port) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return p.read(p.out, bufs, sizes, offset)
}

func (p *port) Lanes() []ReadFunc {
	return []ReadFunc{p.Read, func(bufs [][]byte, sizes []int, offset int) (int, error) {
		return p.read(p.beside, bufs, sizes, offset)
	}}
}

func (p *port) read(out chan [][]byte, bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case batch := <-out:
		for i, pkt := range batch {
			sizes[i] = copy(bufs[i][offset:], pkt)
		}
		return len(batch), nil
	case <-p.closed:
		return 0, os.ErrClosed
	}
}

func (p *port) Write(bufs [][]byte, offset int) (int, error) {
	p.mu.Lock()
	if sink := p.sink; sink != nil {
		p.mu.Unlock()
		sink(len(bufs))
		return len(bufs), nil
	}
	for _, b := range bufs {
		p.got = append(p.got, seqOf(b[offset:]))
	}
	block := p.block
	p.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-p.closed:
			return 0, os.ErrClosed
		}
	}
	return len(bufs), nil
}

// seqs are the numbers of the packets that came so far.
func (p *port) seqs() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

func (p *port) Close() error {
	p.once.Do(func() {
		close(p.closed)
		close(p.events)
	})
	return nil
}
func (p *port) File() *os.File           { return nil }
func (p *port) MTU() (int, error)        { return 1420, nil }
func (p *port) Name() (string, error)    { return "test", nil }
func (p *port) Events() <-chan tun.Event { return p.events }
func (p *port) BatchSize() int           { return conn.IdealBatchSize }

// end is a conn.Bind for tests: one end of a pair's wire.
type end struct {
	pair *pair
	id   int
	in   chan []byte
	runs chan [][]byte // messages to be received at once

	mu      sync.Mutex
	closed  chan struct{}
	onClose func()      // called by Close before receivers are told
	sink    func(n int) // if there is, Send only tells it how many messages it was given
}

func (e *end) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	closed := make(chan struct{})
	e.closed = closed
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case msg := <-e.in:
			n := 0
			for {
				sizes[n], eps[n] = copy(bufs[n], msg), endpoint(1-e.id)
				if n++; n == len(bufs) {
					return n, nil
				}
				select {
				case msg = <-e.in:
				default:
					return n, nil
				}
			}
		case run := <-e.runs:
			for i, msg := range run {
				sizes[i], eps[i] = copy(bufs[i], msg), anyone
			}
			return len(run), nil
		case <-closed:
			return 0, net.ErrClosed
		}
	}}, 1, nil
}

func (e *end) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed != nil {
		if e.onClose != nil {
			e.onClose()
		}
		close(e.closed)
		e.closed = nil
	}
	return nil
}

func (e *end) Send(bufs [][]byte, _ conn.Endpoint) error {
	e.mu.Lock()
	sink := e.sink
	e.mu.Unlock()
	if sink != nil {
		sink(len(bufs))
		return nil
	}
	for _, b := range bufs {
		msg := slices.Clone(b)
		e.pair.mu.Lock()
		tap := e.pair.tap
		e.pair.mu.Unlock()
		if tap == nil || tap(e.id, msg) {
			e.pair.ends[1-e.id].take(msg)
		}
	}
	return nil
}

// take has a message arrive, or be lost where too many wait.
func (e *end) take(msg []byte) {
	select {
	case e.in <- msg:
	default:
	}
}

func (e *end) SetMark(uint32) error { return nil }
func (e *end) BatchSize() int       { return conn.IdealBatchSize }
func (e *end) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return endpoint(a.Addr().As4()[3]), nil
}

// endpoint is a conn.Endpoint for tests.
type endpoint int

var anyone conn.Endpoint = endpoint(0)

func (endpoint) ClearSrc()             {}
func (endpoint) SrcToString() string   { return "" }
func (e endpoint) DstToString() string { return fmt.Sprint(int(e)) }
func (e endpoint) DstToBytes() []byte  { return []byte{byte(e)} }
func (e endpoint) DstIP() netip.Addr   { return netip.AddrFrom4([4]byte{10, 0, 0, byte(e)}) }
func (endpoint) SrcIP() netip.Addr     { return netip.Addr{} }

// upTo are the numbers below n.
func upTo(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

// same compares what came with what was sent, and says where they part.
func same(got, want []int) error {
	if slices.Equal(got, want) {
		return nil
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Errorf("%d packets came for %d: at %d came %d for %d", len(got), len(want), i, got[i], want[i])
		}
	}
	return cmp.Or(fmt.Errorf("%d packets came for %d", len(got), len(want)), errors.New(""))
}
