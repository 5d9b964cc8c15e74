package wire

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/hedge-mesh/hedge/node/key"
)

// front is a coordinator's HTTP server on loopback, whose channels serve gets.
func front(t *testing.T, control key.ControlPrivate, secure bool, serve func(*Conn)) *httptest.Server {
	t.Helper()
	var wg sync.WaitGroup
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wg.Add(1)
		defer wg.Done()
		c, err := Accept(w, r, AcceptConfig{Control: control})
		if err != nil {
			return
		}
		defer c.Close()
		serve(c)
	})
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = nil
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(func() { s.Close(); wg.Wait() })
	return s
}

func echo(c *Conn) {
	for {
		m, err := c.Recv()
		if err != nil || c.Send(m) != nil {
			return
		}
	}
}

func direct(*http.Request) (*url.URL, error) { return nil, nil }

func TestChannel(t *testing.T) {
	control, machine := key.NewControl(), key.NewMachine()
	for _, secure := range []bool{false, true} {
		proven := make(chan key.MachinePublic, 1)
		s := front(t, control, secure, func(c *Conn) { proven <- c.Machine(); echo(c) })
		c, err := Dial(t.Context(), DialConfig{URLs: []string{s.URL}, Pin: key.PublicOf(control), Machine: machine, Proxy: direct})
		if err != nil {
			t.Fatal(err)
		}
		if got := <-proven; got != key.PublicOf(machine) || c.Control() != key.PublicOf(control) || c.URL() != s.URL {
			t.Errorf("the ends proved %v and %v by %q", got, c.Control(), c.URL())
		}
		for _, n := range []int{1, 20_000, MaxRequest - 200} {
			if err := c.Send(&Hello{Enrol: strings.Repeat("x", n)}); err != nil {
				t.Fatal(err)
			}
			m, err := c.Recv()
			if err != nil || len(m.(*Hello).Enrol) != n {
				t.Fatalf("%d bytes did not come back: %v", n, err)
			}
		}
		c.Close()
		if err := c.Send(&Ack{}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("send on a closed channel: %v", err)
		}
		if _, err := c.Recv(); err == nil {
			t.Error("receive on a closed channel worked")
		}
	}
}

func TestLargeMessagesTakeTurns(t *testing.T) {
	control := key.NewControl()
	big := strings.Repeat("x", 4<<20)
	s := front(t, control, false, func(c *Conn) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := c.Send(&Ticket{Signed: []byte(big)}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		c.Recv()
	})
	c, err := Dial(t.Context(), DialConfig{URLs: []string{s.URL}, Pin: key.PublicOf(control), Machine: key.NewMachine(), Proxy: direct})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 4 {
		m, err := c.Recv()
		if err != nil || len(m.(*Ticket).Signed) != len(big) {
			t.Fatal(err)
		}
	}
}

func TestImpostorIsNamed(t *testing.T) {
	real, impostor := key.NewControl(), key.NewControl()
	bad := front(t, impostor, false, echo)
	cfg := DialConfig{URLs: []string{bad.URL}, Pin: key.PublicOf(real), Machine: key.NewMachine(), Proxy: direct}
	_, err := Dial(t.Context(), cfg)
	var pin *PinError
	if !errors.As(err, &pin) || pin.Want != key.PublicOf(real) || pin.Got != key.PublicOf(impostor) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"this is not the coordinator of the join string", pin.Want.String(), pin.Got.String(), bad.URL} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	good := front(t, real, false, echo)
	cfg.URLs = []string{bad.URL, good.URL}
	c, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatalf("an impostor at one URL kept the node from another: %v", err)
	}
	c.Close()
}

func TestUnreachableNamesEachURL(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "log in to the WLAN") }))
	defer plain.Close()
	babble := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err == nil {
			ws.WriteMessage(websocket.BinaryMessage, []byte("this is not TLS at all"))
			ws.Close()
		}
	}))
	defer babble.Close()
	urls := []string{"http://127.0.0.1:1", plain.URL, babble.URL, "ftp://x"}
	_, err := Dial(t.Context(), DialConfig{URLs: urls, Pin: key.PublicOf(key.NewControl()), Machine: key.NewMachine(), Proxy: direct})
	var u *UnreachableError
	if !errors.As(err, &u) || len(u.Tried) != len(urls) {
		t.Fatalf("got %v", err)
	}
	for i, want := range []string{"refused", "answers HTTP 200", "does not speak as a coordinator", "not an http or https URL"} {
		if u.Tried[i].URL != urls[i] || !strings.Contains(u.Tried[i].Err.Error(), want) {
			t.Errorf("%s: %v, want %q", u.Tried[i].URL, u.Tried[i].Err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, DialConfig{URLs: urls, Pin: key.PublicOf(key.NewControl()), Machine: key.NewMachine()}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled dial: %v", err)
	}
}

// A URL that swallows connections costs a stagger, not its timeout.
func TestDialRaces(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	control := key.NewControl()
	good := front(t, control, false, echo)
	start := time.Now()
	c, err := Dial(t.Context(), DialConfig{URLs: []string{"http://" + l.Addr().String(), good.URL}, Pin: key.PublicOf(control), Machine: key.NewMachine(), Proxy: direct})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if d := time.Since(start); d > attempt/2 {
		t.Errorf("it took %v", d)
	}
}

func TestProxyIsHonoured(t *testing.T) {
	control := key.NewControl()
	s := front(t, control, false, echo)
	var asked string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.Host
		up, err := net.Dial("tcp", r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		down, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
		var wg sync.WaitGroup
		wg.Go(func() { io.Copy(up, down); up.Close() })
		wg.Go(func() { io.Copy(down, up); down.Close() })
		wg.Wait()
	}))
	defer proxy.Close()
	pu, _ := url.Parse(proxy.URL)
	c, err := Dial(t.Context(), DialConfig{URLs: []string{s.URL}, Pin: key.PublicOf(control), Machine: key.NewMachine(), Proxy: http.ProxyURL(pu)})
	if err != nil {
		t.Fatal(err)
	}
	if want := "CONNECT " + strings.TrimPrefix(s.URL, "http://"); asked != want {
		t.Errorf("the proxy was asked %q, want %q", asked, want)
	}
	c.Close()
}

// A proxy that will not connect is named with its answer, whatever reason it gives, and never with the password; of a wrong
// password whoever dials is told, so as not to try it again and again.
func TestProxyRefuses(t *testing.T) {
	for answer, want := range map[string]struct {
		says  string
		creds bool
	}{
		"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n": {"407 Proxy Authentication Required: it wants another user or password", true},
		"HTTP/1.0 407 authenticationrequired\r\n\r\n":                                                          {"407 Proxy Authentication Required", true},
		"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n":                                                  {"403 Forbidden", false},
		"HTTP/1.1 502 Bad Gateway\r\n\r\n":                                                                     {"502 Bad Gateway", false},
		"220 mail.example ESMTP\r\n":                                                                           {"malformed", false},
	} {
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
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, answer)
				c.Close()
			}
		})
		at := l.Addr().String()
		_, err = Dial(t.Context(), DialConfig{URLs: []string{"https://hub.example:7443"}, Pin: key.PublicOf(key.NewControl()), Machine: key.NewMachine(),
			Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: at, User: url.UserPassword("me", "sesame")})})
		l.Close()
		wg.Wait()
		var p *ProxyError
		if said := fmt.Sprint(err); !strings.Contains(said, want.says) || strings.Contains(said, "sesame") {
			t.Errorf("%q: %v", answer, err)
		}
		switch errors.As(err, &p) {
		case true:
			if p.Proxy != at || p.Credentials() != want.creds {
				t.Errorf("%q: %+v", answer, p)
			}
		case false:
			if strings.HasPrefix(answer, "HTTP") {
				t.Errorf("%q: %v, want a ProxyError", answer, err)
			}
		}
	}
}

func TestBrowserIsTurnedAway(t *testing.T) {
	s := front(t, key.NewControl(), false, echo)
	req, _ := http.NewRequest("GET", s.URL+Path, nil)
	req.Header = http.Header{"Origin": {s.URL}, "Connection": {"Upgrade"}, "Upgrade": {"websocket"},
		"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a browser got %s", resp.Status)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

// pair is a Conn and the bare other end of its pipe.
func pair() (*Conn, net.Conn) {
	a, b := net.Pipe()
	return newConn(a, MaxRequest), b
}

// R-body-bomb: what a message claims to hold takes no memory, and what is over the limit is not read.
func TestRBodyBomb(t *testing.T) {
	c, far := pair()
	defer far.Close()
	defer c.Close()
	go far.Write([]byte{0xff, 0xff, 0xff, 0xff})
	if _, err := c.Recv(); err == nil || !strings.Contains(err.Error(), "over the limit") {
		t.Errorf("a message of 4 GiB: %v", err)
	}

	a, b := net.Pipe()
	c = newConn(a, MaxMessage)
	defer c.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	go func() {
		b.Write(binary.BigEndian.AppendUint32(nil, MaxMessage))
		b.Close()
	}()
	if _, err := c.Recv(); err == nil {
		t.Error("a message that never came was received")
	}
	runtime.ReadMemStats(&after)
	if d := after.TotalAlloc - before.TotalAlloc; d > 1<<20 {
		t.Errorf("a claim of %d bytes took %d", MaxMessage, d)
	}
}

func TestAliveBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		x, y := newConn(a, MaxRequest), newConn(b, MaxRequest)
		done := make(chan error, 1)
		go func() { _, err := y.Recv(); done <- err }()
		got := make(chan error, 1)
		go func() { _, err := x.Recv(); got <- err }()
		<-time.After(time.Hour) // of fake time: an hour of silence from above
		select {
		case err := <-done:
			t.Fatalf("an idle channel ended: %v", err)
		case err := <-got:
			t.Fatalf("an idle channel ended: %v", err)
		default:
		}
		x.Close()
		y.Close()
		<-done
		<-got
	})
}

func TestSilenceEndsTheChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, far := pair()
		go io.Copy(io.Discard, far)
		start := time.Now()
		_, err := c.Recv()
		if err == nil || !strings.Contains(err.Error(), "silent") || time.Since(start) != deadAfter {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		c.Close()
		far.Close()
	})
}

func TestSendIsBounded(t *testing.T) {
	for name, c := range map[string]struct {
		read func(net.Conn)
		most time.Duration
	}{
		"an end that does not read": {func(net.Conn) {}, writeStall + aliveEvery},
		"an end that reads a little every ten seconds": {func(far net.Conn) {
			b := make([]byte, chunk)
			for {
				<-time.After(10 * time.Second) // of fake time
				if _, err := io.ReadFull(far, b); err != nil {
					return
				}
			}
		}, writeTotal + writeStall},
	} {
		synctest.Test(t, func(t *testing.T) {
			conn, far := pair()
			var wg sync.WaitGroup
			wg.Go(func() { c.read(far) })
			start := time.Now()
			err := conn.SendEncoded(bytes.Repeat([]byte{1}, 8<<20))
			if err == nil || !strings.Contains(err.Error(), "does not read") || time.Since(start) > c.most {
				t.Errorf("%s: after %v: %v", name, time.Since(start), err)
			}
			if err2 := conn.Send(&Ack{}); err2 != err {
				t.Errorf("%s: a later send says %v, want the first error", name, err2)
			}
			far.Close()
			conn.Close()
			wg.Wait()
		})
	}
}

func TestRefuseReachesTheOtherEnd(t *testing.T) {
	control := key.NewControl()
	s := front(t, control, false, func(c *Conn) { c.Refuse(&Refused{Code: RefusedRemoved, Message: "removed"}) })
	c, err := Dial(t.Context(), DialConfig{URLs: []string{s.URL}, Pin: key.PublicOf(control), Machine: key.NewMachine(), Proxy: direct})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 10 { // unread by the other end: its close would be a reset
		c.Send(&Ack{})
	}
	m, err := c.Recv()
	if r, ok := m.(*Refused); !ok || r.Code != RefusedRemoved {
		t.Errorf("got %v, %v", m, err)
	}
}

func FuzzRecv(f *testing.F) {
	b, _ := Encode(&Ack{Revision: 1})
	f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 99})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, far := pair()
		go func() { far.Write(b); far.Close() }()
		for {
			if _, err := c.Recv(); err != nil {
				break
			}
		}
		c.Close()
	})
}

// Beat is heard as often as it was asked for, and Heard says when that was last.
func TestBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		x, y := newConn(a, MaxMessage), newConn(b, MaxMessage)
		var wg sync.WaitGroup
		for _, c := range []*Conn{x, y} {
			wg.Go(func() { c.Recv() })
		}
		silent := func(most time.Duration) {
			t.Helper()
			for range 100 {
				time.Sleep(time.Second)
				synctest.Wait()
				if d := time.Since(y.Heard()); d > most {
					t.Fatalf("silent for %v", d)
				}
			}
		}
		silent(aliveEvery)
		x.Beat(CarrierBeat)
		time.Sleep(CarrierBeat)
		silent(CarrierBeat)
		x.Beat(0)
		time.Sleep(aliveEvery - time.Millisecond)
		synctest.Wait()
		if d := time.Since(y.Heard()); d < aliveEvery-2*CarrierBeat {
			t.Errorf("heard %v ago, though it was told to beat slowly", d)
		}
		silent(aliveEvery)
		x.Close()
		y.Close()
		x.Beat(CarrierBeat) // of a closed one it does nothing
		wg.Wait()
	})
}
