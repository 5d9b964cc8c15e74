package derp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

func TestTwoNodesTalk(t *testing.T) {
	r := newRelay(t)
	a := newClientOf(t, newNode(r.control), r).waitUp(t)
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	var pkts [][]byte
	for i := range 150 { // fewer than a queue holds, however slow its writer
		pkts = append(pkts, data(fmt.Sprint(i, strings.Repeat("x", 1200))))
	}
	if !a.Send(b.pub, pkts) {
		t.Fatal("Send refused packets")
	}
	for _, want := range pkts {
		if got := receive(t, "a packet", b.got); got.from != a.pub || got.data != string(want) {
			t.Fatalf("got %.20q from %s, want %.20q from %s", got.data, got.from.Short(), want, a.pub.Short())
		}
	}
	if !b.Send(a.pub, [][]byte{[]byte("\x01 handshake")}) {
		t.Fatal("Send refused a handshake")
	}
	if got := receive(t, "the answer", a.got); got.from != b.pub || got.data != "\x01 handshake" {
		t.Fatalf("got %q from %s", got.data, got.from.Short())
	}
	if a.Send(b.pub, [][]byte{nil}) || a.Send(b.pub, [][]byte{make([]byte, MaxPacket+1)}) || a.Send(key.NodePublic{}, [][]byte{{1}}) {
		t.Error("Send took a packet that cannot be sent")
	}
	if !a.Send(b.pub, [][]byte{append(data(""), make([]byte, MaxPacket-4)...)}) {
		t.Error("Send refused the longest packet")
	}
	if got := receive(t, "the longest packet", b.got); len(got.data) != MaxPacket {
		t.Errorf("the longest packet arrived with %d bytes", len(got.data))
	}
}

func TestGoneNotices(t *testing.T) {
	r := newRelay(t)
	a := newClientOf(t, newNode(r.control), r).waitUp(t)
	nobody := key.ExchangePublic(key.NewNode())
	for range 100 {
		a.Send(nobody, [][]byte{data("?")})
	}
	if k := receive(t, "a notice", a.gone); k != nobody {
		t.Errorf("notice about %s, want %s", k.Short(), nobody.Short())
	}
	eventually(t, "all are counted", func() bool { return r.Stats().DroppedUnknown == 100 })
	if n := len(a.gone); n > 8 {
		t.Errorf("%d notices more, want a few", n)
	}
}

func TestClientFindsRestartedServer(t *testing.T) {
	r := newRelay(t)
	a := newClientOf(t, newNode(r.control), r).waitUp(t)
	cfg, addr := r.cfg, r.addr
	r.stop()
	if s := receive(t, "status down", a.status); s.up || !errors.Is(s.err, ErrDraining) {
		t.Errorf("told %+v when the server went, want ErrDraining", s)
	}
	r.serve(t, cfg, addr)
	a.waitUp(t)
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	b.Send(a.pub, [][]byte{data("hello")})
	receive(t, "a packet after the restart", a.got)
}

// TestRedialLosesNothing: packets flow both ways while both ends make new links all the time.
func TestRedialLosesNothing(t *testing.T) {
	r := newRelay(t)
	a := newClientOf(t, newNode(r.control), r).waitUp(t)
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	const rounds = 20
	for i := range rounds {
		who := []*testClient{a, b}[i%2]
		who.Redial()
		seen := map[string]bool{}
		n := 0
		for up := false; !up || n < 50; n++ { // lockstep, so that no queue is ever full
			select {
			case s := <-who.status:
				up = s.up
			default:
			}
			a.Send(b.pub, [][]byte{data(fmt.Sprint("to b ", n))})
			b.Send(a.pub, [][]byte{data(fmt.Sprint("to a ", n))})
			seen[receive(t, fmt.Sprintf("packet %d at b in round %d", n, i), b.got).data] = true
			seen[receive(t, fmt.Sprintf("packet %d at a in round %d", n, i), a.got).data] = true
		}
		if len(seen) != 2*n {
			t.Fatalf("round %d: %d different packets arrived, want %d", i, len(seen), 2*n)
		}
	}
	eventually(t, "all old links are gone", func() bool { return r.Stats().Replaced == rounds })
}

// A network that changes has no routes for a moment: dials that fail then are made again, at the URL that worked first, though
// the old connection seems to live.
func TestRedialOutlastsAChangingNetwork(t *testing.T) {
	r := newRelay(t)
	const dead = "https://[2001:db8::1]:443"
	var down atomic.Int32 // so many dials fail
	var mu sync.Mutex
	var tried []string
	a := newClientOf(t, newNode(r.control), r, func(c *ClientConfig, _ *times) {
		c.URLs = []string{dead, r.url}
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			tried = append(tried, addr)
			if down.Add(-1) >= 0 || "https://"+addr == dead {
				return nil, syscall.ENETUNREACH
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
	}).waitUp(t)
	old := a.cur.Load()
	mu.Lock()
	tried = nil
	mu.Unlock()
	down.Store(5)
	a.Redial()
	eventually(t, "there is a new link", func() bool { l := a.cur.Load(); return l != nil && l != old })
	mu.Lock()
	defer mu.Unlock()
	if want := strings.TrimPrefix(r.url, "https://"); len(tried) < 6 || tried[0] != want {
		t.Errorf("dialed %v, want %s first and six or more", tried, want)
	}
}

// blackHole forwards TCP until it is told to swallow: then it looks alive and is not.
type blackHole struct {
	ln      net.Listener
	to      string
	swallow atomic.Bool
	wg      sync.WaitGroup
	mu      sync.Mutex
	conns   []net.Conn
}

func newBlackHole(t *testing.T, to string) *blackHole {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &blackHole{ln: ln, to: to}
	h.wg.Add(1)
	go func() {
		defer h.wg.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			old := &atomic.Bool{} // connections made after the hole opened work
			h.mu.Lock()
			h.conns = append(h.conns, c, d)
			h.mu.Unlock()
			old.Store(!h.swallow.Load())
			h.wg.Add(2)
			go h.pipe(c, d, old)
			go h.pipe(d, c, old)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		h.mu.Lock()
		for _, c := range h.conns {
			c.Close()
		}
		h.mu.Unlock()
		h.wg.Wait()
	})
	return h
}

func (h *blackHole) pipe(dst, src net.Conn, old *atomic.Bool) {
	defer h.wg.Done()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			dst.Close()
			return
		}
		if !(h.swallow.Load() && old.Load()) {
			dst.Write(buf[:n])
		}
	}
}

// TestSilentDeath: a connection that is dead without anybody saying so is replaced within two seconds of the next packet.
func TestSilentDeath(t *testing.T) {
	soon(t, 2*time.Second, "to replace a dead link", func() time.Duration {
		r := newRelay(t)
		h := newBlackHole(t, r.addr)
		a := newClientOf(t, newNode(r.control), r, func(c *ClientConfig, _ *times) { c.URLs = []string{"https://" + h.ln.Addr().String()} }).waitUp(t)
		b := newClientOf(t, newNode(r.control), r).waitUp(t)
		h.swallow.Store(true)
		start := time.Now()
		a.Send(b.pub, [][]byte{data("into the void")})
		a.waitUp(t)
		took := time.Since(start)
		a.Send(b.pub, [][]byte{data("again")})
		receive(t, "a packet over the new link", b.got)
		return took
	})
}

func TestClientRefusesImpostor(t *testing.T) {
	r := newRelay(t)
	a := newClientOf(t, newNode(r.control), r, func(c *ClientConfig, _ *times) { c.Key = key.PublicOf(key.NewRelay()) })
	s := receive(t, "a status", a.status)
	if s.up || !strings.Contains(fmt.Sprint(s.err), "neither the relay") {
		t.Errorf("told %+v about a server with another key", s)
	}
	if n := r.Stats().Refused + r.Stats().Accepted; n != 0 {
		t.Errorf("%d requests, with proofs in them, went to an impostor", n)
	}
}

func TestClientWithoutTicket(t *testing.T) {
	r := newRelay(t)
	n := newNode(r.control)
	var ticket atomic.Pointer[[]byte]
	a := newClientOf(t, n, r, func(c *ClientConfig, _ *times) {
		c.Ticket = func() []byte {
			if p := ticket.Load(); p != nil {
				return *p
			}
			return nil
		}
	})
	if s := receive(t, "a status", a.status); s.up || !errors.Is(s.err, ErrNoTicket) {
		t.Errorf("told %+v without a ticket", s)
	}
	ticket.Store(&n.ticket)
	a.Redial()
	a.waitUp(t)
}

// TestClientLearnsTheTime: a node whose clock is a day off gets in, by the relay's clock.
func TestClientLearnsTheTime(t *testing.T) {
	r := newRelay(t)
	n := newNode(r.control)
	cfg := &ClientConfig{Key: r.pub, Node: n.pub, Machine: n.machine, Dial: (&net.Dialer{}).DialContext}
	_, err := dial(t.Context(), cfg, r.url, n.ticket, 24*time.Hour, 0)
	var off *clockError
	var refused *RefusedError
	if !errors.As(err, &off) || !errors.As(err, &refused) || off.ahead.Abs() > time.Second || !strings.Contains(refused.Reason, "set the clock") {
		t.Fatalf("a clock a day ahead gave %v", err)
	}
	ws, err := dial(t.Context(), cfg, r.url, n.ticket, off.ahead, 0)
	if err != nil {
		t.Fatal(err)
	}
	ws.NetConn().Close()
}

// TestClientThroughProxy: an HTTP proxy that asks for a password is all the way out there is.
func TestClientThroughProxy(t *testing.T) {
	r := newRelay(t)
	var used, wrong atomic.Int32
	var wg sync.WaitGroup
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method != http.MethodConnect || q.Header.Get("Proxy-Authorization") != "Basic bWU6c2VjcmV0" {
			wrong.Add(1)
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		used.Add(1)
		up, err := net.Dial("tcp", q.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		wg.Add(2) // before the server lets go of the connection
		down, _, _ := w.(http.Hijacker).Hijack()
		io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
		for _, p := range [][2]net.Conn{{up, down}, {down, up}} {
			go func() { defer wg.Done(); io.Copy(p[0], p[1]); p[0].Close() }()
		}
	}), ConnState: func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew: // by Serve itself, which ends before Wait begins
			wg.Add(1)
		case http.StateHijacked, http.StateClosed:
			wg.Done()
		}
	}}
	done := make(chan error)
	go func() { done <- proxy.Serve(ln) }()
	t.Cleanup(func() { proxy.Close(); <-done; r.stop(); wg.Wait() })
	via := &url.URL{Scheme: "http", Host: ln.Addr().String(), User: url.UserPassword("me", "secret")}
	a := newClientOf(t, newNode(r.control), r, func(c *ClientConfig, _ *times) {
		c.Proxy = func(*http.Request) (*url.URL, error) { return via, nil }
	}).waitUp(t)
	if used.Load() != 1 || wrong.Load() != 0 {
		t.Errorf("the proxy was used %d times, and %d times wrongly", used.Load(), wrong.Load())
	}
	a.Close()
}

// TestClientThroughReverseProxy: the relay is behind a proxy that ends TLS, or plain HTTP.
func TestClientThroughReverseProxy(t *testing.T) {
	r := newRelay(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to, _ := url.Parse(r.url)
	rp := httputil.NewSingleHostReverseProxy(to)
	tr := &http.Transport{TLSClientConfig: clientTLS(r.pub, "127.0.0.1", nil)}
	rp.Transport, rp.ErrorLog = tr, quiet
	hs := &http.Server{Handler: rp, ErrorLog: quiet}
	done := make(chan error)
	go func() { done <- hs.Serve(ln) }()
	t.Cleanup(func() { hs.Close(); <-done; tr.CloseIdleConnections() })
	a := newClientOf(t, newNode(r.control), r, func(c *ClientConfig, _ *times) { c.URLs = []string{"http://" + ln.Addr().String()} }).waitUp(t)
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	a.Send(b.pub, [][]byte{data("through")})
	receive(t, "a packet", b.got)
	a.Close()
	r.stop()
}

func TestClientTriesURLsInTurn(t *testing.T) {
	r := newRelay(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	a := newClientOf(t, newNode(r.control), r, func(c *ClientConfig, _ *times) {
		c.URLs = []string{"https://" + dead.Addr().String(), "ftp://nonsense", r.url}
	})
	for i := range 2 {
		if s := receive(t, "a failure", a.status); s.up {
			t.Fatalf("URL %d worked", i)
		}
	}
	a.waitUp(t)
}

// TestCloseAtAnyTime: while dialling a host that does not answer, while waiting to dial, with a full queue.
func TestCloseAtAnyTime(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0") // accepts, never speaks
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	r := newRelay(t)
	dialing := make(chan struct{}, 16)
	a := newClientOf(t, newNode(r.control), r, func(c *ClientConfig, _ *times) {
		c.URLs = []string{"https://" + mute.Addr().String()}
		c.Dial = func(ctx context.Context, n, addr string) (net.Conn, error) {
			nc, err := (&net.Dialer{}).DialContext(ctx, n, addr)
			dialing <- struct{}{}
			return nc, err
		}
	})
	for range 2000 {
		a.Send(newNode(r.control).pub, [][]byte{data("never sent"), {1}})
		if len(dialing) > 0 {
			break
		}
	}
	receive(t, "the dial", dialing)
	start := time.Now()
	a.Close()
	a.Close()
	if d := time.Since(start); d > patience/2 { // a host that does not answer is waited for longer
		t.Errorf("Close took %v", d)
	}
	if a.Send(a.pub, [][]byte{data("x")}) || a.Up() {
		t.Error("a closed client works")
	}
}

func TestBackoff(t *testing.T) {
	for _, urls := range []int{1, 3} {
		for fails := range 60 {
			if d := defaultTimes.backoff(fails, urls, true); d > defaultTimes.hurry {
				t.Errorf("after %d failures of %d URLs, and urgent: wait %v", fails, urls, d)
			}
			d := defaultTimes.backoff(fails, urls, false)
			switch {
			case d > defaultTimes.most, fails < urls && d > 100*time.Millisecond, fails > 20*urls && d < defaultTimes.most/2:
				t.Errorf("after %d failures of %d URLs: wait %v", fails, urls, d)
			}
		}
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{"a\nb\r\n": "a b", "\x1b[31mred\u202e": "[31mred", "\xff\x00": "?", "  fine ": "fine"} {
		if got := oneLine(in); got != want {
			t.Errorf("oneLine(%q) = %q, want %q", in, got, want)
		}
	}
}
