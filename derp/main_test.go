package derp

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"github.com/hedge-mesh/hedge/node/key"
)

func TestMain(m *testing.M) {
	if os.Getenv("HEDGE_TEST_RELAY") != "" { // see BenchmarkIdleMemory
		serveForBenchmark()
		return
	}
	goleak.VerifyTestMain(m)
}

var quiet = log.New(io.Discard, "", 0)

func noProxy(*http.Request) (*url.URL, error) { return nil, nil }

const patience = 10 * time.Second // of a test that is about to fail

// soon has f say how long something took, thrice at most until it is within the limit: a busy machine makes everybody late now
// and then, and nobody each time.
func soon(t testing.TB, limit time.Duration, what string, f func() time.Duration) {
	t.Helper()
	var took []time.Duration
	for range 3 {
		d := f()
		if d <= limit {
			t.Logf("%s took %v", what, d.Round(time.Millisecond))
			return
		}
		took = append(took, d.Round(time.Millisecond))
	}
	t.Errorf("%s took %v; want %v at most", what, took, limit)
}

// eventually waits for a condition that nothing announces.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func receive[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// relay is a server on a real TLS listener.
type relay struct {
	*Server
	control key.ControlPrivate
	addr    string
	url     string
	stop    func() // ends the listener and the server
}

func newRelay(t testing.TB, set ...func(*ServerConfig)) *relay {
	t.Helper()
	r := &relay{control: key.NewControl()}
	cfg := ServerConfig{Key: key.NewRelay(), Trust: []key.ControlPublic{key.PublicOf(r.control)}}
	for _, f := range set {
		f(&cfg)
	}
	return r.serve(t, cfg, "127.0.0.1:0")
}

func (r *relay) serve(t testing.TB, cfg ServerConfig, addr string) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	r.Server = NewServer(cfg)
	conf, err := r.TLSConfig()
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(Path, r.Server)
	hs := &http.Server{Handler: mux, ReadHeaderTimeout: patience, MaxHeaderBytes: 8 << 10, ErrorLog: quiet, ConnState: Strangers(100)}
	done := make(chan error)
	go func() { done <- hs.Serve(tls.NewListener(ln, conf)) }()
	server, once := r.Server, false
	r.addr, r.url = ln.Addr().String(), "https://"+ln.Addr().String()
	r.stop = func() {
		if once {
			return
		}
		once = true
		hs.Close()
		server.Close()
		<-done
	}
	t.Cleanup(r.stop)
	return r
}

// node is what a test node has.
type node struct {
	pub     key.NodePublic
	machine key.MachinePrivate
	ticket  []byte
}

func newNode(control key.ControlPrivate) *node {
	n := &node{pub: key.ExchangePublic(key.NewNode()), machine: key.NewMachine()}
	n.ticket = n.ticketUntil(control, time.Now().Add(time.Hour))
	return n
}

func (n *node) ticketUntil(control key.ControlPrivate, expires time.Time) []byte {
	return Ticket{Node: n.pub, Machine: key.PublicOf(n.machine), Issued: time.Now().Add(-time.Minute), Expires: expires}.Sign(control)
}

// raw connects without a Client.
func (n *node) raw(t testing.TB, r *relay) *websocket.Conn {
	t.Helper()
	ws, err := n.tryRaw(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.NetConn().Close() })
	return ws
}

func (n *node) tryRaw(r *relay) (*websocket.Conn, error) {
	cfg := &ClientConfig{Key: r.pub, Node: n.pub, Machine: n.machine, Dial: (&net.Dialer{}).DialContext}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return dial(ctx, cfg, r.url, n.ticket, 0, 0)
}

type arrival struct {
	from key.NodePublic
	data string
}

type status struct {
	up  bool
	err error
}

// testClient is a Client that keeps what it is told.
type testClient struct {
	*Client
	*node
	got    chan arrival
	status chan status
	gone   chan key.NodePublic
}

func newClientOf(t testing.TB, n *node, r *relay, set ...func(*ClientConfig, *times)) *testClient {
	t.Helper()
	c := &testClient{node: n, got: make(chan arrival, 1<<16), status: make(chan status, 1024), gone: make(chan key.NodePublic, 1024)}
	cfg := ClientConfig{
		URLs: []string{r.url}, Key: r.pub, Node: n.pub, Machine: n.machine, Ticket: func() []byte { return n.ticket },
		Receive: func(from key.NodePublic, pkts [][]byte) {
			for _, p := range pkts {
				c.got <- arrival{from, string(p)}
			}
		},
		Status: func(up bool, err error) { c.status <- status{up, err} },
		Gone:   func(k key.NodePublic) { c.gone <- k },
		Proxy:  noProxy,
	}
	tm := defaultTimes
	for _, f := range set {
		f(&cfg, &tm)
	}
	c.Client = newClient(cfg, tm)
	t.Cleanup(func() { c.Close() })
	return c
}

func (c *testClient) waitUp(t testing.TB) *testClient {
	t.Helper()
	for {
		if s := receive(t, "status up", c.status); s.up && s.err == nil {
			return c
		}
	}
}

// data makes a packet that looks like WireGuard data.
func data(s string) []byte { return append([]byte{4, 0, 0, 0}, s...) }
