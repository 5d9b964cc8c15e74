package ostun

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"github.com/hedge-mesh/hedge/node/fair"
)

// An interface that is wider than what its routes lead to is handed packets longer than that, by programs that do not
// ask the kernel how long they may be (IP_PMTUDISC_PROBE) or that go by what a path carried a moment ago. With those it
// does what a router does:
//
//	longer than the kernel was told? ─┬─ no ───────────────────────────── as it is
//	                                  ├─ a moment ago it was not ──────── as it is: the relay takes it
//	                                  ├─ IPv4, may be fragmented ──────── fragments (RFC 791 section 3.2)
//	                                  └─ else: dropped, and the kernel is answered in the name of the destination
//	                                       IPv4  "fragmentation needed", RFC 792, with the size, RFC 1191 section 4
//	                                       IPv6  "packet too big", RFC 4443 section 3.2

// limits is what the kernel has been told, swapped whole.
type limits struct {
	least int // nothing shorter is too long for anybody
	paths map[netip.Addr]limit
}

// limit is one address's. It was more until some time ago, if was is not 0.
type limit struct {
	mtu, was int
	until    time.Time
}

// limitGrace is for how long packets pass that were cut to what the path carried before.
const limitGrace = time.Second

// tell says what the kernel will be told of single addresses from now on.
func (d *driver) tell(paths map[netip.Addr]int) {
	now := time.Now()
	next := &limits{least: MinMTU, paths: make(map[netip.Addr]limit, len(paths))}
	for a, n := range paths {
		n = pathMTU(a, n)
		next.paths[a] = limit{mtu: n}
		next.least = min(next.least, n)
	}
	if old := d.told.Load(); old != nil {
		for a, o := range old.paths {
			l, ok := next.paths[a]
			if !ok {
				l.mtu = MinMTU
			}
			if l.until = o.until; o.mtu > l.mtu {
				l.was, l.until = o.mtu, now.Add(limitGrace)
			}
			if now.Before(o.until) {
				l.was = max(l.was, o.was)
			}
			if l.was <= l.mtu {
				if !ok {
					continue
				}
				l.was = 0
			}
			next.paths[a] = l
		}
	}
	d.told.Store(next)
}

// carries is how long a packet to an address may be that is n bytes long.
func (l *limits) carries(to netip.Addr, n int) int {
	p, ok := l.paths[to]
	switch {
	case !ok:
		return MinMTU
	case n > p.mtu && n <= p.was && time.Now().Before(p.until):
		return p.was
	}
	return p.mtu
}

// limit looks whether what split is about to give is too long, and answers it.
func (d *driver) limit(fd uintptr, l *lane) {
	s, told := &l.split, d.told.Load()
	n := s.longest()
	if n <= told.least || len(s.pkt) < ip4Len || s.pkt[0]>>4 == 6 && len(s.pkt) < ip6Len {
		return
	}
	_, dst := ends(s.pkt)
	to, _ := netip.AddrFromSlice(dst)
	most := told.carries(to, n)
	if n <= most || s.fragment(most) {
		return
	}
	if b := l.refusal.make(s.pkt, most, time.Now()); b != nil {
		_, _ = unix.Write(int(fd), b) // a program that is not told sends no worse than before
	}
	*s = splitter{}
}

// longest is the longest packet to come, 0 for TCP that is cut to its path.
func (s *splitter) longest() int {
	switch {
	case s.size == 0:
		return len(s.pkt)
	case s.proto == unix.IPPROTO_TCP:
		return 0
	}
	return min(s.n+s.size, len(s.pkt))
}

// refusal makes the answers, for each destination a few at once and then one in refusalEvery: the kernel needs one.
type refusal struct {
	buf   [vnetLen + MinMTU]byte
	spent [64]time.Time // by a hash of the flow: until then answers are paid for
}

const (
	refusalEvery = 20 * time.Millisecond
	refusalBurst = 5
)

// make is nil if there is to be no answer.
//
//	IPv4  vnet │ IP │ 3 │ 4 │ sum │ 0 0 │ MTU │ the packet, 576 bytes in all
//	IPv6  vnet │ IP │ 2 │ 0 │ sum │    MTU    │ the packet, 1,280 in all
func (r *refusal) make(p []byte, mtu int, now time.Time) []byte {
	if !answerable(p) {
		return nil
	}
	t := &r.spent[fair.Flow(p)*0x9e3779b1>>26]
	if t.Before(now.Add(-refusalBurst * refusalEvery)) {
		*t = now.Add(-refusalBurst * refusalEvery)
	}
	if t.After(now) {
		return nil
	}
	*t = t.Add(refusalEvery)
	src, dst := ends(p)
	vnet{}.encode(r.buf[:])
	b := r.buf[vnetLen:]
	if p[0]>>4 == 4 {
		b = b[:min(ip4Len+8+len(p), 576)]
		clear(b[:ip4Len+8])
		b[0], b[6], b[8], b[9] = 0x45, 0x40, 64, unix.IPPROTO_ICMP
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		copy(b[12:], dst)
		copy(b[16:], src)
		sumIP4(b[:ip4Len])
		icmp := b[ip4Len:]
		icmp[0], icmp[1] = 3, 4
		binary.BigEndian.PutUint16(icmp[6:], uint16(mtu))
		copy(icmp[8:], p)
		binary.BigEndian.PutUint16(icmp[2:], ^checksum.Checksum(icmp, 0))
	} else {
		b = b[:min(ip6Len+8+len(p), MinMTU)]
		clear(b[:ip6Len+8])
		b[0], b[6], b[7] = 0x60, unix.IPPROTO_ICMPV6, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ip6Len))
		copy(b[8:], dst)
		copy(b[24:], src)
		icmp := b[ip6Len:]
		icmp[0] = 2
		binary.BigEndian.PutUint32(icmp[4:], uint32(mtu))
		copy(icmp[8:], p)
		binary.BigEndian.PutUint16(icmp[2:], ^checksum.Checksum(icmp, pseudo(b, unix.IPPROTO_ICMPV6, len(icmp))))
	}
	return r.buf[:vnetLen+len(b)]
}

// answerable reports whether a packet may be answered by an error (RFC 1122 section 3.2.2, RFC 4443 section 2.4): it is
// between single hosts, the start of what it is part of, and no error itself.
func answerable(p []byte) bool {
	src, dst := ends(p)
	from, _ := netip.AddrFromSlice(src)
	to, _ := netip.AddrFromSlice(dst)
	if !from.IsGlobalUnicast() || !to.IsGlobalUnicast() {
		return false
	}
	if p[0]>>4 == 6 {
		return p[6] != unix.IPPROTO_ICMPV6 || len(p) > ip6Len && p[ip6Len] >= 128
	}
	h := int(p[0]&15) * 4
	if binary.BigEndian.Uint16(p[6:])&0x1fff != 0 {
		return false
	}
	return p[9] != unix.IPPROTO_ICMP || len(p) > h && (p[h] == 8 || p[h] == 0)
}
