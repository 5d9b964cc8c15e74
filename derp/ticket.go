package derp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// MaxTicketLife is the longest that a ticket is good for, whatever it says itself: nodes must get through a long weekend
// without their coordinator.
const MaxTicketLife = 4 * 24 * time.Hour

// TicketLen is the length in bytes of a signed ticket.
//
//	 0   1            33            65            97        105       113          177
//	┌───┬────────────┬─────────────┬─────────────┬─────────┬─────────┬────────────┐
//	│ 1 │ node key   │ machine key │ control key │ issued  │ expires │ signature  │
//	└───┴────────────┴─────────────┴─────────────┴─────────┴─────────┴────────────┘
//	 version                                      be64, Unix ms       Ed25519 by the control key,
//	                                                                  over all before it
const TicketLen = ticketBody + 64

const (
	ticketBody    = 1 + 3*key.Size + 2*8
	ticketVersion = 1
	ticketContext = "hedge relay ticket v1"
)

// The ways in which a ticket is no good. A relay tells a stranger ErrTicket for each, so as to tell it nothing.
var (
	ErrTicket        = errors.New("derp: not a ticket from a trusted coordinator; get one by connecting to the coordinator this relay belongs to")
	ErrTicketExpired = errors.New("derp: the ticket has expired; get a new one from the coordinator (is this machine's clock right?)")
)

// Ticket is a coordinator's word that a machine may be reached as a node key, at the relays that trust it.
// It is not a secret: it is good only together with the machine's signature. Times are in whole milliseconds.
type Ticket struct {
	Node    key.NodePublic
	Machine key.MachinePublic
	Control key.ControlPublic // who signed; set by Sign
	Issued  time.Time         // now when zero; Kick refuses tickets issued before it
	Expires time.Time         // the session at the relay ends then, too
}

// Sign returns the ticket's TicketLen bytes.
func (t Ticket) Sign(by key.ControlPrivate) []byte {
	if t.Issued.IsZero() {
		t.Issued = time.Now()
	}
	t.Control = key.PublicOf(by)
	b := make([]byte, 0, TicketLen)
	b = append(b, ticketVersion)
	for _, k := range [][key.Size]byte{t.Node.Raw(), t.Machine.Raw(), t.Control.Raw()} {
		b = append(b, k[:]...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(t.Issued.UnixMilli()))
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.UnixMilli()))
	return append(b, key.Sign(by, ticketContext, b)...)
}

// OpenTicket returns what a signed ticket says if one of trusted has signed it and it is in its time.
// With ErrTicketExpired the ticket is returned as well, since its signature was good.
func OpenTicket(b []byte, trusted []key.ControlPublic, now time.Time) (Ticket, error) {
	t, ok := parseTicket(b)
	if !ok || !slices.Contains(trusted, t.Control) || !key.Verify(t.Control, ticketContext, b[:ticketBody], b[ticketBody:]) {
		return Ticket{}, ErrTicket
	}
	switch {
	case !now.Before(t.Expires):
		return t, ErrTicketExpired
	case t.Expires.Sub(now) > MaxTicketLife:
		return t, fmt.Errorf("%w: it says it is good until %s, more than %s from now", ErrTicket, t.Expires.UTC().Format(time.RFC3339), MaxTicketLife)
	}
	return t, nil
}

// parseTicket takes a ticket apart without believing it.
func parseTicket(b []byte) (t Ticket, ok bool) {
	if len(b) != TicketLen || b[0] != ticketVersion {
		return t, false
	}
	t.Node = key.NodePublicFromRaw([key.Size]byte(b[1:33]))
	t.Machine = key.MachinePublicFromRaw([key.Size]byte(b[33:65]))
	t.Control = key.ControlPublicFromRaw([key.Size]byte(b[65:97]))
	issued, expires := binary.BigEndian.Uint64(b[97:]), binary.BigEndian.Uint64(b[105:])
	if t.Node.IsZero() || t.Machine.IsZero() || t.Control.IsZero() || issued > maxMilli || expires > maxMilli {
		return Ticket{}, false
	}
	t.Issued, t.Expires = time.UnixMilli(int64(issued)), time.UnixMilli(int64(expires))
	return t, true
}

// maxMilli is the end of the year 9999: later times are nonsense, and some would wrap.
const maxMilli = 253402300799999
