package wire

import (
	"net/netip"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/node/key"
)

// Map is the whole of what a node knows of its mesh: what it enforces, and keeps on disk.
// Its first part is the durable plane, revisioned and acknowledged; Presence and Ticket are the soft one.
type Map struct {
	Revision uint64             `cbor:"1,keyasint"` // of the durable plane; grows
	Self     Self               `cbor:"2,keyasint"`
	Peers    []Peer             `cbor:"3,keyasint"` // sorted by ID
	Rules    []acl.Rule         `cbor:"4,keyasint"`
	Sets     map[string]acl.Set `cbor:"5,keyasint"`
	Relays   []Relay            `cbor:"6,keyasint"` // sorted by ID

	Presence map[acl.NodeID]Presence `cbor:"7,keyasint"`
	Ticket   Ticket                  `cbor:"8,keyasint"`
}

// Self is a node's own record.
type Self struct {
	Peer
	Domain   string         `cbor:"20,keyasint"` // "hedge.internal": a peer's full name is Name.Domain
	Prefixes []netip.Prefix `cbor:"21,keyasint"` // all of the mesh's own addresses
}

// Peer is the durable record of a node: its identity, and the key that proves it.
type Peer struct {
	acl.Node
	Key     key.NodePublic `cbor:"10,keyasint"`
	Expires time.Time      `cbor:"11,keyasint,omitzero"` // of the key; peers refuse it from then on, coordinator or not
}

// Relay is a relay that this mesh uses.
type Relay struct {
	ID   uint16          `cbor:"1,keyasint"`
	Key  key.RelayPublic `cbor:"2,keyasint"`
	URLs []string        `cbor:"3,keyasint"` // "https://host:port", any of which reaches it
	STUN []string        `cbor:"4,keyasint"` // "host:port", UDP
}

// Presence is where a peer can be found just now.
type Presence struct {
	ID        acl.NodeID       `cbor:"1,keyasint"`
	Online    bool             `cbor:"2,keyasint"`
	Disco     key.DiscoPublic  `cbor:"3,keyasint"`
	Endpoints []netip.AddrPort `cbor:"4,keyasint"` // at most MaxEndpoints
	Relay     uint16           `cbor:"5,keyasint"` // where it listens; 0 for none
	LastSeen  time.Time        `cbor:"6,keyasint,omitzero"`
	PeerRelay bool             `cbor:"7,keyasint,omitempty"` // it is a relay for whom the policy lets use it
	Lacks     []uint16         `cbor:"8,keyasint,omitempty"` // relays that it has tried in vain; at most MaxLacks
}

// Hello opens a session. Enrol is set only by a machine the coordinator does not know yet.
type Hello struct {
	Version   int             `cbor:"1,keyasint"` // of this protocol
	Node      key.NodePublic  `cbor:"2,keyasint"`
	Disco     key.DiscoPublic `cbor:"3,keyasint"`
	Name      string          `cbor:"4,keyasint"` // the name wanted, at enrolment
	Enrol     string          `cbor:"5,keyasint,omitempty"`
	Revision  uint64          `cbor:"6,keyasint"` // of the Map it has; 0 for none
	Have      Hashes          `cbor:"7,keyasint,omitempty"`
	OS        string          `cbor:"8,keyasint"`
	Software  string          `cbor:"9,keyasint"`
	Ephemeral bool            `cbor:"11,keyasint,omitempty"`
	// Exact refuses any other name than Name; else a taken name gets a number.
	Exact bool `cbor:"12,keyasint,omitempty"`
	// Routes are the prefixes it offers to carry, as in Advertise.
	Routes []netip.Prefix `cbor:"13,keyasint,omitempty"`
}

// Hashes are the SHA-256 of each durable section of a Map, by the section's name.
type Hashes map[string][]byte

// Delta takes a Map from one revision to the next. A nil section has not changed; a section that is given whole
// replaces what was there, and the Peers, Sets and Members changes are applied to what is there.
type Delta struct {
	From     uint64 `cbor:"1,keyasint"` // the Map must have this revision, unless Reset
	Revision uint64 `cbor:"2,keyasint"`
	Reset    bool   `cbor:"3,keyasint,omitempty"` // forget peers and sets first

	Self      *Self              `cbor:"4,keyasint,omitempty"`
	Peers     []Peer             `cbor:"5,keyasint,omitempty"` // new or changed
	PeersGone []acl.NodeID       `cbor:"6,keyasint,omitempty"`
	Rules     *[]acl.Rule        `cbor:"7,keyasint,omitempty"`
	Sets      map[string]acl.Set `cbor:"8,keyasint,omitempty"` // new or changed by more than nodes
	SetsGone  []string           `cbor:"9,keyasint,omitempty"`
	Members   []Membership       `cbor:"10,keyasint,omitempty"` // a node joins or leaves a set
	Relays    *[]Relay           `cbor:"11,keyasint,omitempty"`
}

// Membership changes the nodes of one set.
type Membership struct {
	Set    string       `cbor:"1,keyasint"`
	Add    []acl.NodeID `cbor:"2,keyasint,omitempty"`
	Remove []acl.NodeID `cbor:"3,keyasint,omitempty"`
}

// Ack tells the coordinator that the node's filter and peers are those of Revision.
type Ack struct {
	Revision uint64 `cbor:"1,keyasint"`
}

// Here tells the coordinator where this node can be found.
type Here struct {
	Endpoints []netip.AddrPort `cbor:"1,keyasint"`
	Relay     uint16           `cbor:"2,keyasint"`
	Disco     key.DiscoPublic  `cbor:"3,keyasint"`
	PeerRelay bool             `cbor:"4,keyasint,omitempty"` // see Presence
	Lacks     []uint16         `cbor:"5,keyasint,omitempty"` // the same
}

// Advertise replaces the prefixes that this node offers to carry for others: proper ones (see [CheckRoute]), at most
// MaxRoutes. What is approved of them comes back as the Routes of its own record.
type Advertise struct {
	Routes []netip.Prefix `cbor:"1,keyasint"`
}

// Where is the soft plane's news, coalesced per peer.
type Where struct {
	Peers []Presence `cbor:"1,keyasint"`
}

// Ticket is a relay ticket (derp.Ticket, signed by the coordinator), opaque here. It replaces the one before.
type Ticket struct {
	Signed []byte `cbor:"1,keyasint"`
}

// Logout ends this node's membership, of its own will.
type Logout struct{}

// Refused ends a session: Code is for programs, Message says to a person what is wrong and what to do.
type Refused struct {
	Code    RefusalCode `cbor:"1,keyasint"`
	Message string      `cbor:"2,keyasint"`
}

// Error makes a Refused an error.
func (r *Refused) Error() string { return r.Message }

// RefusalCode is why a coordinator refuses a node.
type RefusalCode string

// The refusals.
const (
	RefusedUnknown   RefusalCode = "unknown-machine" // not enrolled, and no enrolment key given
	RefusedKeyWrong  RefusalCode = "key-wrong"       // no such enrolment key
	RefusedKeyUsed   RefusalCode = "key-used"
	RefusedKeyEnded  RefusalCode = "key-expired"
	RefusedName      RefusalCode = "name-taken"
	RefusedRemoved   RefusalCode = "removed" // an admin removed this node
	RefusedExpired   RefusalCode = "expired" // this node's key has expired
	RefusedVersion   RefusalCode = "version"
	RefusedMalformed RefusalCode = "malformed"
	RefusedBusy      RefusalCode = "busy" // try again
	RefusedReplaced  RefusalCode = "replaced"
	RefusedOwner     RefusalCode = "other-owner" // the machine is enrolled, and the enrolment key is for someone else
)

// Limits on what one message may hold; more is a protocol error.
const (
	Version      = 1
	MaxMessage   = 16 << 20 // bytes
	MaxEndpoints = 32       // per node
	MaxLacks     = 8        // the same
	MaxRoutes    = 256      // per node
)
