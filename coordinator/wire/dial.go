package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/hedge-mesh/hedge/node/key"
)

const (
	// stagger is how long Dial waits for one URL before it also tries the next (RFC 8305 section 5).
	stagger = 250 * time.Millisecond
	// attempt bounds one URL: name, TCP, proxy, TLS, WebSocket and TLS.
	attempt = 15 * time.Second
	// handshake bounds the coordinator's side of the inner TLS handshake.
	handshake = 10 * time.Second
)

// MaxRequest is the most bytes that one message of a node may have.
const MaxRequest = 64 << 10

// Path is where a coordinator takes channels.
const Path = "/control"

// DialConfig is what a node needs to reach its coordinator.
type DialConfig struct {
	URLs    []string          // "https://host:port" or "http://…": any of them reaches it
	Pin     key.ControlPublic // from the join string
	Machine key.MachinePrivate
	// NetDial replaces the dialer of TCP connections; nil means the system's.
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Proxy replaces the choice of a proxy; nil means that of the environment (HTTPS_PROXY and its kin).
	Proxy func(*http.Request) (*url.URL, error)
}

// AcceptConfig is what a coordinator needs to take a node's channel.
type AcceptConfig struct {
	Control key.ControlPrivate
	// Certificate is key.Certificate(Control), so that it is made once; if empty, Accept makes it.
	Certificate tls.Certificate
}

// The keys that the two ends prove in the TLS handshake.
var (
	machineOf func([]*x509.Certificate) (key.MachinePublic, error) = key.FromCertificate
	controlOf func([]*x509.Certificate) (key.ControlPublic, error) = key.FromCertificate
)

// Dial opens a channel to the coordinator at whichever of the URLs answers first with the pinned key. It fails with
// a [PinError] if something answered but was not the coordinator, else with an [UnreachableError].
func Dial(ctx context.Context, c DialConfig) (*Conn, error) {
	if len(c.URLs) == 0 {
		return nil, &UnreachableError{Tried: []Attempt{{Err: errors.New("no URL to try")}}}
	}
	if c.Pin.IsZero() {
		return nil, errors.New("wire: no key to hold the coordinator to")
	}
	cert, err := key.Certificate(c.Machine)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	type result struct {
		i    int
		conn *Conn
		err  error
	}
	results := make(chan result)
	next := time.NewTimer(0)
	defer next.Stop()
	tried := make([]Attempt, len(c.URLs))
	var won *Conn
	for started, pending := 0, 0; started < len(c.URLs) && won == nil && ctx.Err() == nil || pending > 0; {
		start := next.C
		if started == len(c.URLs) || won != nil || ctx.Err() != nil {
			start = nil
		}
		select {
		case <-start:
			i := started
			started++
			pending++
			go func() {
				conn, err := dialOne(ctx, c, c.URLs[i], cert)
				results <- result{i, conn, err}
			}()
			next.Reset(stagger)
		case r := <-results:
			pending--
			tried[r.i] = Attempt{URL: c.URLs[r.i], Err: r.err}
			switch {
			case r.err != nil:
				next.Reset(0) // no point in waiting for the turn
			case won == nil:
				won = r.conn
				cancel()
			default:
				r.conn.Close()
			}
		}
	}
	if won != nil {
		return won, nil
	}
	return nil, dialError(ctx, tried)
}

func dialError(ctx context.Context, tried []Attempt) error {
	u := &UnreachableError{}
	for _, t := range tried {
		var pin *PinError
		if errors.As(t.Err, &pin) {
			return pin
		}
		if t.Err != nil {
			u.Tried = append(u.Tried, t)
		}
	}
	if len(u.Tried) == 0 {
		u.Tried = []Attempt{{Err: context.Cause(ctx)}}
	}
	return u
}

func dialOne(ctx context.Context, c DialConfig, raw string, cert tls.Certificate) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	u, err := controlURL(raw)
	if err != nil {
		return nil, err
	}
	// The WebSocket handshake does not look at ctx once it has a connection; so ctx closes the connection.
	stop := func() bool { return true }
	defer func() { stop() }()
	dial := c.NetDial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	choose := c.Proxy
	if choose == nil {
		choose = http.ProxyFromEnvironment
	}
	var via *url.URL
	var first []byte // what the other end said first: with a proxy, its answer to CONNECT
	d := websocket.Dialer{
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := dial(ctx, network, addr)
			if err == nil {
				stop = context.AfterFunc(ctx, func() { nc.Close() })
				nc = &heard{Conn: nc, first: &first}
			}
			return nc, err
		},
		Proxy: func(r *http.Request) (u *url.URL, err error) { via, err = choose(r); return via, err },
		// What is outside proves nothing and need not: a self-signed front, or a firewall that inspects, sees
		// only the TLS inside, which is held to the pin.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}},
	}
	ws, resp, err := d.DialContext(ctx, u, nil)
	if err != nil {
		if p := proxyError(via, first); p != nil {
			return nil, p
		}
		if resp != nil {
			return nil, fmt.Errorf("it answers HTTP %s, as a coordinator would not: "+
				"is the URL right, and does the proxy in between pass WebSocket?", resp.Status)
		}
		return nil, err
	}
	var got key.ControlPublic
	tc := tls.Client(newStream(ws), &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{cert},
		InsecureSkipVerify: true, // VerifyConnection holds it to the pin
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			if got, err = controlOf(cs.PeerCertificates); err != nil {
				return err
			}
			if got != c.Pin {
				return &PinError{URL: raw, Want: c.Pin, Got: got}
			}
			return nil
		},
	})
	if err := tc.HandshakeContext(ctx); err != nil {
		ws.Close()
		return nil, fmt.Errorf("it does not speak as a coordinator: %w", err)
	}
	if !stop() {
		ws.Close()
		return nil, context.Cause(ctx)
	}
	conn := newConn(rawClose{tc, ws}, MaxMessage)
	conn.url, conn.control, conn.machine = raw, got, key.PublicOf(c.Machine)
	return conn, nil
}

// controlURL turns https://host:port[/path] into wss://host:port[/path]/control.
func controlURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", err
	}
	switch u.Scheme {
	case "https":
		u.Scheme = "wss"
	case "http":
		u.Scheme = "ws"
	default:
		return "", fmt.Errorf("%q is not an http or https URL", raw)
	}
	if u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%q is not of the form https://host:port", raw)
	}
	return u.JoinPath(Path).String(), nil
}

// Accept takes the channel that a node opened by an HTTP request. When it fails, the request has been answered or its
// connection closed. It returns within ten seconds.
func Accept(w http.ResponseWriter, r *http.Request, c AcceptConfig) (*Conn, error) {
	cert := c.Certificate
	if len(cert.Certificate) == 0 {
		var err error
		if cert, err = key.Certificate(c.Control); err != nil {
			http.Error(w, "no certificate", http.StatusInternalServerError)
			return nil, err
		}
	}
	up := websocket.Upgrader{
		HandshakeTimeout: handshake,
		CheckOrigin:      func(r *http.Request) bool { return r.Header.Get("Origin") == "" }, // no browser has business here
	}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), handshake)
	defer cancel()
	var machine key.MachinePublic
	tc := tls.Server(newStream(ws), &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		ClientAuth:             tls.RequireAnyClientCert, // whose key is asked of the registry, upon Hello
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			machine, err = machineOf(cs.PeerCertificates)
			return err
		},
	})
	if err := tc.HandshakeContext(ctx); err != nil {
		ws.Close()
		return nil, fmt.Errorf("wire: handshake: %w", err)
	}
	conn := newConn(rawClose{tc, ws}, MaxRequest)
	conn.machine, conn.control = machine, key.PublicOf(c.Control)
	return conn, nil
}

// rawClose closes what is under the TLS: tls.Conn.Close waits five seconds for a peer that does not read.
type rawClose struct {
	*tls.Conn
	ws *websocket.Conn
}

func (c rawClose) Close() error { return c.ws.Close() }

// PinError says that what answered is not the coordinator that the join string names.
type PinError struct {
	URL  string
	Want key.ControlPublic // the pin
	Got  key.ControlPublic
}

func (e *PinError) Error() string {
	return fmt.Sprintf("wire: %s: this is not the coordinator of the join string: it holds %s, want %s; "+
		"if the coordinator was set up anew, get a new join string from its admin, else something is impersonating it",
		e.URL, e.Got, e.Want)
}

// ProxyError says that the proxy on the way would not connect to the coordinator.
type ProxyError struct {
	Proxy string // host:port, without the password
	Code  int    // 407, say
}

func (e *ProxyError) Error() string {
	s := fmt.Sprintf("the proxy %s answers %d %s", e.Proxy, e.Code, http.StatusText(e.Code))
	if e.Credentials() {
		s += ": it wants another user or password than it was given; write HTTPS_PROXY=http://USER:PASSWORD@" + e.Proxy
	}
	return s
}

// Credentials reports whether it is the user and the password that are wrong, or missing (RFC 9110 section 15.5.8): who
// asks again with the same may lock the account.
func (e *ProxyError) Credentials() bool { return e.Code == http.StatusProxyAuthRequired }

// proxyError reads the proxy's answer to CONNECT, and is nil where there was no proxy or it did connect:
//
//	HTTP/1.1 407 …
//	0        9
func proxyError(via *url.URL, first []byte) *ProxyError {
	if via == nil || len(first) < statusLine || !bytes.HasPrefix(first, []byte("HTTP/1.")) {
		return nil
	}
	code, err := strconv.Atoi(string(first[9:statusLine]))
	if err != nil || code/100 == 2 {
		return nil
	}
	return &ProxyError{Proxy: via.Host, Code: code}
}

const statusLine = len("HTTP/1.1 407")

// heard keeps how the first thing read begins: the WebSocket library tells no more of a proxy's refusal than its reason.
type heard struct {
	net.Conn
	first *[]byte
}

func (h *heard) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	if h.first != nil && n > 0 {
		*h.first = bytes.Clone(b[:min(n, statusLine)])
		h.first = nil
	}
	return n, err
}

// UnreachableError says why each URL failed.
type UnreachableError struct {
	Tried []Attempt
}

// Attempt is one URL and why it failed.
type Attempt struct {
	URL string
	Err error
}

func (e *UnreachableError) Error() string {
	var b strings.Builder
	b.WriteString("wire: cannot reach the coordinator")
	sep := ": "
	for _, t := range e.Tried {
		b.WriteString(sep)
		if t.URL != "" {
			b.WriteString(t.URL + ": ")
		}
		fmt.Fprint(&b, t.Err)
		sep = "; "
	}
	return b.String()
}

// Unwrap gives errors.Is and errors.As every cause.
func (e *UnreachableError) Unwrap() []error {
	errs := make([]error, len(e.Tried))
	for i, t := range e.Tried {
		errs[i] = t.Err
	}
	return errs
}
