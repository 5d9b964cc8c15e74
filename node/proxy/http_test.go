package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"
)

func httpClient(t testing.TB, at string, user *url.Userinfo) *http.Client {
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: at, User: user})}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// TestHTTP is driven by net/http's client.
func TestHTTP(t *testing.T) {
	m := site(t)
	at := serve(t, Options{Dialer: m, DialTimeout: time.Second})
	c := httpClient(t, at, nil)
	req, _ := http.NewRequest("POST", "http://web.hedge.internal/a?b=1;c=2", strings.NewReader("payload"))
	req.Header.Set("Connection", "X-Secret")
	req.Header.Set("X-Secret", "hop")
	req.Header.Set("Proxy-Connection", "keep-alive")
	req.Header.Set("User-Agent", "")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if want := `POST /a?b=1;c=2 host=web.hedge.internal ua="" body="payload"`; string(body) != want {
		t.Errorf("got  %s\nwant %s", body, want)
	}
	if h := resp.Header; h.Get("X-Hop") != "" || h.Get("Proxy-Connection") != "" {
		t.Errorf("hop-by-hop headers came through: %v", h)
	}
	for to, want := range map[string]struct {
		status int
		text   string
	}{
		"http://denied.hedge.internal/":  {403, "no rule lets web reach db on tcp/5432"},
		"http://refused.hedge.internal/": {502, "refused"},
		"http://slow.hedge.internal/":    {504, "deadline"},
		"http://unknown.example/":        {502, "no such host"},
	} {
		resp, err := c.Get(to)
		if err != nil {
			t.Errorf("%s: %v", to, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want.status || !strings.Contains(string(body), want.text) {
			t.Errorf("%s: %d %q, want %+v", to, resp.StatusCode, body, want)
		}
	}
}

// TestConnect tunnels TLS, which net/http does by CONNECT.
func TestConnect(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "secret") }))
	defer srv.Close()
	m := &mesh{names: map[string]string{"example.com:443": srv.Listener.Addr().String()}} // a name of httptest's certificate
	at := serve(t, Options{Dialer: m, User: "ada", Password: "s3cret"})
	for user, ok := range map[*url.Userinfo]bool{url.UserPassword("ada", "s3cret"): true, url.UserPassword("ada", "x"): false, nil: false} {
		c := httpClient(t, at, user)
		c.Transport.(*http.Transport).TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		resp, err := c.Get("https://example.com/")
		if (err == nil) != ok {
			t.Errorf("%v: %v", user, err)
		}
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(body) != "secret" {
				t.Errorf("got %q", body)
			}
			c.CloseIdleConnections()
		}
	}
}

// raw sends bytes and returns the answer until the server ends the connection.
func raw(t *testing.T, at, send string) string {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, send)
	got, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%v after %q", err, got)
	}
	return string(got)
}

// TestRebinding is what a web page can make a browser send to this port (CVE-2022-41924, CVE-2022-41925): it is
// refused without a word to the dialer, and what follows in the body is not taken for another request.
func TestRebinding(t *testing.T) {
	m := site(t)
	at := serve(t, Options{Dialer: m})
	smuggled := "GET http://web.hedge.internal/ HTTP/1.1\r\nHost: web.hedge.internal\r\n\r\n"
	for name, req := range map[string]string{
		"rebound name":     "GET / HTTP/1.1\r\nHost: evil.example:1055\r\n\r\n",
		"own address":      "GET / HTTP/1.1\r\nHost: 127.0.0.1:1055\r\nOrigin: http://evil.example\r\n\r\n",
		"host of the mesh": "GET / HTTP/1.1\r\nHost: web.hedge.internal\r\nOrigin: http://evil.example\r\n\r\n",
		"form post":        fmt.Sprintf("POST / HTTP/1.1\r\nHost: web.hedge.internal\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(smuggled), smuggled),
		"pipelined":        "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n" + smuggled,
		"options":          "OPTIONS * HTTP/1.1\r\nHost: evil.example\r\n\r\n",
	} {
		got := raw(t, at, req)
		if strings.Count(got, "HTTP/1.1 ") != 1 || strings.HasPrefix(got, "HTTP/1.1 2") || strings.Contains(got, "Access-Control") {
			t.Errorf("%s: %q", name, got)
		}
	}
	if len(m.asked) != 0 {
		t.Errorf("the dialer was asked for %q", m.asked)
	}
}

func TestHTTPRefusals(t *testing.T) {
	m := &mesh{}
	at := serve(t, Options{Dialer: m, HandshakeTimeout: 200 * time.Millisecond})
	for name, tt := range map[string]struct{ send, want string }{
		"no port":       {"CONNECT web.hedge.internal HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400"},
		"port zero":     {"CONNECT web:0 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400"},
		"zone":          {"CONNECT [fe80::1%25eth0]:80 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400"},
		"https forward": {"GET https://web/ HTTP/1.1\r\nHost: web\r\n\r\n", "HTTP/1.1 400"},
		"ftp":           {"GET ftp://web/ HTTP/1.1\r\nHost: web\r\n\r\n", "HTTP/1.1 400"},
		"bad name":      {"GET http://we!b/ HTTP/1.1\r\nHost: web\r\n\r\n", "HTTP/1.1 400"},
		"slow header":   {"GET http://web/ HTTP/1.1\r\nHost:", ""},
		"huge header":   {"GET http://web/ HTTP/1.1\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n", "HTTP/1.1 431"},
	} {
		if got := raw(t, at, tt.send); !strings.HasPrefix(got, tt.want) || tt.want == "" && strings.HasPrefix(got, "HTTP/1.1 2") {
			t.Errorf("%s: %q, want %s", name, got, tt.want)
		}
	}
	if len(m.asked) != 0 {
		t.Errorf("the dialer was asked for %q", m.asked)
	}
}

// TestHostHeader: the URL wins over a Host header that says something else.
func TestHostHeader(t *testing.T) {
	got := raw(t, serve(t, Options{Dialer: site(t)}), "GET http://web.hedge.internal/x HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
	if !strings.Contains(got, "GET /x host=web.hedge.internal") {
		t.Errorf("%q", got)
	}
}

// TestConnectEarlyData: bytes sent along with CONNECT are the tunnel's first.
func TestConnectEarlyData(t *testing.T) {
	m := &mesh{names: map[string]string{"echo:7": echoServer(t)}}
	c, err := net.Dial("tcp", serve(t, Options{Dialer: m}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "CONNECT echo:7 HTTP/1.1\r\nHost: echo:7\r\n\r\nearly")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, &http.Request{Method: "CONNECT"})
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	io.WriteString(c, " late")
	c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(r); string(got) != "early late" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}
