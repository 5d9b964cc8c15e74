package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/node/hatch"
)

// AdminClient speaks to a coordinator's admin API over its unix socket. Its errors are [AdminError], or say that no
// coordinator listens there.
type AdminClient struct{ socket string }

// NewAdminClient returns a client for the socket at path. It connects for each call.
func NewAdminClient(path string) *AdminClient { return &AdminClient{socket: path} }

func call[T any](ctx context.Context, c *AdminClient, method, path string, body []byte) (*T, error) {
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return hatch.Dial(ctx, c.socket)
	}}
	defer t.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+adminHost+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("coordinator: none is running here (nothing listens on %s): start it with: hedge coordinator", c.socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("coordinator: this user may not administer it: run as root, or as the user it runs as (%w)", err)
	case err != nil:
		return nil, fmt.Errorf("coordinator: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("coordinator: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		e := &AdminError{Status: resp.StatusCode}
		if json.Unmarshal(b, e) != nil || e.Msg == "" {
			e.Class, e.Msg = "internal", "the coordinator answers "+resp.Status
		}
		return nil, e
	}
	out := new(T)
	if err := json.Unmarshal(b, out); err != nil {
		return nil, fmt.Errorf("coordinator: its answer does not read: is it of another release? (%w)", err)
	}
	return out, nil
}

func callJSON[T any](ctx context.Context, c *AdminClient, method, path string, body any) (*T, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return call[T](ctx, c, method, path, b)
}

func list[T any](ctx context.Context, c *AdminClient, path string) ([]T, error) {
	out, err := call[[]T](ctx, c, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	return *out, nil
}

// Status says how the coordinator and its mesh are.
func (c *AdminClient) Status(ctx context.Context) (*AdminStatus, error) {
	return call[AdminStatus](ctx, c, http.MethodGet, "/status", nil)
}

// Nodes lists all nodes, by name.
func (c *AdminClient) Nodes(ctx context.Context) ([]NodeInfo, error) {
	return list[NodeInfo](ctx, c, "/nodes")
}

// Node returns one node, by name, number or address.
func (c *AdminClient) Node(ctx context.Context, name string) (*NodeInfo, error) {
	return call[NodeInfo](ctx, c, http.MethodGet, "/nodes/"+url.PathEscape(name), nil)
}

// Remove ends a node's membership: its peers drop it at once, and only a new join key lets it in again.
func (c *AdminClient) Remove(ctx context.Context, name string) (*NodeInfo, error) {
	return call[NodeInfo](ctx, c, http.MethodDelete, "/nodes/"+url.PathEscape(name), nil)
}

// Tag replaces a node's tags. A node with tags has no user.
func (c *AdminClient) Tag(ctx context.Context, name string, tags []string) (*NodeInfo, error) {
	return callJSON[NodeInfo](ctx, c, http.MethodPut, "/nodes/"+url.PathEscape(name)+"/tags", map[string][]string{"tags": tags})
}

// Routes approves and revokes routes of a node. Connections through what is no longer carried are ended at once.
func (c *AdminClient) Routes(ctx context.Context, name string, r RoutesRequest) (*NodeInfo, error) {
	return callJSON[NodeInfo](ctx, c, http.MethodPut, "/nodes/"+url.PathEscape(name)+"/routes", r)
}

// Expire ends a node's key now: the node is kept, and a join key lets it in again under its name and address.
func (c *AdminClient) Expire(ctx context.Context, name string) (*NodeInfo, error) {
	return call[NodeInfo](ctx, c, http.MethodPost, "/nodes/"+url.PathEscape(name)+"/expire", nil)
}

// Users lists all users, by login.
func (c *AdminClient) Users(ctx context.Context) ([]UserInfo, error) {
	return list[UserInfo](ctx, c, "/users")
}

// CreateUser makes a user known.
func (c *AdminClient) CreateUser(ctx context.Context, r CreateUserRequest) (*UserInfo, error) {
	return callJSON[UserInfo](ctx, c, http.MethodPost, "/users", r)
}

// Keys lists join keys, newest first, without their secrets.
func (c *AdminClient) Keys(ctx context.Context) ([]KeyInfo, error) {
	return list[KeyInfo](ctx, c, "/join-keys")
}

// CreateKey makes a join key. The answer is the only time its secret is told.
func (c *AdminClient) CreateKey(ctx context.Context, r CreateKeyRequest) (*CreatedKey, error) {
	return callJSON[CreatedKey](ctx, c, http.MethodPost, "/join-keys", r)
}

// RevokeKey makes a join key void. Nodes that it let in stay.
func (c *AdminClient) RevokeKey(ctx context.Context, id string) (*KeyInfo, error) {
	return call[KeyInfo](ctx, c, http.MethodDelete, "/join-keys/"+url.PathEscape(id), nil)
}

// ACL returns the policy in force and what became of the file.
func (c *AdminClient) ACL(ctx context.Context) (*ACLInfo, error) {
	return call[ACLInfo](ctx, c, http.MethodGet, "/acl", nil)
}

// Inventory returns who there is, as the policy in force is compiled for.
func (c *AdminClient) Inventory(ctx context.Context) (*acl.Inventory, error) {
	return call[acl.Inventory](ctx, c, http.MethodGet, "/acl/inventory", nil)
}

// SetACL proves a policy, writes it to the coordinator's policy file, and puts it in force. One that does not stand
// is an error with the class "policy", and changes nothing.
func (c *AdminClient) SetACL(ctx context.Context, src []byte) (*ACLInfo, error) {
	return call[ACLInfo](ctx, c, http.MethodPut, "/acl", src)
}

// CheckACL says what is wrong with a policy, its tests against this mesh included, and changes nothing.
func (c *AdminClient) CheckACL(ctx context.Context, src []byte) (*ACLCheck, error) {
	return call[ACLCheck](ctx, c, http.MethodPost, "/acl/check", src)
}
