package acl

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLint(t *testing.T) {
	for _, tt := range []struct {
		name, policy string
		want         []string
	}{
		{"nothing to say", `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:22"]}, {"action": "deny", "src": ["bob@example.com"], "dst": ["tag:db:*"]}]`, nil},
		{"shadowed", `"acls": [{"action": "accept", "src": ["bob@example.com", "tag:web"], "dst": ["dbhost:22", "tag:db:443"]}, {"action": "deny", "src": ["group:eng"], "dst": ["100.64.0.0/24:*", "tag:db:22"]}]`,
			[]string{"acls[0]: bob@example.com to dbhost is always denied by acls[1] (line 4)"}},
		{"shadowed ports", `"acls": [{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["tag:db:22"]}, {"action": "deny", "src": ["*"], "dst": ["*:1-1023"]}]`,
			[]string{"acls[0]: tag:web to tag:db is always denied by acls[1] (line 4)"}},
		{"ping is left", `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:22"]}, {"action": "deny", "src": ["*"], "dst": ["*:1-1023"]}]`, nil},
		{"unknown user", `"acls": [{"action": "deny", "src": ["bbo@example.com"], "dst": ["*:*"]}]`, []string{`acls[0]: no user of this mesh is "bbo@example.com"`}},
		{"unknown exception", `"acls": [{"action": "accept", "src": ["autogroup:member & !bbo@example.com"], "dst": ["*:*"]}]`, []string{`acls[0]: no user of this mesh is "bbo@example.com"`}},
		{"ssh", `"acls": [], "ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["group:eng"]}]`,
			[]string{"nodes run no ssh server, so ssh rules grant nothing", `ssh[0]: "group:eng" is taken as a login of that very name`}},
		{"app", `"grants": [{"src": ["*"], "dst": ["tag:db"], "app": {"example.com/x": []}}]`, []string{"grants[0]: no application of this mesh asks for capabilities, so app grants nothing but tailscale.com/cap/relay"}},
		{"relay", `"grants": [{"src": ["tag:web"], "dst": ["tag:db"], "app": {"tailscale.com/cap/relay": []}}]`, nil},
		{"relay by via", `"grants": [{"src": ["tag:web"], "dst": ["tag:db"], "via": ["tag:router"], "app": {"tailscale.com/cap/relay": []}}]`, []string{"grants[0]: a grant with via grants no capability"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, e := range mustParse(t, tt.policy).Lint(mesh()) {
				got = append(got, e.Msg)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
