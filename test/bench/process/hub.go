package process

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/hedge-mesh/hedge/coordinator"
	"github.com/hedge-mesh/hedge/coordinator/store"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/test/bench/crowd"
	"github.com/hedge-mesh/hedge/test/bench/kid"
)

// hubRequest asks for a mesh of so many rules and peers, of which all but one have joined and gone.
type hubRequest struct {
	Dir   string `json:"dir"`
	Rules int    `json:"rules"`
	Peers int    `json:"peers"`
	// Active has only the first of the two nodes be there, and others reach it that it is not told to have join.
	Active bool `json:"active,omitempty"`
}

// hubAnswer is what lets the two nodes join it.
type hubAnswer struct {
	Joins  [2]string `json:"joins"`
	Active string    `json:"active,omitempty"` // good many times
}

// hub is a coordinator in a process of its own.
type hub struct {
	ends []func() // in the order made
}

func serveHub() error {
	h := new(hub)
	defer func() {
		for i := len(h.ends) - 1; i >= 0; i-- {
			h.ends[i]()
		}
	}()
	return kid.Serve(hubAnswer{}, h.open)
}

func (h *hub) open(q hubRequest) (a hubAnswer, err error) {
	admin, err := h.run(q)
	if err != nil {
		return a, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*wait)
	defer cancel()
	if q.Peers > 1 {
		k, err := admin.CreateKey(ctx, coordinator.CreateKeyRequest{Tags: []string{"tag:peer"}, Reusable: true})
		if err != nil {
			return a, err
		}
		if err := crowd.Join(ctx, crowd.Request{Join: k.Join, N: q.Peers - 1}); err != nil {
			return a, err
		}
	}
	if q.Active {
		k, err := admin.CreateKey(ctx, coordinator.CreateKeyRequest{Tags: []string{"tag:active"}, Reusable: true})
		if err != nil {
			return a, err
		}
		a.Active = k.Join
	}
	for i, tag := range []string{"tag:a", "tag:b"} {
		k, err := admin.CreateKey(ctx, coordinator.CreateKeyRequest{Tags: []string{tag}})
		if err != nil {
			return a, err
		}
		a.Joins[i] = k.Join
	}
	return a, nil
}

// run starts the coordinator.
func (h *hub) run(q hubRequest) (*coordinator.AdminClient, error) {
	policy := filepath.Join(q.Dir, "acl.hujson")
	if err := os.WriteFile(policy, []byte(q.policy()), 0o600); err != nil {
		return nil, err
	}
	st := store.NewMemory() // thousands of nodes are to join, and nobody measures the disk
	h.ends = append(h.ends, func() { _ = st.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	h.ends = append(h.ends, func() { _ = l.Close() })
	srv, err := coordinator.New(coordinator.Config{
		Store: st, Control: key.NewControl(), PolicyFile: policy, URLs: []string{"http://" + l.Addr().String()},
	})
	if err != nil {
		return nil, err
	}
	h.ends = append(h.ends, func() { _ = srv.Close() })
	sock := filepath.Join(q.Dir, "admin")
	al, err := coordinator.ListenAdmin(sock)
	if err != nil {
		return nil, err
	}
	h.ends = append(h.ends, func() { _ = al.Close() })
	web := &http.Server{Handler: srv.Handler(), ReadHeaderTimeout: wait}
	h.ends = append(h.ends, func() { _ = web.Close() })
	go func() { _ = web.Serve(l) }()
	go func() { _ = srv.ServeAdmin(al) }()
	return coordinator.NewAdminClient(sock), nil
}

func (q hubRequest) policy() string {
	if q.Active {
		return knownRules(q.Rules)
	}
	return manyRules(q.Rules, q.Peers)
}

// knownRules lets who is active reach a on the port of the measurements, and has a be known to all other peers by one rule
// and to b by the rest.
func knownRules(rules int) string {
	var s strings.Builder
	s.WriteString(`{"tagOwners": {"tag:a": [], "tag:b": [], "tag:peer": [], "tag:active": []}, "acls": [
{"action": "accept", "src": ["tag:peer"], "dst": ["tag:a:9"]},` + "\n")
	for i := range rules - 2 {
		fmt.Fprintf(&s, `{"action": "accept", "src": ["tag:b"], "dst": ["tag:a:%d"]},`+"\n", port+1+i)
	}
	fmt.Fprintf(&s, `{"action": "accept", "src": ["tag:active"], "dst": ["tag:a:%d"]}]}`, port)
	return s.String()
}

// manyRules lets a reach b on the port of the measurements with the last of its rules, and, if there are others, both know
// them.
func manyRules(rules, peers int) string {
	var s strings.Builder
	s.WriteString(`{"tagOwners": {"tag:a": [], "tag:b": [], "tag:peer": []}, "acls": [` + "\n")
	if peers > 1 {
		s.WriteString(`{"action": "accept", "src": ["tag:peer"], "dst": ["tag:a:9", "tag:b:9"]},` + "\n")
		rules--
	}
	for i := range rules - 1 {
		fmt.Fprintf(&s, `{"action": "accept", "src": ["tag:a"], "dst": ["tag:b:%d"]},`+"\n", port+1+i)
	}
	fmt.Fprintf(&s, `{"action": "accept", "src": ["tag:a"], "dst": ["tag:b:%d"]}]}`, port)
	return s.String()
}
