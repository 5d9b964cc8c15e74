package path

import (
	"net/netip"
	"slices"
	"time"
)

// A NAT may have several outside addresses, and take any of them for a new far end ("arbitrary pooling", RFC 4787 section
// 4.1). STUN servers see some of them; by which one packets come to the peer nobody knows. If the port is the same by all, the
// peer opens its own NAT for that port of every address near those that were seen, by packets that die before they come
// anywhere, and the next ping from the pool gets in.
//
//	a, behind the pool .20 to .23, seen as .20:7000 and .22:7000                        b
//	a ─── Here .20:7000, .22:7000 ──────────────────────────────────── by relay ──────▶ b
//	                         .1:7000 … .254:7000      ├─ 254 openers, and 254 more ──── b
//	a ═══ .23:7000 ─────────────────────── ping ──────────────────────────────────────▶ b    pings back .23:7000
const (
	poolBits  = 24 // of the prefix that addresses of one pool are sought in
	poolNets  = 2  // such prefixes at most
	poolMost  = 2  // addresses of one at which ports are guessed
	poolPings = 8  // to each address that is known
	poolRate  = 20 // a second
)

// pooled are those of some addresses that are a NAT's with a pool: outside, more than one, with one port.
func pooled(all []netip.AddrPort) (pool []netip.AddrPort) {
	for _, a := range all {
		if public(a.Addr()) && (len(pool) == 0 || a.Port() == pool[0].Port()) {
			pool = append(pool, a)
		}
	}
	if len(pool) < 2 {
		return nil
	}
	return pool
}

// outsides are the addresses outside the peer's NAT, as it says itself.
func (pr *peer) outsides() (list []netip.AddrPort) {
	for _, c := range pr.candidates {
		if c.by&called != 0 && public(c.addr.Addr()) {
			list = append(list, c.addr)
		}
	}
	return list
}

// pools reports whether one end has a NAT with a pool.
func (pr *peer) pools() bool {
	return pooled(pr.outsides()) != nil || pooled(pr.p.self.Endpoints) != nil
}

// near are the addresses among which those of a pool are sought, nil if it is none.
func near(pool []netip.AddrPort) (list []netip.AddrPort) {
	var nets []netip.Prefix
	for _, a := range pool {
		n, err := a.Addr().Prefix(poolBits)
		if err != nil || slices.Contains(nets, n) || len(nets) == poolNets {
			continue
		}
		nets = append(nets, n)
		for ip := n.Addr().Next(); n.Contains(ip.Next()); ip = ip.Next() {
			list = append(list, netip.AddrPortFrom(ip, a.Port()))
		}
	}
	return list
}

// planPool is how to meet where neither NAT is hard, but one has a pool; nil if none has.
func (pr *peer) planPool() *try {
	known := pr.outsides()
	open := near(pooled(known))
	opened := near(pooled(pr.p.self.Endpoints)) // by the peer
	if open == nil && opened == nil {
		return nil
	}
	t := &try{near: len(open), far: 2 * len(open), short: 2 * len(open), rate: poolRate}
	if pr.p.cfg.Plain { // the addresses are others' for the most part
		t.near, t.far, t.short = 0, 0, 0
	}
	t.most = t.short + poolPings*len(known)
	t.rest = guessLater + 2*time.Duration(max(len(open), len(opened)))*time.Second/openRate
	t.target = func(i int) netip.AddrPort {
		if i < t.short {
			return open[i%len(open)]
		}
		return known[(i-t.short)%len(known)]
	}
	return t
}
