package bind

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/pion/stun/v3"
)

// Finding is the outcome of a test of the network: yes, no, or not known.
type Finding uint8

// The findings.
const (
	Unknown Finding = iota
	Yes
	No
)

// String is "unknown", "yes" or "no".
func (f Finding) String() string { return [...]string{"unknown", "yes", "no"}[f] }

// MarshalText is String.
func (f Finding) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText wrote; anything else is unknown.
func (f *Finding) UnmarshalText(b []byte) error {
	switch *f = Unknown; string(b) {
	case "yes":
		*f = Yes
	case "no":
		*f = No
	}
	return nil
}

// behaviour tests how the NAT treats packets that nobody asked for, in the words of RFC 4787, by the questions of RFC
// 5780. Each is asked three times at most, on the socket that peers use, and again when the network changes:
//
//	filtering   us ──CHANGE-REQUEST──▶ server, who answers from another of its ports
//	hairpinning us ──a request─▶ our own outside address
//	forwarding  us ──RESPONSE-PORT──▶ server, who answers to the port that the gateway forwards to us
type behaviour struct {
	trials [3]trial
	server netip.AddrPort // asked
	mapped netip.AddrPort // how it sees us
	fwd    netip.AddrPort // what the gateway forwards to us
}

const (
	byOtherPort = iota // an answer gets in from a port that we sent nothing to
	toOurselves
	toMapped
)

type trial struct {
	ids   [trialTries][stun.TransactionIDSize]byte
	tries int
	next  time.Time
	found Finding
}

const (
	trialTries = 3
	trialWait  = 300 * time.Millisecond
)

// about says what is tested: a server of IPv4 that answers, how it sees us, and the forwarded port. What changed is
// tested anew.
func (b *behaviour) about(server, mapped, fwd netip.AddrPort, now time.Time) {
	if server != b.server || mapped != b.mapped {
		b.trials[byOtherPort], b.trials[toOurselves] = trial{next: now}, trial{next: now}
	}
	if fwd != b.fwd || mapped.Addr() != b.mapped.Addr() {
		b.trials[toMapped] = trial{next: now}
	}
	b.server, b.mapped, b.fwd = server, mapped, fwd
}

// apt reports whether a trial can say something. Behind two NATs no server sees the port that the inner one forwards.
func (b *behaviour) apt(i int) bool {
	return b.server.IsValid() && (i != toMapped || b.fwd.IsValid() && b.fwd.Addr() == b.mapped.Addr())
}

// tick sends what is due, and says when to be called next; zero for not at all.
func (b *behaviour) tick(now time.Time, send func([]byte, netip.AddrPort)) (next time.Time) {
	for i := range b.trials {
		t := &b.trials[i]
		if !b.apt(i) || t.found != Unknown {
			continue
		}
		if !t.next.After(now) {
			if t.tries == trialTries {
				t.found = No
				continue
			}
			m := newRequest()
			to := b.server
			switch i {
			case byOtherPort:
				m.Add(stun.AttrChangeRequest, []byte{0, 0, 0, 2})
			case toOurselves:
				to = b.mapped
			case toMapped:
				m.Add(attrResponsePort, binary.BigEndian.AppendUint16(nil, b.fwd.Port()))
			}
			m.WriteLength()
			t.ids[t.tries] = m.TransactionID
			t.tries++
			t.next = now.Add(trialWait)
			send(m.Raw, to)
		}
		if next.IsZero() || t.next.Before(next) {
			next = t.next
		}
	}
	return next
}

// attrResponsePort is RFC 5780's RESPONSE-PORT.
const attrResponsePort stun.AttrType = 0x0027

// take looks whether a STUN packet is the outcome of a trial.
func (b *behaviour) take(pkt []byte, from netip.AddrPort) bool {
	if len(pkt) < 20 {
		return false
	}
	id := [stun.TransactionIDSize]byte(pkt[8:20])
	answer := binary.BigEndian.Uint16(pkt) == stun.BindingSuccess.Value()
	for i := range b.trials {
		t := &b.trials[i]
		for _, sent := range t.ids[:t.tries] {
			if sent != id {
				continue
			}
			switch {
			case i == byOtherPort:
				answer = answer && from.Addr() == b.server.Addr() && from.Port() != b.server.Port()
			case i == toMapped:
				answer = answer && from == b.server
			default: // it comes back as it was sent
				answer = binary.BigEndian.Uint16(pkt) == stun.BindingRequest.Value()
			}
			if answer {
				t.found = Yes
			}
			return true
		}
	}
	return false
}
