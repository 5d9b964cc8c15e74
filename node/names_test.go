package node

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

// R-path: whatever names a coordinator gives out, of this node, of peers and of the mesh, a node writes its own few files and
// no others; and what is no DNS label it does not take for a name.
func TestRPath(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"plain", "../outside", "../../outside", outside, "..", ".", "", "a\x00b", "a/b", `a\b`, "-rf", strings.Repeat("x", 255), strings.Repeat("x", 70_000), "x\x1b[2J", "x\u202e"} {
		d := newDesk(t)
		sent := 0
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		d.hello = func(d *desk, m key.MachinePublic, h *wire.Hello) []any {
			m1 := d.deskMap(1, 1, map[acl.NodeID]key.NodePublic{1: h.Node, 2: key.ExchangePublic(key.NewNode())})
			m1.Self.Name, m1.Self.Domain = name, name
			if i > 0 {
				m1.Peers[0].Name, m1.Peers[0].User = name+"x", name
			}
			if sent++; sent == 2 { // it has refused the first
				cancel()
			}
			return []any{wire.Diff(nil, m1)}
		}
		c := d.config("web", "key")
		c.StateDir = filepath.Join(dir, fmt.Sprint("state", i))
		n, err := Start(ctx, c)
		cancel()
		if i == 0 && err != nil {
			t.Fatalf("a plain name is refused: %v", err)
		}
		if i > 0 && err == nil {
			t.Errorf("%.20q is taken for a name", name)
		}
		if err == nil {
			receive(t, d.acks, "Ack")
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
		d.mu.Lock()
		if sent == 0 {
			t.Errorf("%q was never sent: %v", name, err)
		}
		d.mu.Unlock()
	}
	var found []string
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); !e.IsDir() {
			found = append(found, rel)
		}
		return err
	})
	for _, f := range found {
		if f != "outside" && !slices.Contains([]string{identityFile, mapFile, namesFile, lockFile}, filepath.Base(f)) || strings.Count(f, string(filepath.Separator)) > 1 {
			t.Errorf("there is a file %s", f)
		}
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "untouched" {
		t.Errorf("the file outside: %q, %v", b, err)
	}
}
