package coordinator

import (
	"net/http"

	"github.com/hedge-mesh/hedge/acl"
)

// adminInventory tells who there is, as the policy in force is compiled for: nodes with approved routes and what is
// known of them, and users with their roles. With the policy's text it answers any question about the mesh offline.
func (s *Server) adminInventory(*http.Request) (any, error) {
	inv, _ := s.state.Load().inventory(s.now())
	return inv, nil
}

// keepsNevers refuses a change of who there is that would break a never of the policy in force: tags that one node
// then has together, or the roles of a user.
func (s *Server) keepsNevers(st *state, n *acl.Node, u *acl.User) error {
	if st.policy == nil {
		return nil
	}
	inv, _ := st.inventory(s.now())
	if n != nil {
		inv.Nodes = append(inv.Nodes, *n)
	}
	if u != nil {
		inv.Users = append(inv.Users, *u)
	}
	errs := st.policy.parsed.Prove(inv)
	if len(errs) == 0 {
		return nil
	}
	return &AdminError{Status: 409, Class: "policy", Msg: "the policy in force forbids this: " + errs[0].Msg}
}
