package acl

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// NodeID is a node's number in its mesh: given by the coordinator, never zero, never used again.
type NodeID uint64

// Pos is a place in an ACL file; lines and columns count from 1, columns in bytes. The zero Pos is no place.
type Pos struct {
	File string `cbor:"1,keyasint,omitempty" json:"file,omitempty"`
	Line int    `cbor:"2,keyasint,omitempty" json:"line,omitempty"`
	Col  int    `cbor:"3,keyasint,omitempty" json:"col,omitempty"`
}

// String is file:line:col, the form that editors and terminals make into a link.
func (p Pos) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col) }

// Action is what a rule says about the packets it matches. The zero Action is neither, and so admits nothing.
type Action uint8

// The actions. Deny wins over Accept, whatever their order. Relay is about no packets: it lets its sources use its
// destinations as peer relays (see [CapRelay]).
const (
	Accept Action = iota + 1
	Deny
	Relay
)

// Rule is one permission, unconverted from the compiler to the wire to the filter.
//
// A packet matches when its source is in any of Src, its destination and port are in any of Dst, its protocol is
// in Protos, and the rule is in force at the time. Sources and destinations are names of sets, whose members travel
// beside the rules (see [View]); so a node that joins a group changes a set and no rule.
type Rule struct {
	Pos    Pos      `cbor:"1,keyasint" json:"pos"`
	Path   string   `cbor:"2,keyasint" json:"path"` // where in the document: "acls[3]"
	Action Action   `cbor:"3,keyasint" json:"action"`
	Src    []string `cbor:"4,keyasint" json:"src"`
	Dst    []Target `cbor:"5,keyasint" json:"dst"`
	// Protos are IANA protocol numbers; empty means the default of TCP, UDP, ICMP and ICMPv6.
	Protos Protos `cbor:"6,keyasint,omitempty" json:"protos,omitempty"`
	// Expires ends the rule; zero means never.
	Expires time.Time `cbor:"7,keyasint,omitzero" json:"expires,omitzero"`
	// Window is when in the week the rule is in force; empty means always.
	Window Window `cbor:"8,keyasint,omitempty" json:"window,omitempty"`
}

// Protos are IANA protocol numbers. In JSON they are a list of numbers, not the base64 of bytes.
type Protos []uint8

// MarshalJSON writes a list of numbers.
func (p Protos) MarshalJSON() ([]byte, error) {
	out := make([]int, len(p))
	for i, n := range p {
		out[i] = int(n)
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads a list of numbers from 0 to 255.
func (p *Protos) UnmarshalJSON(b []byte) error {
	var in []uint16 // a list of uint8 would be base64
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	out := make(Protos, len(in))
	for i, n := range in {
		if n > 255 {
			return fmt.Errorf("%d is no protocol number", n)
		}
		out[i] = uint8(n)
	}
	*p = out
	return nil
}

// Target is a destination: a set of addresses or nodes, and ports on them.
type Target struct {
	Set   string      `cbor:"1,keyasint" json:"set"`
	Ports []PortRange `cbor:"2,keyasint" json:"ports"`
}

// PortRange is the ports First to Last, both included. AllPorts also admits protocols that have no ports.
type PortRange struct {
	First uint16 `cbor:"1,keyasint" json:"first"`
	Last  uint16 `cbor:"2,keyasint" json:"last"`
}

// AllPorts is "*", which "1-65535" is not.
var AllPorts = PortRange{0, 65535}

// Contains reports whether the range includes port.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// Set is what a name in a rule stands for. An empty Set matches nothing.
type Set struct {
	// Any matches every address a known peer may use: as a source its own addresses and approved routes, as a
	// destination whatever the receiver carries.
	Any bool `cbor:"1,keyasint,omitempty" json:"any,omitempty"`
	// Nodes are identities: all of a node's own addresses, in both families, and none of its routes. Sorted.
	Nodes []NodeID `cbor:"2,keyasint,omitempty" json:"nodes,omitempty"`
	// Prefixes are addresses as written; they are not widened to the node that holds them. Sorted.
	Prefixes []netip.Prefix `cbor:"3,keyasint,omitempty" json:"prefixes,omitempty"`
}

// Node is what a policy may know of a node.
type Node struct {
	ID   NodeID `cbor:"1,keyasint" json:"id"`
	Name string `cbor:"2,keyasint" json:"name"` // one DNS label, unique in the mesh
	// User is the login of the owner. A node with tags belongs to no user, whatever this says: it is what a source such
	// as "group:eng & tag:corp" goes by.
	User string   `cbor:"3,keyasint,omitempty" json:"user,omitempty"`
	Tags []string `cbor:"4,keyasint,omitempty" json:"tags,omitempty"` // "tag:web", sorted
	// Addrs are the node's own addresses in the mesh.
	Addrs []netip.Addr `cbor:"5,keyasint" json:"addrs"`
	// Routes are approved prefixes it carries for others, exit routes (a /0) included.
	Routes []netip.Prefix `cbor:"6,keyasint,omitempty" json:"routes,omitempty"`
	// Attrs are what postures ask about ("node:os": "linux"). They are the coordinator's to know, and are not sent.
	Attrs map[string]string `cbor:"-" json:"attrs,omitempty"`
}

// User is a person as the coordinator knows them.
type User struct {
	Login string   `cbor:"1,keyasint" json:"login"` // "alice@example.com"
	Roles []string `cbor:"2,keyasint,omitempty" json:"roles,omitempty"`
}

// Inventory is who exists: what a policy is compiled against.
type Inventory struct {
	Users []User `json:"users"`
	Nodes []Node `json:"nodes"`
}

// View is one node's part of a compiled policy: the rules in which it is a source or a destination, the sets
// they name, cut to what the node may know, and the peers it sees. A node learns nothing else.
type View struct {
	Rules []Rule
	Sets  map[string]Set
	Peers []NodeID // sorted; a rule lets one of the two send to the other
}
