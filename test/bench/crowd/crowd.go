// Package crowd is the nodes that a bench needs to be known, and no more: they join a network for the first time, as any
// node does, and go.
package crowd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/test/bench/kid"
)

const wait = 30 * time.Second // for one node to join

// Jobs are what kids of this package do: "crowd" joins from where it is run.
var Jobs = map[string]func([]string) error{
	"crowd": func([]string) error {
		return kid.Serve(0, func(r Request) (int, error) { return r.N, Join(context.Background(), r) })
	},
}

// Request says which nodes shall join. Its answer is their number.
type Request struct {
	Join string `json:"join"` // a join string that is good many times; a secret
	N    int    `json:"n"`
}

// Join has the nodes join, and returns when all have and are gone.
func Join(ctx context.Context, r Request) error {
	j, err := wire.ParseJoin(r.Join)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range r.N {
		g.Go(func() error { return enrol(ctx, j, fmt.Sprintf("peer-%d", i)) })
	}
	return g.Wait()
}

func enrol(ctx context.Context, j wire.Join, name string) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	conn, err := wire.Dial(ctx, wire.DialConfig{URLs: j.URLs, Pin: j.Pin, Machine: key.NewMachine()})
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := conn.Send(wire.Hello{Version: wire.Version, Node: key.ExchangePublic(key.NewNode()), Disco: key.ExchangePublic(key.NewDisco()),
		Name: name, Enrol: j.Key, OS: "linux", Software: "bench"}); err != nil {
		return err
	}
	for {
		msg, err := conn.Recv()
		if err != nil {
			return errors.Join(fmt.Errorf("%s got no map: %w", name, err), ctx.Err())
		}
		switch m := msg.(type) {
		case *wire.Delta:
			return nil
		case *wire.Refused:
			return m
		}
	}
}
