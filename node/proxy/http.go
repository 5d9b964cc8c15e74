package proxy

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// feed is the net.Listener of the HTTP server: it gets the connections whose first byte was not SOCKS5's.
type feed struct {
	conns chan net.Conn
	done  <-chan struct{}
}

func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

func (f *feed) Close() error   { return nil }
func (f *feed) Addr() net.Addr { return &net.TCPAddr{} }

func (s *Server) setUpHTTP() {
	quiet := log.New(io.Discard, "", 0) // a leaf does not log
	s.out = &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return s.dial(ctx, "tcp", address)
		},
		DisableCompression:     true,
		MaxIdleConns:           32,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
	forward := &httputil.ReverseProxy{ // takes hop-by-hop headers out (RFC 9110 section 7.6.1) and passes upgrades on
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.Host = r.In.URL.Host             // the request target wins over Host (RFC 9112 section 3.2.2)
			r.Out.URL.RawQuery = r.In.URL.RawQuery // not ours to clean
			for _, h := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if v, ok := r.In.Header[h]; ok { // end to end as any other: ReverseProxy takes them for its own
					r.Out.Header[h] = v
				}
			}
		},
		Transport:     s.out,
		FlushInterval: -1,
		ErrorLog:      quiet,
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, err error) { refuse(w, httpStatus(err), err.Error()) },
	}
	s.http = &http.Server{
		ReadHeaderTimeout:            s.opt.HandshakeTimeout,
		IdleTimeout:                  time.Minute,
		MaxHeaderBytes:               64 << 10,
		DisableGeneralOptionsHandler: true, // OPTIONS * is for us to refuse, as any other
		ErrorLog:                     quiet,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if s.begin() {
				defer s.wg.Done()
				s.serveHTTP(w, r, forward)
			}
		}),
	}
}

// begin counts a request that Close must wait for; false after Close.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.wg.Add(1)
	}
	return !s.closed
}

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	connect := r.Method == http.MethodConnect
	// Only a client that is set up to use a proxy says CONNECT or gives a whole URL. All else is somebody who took
	// this port for a web server, or a web page that wants us to be one.
	if !connect && !(r.URL.IsAbs() && r.URL.Host != "") {
		refuse(w, http.StatusMisdirectedRequest, "this is a proxy: set it as the HTTP or SOCKS5 proxy of your program")
		return
	}
	if s.auth && !s.basic(r.Header.Get("Proxy-Authorization")) {
		w.Header().Set("Proxy-Authenticate", `Basic realm="hedge"`)
		refuse(w, http.StatusProxyAuthRequired, "the proxy asks for a user and password")
		return
	}
	if !connect {
		if r.URL.Scheme != "http" {
			refuse(w, http.StatusBadRequest, "only http:// URLs are forwarded; use CONNECT for others")
			return
		}
		if _, ok := hostPort(r.URL.Host, "80"); !ok {
			refuse(w, http.StatusBadRequest, "not a host name")
			return
		}
		r.URL.User = nil
		forward.ServeHTTP(w, r)
		return
	}
	address, ok := hostPort(r.Host, "")
	if !ok {
		refuse(w, http.StatusBadRequest, "CONNECT wants host:port")
		return
	}
	s.connect(w, r, address)
}

// connect serves CONNECT (RFC 9110 section 9.3.6).
func (s *Server) connect(w http.ResponseWriter, r *http.Request, address string) {
	conn, err := s.dial(r.Context(), "tcp", address)
	if err != nil {
		refuse(w, httpStatus(err), err.Error())
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		conn.Close()
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	if _, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		c.Close()
		conn.Close()
		return
	}
	early, _ := rw.Reader.Peek(rw.Reader.Buffered()) // what the client sent without waiting
	relay(c, bytes.Clone(early), conn)
}

// refuse answers with a reason and closes the connection: what follows a refused request is not read as another.
func refuse(w http.ResponseWriter, status int, why string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Connection", "close")
	w.WriteHeader(status)
	io.WriteString(w, why+"\n")
}

// basic checks a Proxy-Authorization header (RFC 7617).
func (s *Server) basic(h string) bool {
	scheme, value, _ := strings.Cut(h, " ")
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
	if !strings.EqualFold(scheme, "Basic") || err != nil {
		return false
	}
	user, password, _ := bytes.Cut(b, []byte(":"))
	return s.authorised(user, password)
}

// hostPort checks an authority and completes it with a port; without a default one it must have its own.
func hostPort(authority, port string) (string, bool) {
	host, p, err := net.SplitHostPort(authority)
	if err != nil {
		if port == "" {
			return "", false
		}
		host, p = strings.TrimSuffix(strings.TrimPrefix(authority, "["), "]"), port
	}
	if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
		return "", false
	}
	if ip, err := netip.ParseAddr(host); (err != nil || ip.Zone() != "") && !validName(host) {
		return "", false
	}
	return net.JoinHostPort(host, p), true
}
