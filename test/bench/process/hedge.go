package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/hedge-mesh/hedge/node"
)

// hedgeNodes is two nodes as programs embed them.
type hedgeNodes struct {
	a, b *node.Node
}

func openHedge(p Place) (_ nodes, err error) {
	w := new(hedgeNodes)
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	for i, n := range []**node.Node{&w.a, &w.b} {
		name := string(rune('a' + i))
		if *n, err = node.Start(ctx, node.Config{StateDir: filepath.Join(p.Dir, name), Join: p.Joins[i], Name: name, LoopbackOnly: true}); err != nil {
			return nil, err
		}
	}
	return w, w.ready(p)
}

// ready waits until the path between the two is direct, by asking: a bench may, unlike a test.
func (w *hedgeNodes) ready(p Place) error {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	why := errors.New("no ping was answered")
	for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if _, err := w.a.Ping(ctx, "b"); err != nil {
			why = err
			continue
		}
		s := w.a.Status()
		if rules := max(p.Rules, min(p.Peers, 2)); s.Policy.Rules != rules || len(s.Peers) != p.Peers {
			return fmt.Errorf("the node enforces %d rules and knows %d peers, not %d and %d", s.Policy.Rules, len(s.Peers), rules, p.Peers)
		}
		for _, peer := range s.Peers {
			if peer.Name == "b" && peer.Path.Kind == "direct" {
				return nil
			}
		}
		why = errors.New("there is no direct path")
	}
	return fmt.Errorf("within %v: %w", wait, why)
}

func (w *hedgeNodes) Dial(ctx context.Context, network string, port uint16) (net.Conn, error) {
	return w.a.DialContext(ctx, network, fmt.Sprintf("b:%d", port))
}

func (w *hedgeNodes) Listen(port uint16) (net.Listener, error) {
	return w.b.Listen("tcp", fmt.Sprintf(":%d", port))
}

func (w *hedgeNodes) ListenPacket(port uint16) (net.PacketConn, error) {
	return w.b.ListenPacket("udp", fmt.Sprintf(":%d", port))
}

func (w *hedgeNodes) Close() {
	for _, n := range []*node.Node{w.b, w.a} {
		if n != nil {
			_ = n.Close()
		}
	}
}
