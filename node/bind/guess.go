package bind

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pion/stun/v3"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/path"
	"github.com/hedge-mesh/hedge/node/udp"
)

// extra is one of the sockets opened for a peer while ports are guessed (path.Sockets). One is pinned to an address of
// the peer when the first authentic message comes from there by it; the others are closed after the attempt.
type extra struct {
	*sock
	peer   key.NodePublic
	pinned netip.AddrPort
	since  time.Time
	asked  map[[stun.TransactionIDSize]byte]netip.AddrPort // of STUN servers, how it looks from outside
}

// extras are the loop's, but for pins.
type extras struct {
	b    *Bind
	open map[key.NodePublic][]*extra
}

const pinKeeps = 30 * time.Second // without being the path in use

// set opens n sockets for a peer, or closes those that are of no use.
func (x *extras) set(k key.NodePublic, n int) {
	for _, e := range x.open[k] {
		if !e.pinned.IsValid() {
			e.Close()
		}
	}
	delete(x.open, k)
	if n > 0 { // there is no direct path, so what is pinned leads nowhere, and would keep others from being pinned
		x.tidy(func(e *extra) bool { return e.peer == k })
	}
	for range n {
		s, err := x.b.listenOne("udp4", 0)
		if err != nil {
			x.b.cfg.Log("%d sockets of %d more for a peer: %v", len(x.open[k]), n, err)
			return
		}
		e := &extra{sock: s, peer: k}
		x.open[k] = append(x.open[k], e)
		x.b.wg.Go(func() { x.b.drain(e) })
	}
}

// askOutside asks by a peer's fresh socket how it looks from outside: servers that have answered in this round, and others while
// it is too young for that, as after a move.
func (l *loop) askOutside(k key.NodePublic) {
	var servers []stunServer
	for _, answered := range [...]bool{true, false} {
		for _, v := range l.stun.servers {
			if v.addr.Addr().Is4() && v.answered == answered && len(servers) < freshServers {
				servers = append(servers, v)
			}
		}
	}
	for _, e := range l.extras.open[k] {
		e.asked = map[[stun.TransactionIDSize]byte]netip.AddrPort{}
		for _, v := range slices.Concat(servers, servers) { // one may be lost
			m := newRequest()
			e.asked[m.TransactionID] = v.addr
			_ = e.WriteOne(m.Raw, v.addr)
		}
	}
}

const freshServers = 2 // asked of a fresh socket

// outside takes an answer that came by a fresh socket.
func (l *loop) outside(m message) {
	mapped, id, ok := readAnswer(m.pkt)
	if ok && m.extra.asked[id] == m.from && slices.Contains(l.extras.open[m.extra.peer], m.extra) {
		l.step(path.Outside{Peer: m.extra.peer, Addr: mapped})
	}
}

// send sends by the i-th socket of a peer, from 1 on.
func (x *extras) send(a path.Send, pkt []byte) {
	list := x.open[a.Peer]
	if a.Socket > len(list) {
		return
	}
	if s := list[a.Socket-1].sock; a.TTL > 0 {
		_ = s.writeTTL(pkt, a.To, a.TTL) // a guess lost
	} else {
		_ = s.WriteOne(pkt, a.To)
	}
}

// pin makes a socket the one for an address, and reports whether it is.
func (x *extras) pin(e *extra, from netip.AddrPort) bool {
	old := x.b.pins.Load()
	if o := (*old)[from]; o != nil || e.pinned.IsValid() {
		return o == e
	}
	e.pinned, e.since = from, time.Now()
	pins := maps.Clone(*old)
	pins[from] = e
	x.b.pins.Store(&pins)
	return true
}

// tidy closes the pinned sockets of a peer that are not its path.
func (x *extras) tidy(which func(*extra) bool) {
	old := *x.b.pins.Load()
	if len(old) == 0 {
		return
	}
	pins := maps.Clone(old)
	maps.DeleteFunc(pins, func(_ netip.AddrPort, e *extra) bool {
		if which(e) {
			e.Close()
			return true
		}
		return false
	})
	x.b.pins.Store(&pins)
}

func (x *extras) close() {
	for k := range x.open {
		x.set(k, 0)
	}
	x.tidy(func(*extra) bool { return true })
}

// drain reads an extra socket until it is closed.
func (b *Bind) drain(e *extra) {
	buf := make([]byte, slotSize)
	var last lookup
	on := onward{h: &b.hops}
	for bad := 0; bad < 100; {
		n, a, err := e.ReadOne(buf)
		switch {
		case b.ctx.Err() != nil || isClosed(err):
			return
		case err != nil:
			bad++ // an ICMP error, perhaps
			continue
		}
		pkt, by := buf[:n], e
		if leg, ok := derp.Forwarded(pkt); ok {
			pkt, a = b.hops.take(pkt, leg, a, b.now(), &on)
			by = nil // its source is no address of this socket's
			on.flush()
		}
		if t := messageType(pkt); t != 0 {
			if ep := b.attribute(pkt, t, a, b.now(), &last); ep != nil {
				b.ring.push(pkt, ep)
			}
		} else if d, ok := path.Sender(pkt); ok {
			b.disco(pkt, d, message{from: a, extra: by}, nil)
		} else if stun.IsMessage(pkt) && len(pkt) <= maxSTUN {
			select {
			case b.stunIn <- message{pkt: slices.Clone(pkt), from: a, extra: e}:
			default:
			}
		}
	}
}

// ttlWriter is a socket that can send a packet with a time to live of its own.
type ttlWriter interface {
	WriteTTL(b []byte, to netip.AddrPort, ttl int) (int, error)
}

// canTTL reports whether sockets can, as far as we know.
func (b *Bind) canTTL() bool {
	s := b.udp4.cur.Load()
	if s == nil {
		return false
	}
	switch s.PacketConn.(type) {
	case ttlWriter:
		return true
	case *net.UDPConn:
		return udp.CanTTL
	}
	return false
}

func (b *Bind) sendTTL(pkt []byte, to netip.AddrPort, ttl int) error {
	s := b.udp4.cur.Load()
	if s == nil || !to.Addr().Is4() {
		return conn.ErrWrongEndpointType
	}
	return s.writeTTL(pkt, to, ttl)
}

func (s *sock) writeTTL(pkt []byte, to netip.AddrPort, ttl int) error {
	if w, ok := s.PacketConn.(ttlWriter); ok {
		_, err := w.WriteTTL(pkt, to, ttl)
		return err
	}
	return s.WriteTTL(pkt, to, ttl)
}

// A sample is asked for so often, and each time has so long to come.
const (
	sampleTries = 3
	sampleWait  = 300 * time.Millisecond
)

// sample asks a STUN server by n sockets, each of which gets a mapping of its own, and brings the outside ports in the
// order in which they were given; those without an answer are left out.
func (b *Bind) sample(server netip.AddrPort, n int) {
	ports := make([]uint16, n)
	var list []*sock
	var wg sync.WaitGroup
	for i := range n {
		s, err := b.listenOne("udp4", 0)
		if err != nil {
			break
		}
		list = append(list, s)
		m := newRequest()
		if s.WriteOne(m.Raw, server) != nil {
			break
		}
		wg.Go(func() {
			mapped, _ := s.await(m, server)
			ports[i] = mapped.Port()
		})
	}
	stop := context.AfterFunc(b.ctx, func() {
		for _, s := range list {
			s.Close()
		}
	})
	wg.Wait()
	if stop() {
		for _, s := range list {
			s.Close()
		}
	}
	select {
	case b.samples <- slices.DeleteFunc(ports, func(p uint16) bool { return p == 0 }):
	case <-b.done:
	}
}

// await waits for the answer to a request, which it repeats: how the server sees us, and its other port; zero if there is none.
func (s *sock) await(m *stun.Message, server netip.AddrPort) (mapped netip.AddrPort, other uint16) {
	buf := make([]byte, maxSTUN)
	for try := range sampleTries {
		if try > 0 {
			_ = s.WriteOne(m.Raw, server)
		}
		s.SetReadDeadline(time.Now().Add(sampleWait))
		for {
			n, _, err := s.ReadOne(buf)
			if isClosed(err) {
				return mapped, 0
			} else if err != nil {
				break
			}
			if mapped, id, ok := readAnswer(buf[:n]); ok && id == m.TransactionID {
				return mapped, secondPort(buf[:n])
			}
		}
	}
	return mapped, 0
}
