package netstack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Echo asks dst, an address that is carried for others, for an ICMP echo reply with this data. It returns nil once
// that has come; ctx ends after a few seconds.
type Echo func(ctx context.Context, dst netip.Addr, data []byte) error

// carrier takes what is for addresses that are not this stack's own, as the router of a network or an exit does:
//
//	Write ─ to an own address? ─┬─ yes: gVisor ───────────────── listeners, Accept ──────────────┐
//	                            └─ no: another gVisor that ─┬─ TCP, UDP: Accept ─ a real socket ─┼─ Read
//	                               is every address         └─ ping: Echo ─ a real ping ─────────┘
//
// It is another stack because one that takes every address for its own would take every source for itself. What is
// carried was admitted by whoever writes packets here; only new connections are held to the prefixes once more.
type carrier struct {
	s        *Stack
	link     *link // what comes in
	fwd      forwarder
	prefixes atomic.Pointer[[]netip.Prefix]

	echoes sync.WaitGroup
	mu     sync.Mutex
	asked  quota
}

const (
	maxEchoes   = 64
	echoTimeout = 5 * time.Second
)

// Carry replaces the prefixes whose addresses others may reach through this stack: Options.Accept is asked about each
// connection to one, with the address as local. Connections that are there are not ended. Without Accept nothing is
// carried.
func (s *Stack) Carry(prefixes []netip.Prefix) error {
	s.addrMu.Lock()
	defer s.addrMu.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return os.ErrClosed
	}
	c := s.carrier.Load()
	if c == nil {
		if len(prefixes) == 0 || s.opt.Accept == nil {
			return nil
		}
		var err error
		if c, err = s.newCarrier(); err != nil {
			return err
		}
		c.prefixes.Store(&prefixes)
		s.carrier.Store(c)
	}
	c.prefixes.Store(&prefixes)
	return nil
}

func (s *Stack) newCarrier() (*carrier, error) {
	c := &carrier{s: s, link: newLink(s.mtu, s.opt.PathMTU), asked: newQuota(maxEchoes, 0)}
	ip := newIP(false)
	c.fwd.init(s, ip, s.opt)
	c.fwd.takes = c.carries
	err := setUp(ip, c.link, s.link)
	if err == nil {
		for _, terr := range []tcpip.Error{ip.SetPromiscuousMode(nicID, true), ip.SetSpoofing(nicID, true)} {
			if terr != nil {
				err = fmt.Errorf("netstack: carry for others: %s", terr)
			}
		}
	}
	if err != nil {
		c.fwd.end()
		return nil, err
	}
	return c, nil
}

func (c *carrier) carries(a netip.Addr) bool {
	return slices.ContainsFunc(*c.prefixes.Load(), func(p netip.Prefix) bool { return p.Contains(a) })
}

// isOwn reports whether a packet is for an own address, or for none that could be read.
func (s *Stack) isOwn(p []byte) bool {
	dst, ok := destination(p)
	return !ok || s.owns(dst)
}

func (s *Stack) owns(a netip.Addr) bool { return slices.Contains(*s.own.Load(), a) }

func destination(p []byte) (netip.Addr, bool) {
	switch {
	case len(p) >= header.IPv4MinimumSize && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[16:])), true
	case len(p) >= header.IPv6MinimumSize && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[24:])), true
	}
	return netip.Addr{}, false
}

// ping takes echo requests, which the stack would answer for whoever is meant, there or not. It reports whether the
// packet was one, or a piece of one: those are dropped.
func (c *carrier) ping(p []byte) bool {
	var at int // of the ICMP message
	switch {
	case len(p) >= header.IPv4MinimumSize && p[0]>>4 == 4 && p[9] == uint8(header.ICMPv4ProtocolNumber):
		if at = int(p[0]&15) * 4; binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
			return true
		}
	case len(p) >= header.IPv6MinimumSize && p[0]>>4 == 6 && p[6] == uint8(header.ICMPv6ProtocolNumber):
		at = header.IPv6MinimumSize
	default:
		return len(p) > header.IPv6MinimumSize && p[0]>>4 == 6 && p[6] == uint8(header.IPv6FragmentHeader) &&
			p[header.IPv6MinimumSize] == uint8(header.ICMPv6ProtocolNumber)
	}
	if at < header.IPv4MinimumSize || len(p) < at+8 || p[at] != echoRequest(p) {
		return false
	}
	dst, _ := destination(p)
	peer := source(p)
	if c.s.opt.Echo == nil || !c.carries(dst) || !c.ask(peer) {
		return true
	}
	req := slices.Clone(p)
	c.echoes.Go(func() {
		defer c.answered(peer)
		ctx, cancel := context.WithTimeout(c.s.ctx, echoTimeout)
		defer cancel()
		if c.s.opt.Echo(ctx, dst, req[at+8:]) == nil {
			c.s.Inject([][]byte{echoReply(req, at)})
		}
	})
	return true
}

// echoRequest is the type of one in the packet's family.
func echoRequest(p []byte) byte {
	if p[0]>>4 == 6 {
		return byte(header.ICMPv6EchoRequest)
	}
	return byte(header.ICMPv4Echo)
}

func source(p []byte) netip.Addr {
	if p[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(p[12:]))
	}
	return netip.AddrFrom16([16]byte(p[8:]))
}

func (c *carrier) ask(peer netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked.take(peer)
}

func (c *carrier) answered(peer netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked.give(peer)
}

// echoReply turns a request into its reply, in place.
func echoReply(p []byte, at int) []byte {
	src, dst, size := 12, 16, 4
	if p[0]>>4 == 6 {
		src, dst, size = 8, 24, 16
	}
	var a [16]byte
	copy(a[:size], p[src:])
	copy(p[src:src+size], p[dst:])
	copy(p[dst:], a[:size])
	icmp := p[at:]
	icmp[2], icmp[3] = 0, 0
	if size == 4 {
		icmp[0] = byte(header.ICMPv4EchoReply)
		ip := header.IPv4(p)
		ip.SetTTL(64)
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		binary.BigEndian.PutUint16(icmp[2:], ^checksum.Checksum(icmp, 0))
		return p
	}
	icmp[0] = byte(header.ICMPv6EchoReply)
	ip := header.IPv6(p)
	ip.SetHopLimit(64)
	sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(icmp)))
	binary.BigEndian.PutUint16(icmp[2:], ^checksum.Checksum(icmp, sum))
	return p
}

// plus adds up what two forwarders say.
func (a Stats) plus(b Stats) Stats {
	return Stats{Conns: a.Conns + b.Conns, Pending: a.Pending + b.Pending, Flows: a.Flows + b.Flows, Dropped: a.Dropped + b.Dropped, Refused: a.Refused + b.Refused}
}
