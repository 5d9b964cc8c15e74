package coordinator

import "context"

// AdminClient speaks to a coordinator's admin API over its unix socket. Its errors are [AdminError], or say that no
// coordinator listens there.
type AdminClient struct{ socket string }

// NewAdminClient returns a client for the socket at path. It connects for each call.
func NewAdminClient(path string) *AdminClient { return &AdminClient{socket: path} }

// Status says how the coordinator and its mesh are.
func (c *AdminClient) Status(ctx context.Context) (*AdminStatus, error) { panic("todo") }

// Nodes lists all nodes, by name.
func (c *AdminClient) Nodes(ctx context.Context) ([]NodeInfo, error) { panic("todo") }

// Node returns one node, by name or number.
func (c *AdminClient) Node(ctx context.Context, name string) (*NodeInfo, error) { panic("todo") }

// Remove ends a node's membership: its peers drop it at once, and only a new join key lets it in again.
func (c *AdminClient) Remove(ctx context.Context, name string) (*NodeInfo, error) { panic("todo") }

// Tag replaces a node's tags. A node with tags has no user.
func (c *AdminClient) Tag(ctx context.Context, name string, tags []string) (*NodeInfo, error) {
	panic("todo")
}

// Expire ends a node's key now: the node is kept, and a join key lets it in again under its name and address.
func (c *AdminClient) Expire(ctx context.Context, name string) (*NodeInfo, error) { panic("todo") }

// Users lists all users, by login.
func (c *AdminClient) Users(ctx context.Context) ([]UserInfo, error) { panic("todo") }

// CreateUser makes a user known.
func (c *AdminClient) CreateUser(ctx context.Context, r CreateUserRequest) (*UserInfo, error) {
	panic("todo")
}

// Keys lists join keys, newest first, without their secrets.
func (c *AdminClient) Keys(ctx context.Context) ([]KeyInfo, error) { panic("todo") }

// CreateKey makes a join key. The answer is the only time its secret is told.
func (c *AdminClient) CreateKey(ctx context.Context, r CreateKeyRequest) (*CreatedKey, error) {
	panic("todo")
}

// RevokeKey makes a join key void. Nodes that it let in stay.
func (c *AdminClient) RevokeKey(ctx context.Context, id string) (*KeyInfo, error) { panic("todo") }

// ACL returns the policy in force and what became of the file.
func (c *AdminClient) ACL(ctx context.Context) (*ACLInfo, error) { panic("todo") }

// SetACL proves a policy, writes it to the coordinator's policy file, and puts it in force. One that does not stand
// is an error with the class "policy", and changes nothing.
func (c *AdminClient) SetACL(ctx context.Context, src []byte) (*ACLInfo, error) { panic("todo") }

// CheckACL says what is wrong with a policy, its tests against this mesh included, and changes nothing.
func (c *AdminClient) CheckACL(ctx context.Context, src []byte) (*ACLCheck, error) { panic("todo") }
