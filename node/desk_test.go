package node

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
)

// desk is the coordinator's end of the channel with nobody behind it: a test says what it answers. Beside it is a
// real relay.
type desk struct {
	t       *testing.T
	url     string
	control key.ControlPrivate
	relay   *derp.Server
	relays  []wire.Relay
	logs    *logBuffer

	// hello answers a node's first message; its answers are sent before anything else. It is called with mu held.
	hello func(d *desk, m key.MachinePublic, h *wire.Hello) []any

	mu       sync.Mutex
	sessions map[key.MachinePublic]*wire.Conn
	acks     chan uint64
	heres    chan *wire.Here
	outs     chan struct{} // a Logout

	advertised chan []netip.Prefix // if a test wants to know
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rk := key.NewRelay()
	d := &desk{
		t: t, url: "http://" + l.Addr().String(), control: key.NewControl(), sessions: make(map[key.MachinePublic]*wire.Conn),
		acks: make(chan uint64, 64), heres: make(chan *wire.Here, 64), outs: make(chan struct{}, 1), logs: new(logBuffer),
	}
	d.relay = derp.NewServer(derp.ServerConfig{Key: rk, Trust: []key.ControlPublic{key.PublicOf(d.control)}, Log: d.logs.logger("relay")})
	d.relays = []wire.Relay{{ID: 1, Key: key.PublicOf(rk), URLs: []string{d.url}}}
	mux := http.NewServeMux()
	mux.Handle("/relay", d.relay)
	mux.HandleFunc("/control", d.serve)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(tail(d.logs.String(), 8000))
		}
		srv.Close()
		d.hangUp()
		d.relay.Close()
		wg.Wait()
	})
	return d
}

// hangUp ends all sessions.
func (d *desk) hangUp() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.sessions {
		_ = c.Close()
	}
}

func (d *desk) serve(w http.ResponseWriter, r *http.Request) {
	c, err := wire.Accept(w, r, wire.AcceptConfig{Control: d.control})
	if err != nil {
		return
	}
	defer c.Close()
	msg, err := c.Recv()
	h, ok := msg.(*wire.Hello)
	if err != nil || !ok {
		return
	}
	d.mu.Lock()
	d.sessions[c.Machine()] = c
	answers := d.hello(d, c.Machine(), h)
	d.mu.Unlock()
	for _, a := range answers {
		if c.Send(a) != nil {
			return
		}
	}
	for {
		msg, err := c.Recv()
		if err != nil {
			return
		}
		switch msg := msg.(type) {
		case *wire.Ack:
			d.acks <- msg.Revision
		case *wire.Here:
			d.heres <- msg
		case *wire.Advertise:
			d.advertised <- msg.Routes
		case *wire.Logout:
			d.outs <- struct{}{}
			_ = c.Send(&wire.Refused{Code: wire.RefusedRemoved, Message: "logged out"})
			return
		}
	}
}

// send says something to a node that is connected.
func (d *desk) send(m key.MachinePublic, msgs ...any) {
	d.t.Helper()
	d.mu.Lock()
	c := d.sessions[m]
	d.mu.Unlock()
	for _, msg := range msgs {
		if err := c.Send(msg); err != nil {
			d.t.Error(err)
		}
	}
}

func (d *desk) ticket(m key.MachinePublic, n key.NodePublic) *wire.Ticket {
	t := derp.Ticket{Node: n, Machine: m, Expires: time.Now().Add(time.Hour)}
	return &wire.Ticket{Signed: t.Sign(d.control)}
}

func (d *desk) join(enrol string) string {
	return wire.Join{URLs: []string{d.url}, Pin: key.PublicOf(d.control), Key: enrol}.String()
}

func (d *desk) config(name, enrol string) Config {
	return Config{StateDir: d.t.TempDir(), Join: d.join(enrol), Name: name, LoopbackOnly: true, Log: d.logs.logger(name)}
}

// deskMap is a Map for the first of the nodes; the others are its peers. web may reach db on 5432.
func (d *desk) deskMap(revision uint64, self acl.NodeID, keys map[acl.NodeID]key.NodePublic) *wire.Map {
	names := map[acl.NodeID]string{1: "web", 2: "db"}
	m := &wire.Map{
		Revision: revision, Relays: d.relays,
		Self: wire.Self{Domain: "hedge.internal", Prefixes: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}},
		Rules: []acl.Rule{{
			Pos: acl.Pos{File: "acl.hujson", Line: 3, Col: 5}, Path: "acls[0]", Action: acl.Accept, Src: []string{"web"},
			Dst: []acl.Target{{Set: "db", Ports: []acl.PortRange{{First: 5432, Last: 5432}}}},
		}},
		Sets: map[string]acl.Set{"web": {Nodes: []acl.NodeID{1}}, "db": {Nodes: []acl.NodeID{2}}},
	}
	for id := acl.NodeID(1); id <= 2; id++ {
		k, ok := keys[id]
		if !ok {
			continue
		}
		p := wire.Peer{Node: acl.Node{ID: id, Name: names[id], Addrs: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, byte(id)})}}, Key: k}
		if id == self {
			m.Self.Peer = p
		} else {
			m.Peers = append(m.Peers, p)
		}
	}
	return m
}
