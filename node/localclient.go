package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/hedge-mesh/hedge/node/hatch"
)

// LocalClient talks to the node that serves the local API on a Unix socket. It keeps no connections. Its errors are
// those of the Node's own methods, [*NotRunningError] if nobody answers, or [*RemoteError].
type LocalClient struct {
	socket string
	http   *http.Client
}

// NewLocalClient makes a client; it connects when it is used.
func NewLocalClient(socket string) *LocalClient {
	return &LocalClient{socket: socket, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return hatch.Dial(ctx, socket)
		},
	}}}
}

// Status asks for the node's Status.
func (c *LocalClient) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodGet, "/status", nil, &s)
}

// Ping asks the node to ping a peer.
func (c *LocalClient) Ping(ctx context.Context, name string) (r PingResult, err error) {
	return r, c.call(ctx, http.MethodPost, "/ping", nameRequest{name}, &r)
}

// Why asks for a verdict.
func (c *LocalClient) Why(ctx context.Context, q WhyQuery) (r WhyResult, err error) {
	return r, c.call(ctx, http.MethodPost, "/why", q, &r)
}

// PathTo asks how the node reaches a peer, and why so.
func (c *LocalClient) PathTo(ctx context.Context, name string) (r PathReport, err error) {
	return r, c.call(ctx, http.MethodPost, "/path", nameRequest{name}, &r)
}

// Netcheck asks about the network around the node.
func (c *LocalClient) Netcheck(ctx context.Context) (r Netcheck, err error) {
	return r, c.call(ctx, http.MethodGet, "/netcheck", nil, &r)
}

// IP asks for the addresses of a name, IPv4 first; the node's own for an empty one.
func (c *LocalClient) IP(ctx context.Context, name string) (a []netip.Addr, err error) {
	return a, c.call(ctx, http.MethodPost, "/ip", nameRequest{name}, &a)
}

// Set changes what the node offers to carry and which exit it uses.
func (c *LocalClient) Set(ctx context.Context, r RoutingChange) (s Status, err error) {
	return s, c.call(ctx, http.MethodPost, "/set", r, &s)
}

// Down asks the node to end, and returns when it has let go of its state.
func (c *LocalClient) Down(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/down", struct{}{}, nil)
}

// Logout asks the node to leave its mesh and end, and returns when it has let go of its state.
func (c *LocalClient) Logout(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/logout", struct{}{}, nil)
}

// Watch calls f with the Status now, and again whenever it has changed, until ctx is done, f returns false, or the
// node ends (which is no error).
func (c *LocalClient) Watch(ctx context.Context, f func(Status) bool) error {
	res, err := c.do(ctx, http.MethodGet, "/watch", nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	dec := json.NewDecoder(res.Body)
	for {
		var s Status
		if err := dec.Decode(&s); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("local API: %w", err)
		}
		if !f(s) {
			return nil
		}
	}
}

func (c *LocalClient) call(ctx context.Context, method, path string, in, out any) error {
	res, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		return fmt.Errorf("local API: read the answer: %w", err)
	}
	return nil
}

// do makes one request, whose answer is 200 or an error.
func (c *LocalClient) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var b io.Reader
	if in != nil {
		j, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		b = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+localHost+path, b)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		// A listener that closes resets who has connected and was not yet accepted.
		if errors.As(err, &op) && (op.Op == "dial" || errors.Is(op, syscall.ECONNRESET)) {
			return nil, &NotRunningError{Socket: c.socket, Err: op}
		}
		return nil, fmt.Errorf("local API: %w", err)
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	var e localError
	if err := json.NewDecoder(io.LimitReader(res.Body, maxLocalBody)).Decode(&e); err != nil {
		return nil, fmt.Errorf("local API: the answer has status %s", res.Status)
	}
	switch {
	case e.Denied != nil:
		return nil, e.Denied
	case e.Unknown != nil:
		return nil, e.Unknown
	}
	return nil, &e.RemoteError
}

// WaitRunning waits until the node enforces a policy, or says why it does not, until ctx is done. It is for whoever
// has just started one; a node that does not answer yet is waited for.
func (c *LocalClient) WaitRunning(ctx context.Context) (Status, error) {
	for {
		s, err := c.Status(ctx)
		var none *NotRunningError
		if err == nil && s.State != StateStarting || err != nil && !errors.As(err, &none) {
			return s, err
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("the node is still starting: %s: %w", s.Problem, ctx.Err())
			}
			return s, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
