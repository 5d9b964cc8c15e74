package bind

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/node/key"
)

// Bind is a conn.Bind. Its methods may be called from any goroutine.
type Bind struct{}

var _ conn.Bind = (*Bind)(nil)

var errTODO = errors.New("bind: not written yet")

// New opens the sockets and starts; Stop ends it. Nothing is received until a device calls Open.
func New(Config) (*Bind, error) { return nil, errTODO }

// Stop closes sockets and relay clients and waits for every goroutine.
func (b *Bind) Stop() {}

// SetPeers replaces the set of peers.
func (b *Bind) SetPeers([]Peer) {}

// SetRelays replaces the set of relays.
func (b *Bind) SetRelays([]Relay) {}

// SetTicket sets the ticket shown to relays from the next connection on.
func (b *Bind) SetTicket([]byte) {}

// Endpoints are the addresses at which peers may reach us.
func (b *Bind) Endpoints() []netip.AddrPort { return nil }

// Home is the ID of our home relay, 0 if none.
func (b *Bind) Home() uint16 { return 0 }

// Path is how packets reach a peer now; false if there is no such peer.
func (b *Bind) Path(key.NodePublic) (PathInfo, bool) { return PathInfo{}, false }

// Probe asks the peer for one answer by its current path, and tells how long it took and by which path it came.
func (b *Bind) Probe(context.Context, key.NodePublic) (time.Duration, PathInfo, error) {
	return 0, PathInfo{}, errTODO
}

// Open implements conn.Bind.
func (b *Bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) { return nil, 0, errTODO }

// Close implements conn.Bind: it detaches the device and leaves the sockets open.
func (b *Bind) Close() error { return nil }

// SetMark implements conn.Bind.
func (b *Bind) SetMark(uint32) error { return nil }

// Send implements conn.Bind.
func (b *Bind) Send([][]byte, conn.Endpoint) error { return errTODO }

// ParseEndpoint implements conn.Bind; s is the 64 hexadecimal digits of a node key.
func (b *Bind) ParseEndpoint(string) (conn.Endpoint, error) { return nil, errTODO }

// BatchSize implements conn.Bind.
func (b *Bind) BatchSize() int { return conn.IdealBatchSize }
