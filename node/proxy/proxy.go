// Package proxy lets ordinary programs reach the mesh through one loopback port that speaks SOCKS5 and HTTP.
//
//	curl, ssh, browsers ─→ 127.0.0.1:1055 ─ first byte 0x05 ─→ SOCKS5 (RFC 1928): CONNECT, UDP ASSOCIATE ─┐
//	                                       └ else ───────────→ HTTP: CONNECT, GET http://… ───────────────┴→ Dialer
//
// Names are handed to the Dialer as they are: what a name means is decided on the mesh, not by the host's DNS.
//
// The proxy has no pages of its own. A request in origin form, the only one a web page can make a browser send to
// 127.0.0.1 whatever name it gave that address (DNS rebinding), is refused and its connection closed.
package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Dialer connects to address, "host:port" with a name or an IP address; network is "tcp" or "udp". What a client
// may reach is its decision alone: it must itself refuse the host's loopback and whatever else is not the mesh.
//
// An error may say how it is to be answered: SOCKS5() byte is the reply code of RFC 1928 section 6, HTTPStatus()
// int the status; both are found with errors.As. The error's text is the body of the HTTP answer.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Options configure a [Server]. Zero means the default.
type Options struct {
	Dialer           Dialer
	User, Password   string        // when either is set, asked for (RFC 1929 or HTTP Basic); at most 255 bytes each
	AllowRemote      bool          // serve listeners that are not on a loopback address
	MaxConns         int           // client connections at once, 1024 when 0; one more is closed at once
	HandshakeTimeout time.Duration // for a whole request to arrive, 10 s when 0
	DialTimeout      time.Duration // 30 s when 0
	UDPIdle          time.Duration // a UDP peer is forgotten after so much silence, 2 minutes when 0
}

// String hides the password.
func (o Options) String() string {
	return fmt.Sprintf("proxy.Options{user %q, password set: %t, remote allowed: %t}", o.User, o.Password != "", o.AllowRemote)
}

// GoString hides the password.
func (o Options) GoString() string { return o.String() }

// ErrNotLoopback is returned by Serve for a listener others could reach, see Options.AllowRemote.
var ErrNotLoopback = errors.New("proxy: refusing to listen on an address that is not loopback: whoever reaches it could use this node; allow it explicitly if that is meant")

// maxPeers is how many UDP peers all clients together may talk to at once, maxPeersPerClient how many one may.
const (
	maxPeers          = 1024
	maxPeersPerClient = 64
)

// Server serves any number of listeners.
type Server struct {
	opt    Options
	auth   bool        // clients must name themselves
	secret [2][32]byte // hashes of user and password
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{} // one for each client
	peers  chan struct{} // one for each UDP peer
	feed   feed          // to the HTTP server
	http   *http.Server
	out    *http.Transport

	mu     sync.Mutex
	closed bool
	open   map[io.Closer]struct{} // listeners and client connections
	once   sync.Once              // starts the HTTP server
}

// New returns a Server; it starts nothing until Serve.
func New(o Options) (*Server, error) {
	if o.Dialer == nil {
		return nil, errors.New("proxy: no dialer")
	}
	if len(o.User) > 255 || len(o.Password) > 255 {
		return nil, errors.New("proxy: user and password may have 255 bytes each (RFC 1929)")
	}
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{{&o.HandshakeTimeout, 10 * time.Second}, {&o.DialTimeout, 30 * time.Second}, {&o.UDPIdle, 2 * time.Minute}} {
		if *d.v <= 0 {
			*d.v = d.d
		}
	}
	if o.MaxConns <= 0 {
		o.MaxConns = 1024
	}
	s := &Server{
		opt:    o,
		auth:   o.User != "" || o.Password != "",
		secret: [2][32]byte{sha256.Sum256([]byte(o.User)), sha256.Sum256([]byte(o.Password))},
		slots:  make(chan struct{}, o.MaxConns),
		peers:  make(chan struct{}, maxPeers),
		open:   make(map[io.Closer]struct{}),
	}
	s.opt.Password = ""
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.feed = feed{conns: make(chan net.Conn), done: s.ctx.Done()}
	s.setUpHTTP()
	return s, nil
}

// authorised compares in constant time.
func (s *Server) authorised(user, password []byte) bool {
	u, p := sha256.Sum256(user), sha256.Sum256(password)
	return subtle.ConstantTimeCompare(u[:], s.secret[0][:])&subtle.ConstantTimeCompare(p[:], s.secret[1][:]) == 1
}

// Serve accepts clients until Close, then returns net.ErrClosed. It owns l and closes it.
func (s *Server) Serve(l net.Listener) error {
	if !s.opt.AllowRemote && !local(l.Addr()) {
		l.Close()
		return fmt.Errorf("%w (%v)", ErrNotLoopback, l.Addr())
	}
	if !s.track(l) {
		l.Close()
		return net.ErrClosed
	}
	defer s.wg.Done()
	defer s.untrack(l)
	s.once.Do(func() {
		s.wg.Add(1)
		go func() { defer s.wg.Done(); s.http.Serve(&s.feed) }()
	})
	for {
		c, err := l.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return net.ErrClosed
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() || tooManyFiles(err) {
				select { // as net/http does: the condition passes
				case <-time.After(50 * time.Millisecond):
				case <-s.ctx.Done():
				}
				continue
			}
			l.Close()
			return fmt.Errorf("proxy: accept: %w", err)
		}
		s.start(c)
	}
}

// local says whether only this host can reach a: a loopback address or a unix socket.
func local(a net.Addr) bool {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}

// start serves c in a goroutine, or closes it if there are too many.
func (s *Server) start(raw net.Conn) {
	select {
	case s.slots <- struct{}{}:
	default:
		raw.Close()
		return
	}
	c := &client{Conn: raw, s: s}
	if !s.track(c) {
		raw.Close()
		<-s.slots
		return
	}
	go func() {
		defer s.wg.Done()
		s.serve(c)
	}()
}

// serve looks at the first byte and hands c to who speaks that protocol.
func (s *Server) serve(c *client) {
	c.SetDeadline(time.Now().Add(s.opt.HandshakeTimeout))
	var first [1]byte
	if _, err := io.ReadFull(c.Conn, first[:]); err != nil {
		c.Close()
		return
	}
	if first[0] == socksVersion {
		s.serveSOCKS(c)
		c.Close()
		return
	}
	c.first, c.unread = first[0], true
	c.SetDeadline(time.Time{})
	select {
	case s.feed.conns <- c: // which now owns it
	case <-s.ctx.Done():
		c.Close()
	}
}

// track remembers what Close must close and counts what it must wait for; false after Close.
func (s *Server) track(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.open[c] = struct{}{}
	s.wg.Add(1)
	return true
}

func (s *Server) untrack(c io.Closer) {
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
}

// Close ends all listeners and connections and waits for them. It is safe to call more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	open := make([]io.Closer, 0, len(s.open))
	for c := range s.open {
		open = append(open, c)
	}
	s.mu.Unlock()
	s.cancel()
	for _, c := range open {
		c.Close()
	}
	s.http.Close()
	s.wg.Wait()
	s.http.Shutdown(context.Background()) // waits for its connections' goroutines, whose connections are closed
	s.out.CloseIdleConnections()
	return nil
}

// dial connects for a client, within the limits of time.
func (s *Server) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opt.DialTimeout)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	c, err := s.opt.Dialer.DialContext(ctx, network, address)
	if err == nil && s.ctx.Err() != nil {
		c.Close()
		return nil, net.ErrClosed
	}
	return c, err
}

// client is a client's connection; closing it gives its place to another.
type client struct {
	net.Conn
	s      *Server
	once   sync.Once
	first  byte // read already, if unread
	unread bool
}

func (c *client) Read(b []byte) (int, error) {
	if c.unread && len(b) > 0 {
		b[0], c.unread = c.first, false
		return 1, nil
	}
	return c.Conn.Read(b)
}

func (c *client) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.s.untrack(c)
		<-c.s.slots
	})
	return err
}

// CloseWrite half-closes, where the connection can.
func (c *client) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// plain is the connection itself, so that a copy can go the short way that there is between two kinds of connections.
func plain(c net.Conn) net.Conn {
	if p, ok := c.(*client); ok && !p.unread {
		return p.Conn
	}
	return c
}

// SetLinger is the connection's, where it has one.
func (c *client) SetLinger(sec int) error {
	if l, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(sec)
	}
	return errors.ErrUnsupported
}

// relay copies both ways until both directions have ended; the end of one is passed on as a half-close. An error ends both,
// with a RST where that can be said: a program must not take what is cut for whole. early is what has been read of the
// client already. It closes both.
func relay(c net.Conn, early []byte, target net.Conn) {
	ends := func(err error) {
		for _, end := range []net.Conn{c, target} {
			if l, ok := end.(interface{ SetLinger(int) error }); ok && err != nil && !errors.Is(err, net.ErrClosed) {
				_ = l.SetLinger(0)
			}
			end.Close()
		}
	}
	pipe := func(dst, src net.Conn, first []byte) {
		var err error
		if len(first) > 0 {
			_, err = dst.Write(first)
		}
		if err == nil {
			_, err = io.Copy(plain(dst), plain(src))
		}
		if err == nil {
			if h, ok := dst.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
				return
			}
		}
		ends(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { pipe(target, c, early) })
	pipe(c, target, nil)
	wg.Wait()
	ends(nil)
}
