package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	xproxy "golang.org/x/net/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is a Dialer that knows names the host does not, and refuses some.
type mesh struct {
	names map[string]string // "host:port" to where it really is
	mu    sync.Mutex
	asked []string
}

type denied struct{}

func (denied) Error() string   { return "denied: no rule lets web reach db on tcp/5432" }
func (denied) SOCKS5() byte    { return replyNotAllowed }
func (denied) HTTPStatus() int { return http.StatusForbidden }

func (m *mesh) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	m.mu.Lock()
	m.asked = append(m.asked, network+" "+address)
	to := m.names[address]
	m.mu.Unlock()
	switch host, _, _ := net.SplitHostPort(address); host {
	case "denied.hedge.internal":
		return nil, fmt.Errorf("dial: %w", denied{})
	case "refused.hedge.internal":
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	case "gone.hedge.internal":
		return nil, &net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}
	case "slow.hedge.internal":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if to == "" {
		return nil, &net.DNSError{Err: "no such host", Name: address, IsNotFound: true}
	}
	return new(net.Dialer).DialContext(ctx, network, to)
}

// serve starts a proxy on a loopback port.
func serve(t testing.TB, o Options) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		s.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// site is a web server that says what it saw; it is "web.hedge.internal:80".
func site(t testing.TB) *mesh {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Proxy-Connection", "keep-alive")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("Connection", "X-Hop")
		fmt.Fprintf(w, "%s %s host=%s ua=%q body=%q", r.Method, r.RequestURI, r.Host, r.UserAgent(), body)
		for _, h := range []string{"Proxy-Authorization", "Proxy-Connection", "X-Secret", "Te"} {
			if v := r.Header.Get(h); v != "" {
				fmt.Fprintf(w, " LEAK %s=%s", h, v)
			}
		}
	}))
	t.Cleanup(srv.Close)
	return &mesh{names: map[string]string{"web.hedge.internal:80": srv.Listener.Addr().String()}}
}

func echoServer(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				io.Copy(c, c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// TestSOCKS5 is driven by the client of golang.org/x/net.
func TestSOCKS5(t *testing.T) {
	m := &mesh{names: map[string]string{"echo.hedge.internal:7": echoServer(t)}}
	m.names["100.64.0.9:7"] = m.names["echo.hedge.internal:7"]
	m.names["[fd68:6564:6765::9]:7"] = m.names["echo.hedge.internal:7"]
	at := serve(t, Options{Dialer: m, DialTimeout: time.Second})
	d, err := xproxy.SOCKS5("tcp", at, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for to := range m.names {
		c, err := d.Dial("tcp", to)
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		msg := bytes.Repeat([]byte("hedge"), 100_000)
		go func() {
			c.Write(msg)
			c.(interface{ CloseWrite() error }).CloseWrite()
		}()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, msg) {
			t.Errorf("%s: echoed %d of %d bytes: %v", to, len(got), len(msg), err)
		}
		c.Close()
	}
	for to, want := range map[string]string{
		"denied.hedge.internal:1":  "not allowed by ruleset",
		"refused.hedge.internal:1": "connection refused",
		"gone.hedge.internal:1":    "host unreachable",
		"unknown.example:1":        "host unreachable",
		"slow.hedge.internal:1":    "TTL expired",
		"bad name:1":               "general SOCKS server failure",
		"nul\x00.hedge.internal:1": "general SOCKS server failure",
	} {
		if _, err := d.Dial("tcp", to); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", to, err, want)
		}
	}
	for _, a := range m.asked {
		if strings.ContainsAny(a, "\x00") || strings.Contains(a, "bad name") {
			t.Errorf("the dialer was asked for %q", a)
		}
	}
}

func TestSOCKS5Auth(t *testing.T) {
	m := &mesh{names: map[string]string{"echo:7": echoServer(t)}}
	at := serve(t, Options{Dialer: m, User: "ada", Password: "s3cret"})
	for _, tt := range []struct {
		auth *xproxy.Auth
		ok   bool
	}{
		{&xproxy.Auth{User: "ada", Password: "s3cret"}, true},
		{&xproxy.Auth{User: "ada", Password: "s3cre"}, false},
		{&xproxy.Auth{User: "Ada", Password: "s3cret"}, false},
		{nil, false},
	} {
		d, _ := xproxy.SOCKS5("tcp", at, tt.auth, nil)
		c, err := d.Dial("tcp", "echo:7")
		if (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt.auth, err)
		}
		if err == nil {
			c.Close()
		}
	}
	if o := (Options{User: "ada", Password: "s3cret"}); strings.Contains(fmt.Sprintf("%v %+v %#v %s", o, o, o, o), "s3cret") {
		t.Error("Options print the password")
	}
}

// TestSOCKS5Raw are whole conversations in hex: what the client sends, what comes back until the end.
func TestSOCKS5Raw(t *testing.T) {
	at := serve(t, Options{Dialer: &mesh{}, HandshakeTimeout: 100 * time.Millisecond})
	for name, tt := range map[string]struct{ send, want string }{
		"no method of ours":  {"\x05\x01\x02", "\x05\xff"},
		"no methods":         {"\x05\x00", "\x05\xff"},
		"bind":               {"\x05\x01\x00" + "\x05\x02\x00\x01\x64\x40\x00\x01\x00\x50", "\x05\x00" + "\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"},
		"address type 2":     {"\x05\x01\x00" + "\x05\x01\x00\x02\x64\x40\x00\x01\x00\x50", "\x05\x00" + "\x05\x08\x00\x01\x00\x00\x00\x00\x00\x00"},
		"wrong version":      {"\x05\x01\x00" + "\x04\x01\x00\x01\x64\x40\x00\x01\x00\x50", "\x05\x00" + "\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"},
		"port zero":          {"\x05\x01\x00" + "\x05\x01\x00\x01\x64\x40\x00\x01\x00\x00", "\x05\x00" + "\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"},
		"empty name":         {"\x05\x01\x00" + "\x05\x01\x00\x03\x00\x00\x50", "\x05\x00" + "\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"},
		"silence":            {"", ""},
		"silence in request": {"\x05\x01\x00\x05", "\x05\x00"},
		"SOCKS4":             {"\x04\x01\x00\x50\x64\x40\x00\x01\x00", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, tt.send)
			got, err := io.ReadAll(c) // the server ends it, in time
			if err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Fatal(err)
			}
			if name == "SOCKS4" {
				if !strings.HasPrefix(string(got), "HTTP/1.1 400") {
					t.Errorf("got %q", got)
				}
			} else if string(got) != tt.want {
				t.Errorf("got % x, want % x", got, tt.want)
			}
		})
	}
}

func TestUDPAssociate(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for b := make([]byte, 65535); ; {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			server.WriteTo(append([]byte("re:"), b[:n]...), from)
		}
	})
	defer wg.Wait()
	defer server.Close()
	m := &mesh{names: map[string]string{"dns.hedge.internal:53": server.LocalAddr().String()}}
	at := serve(t, Options{Dialer: m})

	ctl, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	ctl.Write([]byte("\x05\x01\x00" + "\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"))
	answer := make([]byte, 2+3)
	if _, err := io.ReadFull(ctl, answer); err != nil || string(answer) != "\x05\x00\x05\x00\x00" {
		t.Fatalf("% x, %v", answer, err)
	}
	bound, err := readTarget(ctl)
	if err != nil || bound.ip.String() != "127.0.0.1" {
		t.Fatal(bound, err)
	}
	c, err := net.Dial("udp", bound.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	to := target{name: "dns.hedge.internal", port: 53}
	for _, bad := range []string{"", "\x00\x00\x01" + string(to.append(nil)) + "fragment", "\x00\x00\x00\x07"} {
		io.WriteString(c, bad) // dropped
	}
	for _, q := range []string{"who", "", string(bytes.Repeat([]byte("x"), 1400))} {
		c.Write(append(to.append([]byte{0, 0, 0}), q...))
		b := make([]byte, 2000)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		from, data, err := parseDatagram(b[:n])
		if err != nil || string(data) != "re:"+q || from.String() != server.LocalAddr().String() {
			t.Errorf("%v %q %v", from, data, err)
		}
	}
	// Another local process that found the port is not heard.
	other, err := net.Dial("udp", bound.String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.Write(append(to.append([]byte{0, 0, 0}), "intruder"...))
	c.Write(append(to.append([]byte{0, 0, 0}), "mine"...))
	b := make([]byte, 2000)
	if n, _ := c.Read(b); !bytes.HasSuffix(b[:n], []byte("re:mine")) {
		t.Errorf("got %q", b[:n])
	}
	ctl.Close() // ends the association: the port is closed
	for end := time.Now().Add(20 * time.Second); ; {
		c.Write([]byte("x"))
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := c.Read(b); errors.Is(err, syscall.ECONNREFUSED) {
			break
		} else if time.Now().After(end) {
			t.Fatal("the association outlives its connection")
		}
	}
}

func TestLoopbackOnly(t *testing.T) {
	for _, at := range []string{"0.0.0.0:0", "[::]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Logf("no listener on %s: %v", at, err)
			continue
		}
		s, _ := New(Options{Dialer: &mesh{}})
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		select {
		case err := <-served:
			if !errors.Is(err, ErrNotLoopback) {
				t.Errorf("%s: %v", at, err)
			}
		case <-time.After(10 * time.Second):
			s.Close()
			<-served
			t.Fatalf("it serves on %s, where others than this machine can ask", at)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s is still open: %v", at, err)
		}
		s.Close()
	}
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	s, _ := New(Options{Dialer: &mesh{}, AllowRemote: true})
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("\x05\x01\x00"))
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		t.Error(err)
	}
	s.Close() // with a client in mid-handshake
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	c.Close()
	if err := s.Serve(l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after Close: %v", err)
	}
}

func TestMaxConns(t *testing.T) {
	at := serve(t, Options{Dialer: &mesh{}, MaxConns: 2})
	var held []net.Conn
	hello := func() (net.Conn, error) {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("\x05\x01\x00"))
		_, err = io.ReadFull(c, make([]byte, 2))
		return c, err
	}
	for range 2 {
		c, err := hello()
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	if c, err := hello(); err == nil {
		t.Error("a third client was served")
	} else {
		c.Close()
	}
	held[0].Close()
	for end := time.Now().Add(20 * time.Second); ; { // its place becomes free
		c, err := hello()
		c.Close()
		if err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	held[1].Close()
}

// TestCloseWhileBusy closes with a dial, a SOCKS5 relay, a CONNECT tunnel and an association under way.
func TestCloseWhileBusy(t *testing.T) {
	m := &mesh{names: map[string]string{"echo:7": echoServer(t)}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, _ := New(Options{Dialer: m})
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	var wg sync.WaitGroup
	for send, expect := range map[string]int{
		"\x05\x01\x00\x05\x01\x00\x03\x04echo\x00\x07":                   12,
		"\x05\x01\x00\x05\x01\x00\x03\x13slow.hedge.internal\x00\x07":    2,
		"\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00":           12,
		"CONNECT echo:7 HTTP/1.1\r\nHost: echo:7\r\n\r\n":                20,
		"CONNECT slow.hedge.internal:7 HTTP/1.1\r\nHost: slow:7\r\n\r\n": 0,
		"": 0,
	} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, send)
		if _, err := io.ReadFull(c, make([]byte, expect)); err != nil {
			t.Fatalf("%q: %v", send, err)
		}
		wg.Go(func() { io.Copy(io.Discard, c) })
	}
	s.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	wg.Wait()
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{{}, {Dialer: &mesh{}, Password: strings.Repeat("x", 256)}} {
		if _, err := New(o); err == nil {
			t.Errorf("New(%v) succeeded", o)
		}
	}
}

// TestCurl drives both protocols with curl, if there is one.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("no curl here:", err)
	}
	at := serve(t, Options{Dialer: site(t), User: "ada", Password: "s3cret"})
	for _, args := range [][]string{
		{"--socks5-hostname", at},
		{"--proxy", "http://" + at},
		{"--proxy", "http://" + at, "--proxytunnel"},
	} {
		args = append(args, "--proxy-user", "ada:s3cret", "--noproxy", "", "-sS", "--max-time", "20", "http://web.hedge.internal/path")
		cmd := exec.Command(curl, args...)
		cmd.Env = append(os.Environ(), "ALL_PROXY=", "all_proxy=", "http_proxy=", "no_proxy=", "NO_PROXY=")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "GET /path host=web.hedge.internal") || strings.Contains(string(out), "LEAK") {
			t.Errorf("curl %v: %v\n%s", args, err, out)
		}
	}
}
