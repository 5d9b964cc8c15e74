package path

import (
	"net/netip"
	"time"
)

// bucket is a token bucket.
type bucket struct {
	tokens float64
	at     time.Time
}

func (b *bucket) fill(now time.Time, n float64) { b.tokens, b.at = n, now }

// some reports whether there is a token.
func (b *bucket) some(now time.Time, rate, burst float64) bool {
	return min(burst, b.tokens+rate*now.Sub(b.at).Seconds()) >= 1
}

func (b *bucket) take(now time.Time, rate, burst float64) bool {
	b.tokens, b.at = min(burst, b.tokens+rate*now.Sub(b.at).Seconds()), now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// ration bounds the pings to each address that has never answered, since whose that is we have only by hearsay (not
// to one that packets of the peer came from, at first: NATs are opened by answering there, quickly and at many ports). It
// remembers addresses that are candidates no more: taking one back and telling of it again gives nothing.
type ration []struct {
	to netip.AddrPort
	bucket
}

const (
	rationMost  = 64                       // addresses
	rationBurst = 4.0                      // at 0, 50, 150 and 350 ms: NATs are open then, for what the peer sends
	rationRate  = 0.09                     // a second: never more than four in ten seconds
	rationWhole = rationBurst / rationRate // seconds until an address is as good as new
	seenMost    = 12                       // pings unanswered to one that packets came from, before that is rationed too
)

// take reports whether one more ping may go there. It refuses further addresses while too many are in use.
func (r *ration) take(now time.Time, to netip.AddrPort) bool {
	free := -1
	for i := range *r {
		x := &(*r)[i]
		if x.to == to {
			return x.bucket.take(now, rationRate, rationBurst)
		}
		if now.Sub(x.at).Seconds() >= rationWhole {
			free = i
		}
	}
	if free < 0 {
		if free = len(*r); free >= rationMost {
			return false
		}
		*r = append(*r, ration{{}}...)
	}
	x := &(*r)[free]
	x.to = to
	x.fill(now, rationBurst-1)
	return true
}
