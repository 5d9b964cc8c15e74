package acl

import (
	"net/netip"
	"slices"
	"sync"
)

// ipRange is the addresses from first to last, both included, of one family.
type ipRange struct{ first, last netip.Addr }

func rangeOf(p netip.Prefix) ipRange { return ipRange{p.Masked().Addr(), lastOf(p)} }

// fill sets all bits from one on.
func fill(b []byte, from int) {
	for i := from / 8; i < len(b); i++ {
		b[i] |= 0xff >> max(0, from-8*i)
	}
}

// lastOf is the highest address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		b := p.Addr().As4()
		fill(b[:], p.Bits())
		return netip.AddrFrom4(b)
	}
	b := p.Addr().As16()
	fill(b[:], p.Bits())
	return netip.AddrFrom16(b)
}

func (r ipRange) overlaps(o ipRange) bool {
	return r.first.BitLen() == o.first.BitLen() && r.first.Compare(o.last) <= 0 && o.first.Compare(r.last) <= 0
}

// ranges is a set of addresses: sorted, apart from each other. The zero value is empty.
type ranges []ipRange

func (s ranges) contains(a netip.Addr) bool {
	i, ok := slices.BinarySearchFunc(s, a, func(r ipRange, a netip.Addr) int { return r.first.Compare(a) })
	return ok || i > 0 && s[i-1].last.Compare(a) >= 0 && s[i-1].first.BitLen() == a.BitLen()
}

func (s ranges) overlaps(r ipRange) bool {
	i, _ := slices.BinarySearchFunc(s, r.first, func(x ipRange, a netip.Addr) int { return x.first.Compare(a) })
	return i < len(s) && s[i].overlaps(r) || i > 0 && s[i-1].overlaps(r)
}

// union joins any ranges into a set.
func union(rs []ipRange) ranges {
	rs = slices.Clone(rs)
	slices.SortFunc(rs, func(a, b ipRange) int { return a.first.Compare(b.first) })
	var out ranges
	for _, r := range rs {
		if n := len(out); n > 0 && out[n-1].first.BitLen() == r.first.BitLen() && (r.first.Compare(out[n-1].last) <= 0 || out[n-1].last.Next() == r.first) {
			if out[n-1].last.Less(r.last) {
				out[n-1].last = r.last
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// minus is s without the addresses of o.
func (s ranges) minus(o ranges) ranges {
	var out ranges
	for _, r := range s {
		live := true
		for _, c := range o {
			if !r.overlaps(c) {
				continue
			}
			if r.first.Less(c.first) {
				out = append(out, ipRange{r.first, c.first.Prev()})
			}
			if !c.last.Less(r.last) {
				live = false
				break
			}
			r.first = c.last.Next()
		}
		if live {
			out = append(out, r)
		}
	}
	return out
}

// internetPrefixes are those of internetHard: all, of IPv4, of IPv6.
var internetPrefixes = sync.OnceValue(func() [3][]netip.Prefix {
	all := internetHard.prefixes()
	return [3][]netip.Prefix{all, only(all, false), only(all, true)}
})

// prefixes are the fewest prefixes that make up the set, sorted.
func (s ranges) prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, r := range s {
		for a := r.first; ; {
			bits := a.BitLen()
			for bits > 0 {
				p, _ := a.Prefix(bits - 1)
				if p.Addr() != a || r.last.Less(lastOf(p)) {
					break
				}
				bits--
			}
			p := netip.PrefixFrom(a, bits)
			out = append(out, p)
			last := lastOf(p)
			if !last.Less(r.last) {
				break
			}
			a = last.Next()
		}
	}
	return out
}

func mustRanges(rs ...string) ranges {
	var out []ipRange
	for i := 0; i < len(rs); i += 2 {
		out = append(out, ipRange{netip.MustParseAddr(rs[i]), netip.MustParseAddr(rs[i+1])})
	}
	return union(out)
}

var (
	all4 = netip.MustParsePrefix("0.0.0.0/0")
	all6 = netip.MustParsePrefix("::/0")

	// internetRanges is autogroup:internet as Tailscale has it: all but the private and link-local ranges.
	internetRanges = mustRanges(
		"0.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "169.253.255.255",
		"169.255.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "255.255.255.255",
		"2000::", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")

	// internetHard is what Hedge enforces: also without this-host, loopback, multicast, reserved and broadcast addresses.
	internetHard = internetRanges.minus(mustRanges("0.0.0.0", "0.255.255.255", "127.0.0.0", "127.255.255.255", "224.0.0.0", "255.255.255.255"))
)
