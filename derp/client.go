package derp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/udp"
)

// ClientConfig is what a client needs to know of itself and its relay.
type ClientConfig struct {
	ID      uint16   // the relay's number, for messages
	URLs    []string // http:// or https://host:port, tried in turn; Path is added to one without a path
	Key     key.RelayPublic
	Node    key.NodePublic
	Machine key.MachinePrivate
	Ticket  func() []byte // the newest signed ticket; nil or empty while there is none

	// Receive gets packets that arrived, one or more, all from one node. They are valid until it returns.
	Receive func(from key.NodePublic, pkts [][]byte)
	// Status, if set, is told each time the relay becomes reachable (true, nil), is lost or could not be reached
	// (false, why), or is still there but about to go away (true, ErrDraining). It must return soon.
	Status func(up bool, err error)
	// Gone, if set, is told that the relay has no such node: a hint, which a relay may withhold or invent.
	Gone func(key.NodePublic)
	// Outside, if set, is told that our datagrams come to the relay from another address than before. It must return soon.
	Outside func()

	// UDP is where the relay's UDP side may be, host:port; if empty, at the URLs' hosts and ports. It is used while pings
	// of it are answered and not needed otherwise.
	UDP []string
	// ListenUDP opens the socket for it; one of any address and port if nil.
	ListenUDP func() (net.PacketConn, error)

	// Dial makes TCP connections; a net.Dialer's with LimitSegments if nil.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Lookup finds the addresses of a name of UDP; the system's resolver if nil. Dial looks up its own.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// Proxy chooses an HTTP proxy; http.ProxyFromEnvironment if nil.
	Proxy func(*http.Request) (*url.URL, error)
}

// The reasons for which a relay ends a session, as Status is told them. Test with errors.Is.
var (
	ErrReplaced = errors.New("derp: another connection of the same node key has taken this one's place")
	ErrKicked   = errors.New("derp: this node has been removed")
	ErrExpired  = errors.New("derp: the relay ticket has expired")
	ErrDraining = errors.New("derp: the relay is going away; use another")
	ErrSilent   = errors.New("derp: the relay stopped answering")
	ErrNoTicket = errors.New("derp: no relay ticket yet; the coordinator issues one")
)

// RefusedError is a relay's, or a proxy's, refusal of the upgrade request.
type RefusedError struct {
	URL    string
	Status int    // HTTP
	Reason string // the answer's text, in one line
}

// Error names the URL, the status and the reason given.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("derp: %s refused with status %d: %s", e.URL, e.Status, e.Reason)
}

// Client keeps a connection to one relay, redialling for ever.
//
//	Send ──▶ queue ──▶ writer ──▶ current link ══▶ relay
//	                                  ▲
//	manager: dials, watches, replaces ┘◀── reader of each link ──▶ Receive
//
// A new link is up before the old one is given up, and the old one is read to its end.
type Client struct {
	cfg   ClientConfig
	times times
	epoch time.Time // of the links' clocks

	q    queue
	wake chan struct{} // to the writer: a new link

	cur    atomic.Pointer[link]
	held   atomic.Bool     // what is written to it would be lost
	redial chan struct{}   // to the manager: from Redial
	stir   chan struct{}   // to the manager: the link has work for its pulse
	dialed chan dialResult // to the manager: at most one dial is under way
	ended  chan *link      // to the manager: a link has ended

	sock        atomic.Pointer[udp.Socket] // of the relay's UDP side, nil until it is needed
	bond, prior atomic.Pointer[bond]       // of the current link, and of the one before
	traffic     atomic.Int64               // the last packet to or from a node
	lulled      atomic.Bool                // the manager wants to know of the next
	offers      chan offer                 // to the manager: likewise below
	located     chan []netip.AddrPort
	pongs       chan answered

	recv   sync.Mutex // at most one Receive or Gone at a time
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once
}

// NewClient starts to connect. Close ends it.
func NewClient(cfg ClientConfig) *Client { return newClient(cfg, defaultTimes) }

func newClient(cfg ClientConfig, t times) *Client {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Control: LimitSegments}).DialContext
	}
	if cfg.ListenUDP == nil {
		cfg.ListenUDP = func() (net.PacketConn, error) { return net.ListenPacket("udp", ":0") }
	}
	if cfg.Lookup == nil {
		cfg.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if cfg.Proxy == nil {
		cfg.Proxy = http.ProxyFromEnvironment
	}
	c := &Client{
		cfg:    cfg,
		times:  t,
		epoch:  time.Now().Add(-time.Second), // so that no time is zero
		q:      queue{maxBytes: 512 << 10, maxPackets: 1024},
		wake:   make(chan struct{}, 1),
		redial: make(chan struct{}, 1),
		stir:   make(chan struct{}, 1),
		dialed: make(chan dialResult, 1),
		ended:  make(chan *link),

		offers:  make(chan offer),
		located: make(chan []netip.AddrPort),
		pongs:   make(chan answered, 8),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.wg.Add(1)
	go c.manage()
	return c
}

func (c *Client) since() time.Duration { return time.Since(c.epoch) }

// poke leaves a token in a channel of capacity one.
func (c *Client) poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Send queues packets to a node and returns at once: it copies them, and drops the oldest data if the queue is full.
// It reports whether the packets were taken; a packet longer than MaxPacket, and an empty one, never are.
// Packets that are not WireGuard data go before data by themselves, as with SendPriority.
func (c *Client) Send(dst key.NodePublic, pkts [][]byte) bool {
	if c.ctx.Err() != nil || dst.IsZero() {
		return false
	}
	ok := true
	for len(pkts) > 0 {
		n := 0 // neighbours that are data
		for n < len(pkts) && sendable(pkts[n]) && !urgent(pkts[n]) {
			n++
		}
		if n > 0 {
			_, start, _ := c.q.pushPackets(dst.Raw(), pkts[:n])
			c.startWriter(start)
			pkts = pkts[n:]
			continue
		}
		ok = c.SendPriority(dst, pkts[:1]) && ok
		pkts = pkts[1:]
	}
	return ok
}

func sendable(p []byte) bool { return len(p) > 0 && len(p) <= MaxPacket }

// SendPriority queues packets, of at most 2048 bytes, that go before any data: path probes and handshakes. When too
// many wait already, the oldest of them are dropped.
func (c *Client) SendPriority(dst key.NodePublic, pkts [][]byte) bool {
	if c.ctx.Err() != nil || dst.IsZero() {
		return false
	}
	ok := true
	for _, p := range pkts {
		if len(p) == 0 || len(p) > maxUrgent {
			ok = false
			continue
		}
		_, start, _ := c.q.pushUrgent(dst.Raw(), p)
		c.startWriter(start)
	}
	return ok
}

// Up reports whether there is a connection.
func (c *Client) Up() bool { return c.cur.Load() != nil }

// Redial makes a new connection and then gives up the old one: for when the network has changed under it, or there is
// a ticket at last. It returns at once.
func (c *Client) Redial() { c.poke(c.redial) }

// Close ends the connection and waits for every goroutine of the client. No callback runs after it.
// It must not be called from a callback.
func (c *Client) Close() error {
	c.once.Do(func() {
		c.cancel()
		c.wg.Wait()
		select {
		case r := <-c.dialed: // too late
			if r.ws != nil {
				r.ws.NetConn().Close()
			}
		default:
		}
		c.q.kill()
	})
	return nil
}

// control queues a word to the relay itself.
func (c *Client) control(kind byte, body []byte) {
	_, start, _ := c.q.pushUrgent([key.Size]byte{}, append([]byte{kind}, body...))
	c.startWriter(start)
}

func (c *Client) startWriter(start bool) {
	if start {
		go c.write()
	}
}

// write is the writer goroutine, there while packets wait. While there is no link, or one that leads nowhere any more, it
// waits for another; a message that a link did not take goes to the next.
func (c *Client) write() {
	defer c.q.writers.Done()
	var b *block
	var failed *link
	for {
		l, held := c.cur.Load(), c.held.Load()
		if l == nil || l == failed || held {
			if held {
				c.busy() // UDP may be there before a new link is
			}
			select {
			case <-c.wake:
				continue
			case <-c.ctx.Done():
				return
			}
		}
		if b == nil {
			if b, _ = c.q.pop(); b == nil {
				return
			}
		}
		if b.n > 1 || [key.Size]byte(b.bytes()) != [key.Size]byte{} {
			c.busy()
			c.sayUDP(b)
		}
		if b.n > 0 {
			if err := l.write(b); err != nil {
				l.hangUp() // its reader tells the manager
				failed = l
				continue
			}
		}
		b.free()
		b = nil
	}
}
