package acl

import (
	"testing"
	"time"
)

// who says, for each pair of nodes, by whose view the first may use the second as a peer relay.
func relaying(t *testing.T, policy string, now time.Time) map[string]bool {
	t.Helper()
	inv := mesh()
	c, err := Compile(mustParse(t, policy), inv)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for i := range inv.Nodes {
		for j := range inv.Nodes {
			a, b := &inv.Nodes[i], &inv.Nodes[j]
			x, y := c.View(a.ID), c.View(b.ID)
			at, by := MayRelay(x.Rules, x.Sets, a, b, now), MayRelay(y.Rules, y.Sets, a, b, now)
			if (at == nil) != (by == nil) {
				t.Errorf("%s says that it may use %s as a relay by %v, which says %v", a.Name, b.Name, at, by)
			}
			if at != nil {
				out[a.Name+">"+b.Name] = true
				if !c.Sees(a.ID, b.ID) {
					t.Errorf("%s may use %s as a relay, and does not see it", a.Name, b.Name)
				}
			}
			for _, dst := range b.Addrs {
				if _, ok := c.Check(a.ID, dst, 22, protoTCP); ok {
					t.Errorf("the relay grant lets %s reach %s", a.Name, b.Name)
				}
				if _, ok := c.Check(a.ID, dst, 0, protoICMP); ok {
					t.Errorf("the relay grant lets %s ping %s", a.Name, b.Name)
				}
			}
		}
	}
	return out
}

func TestRelayGrant(t *testing.T) {
	grant := func(s string) string { return `"acls": [], "grants": [` + s + `]` }
	const app = `"app": {"tailscale.com/cap/relay": []}}`
	for _, tt := range []struct {
		name, policy string
		want         []string
	}{
		{"by tag", grant(`{"src": ["tag:web"], "dst": ["tag:db"], ` + app), []string{"web1>db1", "web2>db1"}},
		{"none without", grant(``), nil},
		{"another capability", grant(`{"src": ["tag:web"], "dst": ["tag:db"], "app": {"tailscale.com/cap/drive": []}}`), nil},
		{"ended", grant(`{"src": ["tag:web"], "dst": ["tag:db"], "expires": "2020-01-01T00:00:00Z", ` + app), nil},
		{"by via", grant(`{"src": ["tag:web"], "dst": ["tag:db"], "via": ["tag:router"], ` + app), nil},
		{"own devices", grant(`{"src": ["alice@example.com"], "dst": ["autogroup:self"], ` + app), []string{"alice-laptop>alice-phone", "alice-phone>alice-laptop"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := relaying(t, tt.policy, noon)
			for _, w := range tt.want {
				if !got[w] {
					t.Errorf("%s is not granted", w)
				}
				delete(got, w)
			}
			for w := range got {
				t.Errorf("%s is granted", w)
			}
		})
	}
}

func TestRelayGrantRefused(t *testing.T) {
	_, err := Parse("acl.hujson", []byte(`{"acls": [], "tagOwners": {"tag:web": []}, "grants": [
		{"src": ["tag:web"], "dst": ["tag:web"], "app": {"tailscale.com/cap/relay": [{"port": 7}]}}]}`), Options{})
	errs := Of(err)
	if len(errs) != 1 || errs[0].Class != ClassCapability || errs[0].Pos.Line != 2 {
		t.Fatalf("got %v", err)
	}
}

// What a grant changes is told, and is a gain.
func TestRelayDiff(t *testing.T) {
	compile := func(s string) *Program {
		c, err := Compile(mustParse(t, s), mesh())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	without := compile(`"acls": []`)
	with := compile(`"acls": [], "grants": [{"src": ["tag:web"], "dst": ["tag:db"], "app": {"tailscale.com/cap/relay": []}}]`)
	d := Diff(without, with, noon)
	if len(d) != 1 || len(d[0].Gained) != 1 || d[0].Gained[0].String() != "relay" || len(d[0].Lost) != 0 {
		t.Errorf("gaining it: %+v", d)
	}
	d = Diff(with, without, noon)
	if len(d) != 1 || len(d[0].Lost) != 1 || d[0].Lost[0].String() != "relay" {
		t.Errorf("losing it: %+v", d)
	}
	if d = Diff(with, with, noon); len(d) != 0 {
		t.Errorf("nothing has changed: %+v", d)
	}
}
