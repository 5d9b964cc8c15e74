package process

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hedge-mesh/hedge/node"
	"github.com/hedge-mesh/hedge/test/bench/crowd"
	"github.com/hedge-mesh/hedge/test/bench/kid"
	"github.com/hedge-mesh/hedge/test/bench/report"
)

// KnownOptions say what a node is to know, and who talks to it.
type KnownOptions struct {
	Known  int           // peers and rules
	Active int           // of the peers: they are nodes, and send
	Each   time.Duration // how long they send
	Settle time.Duration // before memory is looked at for the last time
	Say    func(format string, args ...any)
}

// Cost is how long it takes, about.
func (o KnownOptions) Cost() time.Duration {
	return o.Each + o.Settle + time.Duration(o.Known)*3*time.Millisecond + 20*time.Second
}

// What an active peer sends, and gets back: a megabit a second, and ten requests.
const (
	pace      = 100 * time.Millisecond
	paceBytes = 12_500
)

// MeasureKnown has many peers known to one node in a process of its own, some of them nodes in another, and looks at the
// memory of the one: when it has just begun, while all of these talk to it, and when they have fallen silent.
func MeasureKnown(ctx context.Context, rep *report.Report, o KnownOptions) (err error) {
	s := &report.Section{Name: "known", Worlds: []string{Hedge}, About: fmt.Sprintf(
		"one node that knows %d peers and as many rules; %d of the peers are nodes, of which each sends 1 Mbit/s and ten requests a second, and gets all of it back",
		o.Known, o.Active)}
	rep.Sections = append(rep.Sections, s)
	dir, err := os.MkdirTemp("", "hedge-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o.Say("a mesh of %d peers and rules comes up", o.Known)
	hub, err := kid.Start[hubRequest, hubAnswer](ctx, "hub", nil)
	if err != nil {
		return err
	}
	defer hub.Stop()
	a, err := hub.Ask(hubRequest{Dir: dir, Rules: o.Known, Peers: o.Known - o.Active, Active: o.Active > 0})
	if err != nil {
		return err
	}
	if err := crowd.Join(ctx, crowd.Request{Join: a.Joins[1], N: 1}); err != nil { // b, whom the rules are about
		return err
	}
	one, err := kid.Start[Request, Answer](ctx, "world", nil)
	if err != nil {
		return err
	}
	defer one.Stop()
	memory := func(when string) {
		if a, err := one.Ask(Request{Test: "mem"}); err == nil {
			s.Put(0, Hedge, "memory, "+when, "MB", a.RSS)
			s.Put(0, Hedge, "memory, most until then, "+when, "MB", a.Peak)
		}
	}
	many, err := kid.Start[activeRequest, activeAnswer](ctx, "active", nil)
	if err != nil {
		return err
	}
	defer many.Stop()
	// The others first, so that the node gets all of them with its first Map.
	if _, err := many.Ask(activeRequest{Dir: dir, Join: a.Active, N: o.Active}); err != nil {
		return err
	}
	if _, err := one.Ask(Request{Test: "open", Place: &Place{Kind: alone, Dir: dir, Joins: a.Joins, Peers: o.Known}}); err != nil {
		return err
	}
	memory("just begun")
	o.Say("%d peers talk", o.Active)
	for _, when := range []string{"first", "then"} { // the first is their handshakes, too
		got, err := many.Ask(activeRequest{MS: int(o.Each.Milliseconds()) / 2})
		if err != nil {
			return err
		}
		memory("while all talk, " + when)
		s.Put(0, Hedge, "came back, "+when, "Mbit/s", got.Mbit)
		s.Put(0, Hedge, "request, p50, "+when, "µs", got.P50)
		s.Put(0, Hedge, "request, p99, "+when, "µs", got.P99)
	}
	return report.Settle(ctx, o.Settle, o.Say, memory)
}

// alone is a world of one node that only answers.
const alone = "alone"

type aloneNode struct{ *node.Node }

func openAlone(p Place) (nodes, error) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	n, err := node.Start(ctx, node.Config{StateDir: filepath.Join(p.Dir, "a"), Join: p.Joins[0], Name: "a", LoopbackOnly: true})
	if err != nil {
		return nil, err
	}
	if got := len(n.Status().Peers); got != p.Peers {
		_ = n.Close()
		return nil, fmt.Errorf("the node knows %d peers, not %d", got, p.Peers)
	}
	return aloneNode{n}, nil
}

func (w aloneNode) Dial(context.Context, string, uint16) (net.Conn, error) {
	return nil, fmt.Errorf("a world of one dials nobody")
}
func (w aloneNode) Close() { _ = w.Node.Close() }
func (w aloneNode) Listen(port uint16) (net.Listener, error) {
	return w.Node.Listen("tcp", fmt.Sprintf(":%d", port))
}
func (w aloneNode) ListenPacket(port uint16) (net.PacketConn, error) {
	return w.Node.ListenPacket("udp", fmt.Sprintf(":%d", port))
}

// activeRequest asks for N nodes, or has those there are talk.
type activeRequest struct {
	Dir  string `json:"dir,omitempty"`
	Join string `json:"join,omitempty"` // good many times
	N    int    `json:"n,omitempty"`
	MS   int    `json:"ms,omitempty"`
}

// activeAnswer is what came back to them.
type activeAnswer struct {
	Mbit float64 `json:"mbit"` // a second, of all
	P50  float64 `json:"p50"`  // of requests, microseconds
	P99  float64 `json:"p99"`
}

// active is nodes that talk to the node "a".
type active struct {
	nodes []*node.Node
	bulk  []net.Conn
	small []net.Conn
}

func serveActive() error {
	c := new(active)
	defer func() {
		for _, n := range c.nodes {
			_ = n.Close()
		}
	}()
	return kid.Serve(activeAnswer{}, func(q activeRequest) (activeAnswer, error) {
		if q.N > 0 {
			return activeAnswer{}, c.open(q)
		}
		if err := c.dial(); err != nil {
			return activeAnswer{}, err
		}
		return c.talk(time.Duration(q.MS) * time.Millisecond)
	})
}

func (c *active) open(q activeRequest) error {
	ctx, cancel := context.WithTimeout(context.Background(), 4*wait)
	defer cancel()
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(4)
	for i := range q.N {
		g.Go(func() error {
			name := fmt.Sprintf("active-%d", i)
			n, err := node.Start(ctx, node.Config{StateDir: filepath.Join(q.Dir, name), Join: q.Join, Name: name, LoopbackOnly: true})
			if err == nil {
				mu.Lock()
				c.nodes = append(c.nodes, n)
				mu.Unlock()
			}
			return err
		})
	}
	return g.Wait()
}

// dial connects all, once.
func (c *active) dial() error {
	if c.bulk != nil {
		return nil
	}
	c.bulk, c.small = make([]net.Conn, len(c.nodes)), make([]net.Conn, len(c.nodes))
	var g errgroup.Group
	for i, n := range c.nodes {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(context.Background(), wait)
			defer cancel()
			for _, to := range []*net.Conn{&c.bulk[i], &c.small[i]} {
				var err error
				for { // it may not have been told of "a" yet
					if *to, err = n.DialContext(ctx, "tcp", fmt.Sprintf("a:%d", port)); err == nil || ctx.Err() != nil {
						break
					}
					time.Sleep(pace)
				}
				if err != nil {
					return err
				}
				if _, err := (*to).Write([]byte{echo}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// talk sends for a while by all connections.
func (c *active) talk(d time.Duration) (a activeAnswer, err error) {
	var bytes atomic.Int64
	var mu sync.Mutex
	var took []float64
	var g errgroup.Group
	for i := range c.nodes {
		g.Go(func() error {
			return exchange(c.bulk[i], paceBytes, d, func(time.Duration) { bytes.Add(paceBytes) })
		})
		g.Go(func() error {
			return exchange(c.small[i], 64, d, func(d time.Duration) {
				mu.Lock()
				took = append(took, float64(d.Nanoseconds())/1e3)
				mu.Unlock()
			})
		})
	}
	err = g.Wait()
	return activeAnswer{Mbit: float64(bytes.Load()) * 8 / 1e6 / d.Seconds(), P50: report.Percentile(took, 50), P99: report.Percentile(took, 99)}, err
}

// exchange sends so many bytes at every pace, and has done with each when they are back.
func exchange(c net.Conn, size int, d time.Duration, done func(time.Duration)) error {
	out, in := make([]byte, size), make([]byte, size)
	end := time.Now().Add(d)
	_ = c.SetDeadline(end.Add(wait))
	t := time.NewTicker(pace)
	defer t.Stop()
	for time.Now().Before(end) {
		at := time.Now()
		if _, err := c.Write(out); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, in); err != nil {
			return err
		}
		done(time.Since(at))
		<-t.C
	}
	return nil
}
