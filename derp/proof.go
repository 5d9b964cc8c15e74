package derp

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// A proof is a ticket and the machine's signature, fresh for one upgrade request at one relay. It travels in
// "Authorization: HedgeRelay BASE64URL":
//
//	 0         177       185      201            265
//	┌─────────┬─────────┬────────┬──────────────┐   signature: Ed25519 by the ticket's machine key over
//	│ ticket  │ time    │ nonce  │ signature    │     relay key (32) ‖ SHA-256 of the ticket (32) ‖ time ‖ nonce
//	└─────────┴─────────┴────────┴──────────────┘   time: be64, Unix ms
const (
	proofLen     = TicketLen + 8 + nonceLen + 64
	nonceLen     = 16
	proofScheme  = "HedgeRelay "
	proofContext = "hedge relay proof v1"
)

type proof struct {
	ticket []byte
	at     time.Time
	nonce  [nonceLen]byte
	sig    []byte
}

func proofMessage(relay key.RelayPublic, ticket []byte, at time.Time, nonce [nonceLen]byte) []byte {
	r, h := relay.Raw(), sha256.Sum256(ticket)
	b := make([]byte, 0, len(r)+len(h)+8+nonceLen)
	b = append(b, r[:]...)
	b = append(b, h[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixMilli()))
	return append(b, nonce[:]...)
}

// newProof is the value of the Authorization header.
func newProof(relay key.RelayPublic, ticket []byte, machine key.MachinePrivate, at time.Time) string {
	var nonce [nonceLen]byte
	rand.Read(nonce[:]) // never fails (crypto/rand)
	b := make([]byte, 0, proofLen)
	b = append(b, ticket...)
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixMilli()))
	b = append(b, nonce[:]...)
	b = append(b, key.Sign(machine, proofContext, proofMessage(relay, ticket, at, nonce))...)
	return proofScheme + base64.RawURLEncoding.EncodeToString(b)
}

// parseProof takes the header's value apart without believing it.
func parseProof(header string) (p proof, ok bool) {
	text, ok := strings.CutPrefix(header, proofScheme)
	if !ok || len(text) != base64.RawURLEncoding.EncodedLen(proofLen) {
		return p, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != proofLen { // it leaves out line ends, which HTTP does not let through either
		return p, false
	}
	ms := binary.BigEndian.Uint64(b[TicketLen:])
	if ms > maxMilli {
		return p, false
	}
	p.ticket, p.at = b[:TicketLen], time.UnixMilli(int64(ms))
	p.nonce = [nonceLen]byte(b[TicketLen+8:])
	p.sig = b[TicketLen+8+nonceLen:]
	return p, true
}

// window is how far a node's clock may be from the relay's, either way. A node that is further off learns the
// relay's time from its refusal.
const window = 2 * time.Minute

// replays remembers the proofs that were good, until each is too old to be good again: for 2 to 4 windows.
// Only nodes that have proven themselves get an entry, and each a few: the memory is bounded by the two numbers.
type replays struct {
	max, maxPer int
	since       time.Time // when cur began
	cur, old    replayGen
}

type replayGen struct {
	seen map[[nonceLen]byte]struct{}
	per  map[key.MachinePublic]int
}

type replayVerdict int

const (
	replayFresh   replayVerdict = iota
	replaySeen                  // a replay
	replayTooMany               // this machine connects too often
	replayFull                  // all machines together do
)

// take remembers a proof's nonce and says whether it may be used.
func (r *replays) take(m key.MachinePublic, nonce [nonceLen]byte, now time.Time) replayVerdict {
	if age := now.Sub(r.since); r.cur.seen == nil || age >= 2*window || age < 0 {
		if r.old = r.cur; age >= 4*window {
			r.old = replayGen{}
		}
		r.since, r.cur = now, replayGen{map[[nonceLen]byte]struct{}{}, map[key.MachinePublic]int{}}
	}
	_, a := r.cur.seen[nonce]
	_, b := r.old.seen[nonce]
	switch {
	case a || b:
		return replaySeen
	case r.cur.per[m] >= r.maxPer:
		return replayTooMany
	case len(r.cur.seen) >= r.max:
		return replayFull
	}
	r.cur.seen[nonce] = struct{}{}
	r.cur.per[m]++
	return replayFresh
}

// bars remembers the nodes that were kicked, for as long as a ticket from before can be good. When there are too
// many to remember, it refuses all tickets from before the last kick.
type bars struct {
	max   int
	since map[key.NodePublic]time.Time
	floor time.Time
}

func (b *bars) add(n key.NodePublic, now time.Time) {
	if b.since == nil {
		b.since = map[key.NodePublic]time.Time{}
	}
	if len(b.since) >= b.max {
		for k, t := range b.since {
			if now.Sub(t) > MaxTicketLife {
				delete(b.since, k)
			}
		}
	}
	if len(b.since) >= b.max {
		b.floor = now
		clear(b.since)
	}
	b.since[n] = now
}

// has reports whether a ticket of n issued then has been withdrawn.
func (b *bars) has(n key.NodePublic, issued time.Time) bool {
	t, ok := b.since[n]
	return ok && !issued.After(t) || !b.floor.IsZero() && !issued.After(b.floor)
}
