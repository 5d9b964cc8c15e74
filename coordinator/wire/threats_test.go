package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/hedge-mesh/hedge/node/key"
)

// recorder keeps what is written to a connection.
type recorder struct {
	net.Conn
	mu   sync.Mutex
	sent bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	r.sent.Write(b)
	r.mu.Unlock()
	return r.Conn.Write(b)
}

func (r *recorder) all() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.sent.Bytes())
}

// T4: all that a machine said when it registered, said again by somebody who listened, is no registration: not as it was,
// not cut at any message, not after the coordinator's end has seen the machine go.
func TestRReplayedRegistration(t *testing.T) {
	control := key.NewControl()
	hellos := make(chan any, 16)
	s := front(t, control, false, func(c *Conn) {
		m, err := c.Recv()
		if err != nil {
			return
		}
		hellos <- m
		_ = c.Send(&Ack{})
		_, _ = c.Recv()
	})
	var rec *recorder
	c, err := Dial(t.Context(), DialConfig{URLs: []string{s.URL}, Pin: key.PublicOf(control), Machine: key.NewMachine(), Proxy: direct,
		NetDial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			rec = &recorder{Conn: nc}
			return rec, err
		}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Send(&Hello{Version: Version, Enrol: "id.secret"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Recv(); err != nil {
		t.Fatal(err)
	}
	<-hellos
	said := rec.all()
	if bytes.Contains(said, []byte("id.secret")) {
		t.Error("the join key went in the clear")
	}
	c.Close()
	replay := func(b []byte) {
		nc, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := nc.Write(b); err == nil {
			_ = nc.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, nc)
		}
	}
	upgrade := bytes.Index(said, []byte("\r\n\r\n")) + 4
	for range 10 {
		replay(said)
	}
	for i := range 10 {
		replay(said[:upgrade+(len(said)-upgrade)*i/10])
	}
	select {
	case m := <-hellos:
		t.Errorf("a replay was taken for %+v", m)
	default:
	}
}

// T4: neither end speaks an older TLS inside the channel, whatever the other asks for.
func TestRDowngrade(t *testing.T) {
	control, machine := key.NewControl(), key.NewMachine()
	reached := make(chan struct{}, 1)
	s := front(t, control, false, func(c *Conn) { reached <- struct{}{} })
	cert, err := key.Certificate(machine)
	if err != nil {
		t.Fatal(err)
	}
	ws, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(s.URL, "http")+Path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	old := &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true}
	if err := tls.Client(newStream(ws), old).Handshake(); err == nil {
		t.Error("the coordinator speaks TLS 1.2")
	}
	select {
	case <-reached:
		t.Error("and lets the machine in")
	default:
	}

	serverCert, err := key.Certificate(control)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			ended <- err
			return
		}
		defer ws.Close()
		ended <- tls.Server(newStream(ws), &tls.Config{MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{serverCert}}).Handshake()
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	defer wg.Wait()
	defer srv.Close()
	c, err := Dial(t.Context(), DialConfig{URLs: []string{"http://" + l.Addr().String()}, Pin: key.PublicOf(control), Machine: machine, Proxy: direct})
	if err == nil {
		c.Close()
		t.Error("a node speaks TLS 1.2")
	}
	if err := <-ended; err == nil {
		t.Error("and the handshake is done")
	}
}
