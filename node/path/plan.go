package path

import (
	"net/netip"
	"slices"
	"time"
)

// plan says how to guess, given both NATs, or why there is no hope.
func (pr *peer) plan(b Budget) (t *try, why string) {
	ours, theirs := pr.p.self.NAT, pr.word.nat
	switch {
	case ours.Kind == Blocked:
		return nil, "our network lets no UDP through"
	case theirs.Kind == Blocked:
		return nil, "the peer's network lets no UDP through"
	case !pr.public().IsValid():
		return nil, ""
	case !ours.hard() && !theirs.hard():
		return pr.planPool(), ""
	case !ours.hard():
		return pr.planProbes(b), ""
	case !theirs.hard():
		return pr.planSockets(b), ""
	}
	if t = pr.planBoth(b); t == nil {
		why = "both NATs give a port of their own to each far end, and not in a way that could be guessed"
	}
	return t, why
}

// planProbes is for one address of ours and many ports of theirs, at the outside addresses that are known, if their NAT has a pool.
func (pr *peer) planProbes(b Budget) *try {
	var ips []netip.Addr
	for _, a := range pr.outsides() {
		if !slices.Contains(ips, a.Addr()) && len(ips) < poolMost {
			ips = append(ips, a.Addr())
		}
	}
	port, n := pr.guess(pr.word.nat)
	return &try{most: min(n, b.Probes) * len(ips), rate: b.Rate * len(ips),
		target: func(i int) netip.AddrPort { return netip.AddrPortFrom(ips[i%len(ips)], port(i/len(ips))) }}
}

// planSockets is for many ports of ours and one address of theirs.
func (pr *peer) planSockets(b Budget) *try {
	ours, theirs, to := pr.p.self.NAT, pr.word.nat, pr.public()
	t := &try{socks: b.Sockets, rate: openRate / 2, target: func(int) netip.AddrPort { return to }}
	_, n := pr.guess(ours) // as the peer will
	if ours.Kind != Random {
		t.socks = min(t.socks, max(someSocks, n/32))
	}
	lasts := func(n int) time.Duration { return time.Duration(n) * time.Second / time.Duration(b.Rate) }
	probing := lasts(min(n, b.Probes, usual))
	t.linger = tryLinger + lasts(min(n, b.Probes)) - probing
	if pr.p.cfg.Plain {
		t.most, t.rate = 2*t.socks, b.Rate*5/3
		return t
	}
	t.short, t.near, t.far, t.most, t.rest = t.socks, t.socks, t.socks, 2*t.socks, guessLater+probing
	switch {
	case theirs.spoilt():
		t.rest = guessLater + probing*spoiltPart/5
	case t.socks > someSocks:
		t.early, t.mid = int(someEarly*float64(t.socks)), guessLater+time.Duration(earlyAfter*float64(probing))
	}
	return t
}

// planBoth is for two hard NATs, nil if there is no hope.
func (pr *peer) planBoth(b Budget) (t *try) {
	ours, theirs := pr.p.self.NAT, pr.word.nat
	ip, step := pr.public().Addr(), max(theirs.High, 1)
	port := func(n uint16) netip.AddrPort { return netip.AddrPortFrom(ip, theirs.Low+n) }
	switch {
	case ours.Kind == Sequential && theirs.Kind == Sequential:
		// Each goes for the middle of the window in which the other is about to be, twice; and then, in case the other's ports
		// have gone on by more than that, for the end of the next window, which is where they are by now.
		t = &try{socks: min(b.Sockets, window), most: 4 * window, rate: b.Rate}
		t.target = func(i int) netip.AddrPort {
			if i < 2*window {
				return port(window / 2 * step)
			}
			return port((2*window - 4) * step)
		}
	case ours.Kind == Sequential && theirs.narrow():
		// Our ports are in order, each open for another of the peer's block; the peer probes ours from anywhere in its block.
		t = &try{socks: min(b.Sockets, someSocks), most: inOrder, short: inOrder, near: inOrder, far: inOrder, rate: openRate, linger: 5 * time.Second}
		if pr.p.cfg.Plain {
			t.short, t.near, t.far = 0, 0, 0
		}
		size := span(theirs)
		t.target = func(i int) netip.AddrPort { return port(uint16(i * max(size/inOrder, 1) % size)) }
	case ours.narrow() && theirs.Kind == Sequential:
		t = &try{socks: b.Sockets, most: 2 * b.Pairs, rate: b.Rate * 10 / 3}
		t.target = func(i int) netip.AddrPort { // by all sockets to one, and then to the next: each probe takes another port of ours
			return port(uint16(passed+1+i/t.socks*37%inOrder) * step)
		}
	case ours.narrow() && theirs.narrow():
		t = &try{socks: min(b.Sockets, someSocks), most: b.Pairs * 9 / 8, rate: b.Rate * 2}
		t.target = func(int) netip.AddrPort { return port(uint16(pr.p.rand(span(theirs)))) }
	}
	return t
}

// narrow reports whether two may meet though both are hard.
func (n NAT) narrow() bool { return n.Kind == Block && span(n) <= narrow }

func span(n NAT) int { return max(int(n.High)-int(n.Low)+1, 1) }

// guess is a series of distinct ports of a hard NAT, the likely ones, and how many there are.
func (pr *peer) guess(n NAT) (func(i int) uint16, int) {
	low, size := 1024, 1<<16-1024
	switch n.Kind {
	case Sequential:
		// From the first of them it has pinged us. If our NAT was spoilt by that, a packet of ours there would get another
		// port outside, and on Linux all that follow would get that port too, from wherever: so they are left alone.
		step := max(n.High, 1)
		return func(i int) uint16 { return n.Low + uint16(passed+1+i%wide)*step }, 2 * wide
	case Block:
		low, size = int(n.Low), span(n)
	}
	stride := 2*pr.p.rand(size/2+1) + 1
	for gcd(stride, size) != 1 {
		stride += 2
	}
	first := pr.p.rand(size)
	return func(i int) uint16 { return uint16(low + (first+i*stride)%size) }, 2 * size
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// public is the address outside the peer's NAT, as it says itself.
func (pr *peer) public() netip.AddrPort {
	if list := pr.outsides(); len(list) > 0 {
		return list[0]
	}
	return netip.AddrPort{}
}
