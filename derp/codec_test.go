package derp

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// unhex reads hexadecimal digits with spaces and # comments.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var digits strings.Builder
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPacketGolden(t *testing.T) {
	k := [key.Size]byte{0: 0xaa, 31: 0xbb}
	for _, c := range []struct {
		name string
		k    [key.Size]byte
		p    []byte
		want string
	}{
		{"data", k, data("hi"), `
			aa00000000000000 0000000000000000 0000000000000000 00000000000000bb # to, or from
			0006                                                                # length
			04000000 6869                                                       # payload`},
		{"ping", [key.Size]byte{}, []byte{kindPing, 1, 2, 3, 4, 5, 6, 7, 8}, `
			0000000000000000 0000000000000000 0000000000000000 0000000000000000 # the relay itself
			0009
			01 0102030405060708`},
		{"welcome", [key.Size]byte{}, []byte{kindWelcome}, `
			0000000000000000 0000000000000000 0000000000000000 0000000000000000
			0001
			05`},
	} {
		want := unhex(t, c.want)
		if got := appendPacket(nil, c.k, c.p); !bytes.Equal(got, want) {
			t.Errorf("%s: %x, want %x", c.name, got, want)
		}
		p, rest, err := cutPacket(append(want, 0xff))
		if err != nil || !bytes.Equal(p, want) || !bytes.Equal(rest, []byte{0xff}) {
			t.Errorf("%s: cut into %x and %x, %v", c.name, p, rest, err)
		}
	}
}

func TestUrgent(t *testing.T) {
	for _, c := range []struct {
		p    []byte
		want bool
	}{
		{[]byte{1, 0, 0, 0}, true}, {[]byte{2, 0, 0, 0}, true}, {[]byte{3, 0, 0, 0}, true}, {[]byte{4, 0, 0, 0}, false},
		{[]byte{4, 0, 0, 1}, true}, {[]byte{4}, true}, {make([]byte, maxUrgent), true}, {make([]byte, maxUrgent+1), false},
	} {
		if got := urgent(c.p); got != c.want {
			t.Errorf("urgent(%.8x…, %d bytes) = %v", c.p, len(c.p), got)
		}
	}
}

// fixed keys and times, for goldens: Ed25519 signatures are the same each time.
func fixed(t testing.TB) (control key.ControlPrivate, relay key.RelayPublic, machine key.MachinePrivate, ticket Ticket) {
	t.Helper()
	control, err1 := key.ParseControlPrivate("control-private:" + strings.Repeat("c0", 32))
	rk, err2 := key.ParseRelayPrivate("relay-private:" + strings.Repeat("4e", 32))
	machine, err3 := key.ParseMachinePrivate("machine-private:" + strings.Repeat("3a", 32))
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	ticket = Ticket{Node: key.NodePublicFromRaw([32]byte(bytes.Repeat([]byte{0x11}, 32))), Machine: key.PublicOf(machine),
		Issued: time.UnixMilli(1_800_000_000_000), Expires: time.UnixMilli(1_800_003_600_000)}
	return control, key.PublicOf(rk), machine, ticket
}

const goldenTicket = `
	01 # version
	1111111111111111111111111111111111111111111111111111111111111111 # node key
	03528a84cf35f33dbef1b32192d935144e9d623384d0b079ca687c00109b8196 # machine key
	5b9437adeaffbe8f41b13d96ed49d2f51cd6c266cd8ecc284b0552ec4912b8dd # control key
	000001a3185c5000 # issued: 2027-01-15T08:00:00Z
	000001a318933e80 # expires: an hour later
	a27a14b6d0e2c874c22a93a03545f2be54bba02d8a4459d4ec697001407382a5 # signature
	8c3ff67b745826fa1ba8eefc88779aba8e86de5fa1245f70b5949869aff84d07
`

func TestTicketGolden(t *testing.T) {
	control, _, _, ticket := fixed(t)
	got := ticket.Sign(control)
	if want := unhex(t, goldenTicket); !bytes.Equal(got, want) {
		t.Errorf("ticket is\n%x, want\n%x", got, want)
	}
	back, err := OpenTicket(got, []key.ControlPublic{key.PublicOf(control)}, ticket.Issued)
	ticket.Control = key.PublicOf(control)
	if err != nil || back != ticket {
		t.Errorf("opened %+v, %v; want %+v", back, err, ticket)
	}
}

func TestOpenTicketRefuses(t *testing.T) {
	control, _, _, ticket := fixed(t)
	trusted := []key.ControlPublic{key.PublicOf(control)}
	good := ticket.Sign(control)
	if _, err := OpenTicket(good, trusted, ticket.Expires); !errors.Is(err, ErrTicketExpired) {
		t.Errorf("at the end of its time: %v", err)
	}
	if _, err := OpenTicket(good, trusted, ticket.Expires.Add(-MaxTicketLife-time.Second)); !errors.Is(err, ErrTicket) {
		t.Errorf("too long before the end of its time: %v", err)
	}
	if _, err := OpenTicket(good, nil, ticket.Issued); !errors.Is(err, ErrTicket) {
		t.Errorf("with nobody trusted: %v", err)
	}
	for i := range good {
		for _, bit := range []byte{1, 0x80} {
			bad := bytes.Clone(good)
			bad[i] ^= bit
			if _, err := OpenTicket(bad, trusted, ticket.Issued); err == nil {
				t.Errorf("opened with bit %#x of byte %d changed", bit, i)
			}
		}
	}
	for n := range len(good) + 1 {
		if n == len(good) {
			good = append(good, 0)
			n++
		}
		if _, err := OpenTicket(good[:n], trusted, ticket.Issued); err == nil {
			t.Errorf("opened with %d bytes", n)
		}
	}
	// A ticket without a node or a machine is nobody's, whoever signed it.
	if _, err := OpenTicket(Ticket{Expires: ticket.Expires}.Sign(control), trusted, ticket.Issued); err == nil {
		t.Error("opened a ticket of nobody")
	}
}

func TestProofGolden(t *testing.T) {
	control, relay, machine, ticket := fixed(t)
	signed := ticket.Sign(control)
	p, ok := parseProof(newProof(relay, signed, machine, ticket.Issued))
	if !ok || !bytes.Equal(p.ticket, signed) || !p.at.Equal(ticket.Issued) {
		t.Fatalf("parsed %+v, %v", p, ok)
	}
	got := proofMessage(relay, signed, ticket.Issued, [nonceLen]byte{0: 1, 15: 2})
	if want := unhex(t, `
	8e486e8fb79499dba2a789c6b1639d409495233c79e0eaf52e2ea1fc9dbbb73f # relay key
	d7fe55fb931fe549d61a7a873214066e29cfbbf3ab4e2adcb7ddb1c4b4456faa # SHA-256 of the ticket
	000001a3185c5000 # time
	01000000000000000000000000000002 # nonce
`); !bytes.Equal(got, want) {
		t.Errorf("what is signed is\n%x, want\n%x", got, want)
	}
}

func FuzzPackets(f *testing.F) {
	f.Add([]byte{})
	f.Add(appendPacket(appendPacket(nil, [32]byte{1}, data("a")), [32]byte{2}, []byte{1}))
	f.Add(append(make([]byte, 32), 0xff, 0xff))
	f.Fuzz(func(t *testing.T, msg []byte) {
		var again []byte
		for rest := msg; len(rest) > 0; {
			run, n, err := cutRun(rest)
			if err != nil {
				return
			}
			if n < 1 || len(run) < headerLen+1 {
				t.Fatalf("a run of %d packets, %d bytes", n, len(run))
			}
			rest = rest[len(run):]
			for ; n > 0; n-- {
				p, more, err := cutPacket(run)
				if err != nil {
					t.Fatal(err)
				}
				again, run = appendPacket(again, [key.Size]byte(p), p[headerLen:]), more
			}
			if len(run) != 0 {
				t.Fatalf("%x in a run after its packets", run)
			}
		}
		if !bytes.Equal(again, msg) {
			t.Fatalf("%x became %x", msg, again)
		}
	})
}

func FuzzTicket(f *testing.F) {
	control, _, _, ticket := fixed(f)
	trusted := []key.ControlPublic{key.PublicOf(control)}
	good := ticket.Sign(control)
	f.Add(good)
	f.Add(good[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := OpenTicket(b, trusted, ticket.Issued); err == nil && !bytes.Equal(b, good) {
			t.Fatalf("opened %x", b)
		}
		if got, ok := parseTicket(b); ok && len(b) == TicketLen {
			if again := got.Sign(control); got.Control == key.PublicOf(control) && !bytes.Equal(again[:ticketBody], b[:ticketBody]) {
				t.Fatalf("%x became %x", b, again)
			}
		}
	})
}

func FuzzProof(f *testing.F) {
	control, relay, machine, ticket := fixed(f)
	signed := ticket.Sign(control)
	f.Add(newProof(relay, signed, machine, ticket.Issued))
	f.Add(proofScheme)
	f.Add(proofScheme + strings.Repeat("\n", base64.RawURLEncoding.EncodedLen(proofLen))) // as long, and nothing in it
	f.Fuzz(func(t *testing.T, header string) {
		p, ok := parseProof(header)
		if ok && (len(p.ticket) != TicketLen || len(p.sig) != 64) {
			t.Fatalf("parsed %+v", p)
		}
	})
}
