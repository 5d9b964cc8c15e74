package derp

import (
	"context"
	"crypto/tls"
	"net/http"

	"github.com/rs/zerolog"

	"github.com/hedge-mesh/hedge/node/key"
)

// ServerConfig is what a relay needs to know. Zero numbers stand for the defaults given.
type ServerConfig struct {
	Key   key.RelayPrivate
	Trust []key.ControlPublic // whose tickets are good; nodes of one never reach nodes of another

	MaxClients   int // 10,000
	QueueBytes   int // for each client: 256 KiB of packets that wait, the oldest dropped first
	QueuePackets int // for each client: 512
	Rate         int // bytes a second that each node key may send; 0 for no limit
	Burst        int // bytes it may send at once; a second's worth, and at least MaxMessage

	Log zerolog.Logger
}

// Server is a relay. It is an http.Handler for the path it is mounted on.
type Server struct{}

// Stats counts what a server has done since it started.
type Stats struct {
	Clients  int    // connected now
	Accepted uint64 // connections
	Refused  uint64 // upgrade requests: whatever the reason
	Replaced uint64 // connections that gave way to a newer one of the same key
	Kicked   uint64
	Expired  uint64 // sessions that ended with their ticket
	Abused   uint64 // connections ended for breaking the protocol

	PacketsIn, BytesIn   uint64 // of payload
	PacketsOut, BytesOut uint64

	DroppedQueue   uint64 // the oldest of a full queue
	DroppedUrgent  uint64 // the newest for a full urgent queue
	DroppedUnknown uint64 // to a key that is not here
	DroppedRate    uint64 // above the sender's rate
}

// NewServer makes a relay. Close ends it.
func NewServer(cfg ServerConfig) *Server { return &Server{} }

// ServeHTTP admits a node and upgrades its request to a WebSocket, or says why not.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {}

// TLSConfig is for a listener of this relay's own: TLS 1.3 with a self-signed certificate of the relay's key.
func (s *Server) TLSConfig() (*tls.Config, error) { return nil, nil }

// Kick ends node's session, and refuses the tickets that it was issued until now.
func (s *Server) Kick(node key.NodePublic) {}

// Drain refuses new clients, tells those that are here to go elsewhere, and waits until they have or until ctx ends.
// It returns how many were left. Close must still be called.
func (s *Server) Drain(ctx context.Context) int { return 0 }

// Close ends all sessions and waits for every goroutine of the server: two seconds at most.
func (s *Server) Close() error { return nil }

// Stats returns the counters.
func (s *Server) Stats() Stats { return Stats{} }
