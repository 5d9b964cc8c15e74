package path

import (
	"net/netip"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// Route is where a packet goes: an address, or, as its zero value, the relay of the peer.
type Route = netip.AddrPort

// Paths is the state of all peers. It is not safe for concurrent use.
type Paths struct{}

// Config is what Paths are made from.
type Config struct{ Tx func() TxID }

// New returns Paths without peers.
func New(Config) *Paths { return &Paths{} }

// Event is something that happened; Action is something to do.
type (
	Event  interface{ event() }
	Action interface{ action() }
)

// Step takes one event and returns what to do about it.
func (p *Paths) Step(now time.Time, ev Event) []Action { return nil }

// Next is the peer that wants the next Tick, and when.
func (p *Paths) Next() (key.NodePublic, time.Time, bool) { return key.NodePublic{}, time.Time{}, false }
