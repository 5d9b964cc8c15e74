package acl

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

// TestCells reads policies, whom they are about, and what must come of it, decided by hand:
//
//	SRC DST PORT/PROTO RULE        allowed by the rule of this path
//	SRC DST PORT/PROTO - [RULE]    not allowed, or denied by the rule
//	at TIME                        of what follows
//
// A file "error" says what is wrong with acl.hujson; fixed/acl.hujson is then asked instead. In "approved" are nodes and
// the routes, of all that stand there, that autoApprovers lets each carry.
func TestCells(t *testing.T) {
	files, err := filepath.Glob("testdata/cells/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			in := map[string]string{}
			for _, f := range a.Files {
				in[f.Name] = string(f.Data)
			}
			p, err := Parse("acl.hujson", []byte(in["acl.hujson"]), Options{})
			if want := strings.TrimSpace(in["error"]); want != "" {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want %q", err, want)
				}
				p, err = Parse("acl.hujson", []byte(in["fixed/acl.hujson"]), Options{})
			}
			if err != nil {
				t.Fatal(err)
			}
			inv, err := ParseInventory("nodes.hujson", []byte(in["nodes.hujson"]))
			if err != nil {
				t.Fatal(err)
			}
			cells(t, mustCompile(t, p, inv), in["cells"])
			approved(t, p, inv, in["approved"])
		})
	}
}

func cells(t *testing.T, c *Program, table string) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if f[0] == "at" {
			var err error
			if now, err = time.Parse(time.RFC3339, f[1]); err != nil {
				t.Fatal(err)
			}
			continue
		}
		src, _, err := c.Find(f[0])
		if err != nil || len(src) != 1 {
			t.Fatalf("%s: %v, %v", f[0], src, err)
		}
		dst, addr, err := c.Find(f[1])
		if err != nil {
			t.Fatal(err)
		}
		if !addr.IsValid() { // a node: by the first address of a family that both have
			for _, a := range c.Node(dst[0]).Addrs {
				if slices.ContainsFunc(c.Node(src[0]).Addrs, func(b netip.Addr) bool { return b.Is4() == a.Is4() }) {
					addr = a
					break
				}
			}
		}
		portText, protoText, _ := strings.Cut(f[2], "/")
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		proto, err := ParseProto(protoText)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Why(src[0], addr, uint16(port), proto, now)
		if err != nil {
			t.Fatal(err)
		}
		want := f[3:]
		var by []string
		if !got.Allow {
			by = append(by, "-")
		}
		for _, r := range got.Rules {
			by = append(by, r.Path)
		}
		if !slices.Equal(by, want) {
			t.Errorf("%s\n  is %v: %s", strings.TrimSpace(line), by, got)
		}
	}
}

func approved(t *testing.T, p *Policy, inv *Inventory, table string) {
	var all []string
	for _, w := range strings.Fields(table) {
		if strings.Contains(w, "/") && !slices.Contains(all, w) {
			all = append(all, w)
		}
	}
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		i := slices.IndexFunc(inv.Nodes, func(n Node) bool { return n.Name == f[0] })
		if i < 0 {
			t.Fatalf("no node is called %s", f[0])
		}
		var owner *User
		for u := range inv.Users {
			if inv.Users[u].Login == inv.Nodes[i].User {
				owner = &inv.Users[u]
			}
		}
		for _, r := range all {
			if got, want := p.Approves(&inv.Nodes[i], owner, netip.MustParsePrefix(r)), slices.Contains(f[1:], r); got != want {
				t.Errorf("%s may carry %s: %v", f[0], r, got)
			}
		}
	}
}
