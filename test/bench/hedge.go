package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/coordinator"
	"github.com/hedge-mesh/hedge/coordinator/store"
	"github.com/hedge-mesh/hedge/node"
	"github.com/hedge-mesh/hedge/node/key"
)

// hedgeWorld is two nodes as programs embed them, enrolled with a coordinator, under a policy of many rules.
type hedgeWorld struct {
	a, b *node.Node
	ends []func() // in the order made
}

func openHedge(rules int) (_ world, err error) {
	w := new(hedgeWorld)
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	dir, err := os.MkdirTemp("", "hedge-bench")
	if err != nil {
		return nil, err
	}
	w.ends = append(w.ends, func() { _ = os.RemoveAll(dir) })
	admin, err := w.coordinate(dir, rules)
	if err != nil {
		return nil, err
	}
	if w.a, err = w.enrol(dir, "a", admin); err != nil {
		return nil, err
	}
	if w.b, err = w.enrol(dir, "b", admin); err != nil {
		return nil, err
	}
	return w, w.ready(rules)
}

// coordinate runs a coordinator.
func (w *hedgeWorld) coordinate(dir string, rules int) (*coordinator.AdminClient, error) {
	policy := filepath.Join(dir, "acl.hujson")
	if err := os.WriteFile(policy, []byte(manyRules(rules)), 0o600); err != nil {
		return nil, err
	}
	st, err := store.OpenSQLite(filepath.Join(dir, "coordinator.db"))
	if err != nil {
		return nil, err
	}
	w.ends = append(w.ends, func() { _ = st.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w.ends = append(w.ends, func() { _ = l.Close() })
	srv, err := coordinator.New(coordinator.Config{
		Store: st, Control: key.NewControl(), PolicyFile: policy, URLs: []string{"http://" + l.Addr().String()},
	})
	if err != nil {
		return nil, err
	}
	w.ends = append(w.ends, func() { _ = srv.Close() })
	sock := filepath.Join(dir, "admin")
	al, err := coordinator.ListenAdmin(sock)
	if err != nil {
		return nil, err
	}
	w.ends = append(w.ends, func() { _ = al.Close() })
	web := &http.Server{Handler: srv.Handler(), ReadHeaderTimeout: wait}
	w.ends = append(w.ends, func() { _ = web.Close() })
	go func() { _ = web.Serve(l) }()
	go func() { _ = srv.ServeAdmin(al) }()
	return coordinator.NewAdminClient(sock), nil
}

// manyRules lets a reach b on the port of the measurements with the last of its rules.
func manyRules(n int) string {
	var s strings.Builder
	s.WriteString(`{"tagOwners": {"tag:a": [], "tag:b": []}, "acls": [` + "\n")
	for i := range n - 1 {
		fmt.Fprintf(&s, `{"action": "accept", "src": ["tag:a"], "dst": ["tag:b:%d"]},`+"\n", port+1+i)
	}
	fmt.Fprintf(&s, `{"action": "accept", "src": ["tag:a"], "dst": ["tag:b:%d"]}]}`, port)
	return s.String()
}

func (w *hedgeWorld) enrol(dir, name string, admin *coordinator.AdminClient) (*node.Node, error) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	k, err := admin.CreateKey(ctx, coordinator.CreateKeyRequest{Tags: []string{"tag:" + name}})
	if err != nil {
		return nil, err
	}
	n, err := node.Start(ctx, node.Config{StateDir: filepath.Join(dir, name), Join: k.Join, Name: name, LoopbackOnly: true})
	if err != nil {
		return nil, err
	}
	w.ends = append(w.ends, func() { _ = n.Close() })
	return n, nil
}

// ready waits until the path between the two is direct, by asking: a bench may, unlike a test.
func (w *hedgeWorld) ready(rules int) error {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if _, err := w.a.Ping(ctx, "b"); err != nil {
			continue
		}
		s := w.a.Status()
		if s.Policy.Rules != rules {
			return fmt.Errorf("the node enforces %d rules, not %d", s.Policy.Rules, rules)
		}
		if len(s.Peers) == 1 && s.Peers[0].Path.Kind == "direct" {
			return nil
		}
	}
	return errors.New("no direct path within " + wait.String())
}

func (w *hedgeWorld) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	return w.a.DialContext(ctx, "tcp", fmt.Sprintf("b:%d", port))
}

func (w *hedgeWorld) Listen(port uint16) (net.Listener, error) {
	return w.b.Listen("tcp", fmt.Sprintf(":%d", port))
}

func (w *hedgeWorld) Close() {
	for i := len(w.ends) - 1; i >= 0; i-- {
		w.ends[i]()
	}
}
