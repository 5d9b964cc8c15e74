package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/hatch"
)

// The local API: HTTP with JSON on a Unix socket of mode 0600.
//
//	hedge status ── unix socket ──▶ authorise ──▶ route ──▶ Node
//	                                  │ kernel's word on the caller's user, the Host, no browser
//	                                  └ the route's own entry in the table
//
// Whoever may talk to it can use this node as themselves and end it, so only the user it runs as and root may.
const (
	localHost    = "hedge.local" // what a Host header must say: a web page's, rebound to us, says something else
	maxLocalBody = 64 << 10      // bytes
	watchEvery   = 250 * time.Millisecond
)

// caller is who makes a request.
type caller struct {
	uid int
	err error // set: not known
}

// may is an authorisation: whether a caller may use a route.
type may func(c caller, self int) bool

// owner lets in the user the node runs as, and root.
func owner(c caller, self int) bool { return c.err == nil && (c.uid == self || c.uid == 0) }

// route is one entry of the local API; one without authorisation lets in nobody.
type route struct {
	method, path string
	may          may
	serve        func(n *Node, w http.ResponseWriter, r *http.Request) error
}

var routes = []route{
	{http.MethodGet, "/status", owner, serveStatus},
	{http.MethodGet, "/watch", owner, serveWatch},
	{http.MethodPost, "/ping", owner, servePing},
	{http.MethodPost, "/why", owner, serveWhy},
	{http.MethodPost, "/set", owner, serveSet},
	{http.MethodPost, "/path", owner, servePath},
	{http.MethodGet, "/netcheck", owner, serveNetcheck},
	{http.MethodPost, "/ip", owner, serveIP},
	{http.MethodPost, "/down", owner, serveDown},
	{http.MethodPost, "/logout", owner, serveLogout},
}

// local serves the local API of a node.
type local struct {
	srv    *http.Server
	path   string
	served sync.WaitGroup
	cancel context.CancelFunc
}

type callerKey struct{}

// serveLocal starts to serve. The node holds its state's lock, so a socket that is in the way is a dead one's, unless
// somebody answers on it.
func serveLocal(n *Node, path string) (*local, error) {
	l, err := hatch.Listen(path)
	switch {
	case errors.Is(err, hatch.ErrTaken):
		return nil, fmt.Errorf("local API: another node answers on %s; stop it with hedge down, or choose another --state-dir", path)
	case err != nil:
		return nil, fmt.Errorf("local API: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &local{path: path, cancel: cancel}
	s.srv = &http.Server{
		Handler:           handler(n, routes, os.Getuid()),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			uid, err := hatch.User(c)
			return context.WithValue(ctx, callerKey{}, caller{uid, err})
		},
		ErrorLog: log.New(n.log.With().Str("from", "local API").Logger(), "", 0),
	}
	s.served.Go(func() { _ = s.srv.Serve(l) })
	return s, nil
}

// close waits for all requests to end; the listener removes its socket.
func (s *local) close() {
	s.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if s.srv.Shutdown(ctx) != nil {
		_ = s.srv.Close()
	}
	s.served.Wait()
}

// handler checks each request before its route sees it.
func handler(n *Node, routes []route, self int) http.Handler {
	mux := http.NewServeMux()
	for _, rt := range routes {
		mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) {
			who, ok := r.Context().Value(callerKey{}).(caller)
			if !ok {
				who = caller{uid: -1, err: errors.New("unknown")}
			}
			if rt.may == nil || !rt.may(who, self) {
				n.log.Warn().Int("uid", who.uid).Str("path", rt.path).Msg("local API: refused a caller")
				answerError(w, http.StatusForbidden, &RemoteError{Msg: "only the user this node runs as, and root, may do this", Code: exitFailed})
				return
			}
			r.Body = http.MaxBytesReader(w, r.Body, maxLocalBody)
			if err := rt.serve(n, w, r); err != nil {
				answerError(w, http.StatusUnprocessableEntity, err)
			}
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != localHost || r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
			answerError(w, http.StatusForbidden, &RemoteError{Msg: "this is the local API of hedge, not a web site", Code: exitFailed})
			return
		}
		if r.Method == http.MethodPost && r.Header.Get("Content-Type") != "application/json" {
			answerError(w, http.StatusUnsupportedMediaType, &RemoteError{Msg: "the body must be application/json", Code: exitFailed})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// localError is how an error crosses: its text, and enough for the client to make the same type of it again.
type localError struct {
	RemoteError
	Kind    string            `json:"kind,omitempty"`
	Denied  *DeniedError      `json:"denied,omitempty"`
	Unknown *UnknownNameError `json:"unknown,omitempty"`
}

func answerError(w http.ResponseWriter, status int, err error) {
	e := localError{RemoteError: RemoteError{Msg: err.Error(), Code: exitFailed}}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		e.Code = coded.ExitCode()
	}
	var refused *wire.Refused
	if errors.As(err, &refused) {
		e.Code = exitNotConnected
	}
	if errors.As(err, &e.Denied) {
		e.Kind = "denied"
	} else if errors.As(err, &e.Unknown) {
		e.Kind = "unknown-name"
	}
	answer(w, status, e)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller has gone if this fails
}

func body(r *http.Request, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("local API: read the request: %w", err)
	}
	return nil
}

type nameRequest struct {
	Name string `json:"name"`
}

func serveStatus(n *Node, w http.ResponseWriter, _ *http.Request) error {
	answer(w, http.StatusOK, n.Status())
	return nil
}

func servePing(n *Node, w http.ResponseWriter, r *http.Request) error {
	var q nameRequest
	if err := body(r, &q); err != nil {
		return err
	}
	res, err := n.Ping(r.Context(), q.Name)
	if err == nil {
		answer(w, http.StatusOK, res)
	}
	return err
}

func serveWhy(n *Node, w http.ResponseWriter, r *http.Request) error {
	var q WhyQuery
	if err := body(r, &q); err != nil {
		return err
	}
	res, err := n.Why(q)
	if err == nil {
		answer(w, http.StatusOK, res)
	}
	return err
}

func serveSet(n *Node, w http.ResponseWriter, r *http.Request) error {
	var c RoutingChange
	if err := body(r, &c); err != nil {
		return err
	}
	err := n.SetRouting(c)
	if err == nil {
		answer(w, http.StatusOK, n.Status())
	}
	return err
}

func servePath(n *Node, w http.ResponseWriter, r *http.Request) error {
	var q nameRequest
	if err := body(r, &q); err != nil {
		return err
	}
	res, err := n.PathTo(r.Context(), q.Name)
	if err == nil {
		answer(w, http.StatusOK, res)
	}
	return err
}

func serveNetcheck(n *Node, w http.ResponseWriter, r *http.Request) error {
	res, err := n.Netcheck(r.Context())
	if err == nil {
		answer(w, http.StatusOK, res)
	}
	return err
}

func serveIP(n *Node, w http.ResponseWriter, r *http.Request) error {
	var q nameRequest
	if err := body(r, &q); err != nil {
		return err
	}
	addrs := n.Addrs()
	if q.Name != "" {
		var err error
		if addrs, err = n.Resolve(q.Name); err != nil {
			return err
		}
	}
	answer(w, http.StatusOK, addrs)
	return nil
}

// serveDown answers when the node has let go of its state, so that another may start.
func serveDown(n *Node, w http.ResponseWriter, _ *http.Request) error {
	n.end()
	<-n.released
	answer(w, http.StatusOK, struct{}{})
	return nil
}

func serveLogout(n *Node, w http.ResponseWriter, r *http.Request) error {
	err := n.Logout(r.Context())
	<-n.released
	if err == nil {
		answer(w, http.StatusOK, struct{}{})
	}
	return err
}

// serveWatch streams one Status per line.
func serveWatch(n *Node, w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/jsonl")
	enc := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		<-pause.C
		next := n.news.next()
		if enc.Encode(n.Status()) != nil || flush.Flush() != nil {
			return nil
		}
		pause.Reset(watchEvery)
		select {
		case <-next:
		case <-r.Context().Done():
			return nil
		case <-n.done:
			return nil
		}
	}
}
