package coordinator

import (
	"net/netip"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/node/key"
)

// NodeInfo is what an admin sees of a node.
type NodeInfo struct {
	ID        acl.NodeID        `json:"id"`
	Name      string            `json:"name"`
	User      string            `json:"user,omitempty"`
	Tags      []string          `json:"tags,omitempty"`
	Addrs     []netip.Addr      `json:"addrs"`
	Key       key.NodePublic    `json:"key"`
	Machine   key.MachinePublic `json:"machine"`
	Created   time.Time         `json:"created"`
	Expires   time.Time         `json:"expires,omitzero"`
	Expired   bool              `json:"expired"`
	Ephemeral bool              `json:"ephemeral,omitempty"`
	OS        string            `json:"os,omitempty"`
	Software  string            `json:"software,omitempty"`
	Online    bool              `json:"online"`
	LastSeen  time.Time         `json:"lastSeen,omitzero"`
	Endpoints []netip.AddrPort  `json:"endpoints,omitempty"`
	Relay     uint16            `json:"relay,omitempty"`
	Enforced  uint64            `json:"enforced"` // the newest revision this node is known to enforce
	Peers     int               `json:"peers"`    // how many nodes it may know of
	Routes    []RouteInfo       `json:"routes,omitempty"`
}

// RouteInfo is a prefix that a node offers to carry for others, or that an admin has decided about. It is carried if it
// is Advertised and Approved.
type RouteInfo struct {
	Route      netip.Prefix `json:"route"`
	Advertised bool         `json:"advertised"`
	Approved   bool         `json:"approved"`
	By         string       `json:"by,omitempty"`      // who approved or revoked it: "policy" or "admin"; empty: nobody has
	Primary    bool         `json:"primary,omitempty"` // it is used, and not another node that carries the same
	StandbyFor string       `json:"standbyFor,omitempty"`
}

// RoutesRequest approves and revokes routes of a node, whatever autoApprovers says.
type RoutesRequest struct {
	Approve []netip.Prefix `json:"approve,omitempty"`
	Revoke  []netip.Prefix `json:"revoke,omitempty"`
}

// UserInfo is a user.
type UserInfo struct {
	Login   string    `json:"login"`
	Roles   []string  `json:"roles,omitempty"`
	Created time.Time `json:"created"`
	Nodes   int       `json:"nodes"`
}

// CreateUserRequest makes a user known.
type CreateUserRequest struct {
	Login string   `json:"login"`
	Roles []string `json:"roles,omitempty"`
}

// KeyInfo is a join key without its secret.
type KeyInfo struct {
	ID        string    `json:"id"`
	User      string    `json:"user,omitempty"`
	Tags      []string  `json:"tags,omitempty"`
	Reusable  bool      `json:"reusable,omitempty"`
	Ephemeral bool      `json:"ephemeral,omitempty"`
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires,omitzero"`
	Uses      int       `json:"uses"`
	Revoked   bool      `json:"revoked,omitempty"`
	State     string    `json:"state"` // "valid", "used", "expired" or "revoked"
}

// CreateKeyRequest makes a join key, for a user or for tags: one of the two.
type CreateKeyRequest struct {
	User      string        `json:"user,omitempty"`
	Tags      []string      `json:"tags,omitempty"`
	Reusable  bool          `json:"reusable,omitempty"`
	Ephemeral bool          `json:"ephemeral,omitempty"`
	TTL       time.Duration `json:"ttl,omitempty"` // nanoseconds; 0 is an hour
}

// CreatedKey is a new join key, and the only place its secret is told.
type CreatedKey struct {
	KeyInfo
	Join string `json:"join"` // the join string; a secret
}

// ACLInfo is the policy in force, and what became of its file.
type ACLInfo struct {
	File     string    `json:"file"`
	Hash     string    `json:"hash,omitempty"` // SHA-256 of the policy in force, in hexadecimal; empty if none is
	Source   string    `json:"source,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Revision uint64    `json:"revision"` // that put it in force
	// Rejected says what is wrong with the file as it is now, if that is not what is in force.
	Rejected *ACLCheck `json:"rejected,omitempty"`
}

// ACLCheck is what is wrong with a policy.
type ACLCheck struct {
	OK       bool       `json:"ok"`
	Hash     string     `json:"hash,omitempty"`
	Errors   acl.Errors `json:"errors,omitempty"`
	Rendered string     `json:"rendered,omitempty"` // the errors as a person reads them, with the lines they are in
}

// AdminStatus says how the coordinator and its mesh are.
type AdminStatus struct {
	Control  key.ControlPublic `json:"control"`
	URLs     []string          `json:"urls"`
	Domain   string            `json:"domain"`
	Prefixes []netip.Prefix    `json:"prefixes"`
	Started  time.Time         `json:"started"`
	Revision uint64            `json:"revision"`
	Nodes    int               `json:"nodes"`
	Online   int               `json:"online"`
	Enforced int               `json:"enforced"`         // nodes that enforce Revision
	Behind   []string          `json:"behind,omitempty"` // online nodes that do not yet, by name; at most 20
	Policy   ACLInfo           `json:"policy"`           // without its source
}

// AdminError is a refusal of the admin API.
type AdminError struct {
	Status int       `json:"-"`     // of HTTP
	Class  string    `json:"class"` // "not-found", "exists", "invalid", "denied", "policy", "internal"
	Msg    string    `json:"error"`
	Check  *ACLCheck `json:"check,omitempty"` // of class "policy"
}

func (e *AdminError) Error() string { return e.Msg }
