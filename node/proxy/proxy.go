// Package proxy lets ordinary programs reach the mesh through one loopback port that speaks SOCKS5 and HTTP.
//
//	curl, ssh, browsers ─→ 127.0.0.1:1055 ─ first byte 0x05 ─→ SOCKS5 (RFC 1928): CONNECT, UDP ASSOCIATE ─┐
//	                                       └ else ───────────→ HTTP: CONNECT, GET http://… ───────────────┴→ Dialer
//
// Names are handed to the Dialer as they are: what a name means is decided on the mesh, not by the host's DNS.
package proxy

import (
	"context"
	"errors"
	"net"
	"time"
)

// Dialer connects to address, "host:port" with a name or an IP address; network is "tcp" or "udp".
//
// An error may say how it is to be answered: SOCKS5() byte is the reply code of RFC 1928 section 6, HTTPStatus()
// int the status; both are found with errors.As. The error's text is the body of the HTTP answer.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Options configure a [Server]. Zero means the default.
type Options struct {
	Dialer           Dialer
	User, Password   string        // when set, asked for (RFC 1929 or HTTP Basic)
	AllowRemote      bool          // serve listeners that are not on a loopback address
	MaxConns         int           // client connections at once, 1024 when 0
	HandshakeTimeout time.Duration // for a whole request to arrive, 10 s when 0
	DialTimeout      time.Duration // 30 s when 0
	UDPIdle          time.Duration // a UDP peer is forgotten after so much silence, 2 minutes when 0
}

// ErrNotLoopback is returned by Serve for a listener others could reach, see Options.AllowRemote.
var ErrNotLoopback = errors.New("proxy: refusing to listen on an address that is not loopback: anyone who reaches it could use this node; allow it explicitly")

var errTODO = errors.New("proxy: not written yet")

// Server serves any number of listeners.
type Server struct{}

// New returns a Server; it starts nothing.
func New(o Options) (*Server, error) { return nil, errTODO }

// Serve accepts clients until Close, then returns net.ErrClosed. It owns l.
func (s *Server) Serve(l net.Listener) error { return errTODO }

// Close ends all listeners and connections and waits for them. It is safe to call more than once.
func (s *Server) Close() error { return nil }
