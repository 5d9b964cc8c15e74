package main

import (
	"context"
	"errors"
	"time"

	"github.com/hedge-mesh/hedge/node"
)

// localTimeout bounds a question to the node next door, which answers from memory.
const localTimeout = 5 * time.Second

// local finds the node of this user. It fails if there is none.
func (a *app) local() (*node.LocalClient, error) {
	d, err := a.dirs()
	if err != nil {
		return nil, err
	}
	return node.NewLocalClient(d.nodeSocket()), nil
}

// ask asks the node next door, with a bound on the time.
func ask[T any](ctx context.Context, a *app, timeout time.Duration, f func(context.Context, *node.LocalClient) (T, error)) (T, error) {
	var none T
	c, err := a.local()
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	v, err := f(ctx, c)
	if err != nil {
		return none, err
	}
	return v, nil
}

// notRunning reports whether err says that no node answers.
func notRunning(err error) bool {
	_, ok := errors.AsType[*node.NotRunningError](err)
	return ok
}
