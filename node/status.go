package node

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// Seconds is a duration that JSON shows as a number of seconds.
type Seconds time.Duration

// String is the duration as Go writes it, "1.2ms".
func (s Seconds) String() string { return time.Duration(s).String() }

// MarshalJSON gives seconds, as a number.
func (s Seconds) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(s).Seconds()) }

// UnmarshalJSON takes seconds, as a number.
func (s *Seconds) UnmarshalJSON(b []byte) error {
	var f float64
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	*s = Seconds(f * float64(time.Second))
	return nil
}

// State is one word for how a node is.
type State string

// The states.
const (
	StateStarting State = "starting" // no Map yet
	StateRunning  State = "running"  // enforcing a Map, coordinator connected
	StateOffline  State = "offline"  // enforcing its last Map, coordinator not connected
	StateRefused  State = "refused"  // removed or expired: no traffic at all
	StateStopped  State = "stopped"
)

// Status is a node and its peers, now.
type Status struct {
	State    State        `json:"state"`
	Problem  string       `json:"problem,omitempty"` // what is wrong and what to do, if anything is
	ID       acl.NodeID   `json:"id,omitempty"`
	Name     string       `json:"name"`
	FullName string       `json:"full_name"` // Name.Domain
	User     string       `json:"user,omitempty"`
	Tags     []string     `json:"tags,omitempty"`
	Addrs    []netip.Addr `json:"addrs"`
	Key      string       `json:"key"`                  // "node:…", public
	Machine  string       `json:"machine"`              // "machine:…", public
	Expires  time.Time    `json:"key_expires,omitzero"` // peers refuse this node from then on
	Version  string       `json:"version"`              // of the software
	PID      int          `json:"pid"`                  //
	Started  time.Time    `json:"started"`              //
	Uptime   Seconds      `json:"uptime_seconds"`       //
	StateDir string       `json:"state_dir"`            //
	Policy   Policy       `json:"policy"`               //
	Control  Control      `json:"coordinator"`          //
	Relay    Relay        `json:"relay"`                // this node's home relay
	Listen   []string     `json:"endpoints"`            // where peers may reach this node directly
	Device   Device       `json:"device"`               // how programs of this host reach the mesh
	Inbound  string       `json:"inbound"`              // "off", "loopback", "handler"; "host" on an interface of the host
	Proxy    string       `json:"proxy,omitempty"`      // "127.0.0.1:1055": SOCKS5 and HTTP
	Carries  []Carried    `json:"carries,omitempty"`    // what this node offers to carry for others
	NoPings  string       `json:"no_pings,omitempty"`   // why pings are not among that
	ExitNode *ExitNode    `json:"exit_node,omitempty"`  // the one that was chosen
	Traffic  Traffic      `json:"traffic"`              //

	PeerRelay *PeerRelay `json:"peer_relay,omitempty"` // what this node does as one; nil if it is none

	Peers []Peer `json:"peers"` // sorted by name
}

// Carried is a prefix behind this node.
type Carried struct {
	Route    netip.Prefix `json:"route"` // a /0 is the internet
	Approved bool         `json:"approved"`
	Problem  string       `json:"problem,omitempty"` // why it is not carried
}

// ExitNode is the peer by which this node reaches the internet.
type ExitNode struct {
	Name    string `json:"name"`
	InUse   bool   `json:"in_use"`
	Problem string `json:"problem,omitempty"` // why not
	Names   string `json:"names,omitempty"`   // who looks up names: "exit", or "local" where no rule lets this node ask it (UDP port 53)
}

// Policy is what the node enforces.
type Policy struct {
	Revision uint64    `json:"revision"`       // enforced, both filter and peers
	Since    time.Time `json:"since,omitzero"` // when it was put in force
	FromDisk bool      `json:"from_disk"`      // it is the last Map of an earlier run, not confirmed since
	Rules    int       `json:"rules"`          // that concern this node
	Flows    int       `json:"flows"`          // being tracked
}

// Control is the connection to the coordinator.
type Control struct {
	URLs      []string  `json:"urls"`
	Pin       string    `json:"pin"` // "control:…"
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"` // connected or disconnected since
	LastError string    `json:"last_error,omitempty"`
	Stuck     bool      `json:"stuck,omitempty"`    // LastError is of a kind that a person has to mend
	Attempts  int       `json:"attempts,omitempty"` // failed in a row
}

// Relay is a node's home relay.
type Relay struct {
	ID  uint16 `json:"id,omitempty"`
	URL string `json:"url,omitempty"`
}

// Kinds of [Device].
const (
	DeviceTUN      = "tun"      // an interface of the host: any program
	DeviceNetstack = "netstack" // a stack inside the process: by Proxy
)

// Device is what joins the programs of this host to the mesh.
type Device struct {
	Kind string `json:"kind"`           // DeviceTUN or DeviceNetstack
	Name string `json:"name,omitempty"` // of the interface
	MTU  int    `json:"mtu"`            // bytes
	Why  string `json:"why"`            // it is that and not the other
}

// Traffic counts packets and bytes inside the tunnel since the start, and those that the policy stopped.
type Traffic struct {
	RxBytes   uint64 `json:"rx_bytes"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	TxPackets uint64 `json:"tx_packets"`
	RxDenied  uint64 `json:"rx_denied_packets"` // from peers, not let in
	TxDenied  uint64 `json:"tx_denied_packets"` // ours, not let out
}

// Peer is another node that the policy lets this one see.
type Peer struct {
	ID        acl.NodeID     `json:"id"`
	Name      string         `json:"name"`
	FullName  string         `json:"full_name"`
	User      string         `json:"user,omitempty"`
	Tags      []string       `json:"tags,omitempty"`
	Addrs     []netip.Addr   `json:"addrs"`
	Routes    []netip.Prefix `json:"routes,omitempty"`
	Exit      bool           `json:"exit,omitempty"` // this node may choose it as its exit
	Key       string         `json:"key"`
	Expires   time.Time      `json:"key_expires,omitzero"`
	Expired   bool           `json:"expired,omitempty"`
	Online    bool           `json:"online"`             // connected to the coordinator, as it last said
	LastSeen  time.Time      `json:"last_seen,omitzero"` // by the coordinator
	Path      Path           `json:"path"`
	RxBytes   uint64         `json:"rx_bytes"` // encrypted, as WireGuard counts
	TxBytes   uint64         `json:"tx_bytes"`
	Handshake time.Time      `json:"last_handshake,omitzero"`
}

// Path is how packets get to a peer now.
type Path struct {
	Kind  string    `json:"kind"`               // "direct", "peer-relay", "relay" or "none"
	Addr  string    `json:"addr,omitempty"`     // of a direct path
	Via   string    `json:"via,omitempty"`      // the name of the peer relay
	Relay uint16    `json:"relay_id,omitempty"` // of a relayed one
	RTT   Seconds   `json:"rtt_seconds,omitzero"`
	MTU   int       `json:"mtu,omitempty"` // bytes of the longest packet inside the tunnel that it carries whole
	Since time.Time `json:"since,omitzero"`
	Heard time.Time `json:"last_heard,omitzero"`
	Why   string    `json:"why,omitempty"` // it was chosen, for people
}

// String is "direct 192.0.2.1:41641", "via peer relay hub", "relay 1" or "none".
func (p Path) String() string {
	switch p.Kind {
	case "direct":
		return "direct " + p.Addr
	case "peer-relay":
		return "via peer relay " + p.Via
	case "relay":
		return "relay " + strconv.Itoa(int(p.Relay))
	}
	return "none"
}

// PingResult is one answer from a peer.
type PingResult struct {
	Peer string     `json:"peer"`
	Addr netip.Addr `json:"addr"`
	How  string     `json:"how"` // "path": a probe beneath the tunnel; "icmp": an echo in it
	RTT  Seconds    `json:"rtt_seconds"`
	Path Path       `json:"path"`
}

// WhyQuery asks about a new flow. Src and Dst are names or addresses; one of the two is this node (an empty one means it).
type WhyQuery struct {
	Src   string `json:"src,omitempty"`
	Dst   string `json:"dst,omitempty"`
	Port  uint16 `json:"port"`            // of Dst; 0 for protocols without ports
	Proto uint8  `json:"proto,omitempty"` // IANA protocol number; 0 means TCP
}

// WhyResult is a verdict and its reason.
type WhyResult struct {
	Allow     bool      `json:"allow"`
	Text      string    `json:"text"`      // "denied: no rule lets web reach db on tcp/5432"
	Reason    string    `json:"reason"`    // the same, for programs
	Direction string    `json:"direction"` // "egress" or "ingress", of this node
	Src       string    `json:"src"`
	Dst       string    `json:"dst"`
	Port      uint16    `json:"port"`
	Proto     uint8     `json:"proto"`
	Rule      *acl.Rule `json:"rule,omitempty"`
	Revision  uint64    `json:"revision"`
}
