package path

import (
	"net/netip"
	"time"
)

// Sizes are those of whole IP packets. A path is at first taken to carry what WireGuard makes of 1280 bytes; that, and
// what more it carries, is found with padded pings that must not be fragmented (RFC 8899, DPLPMTUD). What ICMP says is
// not even looked at.
//
//	 least                base              the link's own
//	   ├───────────────────┼──────────────────────┤
//	assumed           asked first             asked next, for it mostly fits
//	                       ├────┤ halved ├────────┤
//
// A size in use is asked for again when there is silence or loss: if small packets pass and it does not, the search
// begins below it. Meanwhile packets that may be too long go by relay.
const (
	mtuLeast = 576                    // everything carries that (RFC 1122 section 3.3.2)
	mtuGap   = 32                     // the search ends when it is that close
	mtuTries = 3                      // pings of one size,
	mtuWait  = 100 * time.Millisecond // each with so long for its answer at least
	mtuAgain = 10 * time.Minute       // until a larger one is tried again (RFC 8899 section 5.1.1)
	mtuDoubt = time.Second            // between doubts about the one in use,
	mtuQuiet = 5 * time.Second        // where the peer has nothing to say
)

// mtuUsual are sizes that links and tunnels have. Above the least of them no others are tried.
var mtuUsual = [...]int{1280, 1360, 1400, 1420, 1450, 1476, 1492, 1500, 2048, 4352, 8960, 9000, 16384, 32768}

// mtu is the search on one path.
type mtu struct {
	ok, no int  // the largest that passed, and the least that did not; 0 for none yet
	size   int  // asked for now; 0 for none
	used   bool // and in use until it was in doubt
	tries  int
	due    time.Time // of the next step
	again  time.Time // of the next search
	doubt  time.Time // the last
}

// base is what WireGuard makes of 1280 bytes inside.
func base(a netip.Addr) int { return 1280 + 32 + headers(a) }

// headers are those of IP and UDP.
func headers(a netip.Addr) int {
	if a.Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// next is the size to ask for, 0 when the search is over.
func (m *mtu) next(base, link int) int {
	switch {
	case m.ok == 0:
		return min(base, link)
	case m.no == 0 && link > m.ok:
		return link
	case m.no == 0:
		return 0
	}
	mid, best := (m.ok+m.no)/2, 0
	for _, u := range mtuUsual {
		switch {
		case u <= m.ok || u >= m.no:
		case u == 1500:
			return u // that is what most of the internet carries
		case best == 0 || abs(u-mid) < abs(best-mid):
			best = u
		}
	}
	if best == 0 && m.ok < mtuUsual[0] && m.no-m.ok > mtuGap {
		return mid
	}
	return best
}

func abs(n int) int { return max(n, -n) }

// passed and failed take what became of a size.
func (m *mtu) passed(now time.Time, size int) {
	m.ok = max(m.ok, size)
	if m.no <= m.ok {
		m.no = 0
	}
	m.size, m.used, m.tries, m.due = 0, false, 0, now
}

func (m *mtu) failed(now time.Time, base int) {
	m.no = m.size
	if m.ok >= m.no || m.ok == 0 { // what passed once does not any more
		m.ok = mtuLeast
		if m.no > base {
			m.ok = 0 // nor is it known whether the base does
		}
	}
	m.size, m.used, m.tries, m.due = 0, false, 0, now
}

// doubtMTU asks for the size in use again: packets are missing, as the peer says, or it says nothing.
func (pr *peer) doubtMTU(now time.Time, said bool) {
	m := &pr.best.mtu
	rest := mtuDoubt
	if pr.lull.asked > 2 && !said {
		rest = mtuQuiet
	}
	if pr.p.cfg.LinkMTU == nil || m.size != 0 || m.ok == 0 || recent(now, m.doubt, rest) {
		return
	}
	m.doubt, m.size, m.used, m.tries = now, max(m.ok, mtuLeast+1), true, 0
	pr.askMTU(now)
}

// doubted reports whether a size in use is being asked for again.
func (m *mtu) doubted(base int) bool {
	return m.tries > 0 && m.size != 0 && (m.used || m.size <= max(m.ok, base))
}

// mtuDue is when the search goes on.
func (pr *peer) mtuDue(time.Time) (at time.Time, ok bool) {
	if pr.best == nil || pr.doubt || pr.p.cfg.LinkMTU == nil {
		return at, false
	}
	return pr.best.mtu.due, true
}

// findMTU goes on with the search.
func (pr *peer) findMTU(now time.Time) {
	if at, ok := pr.mtuDue(now); !ok || at.After(now) {
		return
	}
	c := pr.best
	m := &c.mtu
	b := base(c.addr.Addr())
	if m.size != 0 { // not answered
		if m.tries >= mtuTries {
			if m.doubted(b) {
				pr.stir(now) // what was lost was too long, and says nothing of what is not
			}
			m.failed(now, b)
		} else if m.tries > 0 && m.size <= m.ok {
			m.ok = 0 // until it is answered
		}
	}
	if m.size == 0 {
		if !m.again.IsZero() && !m.again.After(now) {
			m.no, m.again = 0, time.Time{}
		}
		if m.size, m.tries = m.next(b, pr.p.cfg.LinkMTU(c.addr)), 0; m.size == 0 {
			if m.again.IsZero() {
				m.again = now.Add(mtuAgain)
			}
			m.due = m.again
			return
		}
	}
	pr.askMTU(now)
}

// askMTU sends one padded ping. Those that judge a size do not judge the path.
func (pr *peer) askMTU(now time.Time) {
	c := pr.best
	m := &c.mtu
	m.tries++
	m.due = now.Add(min(max(mtuWait, 2*c.rtt+4*c.rttvar), pongMost))
	pad := m.size - headers(c.addr.Addr()) - Shortest
	if pr.pings.full() || pad < 0 {
		return
	}
	g := ping{tx: pr.p.cfg.Tx(), to: c.addr, sent: now, due: now.Add(lateMost), late: true, size: m.size}
	pr.pings.add(g)
	pr.p.do(Send{Peer: pr.key, To: c.addr, Msg: Ping{g.tx, pad}})
}

// mtu is the longest IP packet known to pass the path in use, 0 if not known.
func (pr *peer) mtu() int {
	if pr.p.cfg.LinkMTU == nil {
		return base(pr.best.addr.Addr()) // as far as can be known
	}
	return pr.best.mtu.ok
}

// gotMTU takes the answer to a padded ping.
func (pr *peer) gotMTU(now time.Time, c *candidate, size int) {
	if c != nil {
		c.pong, c.missed = now, 0
		c.mtu.passed(now, size)
		pr.findMTU(now)
	}
}
