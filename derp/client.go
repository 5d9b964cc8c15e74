package derp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"github.com/hedge-mesh/hedge/node/key"
)

// ClientConfig is what a client needs to know of itself and its relay.
type ClientConfig struct {
	ID      uint16   // the relay's number, for messages
	URLs    []string // http:// or https://host:port, tried in turn; Path is added to one without a path
	Key     key.RelayPublic
	Node    key.NodePublic
	Machine key.MachinePrivate
	Ticket  func() []byte // the newest signed ticket; nil or empty while there is none

	// Receive gets packets that arrived, one or more, all from one node. They are valid until it returns.
	Receive func(from key.NodePublic, pkts [][]byte)
	// Status, if set, is told each time the relay becomes reachable (true, nil), is lost or could not be reached
	// (false, why), or is still there but about to go away (true, ErrDraining). It must return soon.
	Status func(up bool, err error)
	// Gone, if set, is told that the relay has no such node: a hint, which a relay may withhold or invent.
	Gone func(key.NodePublic)

	// Dial makes TCP connections; a net.Dialer's if nil.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Proxy chooses an HTTP proxy; http.ProxyFromEnvironment if nil.
	Proxy func(*http.Request) (*url.URL, error)
}

// The reasons for which a relay ends a session, as Status is told them. Test with errors.Is.
var (
	ErrReplaced = errors.New("derp: another connection of the same node key has taken this one's place")
	ErrKicked   = errors.New("derp: this node has been removed")
	ErrExpired  = errors.New("derp: the relay ticket has expired")
	ErrDraining = errors.New("derp: the relay is going away; use another")
	ErrSilent   = errors.New("derp: the relay stopped answering")
	ErrNoTicket = errors.New("derp: no relay ticket yet; the coordinator issues one")
)

// RefusedError is a relay's, or a proxy's, refusal of the upgrade request.
type RefusedError struct {
	URL    string
	Status int    // HTTP
	Reason string // the answer's text, in one line
}

// Error names the URL, the status and the reason given.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("derp: %s refused with status %d: %s", e.URL, e.Status, e.Reason)
}

// Client keeps a connection to one relay, redialling for ever.
type Client struct{}

// NewClient starts to connect. Close ends it.
func NewClient(cfg ClientConfig) *Client { return &Client{} }

// Send queues packets to a node and returns at once: it copies them, and drops the oldest data if the queue is full.
// It reports whether the packets were taken; a packet longer than MaxPacket, and an empty one, never are.
// Packets that are not WireGuard data go before data by themselves, as with SendPriority.
func (c *Client) Send(dst key.NodePublic, pkts [][]byte) bool { return false }

// SendPriority queues packets, of at most 2048 bytes, that go before any data: path probes and handshakes. When too many wait
// already, the new ones are dropped.
func (c *Client) SendPriority(dst key.NodePublic, pkts [][]byte) bool { return false }

// Up reports whether there is a connection.
func (c *Client) Up() bool { return false }

// Redial makes a new connection and then gives up the old one: for when the network has changed under it.
func (c *Client) Redial() {}

// Close ends the connection and waits for every goroutine of the client. No callback runs after it.
// It must not be called from a callback.
func (c *Client) Close() error { return nil }
