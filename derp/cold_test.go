package derp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// far carries a TCP connection's bytes as over a path of that latency, one way.
func far(latency time.Duration) (a, b net.Conn) {
	a, x := net.Pipe()
	y, b := net.Pipe()
	carry := func(from, to net.Conn) {
		type chunk struct {
			at time.Time
			b  []byte
		}
		way := make(chan chunk, 1024)
		go func() {
			defer close(way)
			for {
				b := make([]byte, 1<<16)
				n, err := from.Read(b)
				if err != nil {
					return
				}
				way <- chunk{time.Now().Add(latency), b[:n]}
			}
		}()
		go func() {
			defer to.Close()
			defer from.Close()
			for c := range way {
				<-time.After(time.Until(c.at))
				if _, err := to.Write(c.b); err != nil {
					break
				}
			}
			from.Close()
			for range way {
			}
		}()
	}
	carry(x, y)
	carry(y, x)
	return a, b
}

// farListener is a relay's, 20 ms away.
type farListener struct {
	come chan net.Conn
	over chan struct{}
	once sync.Once
}

func (l *farListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.come:
		return c, nil
	case <-l.over:
		return nil, net.ErrClosed
	}
}

func (l *farListener) Close() error   { l.once.Do(func() { close(l.over) }); return nil }
func (l *farListener) Addr() net.Addr { return &net.TCPAddr{} }

// TestColdConnect: until the first packet may leave it takes three round trips, of TCP, TLS and WebSocket: neither who the node
// is nor the relay's welcome costs another. Two nodes then are a round trip apart.
func TestColdConnect(t *testing.T) {
	const latency = 20 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		control := key.NewControl()
		rk := key.NewRelay()
		s := NewServer(ServerConfig{Key: rk, Trust: []key.ControlPublic{key.PublicOf(control)}})
		conf, err := s.TLSConfig()
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Second) // proofs are not older than the relay
		l := &farListener{come: make(chan net.Conn), over: make(chan struct{})}
		mux := http.NewServeMux()
		mux.Handle(Path, s)
		hs := &http.Server{Handler: mux, ErrorLog: quiet}
		done := make(chan error)
		go func() { done <- hs.Serve(tls.NewListener(l, conf)) }()
		connect := func() (*Client, key.NodePublic, chan time.Time, chan time.Time) {
			n := newNode(control)
			up, got := make(chan time.Time, 1), make(chan time.Time, 1)
			c := NewClient(ClientConfig{
				URLs: []string{"https://relay.test"}, Key: key.PublicOf(rk), Node: n.pub, Machine: n.machine,
				Ticket:  func() []byte { return n.ticket },
				Receive: func(key.NodePublic, [][]byte) { got <- time.Now() },
				Status: func(is bool, err error) {
					if !is {
						t.Error(err)
					}
					up <- time.Now()
				},
				Proxy: noProxy,
				Dial: func(context.Context, string, string) (net.Conn, error) {
					a, b := far(latency)
					<-time.After(2 * latency) // SYN, and its answer
					select {
					case l.come <- b:
						return a, nil
					case <-l.over:
						return nil, errors.New("the relay is gone")
					}
				},
			})
			return c, n.pub, up, got
		}
		start := time.Now()
		a, _, up, _ := connect()
		at := (<-up).Sub(start)
		t.Logf("the first packet may leave after %v", at)
		if at > 6*latency {
			t.Errorf("the first packet may leave after %v, want %v: three round trips", at, 6*latency)
		}
		b, to, upB, got := connect()
		<-upB
		start = time.Now()
		a.Send(to, [][]byte{data("x")})
		if d := (<-got).Sub(start); d != 2*latency {
			t.Errorf("a packet took %v, want %v", d, 2*latency)
		}
		a.Close()
		b.Close()
		s.Close()
		hs.Close()
		<-done
	})
}
