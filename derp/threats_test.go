package derp

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// order is the L of Ed25519 (RFC 8032 section 5.1).
var order, _ = new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)

// malleated is another signature of the same: with S + L for S, which a careless verifier takes too.
func malleated(sig []byte) []byte {
	out := bytes.Clone(sig)
	s := slices.Clone(sig[32:])
	slices.Reverse(s)
	sum := new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(make([]byte, 32))
	slices.Reverse(sum)
	copy(out[32:], sum)
	return out
}

// R-malleable-id: a signature cannot be made into another of the same, and nothing is known by its signature: a proof that has
// been used is used whatever its bytes, and a node that was kicked is kicked whatever its ticket's.
func TestRMalleableID(t *testing.T) {
	r := newRelay(t)
	n := newNode(r.control)
	auth := newProof(r.pub, n.ticket, n.machine, time.Now())
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(auth, proofScheme))
	if err != nil {
		t.Fatal(err)
	}
	encode := func(b []byte) string { return proofScheme + base64.RawURLEncoding.EncodeToString(b) }
	other := append(raw[:proofLen-64:proofLen-64], malleated(raw[proofLen-64:])...)
	if code, text, _ := upgrade(t, r, encode(other)); code != http.StatusUnauthorized || text != refuseProof.text {
		t.Errorf("the proof with another signature: %d %s", code, text)
	}
	ticket := append(n.ticket[:TicketLen-64:TicketLen-64], malleated(n.ticket[TicketLen-64:])...)
	if _, err := OpenTicket(ticket, []key.ControlPublic{key.PublicOf(r.control)}, time.Now()); err == nil {
		t.Error("the ticket with another signature is taken")
	}
	// Two tickets for one node differ, and are one to a kick; two proofs with one nonce differ, and are one.
	again := n.ticketUntil(r.control, time.Now().Add(2*time.Hour))
	if code, text, _ := upgrade(t, r, auth); code != http.StatusSwitchingProtocols {
		t.Fatalf("the proof itself: %d %s", code, text)
	}
	at := time.UnixMilli(int64(binary.BigEndian.Uint64(raw[TicketLen:])))
	nonce := [nonceLen]byte(raw[TicketLen+8:])
	twice := append(slices.Clone(again), raw[TicketLen:TicketLen+8+nonceLen]...)
	twice = append(twice, key.Sign(n.machine, proofContext, proofMessage(r.pub, again, at, nonce))...)
	if code, text, _ := upgrade(t, r, encode(twice)); code != refuseReplay.status || text != refuseReplay.text {
		t.Errorf("another proof with a used nonce: %d %s", code, text)
	}
	r.Kick(n.pub)
	for i, ticket := range [][]byte{n.ticket, again} {
		if code, _, _ := upgrade(t, r, newProof(r.pub, ticket, n.machine, time.Now())); code == http.StatusSwitchingProtocols {
			t.Errorf("ticket %d of a node that was kicked is taken", i)
		}
	}
}

// R-nonce-unique: a session's datagrams never share a nonce (key, direction and counter), however many send at once, nor do
// sessions share keys.
func TestRNonceUnique(t *testing.T) {
	const senders, each = 8, 20_000
	seen := map[string]bool{}
	offers := map[string]bool{}
	var mu sync.Mutex
	for range 2 {
		offer := newOffer()
		if offers[string(offer[8:])] {
			t.Fatal("two sessions have one key")
		}
		offers[string(offer[8:])] = true
		up, _ := newSeals(offer, 0)
		down, _ := newSeals(offer, dgDown)
		var wg sync.WaitGroup
		for i := range senders {
			s := []*seal{up, down}[i%2]
			wg.Go(func() {
				var mine []string
				for range each {
					b := s.end(s.start(nil, dgMessage), 0)
					mine = append(mine, string(offer[8:])+string(b[:12]))
				}
				mu.Lock()
				defer mu.Unlock()
				for _, nonce := range mine {
					if seen[nonce] {
						t.Error("a nonce is used twice")
					}
					seen[nonce] = true
				}
			})
		}
		wg.Wait()
	}
	if len(seen) != 2*senders*each {
		t.Errorf("%d nonces for %d datagrams", len(seen), 2*senders*each)
	}
}
