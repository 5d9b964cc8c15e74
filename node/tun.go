package node

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/hedge-mesh/hedge/acl/filter"
	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/device"
)

// tunnel is a tun.Device with the filter in both of its directions. "Read" and "Write" are named as the device does:
//
//	app ── inner.Read ── filter.Out ── Read ──▶ wireguard
//	        ▲    └ denied: answered here, so that the application learns at once
//	app ── inner.Write ── filter.In ── Write ◀── wireguard
//	                       └ denied: dropped without an answer, unless the peer may know and has lost a connection here
//
// Whole batches pass through; nothing is allocated for a packet.
type tunnel struct {
	tun.Device
	filter *filter.Filter
	own    own
	lost   func(error) // the device is gone, and not because it was closed; may be nil
	peers  *usher      // sees to it that WireGuard has whom packets are for; may be nil

	rx, tx tally
	busy   chan struct{} // capacity 1: many packets have passed

	company company
	sparse  sparse  // of whoever reads
	all     outward // Read's
}

// outward is Read for one goroutine, of which there are two where an interface has two readers:
//
//	inner.Lanes ┬─ flows that send little ── filter.Out ──▶ wireguard
//	            └─ all others ────────────── filter.Out ──▶ wireguard
type outward struct {
	t       *tunnel
	read    readFunc
	sparse  func(pkt []byte, now int64) bool // whether it is of a flow that sends little
	peers   *usher                           // may be nil
	answer  [answerOffset + answerMax]byte
	answers [1][]byte
}

type readFunc = func(bufs [][]byte, sizes []int, offset int) (int, error)

// laned is a device with several readers, of which the first is for flows that send little.
type laned interface {
	Lanes(isSparse func(pkt []byte) bool) []readFunc
}

// answerOffset leaves room for what a host's device may put before a packet (virtio_net_hdr, 10 bytes); answerMax is
// an ICMPv6 error of the IPv6 minimum MTU.
const (
	answerOffset = 16
	answerMax    = 1280
)

// tally counts one direction.
type tally struct {
	packets, bytes, denied atomic.Uint64
}

// ender is a device that knows its connections, and so need not believe an RST.
type ender interface {
	End(local, remote netip.AddrPort) bool
}

// injector is a device that can be made to Read packets that no application sent.
type injector interface{ Inject(pkts [][]byte) }

func newTunnel(inner tun.Device, f *filter.Filter) *tunnel {
	t := &tunnel{Device: inner, filter: f, busy: make(chan struct{}, 1)}
	t.all.t, t.all.read, t.all.sparse = t, inner.Read, t.sparse.is
	return t
}

// Read reads packets of applications and drops those the policy does not let out: a size of 0 is no packet.
func (t *tunnel) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	t.all.peers = t.peers
	return t.all.Read(bufs, sizes, offset)
}

// Lends implements device.Lender: as the device does.
func (t *tunnel) Lends() bool {
	l, ok := t.Device.(device.Lender)
	return ok && l.Lends()
}

// Lanes is Read for several goroutines, if the device can be read by as many; see [device.LanedTUN].
func (t *tunnel) Lanes() (fns []readFunc) {
	d, ok := t.Device.(laned)
	if !ok {
		return nil
	}
	is := func(pkt []byte) bool { return t.sparse.is(pkt, time.Now().UnixNano()) }
	for i, read := range d.Lanes(is) {
		o := &outward{t: t, read: read, sparse: func([]byte, int64) bool { return i == 0 }}
		if t.peers != nil {
			o.peers = &usher{roster: t.peers.roster}
		}
		fns = append(fns, o.Read)
	}
	return fns
}

// Read is tunnel's.
func (o *outward) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	t := o.t
	most := t.company.batch(len(bufs))
	n, err := o.read(bufs[:most], sizes[:most], offset)
	if n == 0 {
		if err != nil && t.lost != nil {
			t.lost(err)
		}
		return n, err
	}
	now := time.Now()
	var packets, bytes, denied uint64
	for i := range n {
		if sizes[i] == 0 {
			continue
		}
		pkt := bufs[i][offset : offset+sizes[i]]
		sparse := o.sparse(pkt, now.UnixNano())
		if sparse {
			t.company.sent.Store(now.UnixNano())
		}
		bind.MarkSparse(bufs[i], sizes[i], sparse)
		if t.own.take(pkt) {
			o.need(pkt, now)
			continue
		}
		if !t.filter.Out(pkt, now).Allow {
			denied++
			o.reject(pkt)
			sizes[i] = 0
			continue
		}
		o.need(pkt, now)
		packets++
		bytes += uint64(sizes[i])
	}
	if t.tx.add(packets, bytes, denied) {
		t.tell()
	}
	return n, err
}

func (o *outward) need(pkt []byte, now time.Time) {
	if o.peers != nil {
		o.peers.need(pkt, now)
	}
}

// Close implements tun.Device.
func (t *tunnel) Close() error {
	if t.peers != nil {
		t.peers.close() // Read may be waiting for a peer
	}
	return t.Device.Close()
}

// reject answers a packet that is not let out as if its destination had.
func (o *outward) reject(pkt []byte) {
	a := filter.Reject(pkt, o.answer[answerOffset:answerOffset])
	if len(a) == 0 || len(a) > answerMax {
		return
	}
	copy(o.answer[answerOffset:], a) // to where it stands already, unless it did not fit
	o.answers[0] = o.answer[:answerOffset+len(a)]
	_, _ = o.t.Device.Write(o.answers[:], answerOffset)
}

// Write takes decrypted packets from the tunnel, whose source addresses WireGuard has tied to their peers, and lets
// in what the policy does. Of bufs it leaves what it likes.
func (t *tunnel) Write(bufs [][]byte, offset int) (int, error) {
	now := time.Now()
	var bytes, denied uint64
	k := 0
	for _, b := range bufs {
		if len(b) <= offset {
			denied++
			continue
		}
		if v := t.filter.In(b[offset:], now); !v.Allow {
			denied++
			if v.Answer() {
				t.send([][]byte{filter.Reject(b[offset:], nil)})
			}
			continue
		}
		bytes += uint64(len(b) - offset)
		bufs[k] = b
		k++
	}
	if t.rx.add(uint64(k), bytes, denied) {
		t.tell()
	}
	if k == 0 {
		return 0, nil
	}
	return t.Device.Write(bufs[:k], offset)
}

// end tells both ends of flows that have lost their rule, as far as they can be told.
func (t *tunnel) end(cuts []filter.Cut) {
	var out [][]byte
	for _, c := range cuts {
		out = append(out, c.ToPeer...)
		if in, ok := t.Device.(ender); ok && c.Proto == protoTCP && (in.End(c.Src, c.Dst) || in.End(c.Dst, c.Src)) {
			continue
		}
		for _, told := range c.ToSelf {
			b := append(make([]byte, answerOffset, answerOffset+len(told)), told...)
			_, _ = t.Device.Write([][]byte{b}, answerOffset)
		}
	}
	t.send(out)
}

// send sends packets of our own (RSTs, ICMP errors) to peers, past the filter: the flows they end are none any more.
func (t *tunnel) send(pkts [][]byte) {
	in, ok := t.Device.(injector)
	if !ok {
		return
	}
	pkts = slices.DeleteFunc(pkts, func(b []byte) bool { return !t.own.add(b) })
	if len(pkts) > 0 {
		in.Inject(pkts)
	}
}

// own are the packets that we have put into the device ourselves and that have not come out of it yet. What matches
// none of them to the last bit is judged as any.
type own struct {
	n    atomic.Int32 // of pkts, so that Read need not lock
	mu   sync.Mutex
	pkts map[string]struct{}
}

// maxOwn bounds them. A device may lose packets, so they are all forgotten when there are so many.
const maxOwn = 1024

// maxTold is the size of the largest of them: an ICMPv6 error that quotes 48 bytes.
const maxTold = 96

func (o *own) add(pkt []byte) bool {
	if len(pkt) == 0 || len(pkt) > maxTold {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pkts == nil || len(o.pkts) >= maxOwn {
		o.pkts = map[string]struct{}{}
	}
	o.pkts[string(pkt)] = struct{}{}
	o.n.Store(int32(len(o.pkts)))
	return true
}

// take reports whether a packet is one of ours, and forgets it.
func (o *own) take(pkt []byte) bool {
	if o.n.Load() == 0 || len(pkt) > maxTold {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.pkts[string(pkt)]
	delete(o.pkts, string(pkt))
	o.n.Store(int32(len(o.pkts)))
	return ok
}

// add reports whether that makes many more.
func (t *tally) add(packets, bytes, denied uint64) (many bool) {
	if packets > 0 {
		n := t.packets.Add(packets)
		many = n/litterEvery != (n-packets)/litterEvery
		t.bytes.Add(bytes)
	}
	if denied > 0 {
		t.denied.Add(denied)
	}
	return many
}

// tell has somebody look for what all the packets have left.
func (t *tunnel) tell() {
	select {
	case t.busy <- struct{}{}:
	default:
	}
}
