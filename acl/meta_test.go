package acl

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// draft is a policy before it is text, so that tests can rewrite it in ways that must not change its meaning.
type draft struct {
	groups map[string][]string
	hosts  map[string]string
	rows   []draftRow
}

type draftRow struct {
	action, proto string
	src, dst      []string // dst without ports
	ports         string
}

func (d draft) text(t *rapid.T) string {
	type row struct {
		Action string   `json:"action"`
		Proto  string   `json:"proto,omitempty"`
		Src    []string `json:"src"`
		Dst    []string `json:"dst"`
	}
	rows := []row{}
	for _, r := range d.rows {
		w := row{r.action, r.proto, r.src, nil}
		for _, s := range r.dst {
			w.Dst = append(w.Dst, s+":"+r.ports)
		}
		rows = append(rows, w)
	}
	b, err := json.Marshal(map[string]any{
		"groups": d.groups, "hosts": d.hosts, "acls": rows,
		"tagOwners": map[string][]string{"tag:web": {}, "tag:db": {}, "tag:router": {}, "tag:exit": {}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// clone is a deep copy.
func (d draft) clone() draft {
	out := draft{groups: map[string][]string{}, hosts: map[string]string{}}
	for k, v := range d.groups {
		out.groups[k] = slices.Clone(v)
	}
	for k, v := range d.hosts {
		out.hosts[k] = v
	}
	for _, r := range d.rows {
		r.src, r.dst = slices.Clone(r.src), slices.Clone(r.dst)
		out.rows = append(out.rows, r)
	}
	return out
}

var drafts = rapid.Custom(func(t *rapid.T) draft {
	people := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"alice@example.com", "bob@example.com", "carol@example.com"}), 0, 3, rapid.ID)
	d := draft{
		groups: map[string][]string{"group:a": people.Draw(t, "a"), "group:b": people.Draw(t, "b")},
		hosts:  map[string]string{"h": "100.64.0.6", "net": "10.33.0.0/16", "half": "100.64.0.0/30"},
	}
	src := rapid.SampledFrom([]string{"*", "alice@example.com", "group:a", "group:b", "tag:web", "tag:router", "autogroup:member", "autogroup:tagged", "h", "net", "half", "fd68::/16"})
	dst := rapid.SampledFrom([]string{"*", "bob@example.com", "group:a", "tag:web", "tag:db", "autogroup:member", "h", "net", "half", "autogroup:internet", "fd68:6564:6765::6"})
	for range rapid.IntRange(0, 6).Draw(t, "rows") {
		d.rows = append(d.rows, draftRow{
			action: rapid.SampledFrom([]string{"accept", "accept", "accept", "deny"}).Draw(t, "action"),
			proto:  rapid.SampledFrom([]string{"", "", "tcp", "17"}).Draw(t, "proto"),
			src:    rapid.SliceOfN(src, 1, 3).Draw(t, "src"),
			dst:    rapid.SliceOfN(dst, 1, 3).Draw(t, "dst"),
			ports:  rapid.SampledFrom([]string{"*", "22", "80,443", "1-1024", "0-65535"}).Draw(t, "ports"),
		})
	}
	return d
})

// meaning lists every flow that the policy admits, of those worth trying.
func meaning(t *rapid.T, text string) string {
	p, err := Parse("acl.hujson", []byte(text), Options{})
	if err != nil {
		t.Fatalf("%s\n%s", text, Of(err).Render())
	}
	inv := mesh()
	c, err := Compile(p, inv)
	if err != nil {
		t.Fatal(err)
	}
	dsts := []netip.Addr{netip.MustParseAddr("10.33.1.1"), netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("2001:4860::8")}
	for _, n := range inv.Nodes {
		dsts = append(dsts, n.Addrs...)
	}
	var b strings.Builder
	for _, n := range inv.Nodes {
		fmt.Fprintf(&b, "%s sees %v\n", n.Name, c.View(n.ID).Peers)
		for _, dst := range dsts {
			if slices.Contains(n.Addrs, dst) {
				continue
			}
			for _, k := range []struct {
				proto uint8
				port  uint16
			}{{6, 22}, {6, 443}, {6, 40000}, {17, 80}, {1, 0}, {47, 0}} {
				if _, ok := c.Check(n.ID, dst, k.port, k.proto); ok {
					fmt.Fprintf(&b, "%s to %s %d/%d\n", n.Name, dst, k.port, k.proto)
				}
			}
		}
	}
	return b.String()
}

func sameMeaning(t *testing.T, rewrite func(*rapid.T, draft) draft) {
	t.Helper()
	rapid.Check(t, func(t *rapid.T) {
		d := drafts.Draw(t, "policy")
		before, after := d.text(t), rewrite(t, d.clone()).text(t)
		if a, b := meaning(t, before), meaning(t, after); a != b {
			t.Fatalf("meaning changed\nbefore %s\nafter  %s\n%s---\n%s", before, after, a, b)
		}
	})
}

func TestOrderMeansNothing(t *testing.T) {
	sameMeaning(t, func(t *rapid.T, d draft) draft {
		d.rows = rapid.Permutation(d.rows).Draw(t, "rows")
		for i := range d.rows {
			d.rows[i].src = rapid.Permutation(d.rows[i].src).Draw(t, "src")
			d.rows[i].dst = rapid.Permutation(d.rows[i].dst).Draw(t, "dst")
		}
		return d
	})
}

func TestNamesMeanNothing(t *testing.T) {
	sameMeaning(t, func(_ *rapid.T, d draft) draft {
		to := map[string]string{"group:a": "group:z", "group:b": "group:eng-2", "h": "zz", "net": "a-net", "half": "tag"}
		out := draft{groups: map[string][]string{}, hosts: map[string]string{}, rows: d.rows}
		for k, v := range d.groups {
			out.groups[to[k]] = v
		}
		for k, v := range d.hosts {
			out.hosts[to[k]] = v
		}
		for i := range out.rows {
			for _, l := range [][]string{out.rows[i].src, out.rows[i].dst} {
				for j, s := range l {
					if n, ok := to[s]; ok {
						l[j] = n
					}
				}
			}
		}
		return out
	})
}

func TestSplittingMeansNothing(t *testing.T) {
	sameMeaning(t, func(_ *rapid.T, d draft) draft {
		var rows []draftRow
		for _, r := range d.rows {
			for _, s := range r.src {
				for _, x := range r.dst {
					for _, p := range strings.Split(r.ports, ",") {
						rows = append(rows, draftRow{r.action, r.proto, []string{s}, []string{x}, p})
					}
				}
			}
		}
		d.rows = rows
		return d
	})
}

func TestInliningMeansNothing(t *testing.T) {
	sameMeaning(t, func(_ *rapid.T, d draft) draft {
		inline := func(l []string) []string {
			var out []string
			for _, s := range l {
				switch {
				case d.groups[s] != nil:
					out = append(out, d.groups[s]...)
				case d.hosts[s] != "":
					out = append(out, d.hosts[s])
				default:
					out = append(out, s)
				}
			}
			return out
		}
		for i := range d.rows {
			d.rows[i].src, d.rows[i].dst = inline(d.rows[i].src), inline(d.rows[i].dst)
		}
		return d
	})
}

// More accepts admit no less, and more denies no more.
func TestMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, extra := drafts.Draw(t, "policy"), drafts.Draw(t, "extra")
		action := rapid.SampledFrom([]string{"accept", "deny"}).Draw(t, "action")
		more := d.clone()
		for _, r := range extra.rows {
			r.action = action
			more.rows = append(more.rows, r)
		}
		flows := func(s string) []string {
			return slices.DeleteFunc(strings.Split(s, "\n"), func(l string) bool { return !strings.Contains(l, " to ") })
		}
		less, big := flows(meaning(t, d.text(t))), flows(meaning(t, more.text(t)))
		if action == "deny" {
			less, big = big, less
		}
		for _, f := range less {
			if _, ok := slices.BinarySearch(big, f); !ok && !slices.Contains(big, f) {
				t.Fatalf("%s: only the smaller policy admits %s\n%s\n%s", action, f, d.text(t), more.text(t))
			}
		}
	})
}

// Whatever Check admits between two nodes, both ends' views hold the rule that says so.
func TestViewsHoldTheRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drafts.Draw(t, "policy")
		p, err := Parse("acl.hujson", []byte(d.text(t)), Options{})
		if err != nil {
			t.Fatal(err)
		}
		inv := mesh()
		c, err := Compile(p, inv)
		if err != nil {
			t.Fatal(err)
		}
		has := func(id NodeID, path string) bool {
			return slices.ContainsFunc(c.View(id).Rules, func(r Rule) bool { return r.Path == path })
		}
		for _, a := range inv.Nodes {
			for _, b := range inv.Nodes {
				if a.ID == b.ID {
					continue
				}
				if slices.Contains(c.View(a.ID).Peers, b.ID) != slices.Contains(c.View(b.ID).Peers, a.ID) {
					t.Fatalf("only one of %s and %s sees the other\n%s", a.Name, b.Name, d.text(t))
				}
				for _, dst := range b.Addrs {
					r, ok := c.Check(a.ID, dst, 22, protoTCP)
					if ok && (!has(a.ID, r.Path) || !has(b.ID, r.Path) || !slices.Contains(c.View(a.ID).Peers, b.ID)) {
						t.Fatalf("%s to %s by %s, which a view lacks\n%s", a.Name, b.Name, r.Path, d.text(t))
					}
				}
			}
		}
	})
}
